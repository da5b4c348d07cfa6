# SPDX-License-Identifier: Apache-2.0
"""Image and pixel metrics against hand-computed cases, scikit-learn and plain loops."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from sklearn import metrics as sk

from scrd_fast import metrics
from scrd_fast.errors import MissingExtraError
from scrd_fast.metrics import (
    at_threshold,
    bootstrap,
    image_intervals,
    image_metrics,
    pixel_metrics,
    roc_points,
    threshold_intervals,
)

# Sums of at most 10^5 terms of double precision: 1e-16 * sqrt(1e5) is 3e-14.
EXACT = 1e-13

LABELLED = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8)), min_size=2, max_size=40).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)


def sample(normal: int, abnormal: int, *, seed: int = 0, steps: int = 0) -> tuple[npt.NDArray[Any], ...]:
    """Labels and overlapping scores; `steps` > 0 rounds the scores, so that many are equal."""
    random = np.random.default_rng(seed)
    labels = np.r_[np.zeros(normal, int), np.ones(abnormal, int)]
    scores = random.normal(size=labels.size) + labels
    return labels, np.round(scores * steps) / steps if steps else scores


# Image metrics


def test_by_hand() -> None:
    labels, scores = [0, 0, 1, 0, 1, 1], [1.0, 2.0, 2.0, 3.0, 4.0, 5.0]
    result = image_metrics(labels, scores)
    # 9 pairs: 4 and 5 beat all three normals (6), 2 beats 1, ties with 2, loses to 3 (1.5).
    assert result["auroc"] == pytest.approx(7.5 / 9, abs=EXACT)
    # Recall rises by 1/3 at precision 1, 1, and at the tie to 3/5.
    assert result["auprc"] == pytest.approx((1 + 1 + 3 / 5) / 3, abs=EXACT)
    # Flagging {5, 4}: 4/5; {5, 4, 3}: 2/3; {5, 4, 3, 2, 2}: 3/4.
    assert result["f1"] == pytest.approx(0.8, abs=EXACT)
    assert result["accuracy"] == pytest.approx(5 / 6, abs=EXACT)
    assert result["oracle_threshold"] == 3.0


def test_at_threshold_by_hand() -> None:
    labels, scores = [0, 0, 1, 0, 1, 1], [1.0, 2.0, 2.0, 3.0, 4.0, 5.0]
    expected = {"f1": 2 * 2 / (2 * 2 + 1 + 1), "accuracy": 4 / 6, "sensitivity": 2 / 3, "specificity": 2 / 3}
    # A score equal to the threshold is normal.
    assert at_threshold(labels, scores, 2.0) == pytest.approx(expected, abs=EXACT)
    nothing = at_threshold(labels, scores, 5.0)
    assert nothing == {"f1": 0.0, "accuracy": 0.5, "sensitivity": 0.0, "specificity": 1.0}
    everything = at_threshold(labels, scores, 0.0)
    assert everything == pytest.approx(
        {"f1": 6 / 9, "accuracy": 0.5, "sensitivity": 1.0, "specificity": 0.0}, abs=EXACT
    )


@given(LABELLED)
def test_oracle_threshold_is_the_best_of_all(rows: list[tuple[int, int]]) -> None:
    labels, scores = [label for label, _ in rows], [float(score) for _, score in rows]
    result = image_metrics(labels, scores)
    again = at_threshold(labels, scores, result["oracle_threshold"])
    assert (again["f1"], again["accuracy"]) == (result["f1"], result["accuracy"])
    for threshold in np.arange(-1, 10):
        assert sk.f1_score(labels, np.array(scores) > threshold, zero_division=0) <= result["f1"] + EXACT


@given(LABELLED, st.integers(-1, 9))
def test_at_threshold_against_sklearn(rows: list[tuple[int, int]], threshold: int) -> None:
    labels, scores = np.array(rows).T
    flagged = scores > threshold
    assert at_threshold(labels, scores, threshold) == pytest.approx(
        {
            "f1": sk.f1_score(labels, flagged, zero_division=0),
            "accuracy": sk.accuracy_score(labels, flagged),
            "sensitivity": sk.recall_score(labels, flagged),
            "specificity": sk.recall_score(1 - labels, ~flagged),
        },
        abs=EXACT,
    )


def test_everything_flagged_is_a_threshold_below_all() -> None:
    # All three abnormal images score lowest: the best F1 flags everything.
    result = image_metrics([1, 1, 1, 0], [0.0, 0.0, 0.0, 1.0])
    assert result["oracle_threshold"] < 0.0
    assert at_threshold([1, 1, 1, 0], [0.0, 0.0, 0.0, 1.0], result["oracle_threshold"])["f1"] == result["f1"]


@pytest.mark.parametrize("steps", [0, 3])
def test_roc_points_against_sklearn(steps: int) -> None:
    labels, scores = sample(200, 130, steps=steps)
    fpr, tpr = roc_points(labels, scores)
    expected_fpr, expected_tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(fpr, expected_fpr, atol=EXACT)
    np.testing.assert_allclose(tpr, expected_tpr, atol=EXACT)


# Intervals


def naive_draws(
    labels: npt.NDArray[Any], scores: npt.NDArray[Any], threshold: float, resamples: int
) -> dict[str, list[float]]:
    """The same bootstrap by repeating items and asking scikit-learn, one resample after the other."""
    draws: dict[str, list[float]] = {}
    for weights in metrics._draws(labels == 1, 7, resamples, 1):
        label, score = np.repeat(labels, weights[0]), np.repeat(scores, weights[0])
        precision, recall, thresholds = sk.precision_recall_curve(label, score)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
        ties = np.flatnonzero(f1[:-1] > f1.max() - 1e-12)
        best = thresholds[ties[-1]]  # the highest of equally good thresholds
        flagged = score > threshold
        for name, value in (
            ("auroc", sk.roc_auc_score(label, score)),
            ("auprc", sk.average_precision_score(label, score)),
            ("f1", f1.max()),
            ("accuracy", sk.accuracy_score(label, score >= best)),
            ("at f1", sk.f1_score(label, flagged)),
            ("at accuracy", sk.accuracy_score(label, flagged)),
            ("at sensitivity", sk.recall_score(label, flagged)),
            ("at specificity", sk.recall_score(1 - label, ~flagged)),
        ):
            draws.setdefault(name, []).append(float(value))
    return draws


@pytest.mark.parametrize("steps", [0, 4])
def test_intervals_equal_a_naive_bootstrap(steps: int) -> None:
    labels, scores = sample(45, 30, steps=steps)
    found: dict[str, Any] = dict(image_intervals(labels, scores, seed=7, resamples=150))
    at = threshold_intervals(labels, scores, 0.5, seed=7, resamples=150)
    found.update({f"at {name}": interval for name, interval in at.items()})
    draws = naive_draws(labels, scores, 0.5, 150)
    assert set(found) == set(draws)
    for name, values in draws.items():
        low, high = np.percentile(values, [2.5, 97.5])
        value = found[name]["value"]
        assert found[name]["low"] == pytest.approx(min(low, value), abs=EXACT), name
        assert found[name]["high"] == pytest.approx(max(high, value), abs=EXACT), name


def test_intervals_hold_the_value_and_have_width() -> None:
    labels, scores = sample(300, 200)
    for interval in (
        *image_intervals(labels, scores).values(),
        *threshold_intervals(labels, scores, 0.7).values(),
    ):
        assert interval["low"] is not None
        assert interval["high"] is not None
        assert interval["low"] < interval["value"] < interval["high"]


def test_intervals_cover_the_truth() -> None:
    """AUROC of N(0,1) against N(1,1) is Phi(1 / sqrt 2) = 0.7602; the interval should hold it in 95 %."""
    hits = 0
    for seed in range(200):
        interval = image_intervals(*sample(80, 80, seed=seed), seed=seed, resamples=200)["auroc"]
        assert interval["low"] is not None
        assert interval["high"] is not None
        hits += interval["low"] <= 0.76025 <= interval["high"]
    # Three standard errors of 200 draws are 4.6 points.
    assert 180 <= hits <= 199


def test_intervals_narrow_as_the_square_root() -> None:
    def width(size: int) -> float:
        interval = image_intervals(*sample(size, size))["auroc"]
        assert interval["low"] is not None
        assert interval["high"] is not None
        return interval["high"] - interval["low"]

    assert width(100) / width(1600) == pytest.approx(4.0, rel=0.25)


def test_seed_decides() -> None:
    labels, scores = sample(50, 50)
    assert image_intervals(labels, scores, seed=1) == image_intervals(labels, scores, seed=1)
    assert image_intervals(labels, scores, seed=1) != image_intervals(labels, scores, seed=2)


def test_draws_keep_class_sizes_and_ignore_the_chunk() -> None:
    groups = np.array([True, False, True, True, False, False, False])
    whole = np.concatenate(list(metrics._draws(groups, 5, 40, 40)))
    parts = np.concatenate(list(metrics._draws(groups, 5, 40, 7)))
    assert (whole == parts).all()
    assert whole.shape == (40, 7)
    assert (whole[:, groups].sum(axis=1) == 3).all()
    assert (whole[:, ~groups].sum(axis=1) == 4).all()
    assert len(np.unique(whole, axis=0)) > 20


def test_perfect_separation() -> None:
    for interval in image_intervals([0, 0, 1, 1], [0.0, 1.0, 2.0, 3.0], resamples=50).values():
        assert interval == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_bootstrap_of_a_mean() -> None:
    """The interval of a mean is 1.96 standard errors wide on each side."""
    values = np.random.default_rng(1).normal(size=400)
    low, high = bootstrap(lambda w: {"mean": w @ values / 400}, np.ones(400, dtype=bool), resamples=4000)[
        "mean"
    ]
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)


@pytest.mark.slow
def test_time_of_a_full_evaluation() -> None:
    labels, scores = sample(700, 800)
    image_metrics(labels, scores)  # the import of scikit-learn is not counted
    start = time.process_time()
    for _ in range(4):
        image_intervals(labels, scores)
    threshold_intervals(labels, scores, 0.5)
    assert time.process_time() - start < 30.0


# Wrong input


@pytest.mark.parametrize(
    ("labels", "scores", "text"),
    [
        ([0, 0], [1.0, 2.0], "both classes, got normal only"),
        ([1, 1], [1.0, 2.0], "both classes, got abnormal only"),
        ([], [], "both classes, got none"),
        ([0, 2], [1.0, 2.0], "labels must be 0"),
        ([0, 1], [1.0, float("nan")], "scores must be finite, got 1"),
        ([0, 1], [1.0], r"got \(2,\) and \(1,\)"),
        ([[0, 1]], [[1.0, 2.0]], r"must be \[N\] each"),
    ],
)
def test_wrong_image_arguments(labels: list[int], scores: list[float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        image_metrics(labels, scores)
    with pytest.raises(ValueError, match=text):
        at_threshold(labels, scores, 0.0)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(MissingExtraError, match=r"scikit-learn is not installed.*scrd_fast\[model\]"):
        image_metrics([0, 1], [0.0, 1.0])
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingExtraError, match="scipy is not installed"):
        pixel_metrics([np.eye(2)], [np.eye(2, dtype=bool)])


# Pixel metrics


def lesions(
    count: int, size: int = 40, *, seed: int = 0
) -> tuple[list[npt.NDArray[Any]], list[npt.NDArray[Any]]]:
    """Maps with noise and masks with up to three discs; every third image has none."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    maps, masks = [], []
    for i in range(count):
        mask = np.zeros((size, size), dtype=bool)
        for _ in range(0 if i % 3 == 0 else random.integers(1, 4)):
            top, left = random.integers(4, size - 4, 2)
            mask |= (y - top) ** 2 + (x - left) ** 2 < random.integers(2, 7) ** 2
        noise = ndimage.gaussian_filter(random.normal(size=(size, size)), 2)
        maps.append((0.2 + 0.3 * noise + random.uniform(0, 0.08) * mask).astype(np.float32))
        masks.append(mask)
    return maps, masks


def loop_aupro(maps: list[npt.NDArray[Any]], masks: list[npt.NDArray[Any]], limit: float = 0.3) -> float:
    """AUPRO by its definition: every distinct value is a threshold, one region after the other."""
    values, inside = np.stack(maps), np.stack(masks)
    regions = []
    for image_map, mask in zip(maps, masks, strict=True):
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [image_map[labels == region] for region in range(1, count + 1)]
    fpr, pro = [0.0], [0.0]
    for threshold in np.unique(values)[::-1]:
        fpr.append(float(np.mean(values[~inside] >= threshold)))
        pro.append(float(np.mean([np.mean(region >= threshold) for region in regions])))
    grid = np.append([x for x in fpr if x < limit], limit)
    # The curve is a function of the threshold; the part up to the limit is integrated by trapezoids.
    heights = np.append(pro[: grid.size - 1], np.interp(limit, fpr, pro))
    return float(np.trapezoid(heights, grid) / limit)


def test_pixel_by_hand() -> None:
    image_map = np.array([[9.0, 5.0, 1.0, 1.0], [1.0, 1.0, 3.0, 1.0]])
    mask = np.array([[1, 0, 0, 0], [0, 0, 1, 0]], dtype=bool)
    result = pixel_metrics([image_map], [mask], resamples=2)
    # 2 lesion pixels x 6 background: 9 beats 6, 3 beats 5.
    assert result["auroc"]["value"] == pytest.approx(11 / 12, abs=EXACT)
    # Flagging {9}: 2/3, {9, 5}: 1/2, {9, 5, 3}: 4/5.
    assert result["dice"]["value"] == pytest.approx(0.8, abs=EXACT)
    # Two regions of one pixel: half found from fpr 0 to 1/6, then all of it.
    assert result["aupro"]["value"] == pytest.approx((0.5 / 6 + 1.0 * (0.3 - 1 / 6)) / 0.3, abs=EXACT)


def test_diagonal_pixels_are_one_region() -> None:
    image_map = np.array([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    mask = np.eye(3, dtype=bool)
    mask[2, 2] = False
    mask[0, 2] = False
    # One region of two pixels, half of it found at once; at 0 all six others and the rest are flagged together.
    share = 0.5 + 0.5 * 0.3 / 2
    result = pixel_metrics([image_map], [mask], resamples=2)
    assert result["aupro"]["value"] == pytest.approx(share, abs=EXACT)


def test_pixel_metrics_are_exact_on_few_levels() -> None:
    """Maps whose values the grid holds: no error at all, so plain loops must agree to rounding."""
    maps, masks = lesions(9)
    maps = [np.round(image_map * 64) / np.float32(64) for image_map in maps]
    labels, values = np.stack(masks).ravel(), np.stack(maps).ravel()
    result = pixel_metrics(maps, masks, resamples=2)
    assert result["auroc"]["value"] == pytest.approx(sk.roc_auc_score(labels, values), abs=1e-12)
    best = max(sk.f1_score(labels, values >= threshold) for threshold in np.unique(values))
    assert result["dice"]["value"] == pytest.approx(best, abs=1e-12)
    # Shares of a region are stored as float32, good to 6e-8 of each.
    assert result["aupro"]["value"] == pytest.approx(loop_aupro(maps, masks), abs=1e-6)


@pytest.mark.parametrize("levels", [16, 256, 4096])
def test_pixel_auroc_error_is_bounded(levels: int) -> None:
    maps, masks = lesions(12, 64)
    table, shift = metrics._grid(maps, levels)
    level = table[metrics._float_keys(np.stack(maps)) >> shift]
    inside = np.stack(masks)
    lesion = np.bincount(level[inside], minlength=levels) / inside.sum()
    background = np.bincount(level[~inside], minlength=levels) / (~inside).sum()
    bound = 0.5 * float(lesion @ background)
    assert bound < 4.0 / levels
    exact = sk.roc_auc_score(inside.ravel(), np.stack(maps).ravel())
    found = pixel_metrics(maps, masks, resamples=2, levels=levels)["auroc"]["value"]
    assert abs(found - exact) <= bound + EXACT


def test_default_grid_is_fine_enough() -> None:
    """Measured on these maps: AUROC off by 1e-8, AUPRO and Dice by less than 1e-3."""
    maps, masks = lesions(9)
    labels, values = np.stack(masks).ravel(), np.stack(maps).ravel()
    result = pixel_metrics(maps, masks, resamples=2)
    assert result["auroc"]["value"] == pytest.approx(sk.roc_auc_score(labels, values), abs=1e-6)
    precision, recall, _ = sk.precision_recall_curve(labels, values)
    best = float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300)))
    assert result["dice"]["value"] == pytest.approx(best, abs=1e-3)
    assert result["aupro"]["value"] == pytest.approx(loop_aupro(maps, masks), abs=1e-3)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=50))
def test_float_keys_sort_as_floats(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    keys = metrics._float_keys(array).astype(np.int64)
    assert (np.sign(np.subtract.outer(keys, keys)) == (np.subtract.outer(array.astype(float), array))).any()
    assert ((keys[:, None] < keys) == (array[:, None] < array)).all()
    assert ((keys[:, None] == keys) == (array[:, None] == array)).all()


@given(st.lists(st.floats(-1e30, 1e30, width=32), min_size=1, max_size=80), st.integers(2, 20))
def test_grid_keeps_order_and_its_limit(values: list[float], levels: int) -> None:
    array = np.array(values, dtype=np.float32)[None]
    table, shift = metrics._grid([array], levels)
    level = table[metrics._float_keys(array) >> shift][0]
    assert 0 <= level.min()
    assert level.max() < levels
    # Level 0 is the highest value.
    assert (np.diff(level[np.argsort(array[0], kind="stable")]) <= 0).all()


def test_pixel_intervals_equal_a_naive_bootstrap() -> None:
    maps, masks = lesions(9, 24)
    maps = [np.round(image_map * 64) / np.float32(64) for image_map in maps]
    found = pixel_metrics(maps, masks, seed=3, resamples=40)
    draws: dict[str, list[float]] = {"auroc": [], "aupro": [], "dice": []}
    for weights in metrics._draws(np.array([mask.any() for mask in masks]), 3, 40, 1):
        chosen = np.repeat(np.arange(9), weights[0])
        some_maps, some_masks = [maps[i] for i in chosen], [masks[i] for i in chosen]
        labels, values = np.stack(some_masks).ravel(), np.stack(some_maps).ravel()
        draws["auroc"].append(float(sk.roc_auc_score(labels, values)))
        draws["aupro"].append(loop_aupro(some_maps, some_masks))
        draws["dice"].append(max(float(sk.f1_score(labels, values >= t)) for t in np.unique(values)))
    for name, drawn in draws.items():
        low, high = np.percentile(drawn, [2.5, 97.5])
        value = found[name]["value"]  # type: ignore[literal-required]
        assert found[name]["low"] == pytest.approx(min(low, value), abs=1e-6), name  # type: ignore[literal-required]
        assert found[name]["high"] == pytest.approx(max(high, value), abs=1e-6), name  # type: ignore[literal-required]
        assert high > low


def test_pixel_images_of_different_sizes() -> None:
    small, large = lesions(3, 24), lesions(3, 40, seed=1)
    maps, masks = small[0] + large[0], small[1] + large[1]
    labels = np.concatenate([mask.ravel() for mask in masks])
    values = np.concatenate([image_map.ravel() for image_map in maps])
    found = pixel_metrics(maps, masks, resamples=2)["auroc"]["value"]
    assert found == pytest.approx(sk.roc_auc_score(labels, values), abs=1e-5)


@pytest.mark.parametrize(
    ("maps", "masks", "text"),
    [
        ([], [], "at least one"),
        ([np.zeros((2, 2))], [], "equally many"),
        ([np.zeros((2, 2))], [np.zeros((2, 3), bool)], r"alike, got \(2, 2\), \(2, 3\) at 0"),
        ([np.zeros(4)], [np.zeros(4, bool)], "must be"),
        ([np.full((2, 2), np.nan)], [np.eye(2, dtype=bool)], "maps must be finite, got NaN or infinity at 0"),
        ([np.zeros((2, 2))], [np.zeros((2, 2), bool)], "lesion and background pixels, got 0 and 4"),
        ([np.zeros((2, 2))], [np.ones((2, 2), bool)], "lesion and background pixels, got 4 and 0"),
    ],
)
def test_wrong_pixel_arguments(maps: list[Any], masks: list[Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        pixel_metrics(maps, masks)
