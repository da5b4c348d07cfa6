# SPDX-License-Identifier: Apache-2.0
"""Natural synthetic anomalies: patches of one image, resized, blended into another by Poisson image editing.

The constants are those of Schlüter et al. (ECCV 2022) for chest X-rays. The blending is Pérez, Gangnet and Blake,
"Poisson Image Editing" (2003), by OpenCV.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from scrd_fast.errors import MissingExtraError

__all__ = ["blended", "changes"]

Pixels = npt.NDArray[np.uint8]
PATCHES = 3  # at most: the first, and each further one with a chance of one half
SIDE = (0.06, 0.8)  # of a patch, as a share of the image's: limits of 2 (0.05 + Gamma(2, 0.03))
SCALE = (0.7, 1.3)  # limits of a patch's resizing, N(1, 0.5)
LEAST = 12  # pixels of a side: the border of a patch is not pasted, and OpenCV leaves out two pixels more
CHANGE = (4.0, 0.5)  # of 255: middle and slope of the logistic curve from a pixel's change to its label


def blended(images: Pixels, generator: np.random.Generator) -> tuple[Pixels, npt.NDArray[np.float32]]:
    """One of images [M, S, S, 3] with patches of others, [S, S, 3], and how anomalous each pixel is, [S, S] in [0, 1].

    S is at least 32. A patch is as large as the authors', its place any in which it lies inside. With one image its
    own patches are used. Raises `MissingExtraError` without OpenCV.
    """
    original = images[generator.integers(len(images))]
    changed = original
    for number in range(PATCHES):
        if number == 0 or generator.random() < 0.5:
            changed = _with_patch(changed, images[generator.integers(len(images))], generator)
    return changed, changes(original, changed)


def changes(original: Pixels, changed: Pixels) -> npt.NDArray[np.float32]:
    """Labels [S, S] from how much a pixel has changed, mean over channels: 0 for one level of 255 or less."""
    difference = np.abs(original.astype(np.float32) - changed).mean(2)
    middle, slope = CHANGE
    smooth = _cv2().medianBlur(difference, 5)  # without grain
    return np.where(smooth > 1, 1 / (1 + np.exp(-slope * (smooth - middle))), 0).astype(np.float32)


def _with_patch(image: Pixels, source: Pixels, generator: np.random.Generator) -> Pixels:
    cv2, size = _cv2(), image.shape[0]
    shape = [_length(size * 2 * (0.05 + generator.gamma(2, 0.03)), size) for _ in range(2)]
    patch = _cut(source, shape, generator)
    scale = np.clip(generator.normal(1, 0.5), *SCALE)
    height, width = (_length(scale * side, size) for side in shape)
    patch = cv2.resize(patch, (width, height), interpolation=cv2.INTER_LINEAR)
    mask = np.zeros((height, width), np.uint8)
    mask[1:-1, 1:-1] = 255  # the border gives the gradients on the edge, and is not pasted
    top, left = (int(generator.integers(1, size - side)) for side in (height, width))
    mode = cv2.NORMAL_CLONE if generator.random() < 0.5 else cv2.MIXED_CLONE
    result: Pixels = cv2.seamlessClone(patch, image, mask, (left + width // 2, top + height // 2), mode)
    return result


def _length(side: float, size: int) -> int:
    low, high = SIDE
    return int(np.clip(side, max(low * size, LEAST), high * size))


def _cut(source: Pixels, shape: list[int], generator: np.random.Generator) -> Pixels:
    top, left = (int(generator.integers(source.shape[0] - side + 1)) for side in shape)
    return source[top : top + shape[0], left : left + shape[1]]


def _cv2() -> Any:
    try:
        return importlib.import_module("cv2")
    except ImportError:
        raise MissingExtraError("opencv-python-headless", "baselines") from None
