# SPDX-License-Identifier: Apache-2.0
"""The resize of the reading function as two matrix products, whose matrices are made in the graph.

`F.interpolate(mode="bilinear", antialias=True, align_corners=False)` is separable and linear: per axis each output
pixel i is a mean of the input pixels j, weighted by a triangle around its centre. With both positions in units of half
a pixel of the one times the length of the other, the weights are whole numbers,

    n_ij = max(0, 2 max(S, T) - |(2 j + 1) T - (2 i + 1) S|)        S input pixels, T output pixels

so that no runtime rounds them otherwise; each row is divided by its sum. Pixels of the padding have rows of zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scrd_fast.config import Preprocessing

__all__ = ["resize_batch", "resize_matrix"]


def resize_batch(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """`scrd_fast.data.reading.resize` of a batch: float32 [N, 3, H, W] in [0, 1] to [N, 3, P, P].

    It can be exported with any height and width, to ONNX too.

    >>> pixels = torch.arange(3.0).div(2).expand(1, 3, 4, 3)
    >>> resize_batch(pixels, Preprocessing(size=32, fit="pad"))[0, 0, 16, [3, 4, 16, 27, 28]]
    tensor([0.0000, 0.0000, 0.5312, 1.0000, 0.0000])
    """
    canvas = preprocessing.canvas
    height, width = (torch.full((), side, dtype=torch.int64, device=images.device) for side in images.shape[2:])
    sides = [torch.full((), canvas, dtype=torch.int64, device=images.device)] * 2
    if preprocessing.fit != "stretch":
        longest = torch.maximum(height, width)
        sides = [_rounded(side * canvas, longest).clamp_min(1) for side in (height, width)]
    rows = resize_matrix(images.shape[2], height, sides[0], canvas)
    columns = resize_matrix(images.shape[3], width, sides[1], canvas)
    return (rows @ images @ columns.T).clamp(0, 1)


def resize_matrix(source: int, length: Tensor, inner: Tensor, target: int) -> Tensor:
    """float32 [target, source]: `inner` pixels of the target, in its middle, from all of the source.

    `length` is `source` as a tensor: int64 scalars, as `inner` is.
    """
    device = length.device
    i = torch.arange(target, device=device)[:, None] - (target - inner) // 2
    j = torch.arange(source, device=device)
    distance = ((2 * j + 1) * inner - (2 * i + 1) * length).abs()
    weights = (2 * torch.maximum(length, inner) - distance).clamp_min(0)
    weights = weights * ((i >= 0) & (i < inner))
    return weights.float() / weights.sum(1, keepdim=True).clamp_min(1).float()


def _rounded(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient of whole numbers, halves to the even one as Python's `round`."""
    doubled = 2 * numerator + denominator
    up = doubled // (2 * denominator)
    odd_half = (doubled % (2 * denominator) == 0) & (up % 2 == 1)
    return up - odd_half.long()
