# SPDX-License-Identifier: Apache-2.0
"""Pixel metrics against hand-computed cases, scikit-learn and plain loops."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn import metrics as sk

from scrd_fast import metrics
from scrd_fast.errors import MissingExtraError
from scrd_fast.metrics import pixel_metrics

# Sums of some 10^4 terms of double precision: 1e-16 * sqrt(1e4) is 1e-14.
EXACT = 1e-13


def lesions(count: int, size: int = 40, *, seed: int = 0) -> tuple[list[npt.NDArray[Any]], list[npt.NDArray[Any]]]:
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
    mask = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0]], dtype=bool)
    # One region of three pixels: a third of it is found at once, the rest together with all the background.
    # Without the diagonal there would be two regions, and their mean share 1/2.
    share = 1 / 3 + 2 / 3 * 0.3 / 2
    result = pixel_metrics([image_map], [mask], resamples=2)
    assert result["aupro"]["value"] == pytest.approx(share, abs=1e-7)  # shares are stored as float32


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
    """Measured on these maps: AUROC off by 2e-6, AUPRO by 6e-6, Dice by 5e-4."""
    maps, masks = lesions(9)
    labels, values = np.stack(masks).ravel(), np.stack(maps).ravel()
    result = pixel_metrics(maps, masks, resamples=2)
    assert result["auroc"]["value"] == pytest.approx(sk.roc_auc_score(labels, values), abs=1e-5)
    precision, recall, _ = sk.precision_recall_curve(labels, values)
    best = float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300)))
    assert result["dice"]["value"] == pytest.approx(best, abs=1e-3)
    assert result["aupro"]["value"] == pytest.approx(loop_aupro(maps, masks), abs=1e-4)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=50))
def test_float_keys_sort_as_floats(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    keys = metrics._float_keys(array).astype(np.int64)
    assert ((keys[:, None] < keys) == (array[:, None] < array)).all()
    assert ((keys[:, None] == keys) == (array[:, None] == array)).all()


@settings(deadline=None, max_examples=15)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=80), st.integers(2, 20))
def test_grid_keeps_order_and_its_limit(values: list[float], levels: int) -> None:
    array = np.array(values, dtype=np.float32)[None]
    table, shift = metrics._grid([array], levels)
    level = table[metrics._float_keys(array) >> shift][0]
    assert level.min() >= 0
    assert level.max() < levels
    # Level 0 is the highest value.
    assert (np.diff(level[np.argsort(array[0], kind="stable")]) <= 0).all()


def test_pixel_intervals_equal_a_naive_bootstrap() -> None:
    maps, masks = lesions(9, 24)
    maps = [np.round(image_map * 64) / np.float32(64) for image_map in maps]
    found = pixel_metrics(maps, masks, seed=3, resamples=15)
    draws: dict[str, list[float]] = {"auroc": [], "aupro": [], "dice": []}
    for weights in metrics._draws(np.array([mask.any() for mask in masks]), 3, 15, 1):
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


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingExtraError, match="scipy is not installed"):
        pixel_metrics([np.eye(2)], [np.eye(2, dtype=bool)])
