# SPDX-License-Identifier: Apache-2.0
"""The window that an image without one of its own is given."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["bounds", "percentile_window", "windowed"]

_WINDOW = (0.5, 99.5)  # percentiles


def percentile_window(
    values: npt.NDArray[np.floating], counted: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.float32]:
    """To [0, 1] between the 0.5 and 99.5 percentiles of all values, or their whole range where those are one.

    `counted` leaves out what is no part of the picture.

    >>> percentile_window(np.array([3.0, 5.0, 4.0]))
    array([0. , 1. , 0.5], dtype=float32)
    """
    return windowed(values, *bounds(values if counted is None or not counted.any() else values[counted]))


def bounds(values: npt.NDArray[np.number]) -> tuple[float, float]:
    """The 0.5 and 99.5 percentiles, or least and largest value where those are one."""
    low, high = (float(x) for x in np.percentile(values, _WINDOW))
    # Constant, or all but a few pixels are: the whole range is the window.
    return (low, high) if high > low else (float(values.min()), float(values.max()))


def windowed(values: npt.NDArray[np.number], low: float, high: float) -> npt.NDArray[np.float32]:
    """From [low, high] to [0, 1], clipped; all 0 where that is one value."""
    if high <= low:
        return np.zeros(values.shape, np.float32)
    return np.asarray(((values - low) / (high - low)).clip(0, 1), dtype=np.float32)
