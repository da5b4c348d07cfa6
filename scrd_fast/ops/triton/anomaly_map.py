# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-untyped-decorators=False
"""`anomaly_map` in Triton: a launch a scale for the map and for the mean, one a share for the largest pixels.

Nothing that the kernels are given is compiled for, alignments included: there is one compilation for each type, so the
order of every sum is the same whatever the batch and wherever its tensors begin.
"""

from __future__ import annotations

import math

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from scrd_fast.ops._axis_matrix import axis_matrix
from scrd_fast.ops.triton.simplex_noise import INTERPRETED, OPTIONS

__all__ = ["anomaly_map"]

# Of the tiles that are multiplied, and of the tile of distances that one step of the mean takes.
ROWS, COLUMNS, DEPTH = 32, 64, 16
# Pixels that a program, alone with its image, looks at in one step.
BLOCK = 1024 if INTERPRETED else 4096

POINTERS = ["distances", "rows", "columns", "weights", "out"]
SIZES = ["source_height", "source_width", "height", "width", "scale", "scales"]


@triton.jit(do_not_specialize=POINTERS + SIZES)
def _map_kernel(
    distances: tl.tensor,  # [N, h, w]
    rows: tl.tensor,  # [H, h]
    columns: tl.tensor,  # [W, w]
    weights: tl.tensor,  # [N, K]; not read unless HAS_WEIGHTS
    out: tl.tensor,  # [N, H, W]
    source_height: tl.tensor,
    source_width: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    scale: tl.tensor,
    scales: tl.tensor,
    HAS_WEIGHTS: tl.constexpr,
    FIRST: tl.constexpr,  # or there are the scales before it to add to
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """One tile of one map: rows @ distances @ columns.T, weighted."""
    tiles_down, tiles_across = tl.cdiv(height, ROWS), tl.cdiv(width, COLUMNS)
    program = tl.program_id(0)
    sample = (program // tiles_across // tiles_down).to(tl.int64)
    row = (program // tiles_across % tiles_down).to(tl.int64)[None] * ROWS + tl.arange(0, ROWS)
    column = (program % tiles_across).to(tl.int64)[None] * COLUMNS + tl.arange(0, COLUMNS)
    image = distances + sample * source_height * source_width
    dtype: tl.constexpr = out.dtype.element_ty
    depth = tl.arange(0, DEPTH)
    total = tl.zeros((ROWS, COLUMNS), dtype)
    for left in range(0, source_width, DEPTH):
        x = left + depth
        between = tl.zeros((ROWS, DEPTH), dtype)
        for top in range(0, source_height, DEPTH):
            y = top + depth
            inside = (row < height)[:, None] & (y < source_height)[None, :]
            a = tl.load(rows + row[:, None] * source_height + y[None, :], mask=inside, other=0.0)
            inside = (y < source_height)[:, None] & (x < source_width)[None, :]
            m = tl.load(image + y.to(tl.int64)[:, None] * source_width + x[None, :], mask=inside, other=0.0)
            between = tl.dot(a, m, between, input_precision="ieee", out_dtype=dtype)
        inside = (x < source_width)[:, None] & (column < width)[None, :]
        b = tl.load(columns + column[None, :] * source_width + x[:, None], mask=inside, other=0.0)
        total = tl.dot(between, b, total, input_precision="ieee", out_dtype=dtype)
    if HAS_WEIGHTS:
        total *= tl.load(weights + sample * scales + scale)
    place = out + (sample * height + row[:, None]) * width + column[None, :]
    inside = (row < height)[:, None] & (column < width)[None, :]
    if not FIRST:
        total += tl.load(place, mask=inside, other=0.0)
    tl.store(place, total, mask=inside)


@triton.jit(do_not_specialize=POINTERS + SIZES)
def _mean_kernel(
    distances: tl.tensor,  # [N, h, w]
    rows: tl.tensor,  # [h], the means over the map's rows
    columns: tl.tensor,  # [w]
    weights: tl.tensor,  # [N, K]; not read unless HAS_WEIGHTS
    out: tl.tensor,  # [N]
    source_height: tl.tensor,
    source_width: tl.tensor,
    scale: tl.tensor,
    scales: tl.tensor,
    HAS_WEIGHTS: tl.constexpr,
    FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """The mean of one map from the distances: rows @ distances @ columns, weighted."""
    sample = tl.program_id(0).to(tl.int64)
    image = distances + sample * source_height * source_width
    lanes = tl.zeros((ROWS, COLUMNS), out.dtype.element_ty)
    for top in range(0, source_height, ROWS):
        y = top + tl.arange(0, ROWS)
        a = tl.load(rows + y, mask=y < source_height, other=0.0)
        for left in range(0, source_width, COLUMNS):
            x = left + tl.arange(0, COLUMNS)
            b = tl.load(columns + x, mask=x < source_width, other=0.0)
            inside = (y < source_height)[:, None] & (x < source_width)[None, :]
            m = tl.load(image + y.to(tl.int64)[:, None] * source_width + x[None, :], mask=inside, other=0.0)
            lanes = tl.fma(a[:, None] * b[None, :], m, lanes)
    mean = tl.sum(lanes)
    if HAS_WEIGHTS:
        mean *= tl.load(weights + sample * scales + scale)
    if not FIRST:
        mean += tl.load(out + sample)
    tl.store(out + sample, mean)


@triton.jit
def _value(key: tl.tensor, dtype: tl.constexpr, LARGEST: tl.constexpr) -> tl.tensor:
    return tl.where(key < 0, key ^ LARGEST, key).to(dtype, bitcast=True)


@triton.jit
def _keys(image: tl.tensor, start: tl.tensor, pixels: tl.tensor, BLOCK: tl.constexpr, LARGEST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Integers in the order of the pixels' values: NaN is the largest, and what is no pixel below everything."""
    pixel = start + tl.arange(0, BLOCK)
    value = tl.load(image + pixel, mask=pixel < pixels, other=0.0)
    bits = value.to(tl.int64 if LARGEST > 2**31 else tl.int32, bitcast=True)
    key = tl.where(bits < 0, bits ^ LARGEST, bits)
    key = tl.where(value != value, LARGEST, key)
    return tl.where(pixel < pixels, key, -LARGEST - 1)


@triton.jit(do_not_specialize=["maps", "largest", "means", "pixels", "wanted", "share", "shares"])
def _largest_kernel(
    maps: tl.tensor,  # [N, P]
    largest: tl.tensor,  # [N]
    means: tl.tensor,  # [N, T]; not touched unless TOP
    pixels: tl.int64,
    wanted: tl.tensor,
    share: tl.tensor,
    shares: tl.tensor,
    TOP: tl.constexpr,
    BLOCK: tl.constexpr,
    LARGEST: tl.constexpr,  # of the keys
) -> None:
    """The largest pixel of an image, and the mean of the `wanted` largest, between whose keys bisection finds."""
    sample = tl.program_id(0).to(tl.int64)
    image = maps + sample * pixels
    dtype: tl.constexpr = maps.dtype.element_ty
    low = tl.full((BLOCK,), LARGEST, tl.int64 if LARGEST > 2**31 else tl.int32)
    high = -low
    for start in range(0, pixels, BLOCK):
        key = _keys(image, start, pixels, BLOCK, LARGEST)
        high = tl.maximum(high, key)
        low = tl.minimum(low, tl.where(key < -LARGEST, LARGEST, key))
    low, high = tl.min(low), tl.max(high)
    tl.store(largest + sample, _value(high, dtype, LARGEST))
    if TOP:
        # At least `wanted` keys are >= low; `above` keys are >= high, at most `wanted`. With a NaN the search is
        # over at once and all pixels are added up, so that the mean is NaN.
        high = tl.where(high == LARGEST, low, high + 1)
        above = tl.full((), 0, tl.int32)
        middle = (low & high) + ((low ^ high) >> 1)  # (low + high) / 2 without overflow
        while (middle > low) & (above < wanted):
            lanes = tl.zeros((BLOCK,), tl.int32)
            for start in range(0, pixels, BLOCK):
                lanes += (_keys(image, start, pixels, BLOCK, LARGEST) >= middle).to(tl.int32)
            count = tl.sum(lanes)
            low = tl.where(count > wanted, middle, low)
            high = tl.where(count > wanted, high, middle)
            above = tl.where(count > wanted, above, count)
            middle = (low & high) + ((low ^ high) >> 1)
        sums = tl.zeros((BLOCK,), dtype)
        for start in range(0, pixels, BLOCK):
            key = _keys(image, start, pixels, BLOCK, LARGEST)
            sums += tl.where(key >= high, _value(key, dtype, LARGEST), 0.0)
        total = tl.sum(sums)
        if above < wanted:  # low is a pixel's, and all that are still wanted are equal to it
            total += (wanted - above).to(dtype) * _value(low, dtype, LARGEST)
        tl.store(means + sample * shares + share, total / wanted.to(dtype))


def _largest(full: Tensor, largest: Tensor, means: Tensor, top: list[float]) -> None:
    pixels = full.shape[2] * full.shape[3]
    for share in range(max(len(top), 1)):  # each finds the same largest pixel
        _largest_kernel[(full.shape[0],)](
            full,
            largest,
            means if top else largest,
            pixels,
            math.ceil(top[share] * pixels) if top else 0,
            share,
            len(top),
            TOP=len(top) > 0,
            BLOCK=BLOCK,
            LARGEST=2**63 - 1 if full.dtype == torch.float64 else 2**31 - 1,
            **(OPTIONS | {"num_warps": 16}),
        )


def _add_scale(
    k: int,
    distance: Tensor,
    matrices: list[Tensor],
    weights: Tensor | None,
    mean: Tensor,
    full: Tensor | None,
) -> None:
    n, source_height, source_width = distance.shape
    rows, columns = matrices
    factors = distance if weights is None else weights
    scale = (k, 1 if weights is None else weights.shape[1])
    how = OPTIONS | {"HAS_WEIGHTS": weights is not None, "FIRST": k == 0, "ROWS": ROWS, "COLUMNS": COLUMNS}
    means = [matrix.mean(0) for matrix in matrices]
    _mean_kernel[(n,)](distance, *means, factors, mean, source_height, source_width, *scale, **how)
    if full is None:
        return
    height, width = full.shape[2:]
    tiles = triton.cdiv(height, ROWS) * triton.cdiv(width, COLUMNS)
    sizes = (source_height, source_width, height, width)
    how |= {"DEPTH": DEPTH, "num_warps": 8}  # with fewer, registers spill
    _map_kernel[(n * tiles,)](distance, rows, columns, factors, full, *sizes, *scale, **how)


def anomaly_map(
    distances: list[Tensor],
    weights: Tensor | None,
    size: list[int],
    sigma: float,
    border: str,
    top: list[float],
    return_map: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    like, n = distances[0], distances[0].shape[0]
    full = like.new_empty((n, 1, *size) if return_map else (0,))
    mean, largest = like.new_empty((n,)), like.new_empty((n if return_map else 0,))
    means = like.new_empty((n, len(top) if return_map else 0))
    if n == 0:
        return full, mean, largest, means
    weights = None if weights is None else weights.contiguous()
    with torch.cuda.device_of(like):  # type: ignore[no-untyped-call]
        for k, d in enumerate(distances):
            axes = zip(d.shape[1:], size, strict=True)
            matrices = [axis_matrix(source, target, sigma, border, d.dtype, d.device) for source, target in axes]
            _add_scale(k, d.contiguous(), matrices, weights, mean, full if return_map else None)
        if return_map:
            _largest(full, largest, means, top)
    return full, mean, largest, means
