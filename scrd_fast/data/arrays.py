# SPDX-License-Identifier: Apache-2.0
"""Pictures that are in memory already, as the model's input."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scrd_fast.config import Preprocessing
from scrd_fast.data.frames import Frame, Picture
from scrd_fast.data.intensity import percentile_window
from scrd_fast.data.pictures import scale_float
from scrd_fast.data.reading import frame_of
from scrd_fast.errors import ImageError

__all__ = ["read_array"]

_RANGES = {"uint8": 255.0, "uint16": 65535.0}


def read_array(pixels: npt.NDArray[np.generic] | Tensor, preprocessing: Preprocessing) -> Frame | ImageError:
    """What a file with these pixels would give; an error is returned, as one of many pictures may be bad.

    Arrays are [H, W, 3] or [H, W], tensors [3, H, W] or [H, W], on any device. Integers, uint8 and uint16, are scaled
    as those of a file; floats must be in [0, 1] and stay as they are.
    """
    try:
        return frame_of(_picture(pixels, preprocessing.intensity), preprocessing)
    except ImageError as error:
        return error


def _picture(pixels: npt.NDArray[np.generic] | Tensor, intensity: str) -> Picture:
    shape = tuple(pixels.shape)
    if isinstance(pixels, Tensor) and pixels.dtype == torch.bfloat16:  # which numpy lacks
        pixels = pixels.float()
    array = pixels.detach().cpu().numpy() if isinstance(pixels, Tensor) else pixels
    colour = shape[0 if isinstance(pixels, Tensor) else -1] == 3 if len(shape) == 3 else False
    if not (len(shape) == 2 or colour) or not array.size:
        wanted = "[3, H, W] or [H, W]" if isinstance(pixels, Tensor) else "[H, W, 3] or [H, W]"
        raise ImageError("unsupported", f"pixels of shape {list(shape)}, expected {wanted}")
    if array.dtype.kind != "f" and array.dtype.name not in _RANGES:
        raise ImageError("unsupported", f"pixels of {array.dtype}, expected uint8, uint16 or float")
    values, rule = _scaled(array, intensity)
    if not colour:
        values = np.broadcast_to(values, (3, *shape)).copy()
    elif not isinstance(pixels, Tensor):
        values = values.transpose(2, 0, 1)
    return Picture(np.ascontiguousarray(values), facts={"shown": rule})


def _scaled(array: npt.NDArray[np.generic], intensity: str) -> tuple[npt.NDArray[np.float32], str]:
    """Also by what: `About.shown`."""
    values = array.astype(np.float64)
    if array.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise ImageError("not-finite", "holds NaN or infinite pixels")
        return scale_float(values), "range"
    if intensity == "percentile" or (intensity == "auto" and array.dtype == np.uint16):
        return percentile_window(values), "percentile"
    return (values / _RANGES[array.dtype.name]).astype(np.float32), "range"
