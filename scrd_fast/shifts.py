# SPDX-License-Identifier: Apache-2.0
"""How far one sample lies from another: a distance with its interval, a test, and the population stability index.

The distance is the largest difference of two distribution functions for numbers (Kolmogorov-Smirnov), and the total
variation for words: half the sum of the differences of their shares. Both are 0 for one distribution and 1 for two
that share nothing.

In small samples both are too large, those of resampled samples even more so: between two samples of one distribution
the percentiles of resampled distances hold the true one, 0, never. So not the distance is resampled but how far off it
can be: the distance of the resampled difference from the observed one. It is never smaller than the error of the
distance (by the triangle inequality), and the interval reaches that far to both sides.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scrd_fast.errors import MissingExtraError

__all__ = ["LEAST", "Shift", "adjusted", "chance_psi", "compare_counts", "compare_numbers", "psi_edges"]

LEAST = 5  # values of a sample that can be compared
RESAMPLES = 499  # of the bootstrap
TABLES = 9999  # random ones, of the test of counts
BINS = 10  # of the population stability index; fewer where the reference has fewer than 10 values for each
WORDS = 20  # the others, which are rarest, count as one
_SEED = 0  # the same samples give the same numbers
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shift:
    """Two samples of `n` and `n_reference` values, compared.

    `effect` is the distance, `low` to `high` its 95 % interval, `p` the chance of so large a distance, or statistic,
    between samples of one distribution. `psi` is the population stability index, `psi_chance` what it stays below in
    95 % of such samples.
    """

    n: int
    n_reference: int
    effect: float
    low: float
    high: float
    p: float
    psi: float
    psi_chance: float


def compare_numbers(values: npt.ArrayLike, reference: npt.ArrayLike) -> Shift:
    """By the distance and the test of Kolmogorov and Smirnov; of each sample at least `LEAST` finite values.

    The order of the values does not matter. Raises ValueError for fewer, `MissingExtraError` without scipy.

    >>> shift = compare_numbers(range(50, 150), range(100))
    >>> shift.effect, shift.p < 1e-9, shift.low < 0.5 < shift.high
    (0.5, True, True)
    """
    stats = _scipy_stats()
    new, old = (_sample(x, name) for x, name in ((values, "values"), (reference, "reference")))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="ks_2samp: Exact calculation")  # of large samples it approximates
        test = stats.ks_2samp(new, old)
    _, codes = np.unique(np.concatenate([new, old]), return_inverse=True)

    def size(difference: _Floats) -> _Floats:  # of shares of levels
        return np.asarray(np.abs(np.cumsum(difference, axis=-1)).max(axis=-1))

    effect = float(test.statistic)
    low, high = _interval(effect, codes[: len(new)], codes[len(new) :], size)
    edges = psi_edges(old)
    binned = [np.bincount(np.searchsorted(edges, x), minlength=len(edges) + 1) for x in (new, old)]
    return Shift(len(new), len(old), effect, low, high, float(test.pvalue), *_psi(*binned))


def compare_counts(counts: Mapping[str, int], reference: Mapping[str, int]) -> Shift:
    """How often each word was seen: by total variation, and by chi-square among random tables of the same sums.

    Raises as `compare_numbers` does.

    >>> shift = compare_counts({"CT": 50}, {"CT": 50, "MR": 50})
    >>> shift.effect, shift.p < 0.001
    (0.5, True)
    """
    stats = _scipy_stats()
    table = _table(counts, reference)
    sums = table.sum(axis=1)
    if sums.min() < LEAST:
        raise ValueError(f"counts and reference must hold at least {LEAST} words each, got {sums.tolist()}")

    def size(difference: _Floats) -> _Floats:
        return np.asarray(np.abs(difference).sum(axis=-1) / 2)

    new, old = (np.repeat(np.arange(table.shape[1]), row) for row in table)
    effect = float(size(table[0] / sums[0] - table[1] / sums[1]))
    low, high = _interval(effect, new, old, size)
    return Shift(int(sums[0]), int(sums[1]), effect, low, high, _chance(stats, table), *_psi(*table))


def _table(counts: Mapping[str, int], reference: Mapping[str, int]) -> npt.NDArray[np.int64]:
    """[2, words], the most frequent first."""
    words = sorted({*counts, *reference}, key=lambda word: (-counts.get(word, 0) - reference.get(word, 0), word))
    full = np.array([[row.get(word, 0) for word in words] for row in (counts, reference)], dtype=np.int64)
    return np.hstack([full[:, :WORDS], full[:, WORDS:].sum(axis=1, keepdims=True)]) if len(words) > WORDS else full


def _chance(stats: Any, table: npt.NDArray[np.int64]) -> float:
    """The share of tables with these sums whose chi-square is as large."""
    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] < 2:
        return 1.0
    found = stats.chi2_contingency(table, correction=False)
    drawn = stats.random_table(table.sum(axis=1), table.sum(axis=0)).rvs(TABLES, random_state=_generator())
    others = ((drawn - found.expected_freq) ** 2 / found.expected_freq).sum(axis=(1, 2))
    return float((1 + np.count_nonzero(others >= found.statistic * (1 - 1e-9))) / (1 + TABLES))


def _shares(codes: npt.NDArray[Any], count: int) -> _Floats:
    """[..., n] codes below `count` to [..., count] shares of each code."""
    rows = codes.reshape(-1, codes.shape[-1]).astype(np.intp)
    places = rows + count * np.arange(len(rows))[:, None]
    found = np.bincount(places.ravel(), minlength=count * len(rows)).reshape(*codes.shape[:-1], count)
    return np.asarray(found / codes.shape[-1])


def _interval(
    effect: float, new: npt.NDArray[Any], old: npt.NDArray[Any], size: Callable[[_Floats], _Floats]
) -> tuple[float, float]:
    """95 %, of codes from 0; `size` makes a distance of differences of shares."""
    count = 1 + int(max(new.max(), old.max()))
    seen = _shares(new, count) - _shares(old, count)

    def error(a: npt.NDArray[Any], b: npt.NDArray[Any], axis: int) -> _Floats:
        assert axis == -1
        return size(_shares(a, count) - _shares(b, count) - seen)

    found = _scipy_stats().bootstrap(
        (new, old),
        error,
        vectorized=True,
        axis=-1,
        method="percentile",
        n_resamples=RESAMPLES,
        batch=50,
        random_state=_generator(),
    )
    unseen = 1 - 0.05 ** (1 / min(len(new), len(old)))  # the share that values may have which n draws did not show
    most = max(float(np.quantile(found.bootstrap_distribution, 0.95)), unseen)
    return max(effect - most, 0.0), min(effect + most, 1.0)


def psi_edges(reference: _Floats) -> _Floats:
    """Inner edges of bins that hold about as many values of the reference each; a value on an edge lies below it.

    Ten bins, fewer of less than 100 values and where values tie, and never none.

    >>> psi_edges(np.arange(30.0)).round(2).tolist(), psi_edges(np.zeros(30)).tolist()
    ([9.67, 19.33], [0.0])
    """
    bins = min(max(len(reference) // 10, 2), BINS)
    return np.unique(np.quantile(reference, np.arange(1, bins) / bins))


def _psi(counts: npt.NDArray[np.int64], reference: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Half a value is added to every bin, so that an empty one gives no infinite index; and what chance makes."""
    new, old = ((c + 0.5) / (c.sum() + 0.5 * len(c)) for c in (counts, reference))
    return float(((new - old) * np.log(new / old)).sum()), chance_psi(counts.sum(), reference.sum(), len(counts))


def chance_psi(n: int, n_reference: int, bins: int) -> float:
    """What the index of two samples of one distribution stays below with a chance of 95 %.

    It is about (1 / n + 1 / n_reference) times a chi-square of bins - 1 degrees of freedom (Yurdakul and Naranjo,
    "Statistical Properties of the Population Stability Index", 2020): of 30 and 100 values in 10 bins it reaches 0.73,
    where rules of thumb speak of a large shift from 0.25.

    >>> round(chance_psi(30, 100, 10), 2), round(chance_psi(1000, 1000, 10), 2)
    (0.73, 0.03)
    """
    if bins < 2:
        return 0.0
    return float(_scipy_stats().chi2.ppf(0.95, bins - 1) * (1 / n + 1 / n_reference))


def adjusted(chances: list[float]) -> list[float]:
    """Holm's: compared with 5 % one by one, they find in 5 % of cases a shift where there is none, all together.

    >>> adjusted([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(chances, kind="stable")
    scaled = np.array(chances)[order] * np.arange(len(chances), 0, -1)
    result = np.empty(len(chances))
    result[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(x) for x in result]


def _sample(values: npt.ArrayLike, name: str) -> _Floats:
    array = np.sort(np.asarray(values, dtype=np.float64))
    if array.ndim != 1 or len(array) < LEAST or not np.isfinite(array).all():
        raise ValueError(f"{name} must be at least {LEAST} finite numbers, got {array.size} of shape {array.shape}")
    return array


def _generator() -> np.random.Generator:
    return np.random.default_rng(_SEED)


def _scipy_stats() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise MissingExtraError("scipy", "model") from error
    return stats
