# SPDX-License-Identifier: Apache-2.0
"""scipy's Gaussian blur, or, where scipy is missing, the same by numpy: a GPU's tests run without it."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["by_numpy", "gaussian_filter"]

Array = np.ndarray[Any, np.dtype[np.float64]]
PADDING = {"reflect": "symmetric", "mirror": "reflect"}  # scipy's names of the borders and numpy's


def gaussian_filter(image: Array, sigma: float, mode: str = "reflect") -> Array:
    """Of an image or a row, in float64, cut off at four sigma. No blur for sigma 0."""
    try:
        from scipy import ndimage
    except ImportError:
        return by_numpy(image, sigma, mode)
    return np.asarray(ndimage.gaussian_filter(image, sigma, mode=mode, truncate=4.0) if sigma else image)


def by_numpy(image: Array, sigma: float, mode: str) -> Array:
    if sigma == 0:
        return image
    radius = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    for axis in range(image.ndim):
        pads = [(radius, radius) if a == axis else (0, 0) for a in range(image.ndim)]
        padded = np.pad(image, pads, mode=PADDING[mode])  # type: ignore[call-overload]
        image = np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1, axis) @ weights
    return image
