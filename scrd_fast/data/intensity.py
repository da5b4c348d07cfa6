# SPDX-License-Identifier: Apache-2.0
"""The window that an image without one of its own is given."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["percentile_window"]

_WINDOW = (0.5, 99.5)  # percentiles


def percentile_window(
    values: npt.NDArray[np.floating], counted: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.float32]:
    """To [0, 1] between the 0.5 and 99.5 percentiles of all values, or their whole range where those are one.

    `counted` leaves out what is no part of the picture.

    >>> percentile_window(np.array([3.0, 5.0, 4.0]))
    array([0. , 1. , 0.5], dtype=float32)
    """
    of = values if counted is None or not counted.any() else values[counted]
    low, high = np.percentile(of, _WINDOW)
    if high <= low:  # constant, or all but a few pixels are: the whole range is the window
        low, high = of.min(), of.max()
    if high <= low:
        return np.zeros(values.shape, np.float32)
    return np.asarray(((values - low) / (high - low)).clip(0, 1), dtype=np.float32)
