# SPDX-License-Identifier: Apache-2.0
"""Upsampling and blur along one axis as one matrix, and the cache of those matrices."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["axis_matrix", "blur_matrix", "interpolation_matrix"]

CACHED = 64  # matrices; a model needs one for each scale and axis
_Key = tuple[int, int, float, str, torch.dtype, torch.device]
_cache: OrderedDict[_Key, Tensor] = OrderedDict()


def interpolation_matrix(source: int, target: int, device: torch.device | str = "cpu") -> Tensor:
    """[target, source] in float64: what `F.interpolate(bilinear, align_corners=True)` does along one axis."""
    eye = torch.eye(source, dtype=torch.float64, device=device)[None, None]
    return F.interpolate(eye, size=(target, source), mode="bilinear", align_corners=True)[0, 0]


def blur_matrix(size: int, sigma: float, border: str, device: torch.device | str = "cpu") -> Tensor:
    """[size, size] in float64: what `scipy.ndimage.gaussian_filter1d(mode=border, truncate=4)` does along one axis."""
    if sigma == 0:
        return torch.eye(size, dtype=torch.float64, device=device)
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, device=device)
    kernel = torch.exp(-0.5 * (offsets.to(torch.float64) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    position = torch.arange(size, device=device)[:, None] + offsets
    if border == "reflect":  # period 2 size: d c b a | a b c d | d c b a
        position = position.remainder(2 * size)
        position = torch.minimum(position, 2 * size - 1 - position)
    else:  # mirror, period 2 size - 2: d c b | a b c d | c b a
        period = max(2 * size - 2, 1)
        position = position.remainder(period)
        position = torch.minimum(position, (period - position).clamp_min(0)) if size > 1 else position * 0
    matrix = torch.zeros(size, size, dtype=torch.float64, device=device)
    return matrix.scatter_add_(1, position, kernel.expand(size, -1).contiguous())


def axis_matrix(
    source: int, target: int, sigma: float, border: str, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """[target, source]: upsampling, then blur. Kept for later calls, the last `CACHED` of them.

    Nothing is kept or reused where a tensor made now would not be a plain one that anybody may use later: while a
    graph is compiled, exported or captured, and under modes that make tensors of their own kind.
    """
    if not _plain(device):
        return _build(source, target, sigma, border, dtype, device)
    key = (source, target, sigma, border, dtype, device)
    if key not in _cache:
        with torch.inference_mode(False), torch.no_grad():
            _cache[key] = _build(source, target, sigma, border, dtype, device)
        while len(_cache) > CACHED:
            _cache.popitem(last=False)
    _cache.move_to_end(key)
    return _cache[key]


def _plain(device: torch.device) -> bool:
    if torch.compiler.is_compiling() or type(torch.empty(0)) is not Tensor:
        return False
    return not (device.type == "cuda" and torch.cuda.is_current_stream_capturing())


def _build(source: int, target: int, sigma: float, border: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    matrix = blur_matrix(target, sigma, border, device) @ interpolation_matrix(source, target, device)
    return matrix.to(dtype)
