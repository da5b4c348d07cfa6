# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest
import torch
from baseline_images import PREPROCESSING, random_teacher, textures

from scrd_fast.baselines.blending import blended, changes
from scrd_fast.baselines.nsa import NSA
from scrd_fast.errors import MissingExtraError


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return (textures(count, seed) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def test_a_label_marks_what_was_changed_and_nothing_else() -> None:
    images, generator = pixels(6), np.random.default_rng(0)
    marked = 0.0
    for _ in range(200):
        changed, label = blended(images, generator)
        assert changed.shape == (64, 64, 3)
        assert changed.dtype == np.uint8
        assert label.shape == (64, 64)
        assert 0 <= label.min() <= label.max() <= 1
        nearest = min(images, key=lambda image: int(np.abs(image.astype(int) - changed).sum()))
        difference = np.abs(nearest.astype(float) - changed).mean(2)
        # A label may reach two pixels beyond what changed: a median of 5 x 5 pixels.
        reach = cv2.dilate((difference > 0).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        assert not label[~reach].any()
        marked += float((label > 0).mean())
    assert 0.02 < marked / 200 < 0.3


def test_the_border_of_an_image_is_not_changed() -> None:
    """So that a patch always lies inside."""
    images, generator = pixels(3), np.random.default_rng(1)
    originals = [image[0] for image in images]
    for _ in range(300):
        changed, _ = blended(images, generator)
        assert any((changed[0] == row).all() for row in originals)


def test_labels_grow_with_the_change() -> None:
    original = np.full((32, 32, 3), 100, np.uint8)
    labels = []
    for by in (0, 1, 2, 4, 12, 60):
        changed = original.copy()
        changed[8:24, 8:24] += by
        label = changes(original, changed)
        assert not label[:6].any()
        labels.append(float(label[16, 16]))
    assert labels[:2] == [0, 0]
    assert labels[3] == pytest.approx(0.5)
    assert labels == sorted(labels)
    assert labels[-1] > 0.99


@pytest.mark.parametrize("size", [32, 224])
def test_patches_of_any_size_fit(size: int) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    changed = [blended(images, generator) for _ in range(100)]
    assert np.mean([label.any() for _, label in changed]) > 0.9


def test_one_image_gives_patches_of_itself() -> None:
    changed, label = blended(pixels(1), np.random.default_rng(0))
    assert label.any()
    assert not np.array_equal(changed, pixels(1)[0])


def test_training_finds_blended_patches_of_other_images() -> None:
    baseline = NSA(random_teacher(), PREPROCESSING, 0, iterations=150)
    baseline.fit([textures(40, seed=0)])
    unseen, generator = pixels(8, seed=1), np.random.default_rng(0)
    pairs = [blended(unseen, generator) for _ in range(24)]
    images, labels = (np.stack(x) for x in zip(*pairs, strict=True))
    found = baseline.predict(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255).map[:, 0].numpy()
    assert found[labels > 0.5].mean() > 2 * found[labels == 0].mean()


def test_the_sample_of_images_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def recorded(images: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        seen.append(len(images))
        return blended(images, generator)

    monkeypatch.setattr("scrd_fast.baselines.nsa.blended", recorded)
    NSA(random_teacher(), PREPROCESSING, 0, iterations=1, images=5).fit(textures(12, seed=0).split(4))
    assert set(seen) == {5}


def test_opencv_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"opencv-python-headless is not installed.*\[baselines\]"):
        NSA(random_teacher(), PREPROCESSING, 0, iterations=1).fit([textures(2, seed=0)])
