# SPDX-License-Identifier: Apache-2.0
"""Intervals over seeds, and the paired comparison of two methods on the same test images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Estimate", "Pair", "auroc_difference", "over_seeds"]

Floats = npt.NDArray[np.float64]
RESAMPLES = 2000


class Estimate(NamedTuple):
    """A number with its 95 % interval; without bounds where there is none."""

    value: float
    low: float | None = None
    high: float | None = None


class Pair(NamedTuple):
    """Scores of two methods on one data set's test images, a row for each seed."""

    labels: npt.NDArray[np.int64]  # [N], 0 normal or 1 abnormal
    first: Floats  # [S, N]
    second: Floats  # [T, N]


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean and the interval of Student's t, of numbers of runs that differ by their seed alone.

    Without bounds for one seed, and where all seeds give the same number: what varies there is not the seed.

    >>> [round(x, 2) for x in over_seeds([0.8, 0.9])]
    [0.85, 0.21, 1.49]
    """
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if array.size < 2 or array.max() == array.min():
        return Estimate(mean)
    from scipy.stats import t as student_t  # of an extra: the command says so where it is missing

    half = float(student_t.ppf(0.975, array.size - 1) * array.std(ddof=1) / math.sqrt(array.size))
    return Estimate(mean, mean - half, mean + half)


def auroc_difference(pairs: Sequence[Pair], *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """AUROC of the first method less that of the second, mean over the data sets, with a paired bootstrap interval.

    A method's AUROC is the mean of its seeds'. Each resample draws each data set's test images anew, within each class,
    and both methods and all seeds are measured on what was drawn.

    >>> better = Pair(np.array([0, 0, 1, 1]), np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([[1.0, 3.0, 2.0, 4.0]]))
    >>> auroc_difference([better]).value
    0.25
    """
    values, drawn = [], np.zeros(resamples)
    for pair, stream in zip(pairs, np.random.SeedSequence(seed).spawn(len(pairs)), strict=True):
        wins = _wins(pair.labels, pair.first) - _wins(pair.labels, pair.second)
        values.append(wins.mean())
        drawn += np.concatenate(list(_resampled(wins, np.random.default_rng(stream), resamples))) / len(pairs)
    low, high = np.percentile(drawn, [2.5, 97.5])
    value = float(np.mean(values))
    return Estimate(value, min(float(low), value), max(float(high), value))


def _wins(labels: npt.NDArray[np.int64], scores: Floats) -> Floats:
    """[abnormal, normal]: how often, over the seeds, the abnormal image has the higher score; a tie counts one half.

    The mean of this table is the mean AUROC of the seeds (Mann and Whitney, 1947), weighted or not.
    """
    table = np.zeros((int(np.sum(labels == 1)), int(np.sum(labels == 0))))
    for row in scores:
        difference = row[labels == 1][:, None] - row[labels == 0][None, :]
        table += 0.5 * (np.sign(difference) + 1.0)
    return table / len(scores)


def _resampled(table: Floats, generator: np.random.Generator, resamples: int) -> Iterator[Floats]:
    """Means of `table` with its rows and columns drawn with replacement; in parts, for the sake of memory."""
    rows, columns = table.shape
    for start in range(0, resamples, 200):
        count = min(200, resamples - start)
        by_row = generator.multinomial(rows, np.full(rows, 1 / rows), size=count)
        by_column = generator.multinomial(columns, np.full(columns, 1 / columns), size=count)
        yield np.einsum("rj,rj->r", by_row @ table, by_column) / (rows * columns)
