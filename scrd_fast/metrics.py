# SPDX-License-Identifier: Apache-2.0
"""How well scores and maps separate abnormal from normal images, each number with a 95 % interval.

Everything is a pure function of arrays. Labels are 0 (normal) or 1 (abnormal); a higher score is more
abnormal. `f1` and `accuracy` of `image_metrics` use an oracle threshold, the one that maximises F1 on these
very labels, as the tables of papers do; `at_threshold` takes a threshold that was fixed beforehand.

Intervals are percentile intervals of a bootstrap stratified by class. A number that every resample
reproduces (an AUROC of exactly 1) gets an interval without width: the bootstrap cannot see what the sample
does not show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from scrd_fast.errors import MissingExtraError

__all__ = [
    "Interval",
    "at_threshold",
    "bootstrap",
    "image_intervals",
    "image_metrics",
    "pixel_metrics",
    "roc_points",
    "threshold_intervals",
]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
Statistic = Callable[[npt.NDArray[Any]], dict[str, FloatArray]]  # weights [R, N] -> name: [R]

RESAMPLES = 1000
FPR_LIMIT = 0.3  # the customary end of the AUPRO integral (Bergmann et al., MVTec AD, IJCV 2021)
MAP_LEVELS = 4096
CHUNK_ELEMENTS = 1 << 20  # of one temporary array of the bootstrap: 8 MB


class Interval(TypedDict):
    """A number and its 95 % interval; `low` and `high` are None where no interval was asked for."""

    value: float
    low: float | None
    high: float | None


def image_metrics(labels: npt.ArrayLike, scores: npt.ArrayLike) -> dict[str, float]:  # [N], [N]
    """`auroc`, `auprc` (average precision), and `f1`, `accuracy` at `oracle_threshold`.

    The oracle threshold is the highest that maximises F1 on these labels. As everywhere in this package, a
    score above it is abnormal, so it is the largest score that is still called normal.
    Raises ValueError for labels other than 0 and 1, a missing class, a score that is not finite;
    MissingExtraError without scikit-learn.

    >>> image_metrics([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])["auroc"]
    0.75
    """
    positive, values = _checked(labels, scores)
    try:
        from sklearn.metrics import average_precision_score, roc_auc_score
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "model") from error
    counts = _counts(positive, values, _once(positive.size))
    best = int(np.argmax(_f1(counts)[0]))
    normal = counts.thresholds[best + 1 :]
    # Where everything is flagged, the threshold is the next number below the smallest score.
    threshold = normal[0] if normal.size else np.nextafter(counts.thresholds[best], -np.inf)
    return {
        "auroc": float(roc_auc_score(positive, values)),
        "auprc": float(average_precision_score(positive, values)),
        "f1": float(_f1(counts)[0, best]),
        "accuracy": float(_accuracy(counts)[0, best]),
        "oracle_threshold": float(threshold),
    }


def image_intervals(
    labels: npt.ArrayLike, scores: npt.ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Interval]:
    """`auroc`, `auprc`, `f1`, `accuracy` of `image_metrics` with intervals.

    Each resample looks for its own oracle threshold, so the intervals of `f1` and `accuracy` hold the luck of
    that search too.
    """
    positive, values = _checked(labels, scores)
    value = image_metrics(positive, values)

    def statistic(weights: npt.NDArray[Any]) -> dict[str, FloatArray]:
        counts = _counts(positive, values, weights)
        f1 = _f1(counts)
        best = np.argmax(f1, axis=1)[:, None]
        return {
            "auroc": _auroc(counts),
            "auprc": _auprc(counts),
            "f1": np.take_along_axis(f1, best, axis=1)[:, 0],
            "accuracy": np.take_along_axis(_accuracy(counts), best, axis=1)[:, 0],
        }

    return _with_bounds(value, bootstrap(statistic, positive, seed=seed, resamples=resamples))


def at_threshold(labels: npt.ArrayLike, scores: npt.ArrayLike, threshold: float) -> dict[str, float]:
    """`f1`, `accuracy`, `sensitivity`, `specificity` where a score above `threshold` counts as abnormal.

    >>> at_threshold([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], 0.35)["sensitivity"]
    0.5
    """
    positive, values = _checked(labels, scores)
    statistics = _confusion(positive, values > threshold, _once(positive.size))
    return {name: float(value[0]) for name, value in statistics.items()}


def threshold_intervals(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    threshold: float,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Interval]:
    """The numbers of `at_threshold` with intervals. The threshold stays fixed in every resample."""
    positive, values = _checked(labels, scores)
    flagged = values > threshold
    bounds = bootstrap(lambda weights: _confusion(positive, flagged, weights), positive, seed=seed, resamples=resamples)
    return _with_bounds(at_threshold(positive, values, threshold), bounds)


def roc_points(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """False-positive and true-positive rates of the ROC curve, from (0, 0) to (1, 1), one point per score.

    >>> roc_points([0, 1], [1.0, 2.0])
    (array([0., 0., 1.]), array([0., 1., 1.]))
    """
    positive, values = _checked(labels, scores)
    counts = _counts(positive, values, _once(positive.size))
    tpr, fpr = counts.tp[0] / counts.tp[0, -1], counts.fp[0] / counts.fp[0, -1]
    return np.concatenate([[0.0], fpr]), np.concatenate([[0.0], tpr])


def bootstrap(
    statistic: Statistic, groups: BoolArray, *, seed: int = 0, resamples: int = RESAMPLES, width: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of `statistic`, resampling each of the two groups by itself.

    `statistic` gets weights [R, N], how often each of the N items was drawn in each of R resamples, and
    returns arrays [R]. `width` is the number of elements it needs per resample beyond N, which bounds R.
    """
    step = max(1, CHUNK_ELEMENTS // max(groups.size, width))
    chunks = [statistic(weights) for weights in _draws(groups, seed, resamples, step)]
    bounds = {}
    for name in chunks[0]:
        low, high = np.percentile(np.concatenate([chunk[name] for chunk in chunks]), [2.5, 97.5])
        bounds[name] = (float(low), float(high))
    return bounds


def _draws(groups: BoolArray, seed: int, resamples: int, step: int) -> Iterator[npt.NDArray[np.int64]]:
    """Weights [R, N] of a stratified bootstrap, at most `step` resamples at a time.

    Each group has a random stream of its own, so `step` changes nothing in what is drawn.
    """
    members = [np.flatnonzero(groups == side) for side in (False, True)]
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2)]
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        weights = np.zeros((rows, groups.size), dtype=np.int64)
        for items, stream in zip(members, streams, strict=True):
            if not items.size:
                continue
            drawn = stream.integers(items.size, size=(rows, items.size))
            drawn += np.arange(rows)[:, None] * items.size
            counts = np.bincount(drawn.ravel(), minlength=rows * items.size)
            weights[:, items] = counts.reshape(rows, items.size)
        yield weights


def _with_bounds(values: dict[str, float], bounds: dict[str, tuple[float, float]]) -> dict[str, Interval]:
    """Join values and bounds. A percentile interval of a biased statistic (the largest F1) can miss the value
    itself in small samples; it is then widened to hold it."""
    return {
        name: {"value": values[name], "low": min(low, values[name]), "high": max(high, values[name])}
        for name, (low, high) in bounds.items()
    }


def _checked(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[BoolArray, FloatArray]:
    label, score = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if label.ndim != 1 or label.shape != score.shape:
        raise ValueError(f"labels and scores must be [N] each, got {label.shape} and {score.shape}")
    if not np.isin(label, (0, 1)).all():
        raise ValueError("labels must be 0 (normal) or 1 (abnormal)")
    if not np.isfinite(score).all():
        raise ValueError(f"scores must be finite, got {int((~np.isfinite(score)).sum())} that are not")
    positive = label.astype(bool)
    if positive.all() or not positive.any():
        found = "none" if not positive.size else "abnormal only" if positive[0] else "normal only"
        raise ValueError(f"labels must hold both classes, got {found}")
    return positive, score


def _once(size: int) -> npt.NDArray[np.int64]:
    return np.ones((1, size), dtype=np.int64)


class _Counts(NamedTuple):
    """Weights of the flagged items at each threshold, from the highest down: tp, fp [R, J]; thresholds [J].

    Column j flags the scores that are at or above thresholds[j]; the last column flags all.
    """

    tp: npt.NDArray[Any]
    fp: npt.NDArray[Any]
    thresholds: FloatArray


def _counts(positive: BoolArray, scores: FloatArray, weights: npt.NDArray[Any]) -> _Counts:
    order = np.argsort(-scores, kind="stable")
    ranked, positive, weights = scores[order], positive[order], weights[:, order]
    # Equal scores cross a threshold together: only the last of each run is a point of the curve.
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    tp = np.cumsum(weights * positive, axis=1)[:, ends]
    fp = np.cumsum(weights * ~positive, axis=1)[:, ends]
    return _Counts(tp, fp, ranked[ends])


def _auroc(counts: _Counts) -> FloatArray:
    tp, fp = counts.tp, counts.fp
    above = tp - np.diff(tp, axis=1, prepend=0) / 2.0  # ties count one half
    area = np.sum(np.diff(fp, axis=1, prepend=0) * above, axis=1)
    return np.asarray(area / (tp[:, -1] * fp[:, -1]), dtype=np.float64)


def _auprc(counts: _Counts) -> FloatArray:
    tp, fp = counts.tp, counts.fp
    # Nothing drawn yet above this threshold: the step is 0, whatever the precision.
    precision = tp / np.maximum(tp + fp, 1)
    return np.asarray(np.sum(np.diff(tp, axis=1, prepend=0) * precision, axis=1) / tp[:, -1])


def _f1(counts: _Counts) -> FloatArray:
    return np.asarray(2.0 * counts.tp / (counts.tp + counts.fp + counts.tp[:, -1:]))


def _accuracy(counts: _Counts) -> FloatArray:
    negatives, positives = counts.fp[:, -1:], counts.tp[:, -1:]
    return np.asarray((counts.tp + negatives - counts.fp) / (positives + negatives))


def _confusion(positive: BoolArray, flagged: BoolArray, weights: npt.NDArray[Any]) -> dict[str, FloatArray]:
    tp, fp = weights @ (positive & flagged), weights @ (~positive & flagged)
    positives, negatives = weights @ positive, weights @ ~positive
    return {
        "f1": np.asarray(2.0 * tp / (tp + fp + positives)),
        "accuracy": np.asarray((tp + negatives - fp) / (positives + negatives)),
        "sensitivity": np.asarray(tp / positives),
        "specificity": np.asarray((negatives - fp) / negatives),
    }


def pixel_metrics(
    maps: Sequence[npt.NDArray[Any]],  # N x [H, W]
    masks: Sequence[npt.NDArray[Any]],  # N x [H, W]
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    levels: int = MAP_LEVELS,
) -> dict[str, Interval]:
    """Pixel `auroc`, `aupro` and best `dice` over all images, with intervals over images.

    `aupro`: the mean share of each lesion (8-connected region of a mask) that is found, integrated over the
    false-positive rate of the background pixels from 0 to 0.3 and divided by 0.3 (Bergmann et al., 2021).
    `dice`: 2 tp / (2 tp + fp + fn) over the pixels of all images, at the oracle threshold that maximises it.

    The numbers are exact for the maps rounded down to a float grid that leaves at most `levels` values
    (see `_grid`), so memory is N * levels * 12 bytes. The AUROC of the maps themselves differs by at most
    half the share of (lesion, background) pixel pairs that fall on one grid value.
    Raises ValueError for shapes that differ, a map that is not finite, masks without lesion or background.
    """
    _check_maps(maps, masks)
    table, shift = _grid(maps, levels)
    # Column 0 is the highest level, so that a cumulative sum runs from the hottest pixels down.
    shape = (len(maps), int(table.max()) + 1)
    lesion, background, regions = (np.zeros(shape, dtype=np.float32) for _ in range(3))
    region_counts = np.zeros(shape[0], dtype=np.float64)
    for i, (image_map, mask) in enumerate(zip(maps, masks, strict=True)):
        level = table[_float_keys(image_map) >> shift]
        inside = np.asarray(mask, dtype=bool)
        share, region_counts[i] = _region_shares(inside)
        lesion[i] = np.bincount(level[inside], minlength=shape[1])
        background[i] = np.bincount(level[~inside], minlength=shape[1])
        regions[i] = np.bincount(level[inside], weights=share[inside], minlength=shape[1])

    def statistic(weights: npt.NDArray[Any]) -> dict[str, FloatArray]:
        # float32 would round the sums of an image set at 2^24 pixels; the value itself takes no such loss.
        tp, fp, found = (np.cumsum(_weighted(weights, table), axis=1) for table in (lesion, background, regions))
        counts = _Counts(tp, fp, np.empty(0))
        return {
            "auroc": _auroc(counts),
            "aupro": _limited_area(fp / fp[:, -1:], found / (weights @ region_counts)[:, None]),
            "dice": np.max(_f1(counts), axis=1),
        }

    with_lesion = region_counts > 0
    value = {name: float(array[0]) for name, array in statistic(_once(len(maps))).items()}
    return _with_bounds(value, bootstrap(statistic, with_lesion, seed=seed, resamples=resamples, width=8 * shape[1]))


def _weighted(weights: npt.NDArray[Any], table: npt.NDArray[np.float32]) -> FloatArray:
    """weights [R, N] times table [N, U] as float64 [R, U]; a single row is summed exactly."""
    if weights.shape[0] == 1:
        return np.asarray(np.einsum("rn,nu->ru", weights.astype(np.float64), table, dtype=np.float64))
    return np.asarray(weights.astype(np.float32) @ table, dtype=np.float64)


def _check_maps(maps: Sequence[npt.NDArray[Any]], masks: Sequence[npt.NDArray[Any]]) -> None:
    if len(maps) != len(masks) or not len(maps):
        raise ValueError(f"maps and masks must be equally many, at least one, got {len(maps)}, {len(masks)}")
    lesion = background = 0
    for i, (image_map, mask) in enumerate(zip(maps, masks, strict=True)):
        if image_map.ndim != 2 or image_map.shape != mask.shape:
            raise ValueError(f"maps and masks must be [H, W] alike, got {image_map.shape}, {mask.shape} at {i}")
        if not np.isfinite(image_map).all():
            raise ValueError(f"maps must be finite, got NaN or infinity at {i}")
        inside = int(np.count_nonzero(mask))
        lesion, background = lesion + inside, background + mask.size - inside
    if not lesion or not background:
        raise ValueError(f"masks must hold lesion and background pixels, got {lesion} and {background}")


def _float_keys(values: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """Integers that sort as the float32 values do (Herf, "Radix Tricks", 2001)."""
    # Adding zero turns -0.0 into 0.0: they are equal and must get one key.
    bits = (np.ascontiguousarray(values, dtype=np.float32) + np.float32(0.0)).view(np.uint32)
    return np.asarray(np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000)), dtype=np.uint32)


def _grid(maps: Sequence[npt.NDArray[Any]], levels: int) -> tuple[npt.NDArray[np.int32], int]:
    """The finest grid of float32 values, cut after some mantissa bits, with at most `levels` values in use.

    Returns table [2^(32 - shift)], key >> shift -> level, where level 0 is the highest value in use.
    """
    shift = 8  # 15 mantissa bits at most: the flags below then take 16 MB
    used = np.zeros(1 << (32 - shift), dtype=bool)
    for image_map in maps:
        used[_float_keys(image_map) >> shift] = True
    while np.count_nonzero(used) > levels:
        used = used[::2] | used[1::2]
        shift += 1
    rank = np.cumsum(used, dtype=np.int32)
    return rank[-1] - rank, shift


def _region_shares(mask: BoolArray) -> tuple[FloatArray, int]:
    """For every pixel 1 / (pixels of its region) [H, W], 0 outside; and the number of regions."""
    try:
        from scipy import ndimage
    except ImportError as error:
        raise MissingExtraError("scipy", "model") from error
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1).astype(np.float64)
    share = 1.0 / np.maximum(sizes, 1.0)
    share[0] = 0.0
    return np.asarray(share[labels]), int(count)


def _limited_area(x: FloatArray, y: FloatArray, limit: float = FPR_LIMIT) -> FloatArray:
    """Area under curves y(x) [R, J] from (0, 0) to x = `limit`, by trapezoids, divided by `limit`."""
    start = np.zeros((x.shape[0], 1))
    x0, y0 = np.hstack([start, x[:, :-1]]), np.hstack([start, y[:, :-1]])
    end = np.minimum(x, limit)
    # Where the curve crosses the limit, the last trapezoid is cut there; a vertical step has no width.
    part = (end - x0) / np.where(x > x0, x - x0, 1.0)
    crossing = y0 + (y - y0) * part
    area = np.maximum(end - x0, 0.0) * (y0 + crossing) / 2.0
    return np.asarray(area.sum(axis=1) / limit)
