# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-untyped-decorators=False
"""`synthesize_anomalies` in Triton: one kernel makes the noise of each box and adds it."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from scrd_fast.ops.triton.simplex_noise import (
    BLOCK,
    OPTIONS,
    fractal,
    index_type,
    is_hashed,
    pixel_step,
    shuffles,
)

__all__ = ["synthesize_anomalies", "synthesize_anomalies_"]

# Programs an image at most. Boxes are not read here, so all images get as many; a box of 3 x 32 x 32 fills 24.
BLOCKS = 24


SIZES = ["channels", "height", "width", "blocks", "octaves"]
STRIDES = [f"{of}_stride" for of in ("image", "channel", "row", "column", "box", "side", "seed", "std")]


@triton.jit(do_not_specialize=SIZES + STRIDES)  # one compilation for all of them
def _add_kernel(
    images: tl.tensor,  # [N, C, H, W], in any layout
    boxes: tl.tensor,  # int32 [N, 4]: top, left, height, width
    seeds: tl.tensor,  # int64 [N]
    tables: tl.tensor,  # uint8 [N, 256]; not read if HASHED
    std: tl.tensor,  # [C]; not read unless HAS_STD
    strength: tl.float32,
    channels: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    blocks: tl.tensor,
    image_stride: tl.int64,
    channel_stride: tl.int64,
    row_stride: tl.int64,
    column_stride: tl.int64,
    box_stride: tl.int64,
    side_stride: tl.int64,
    seed_stride: tl.int64,
    std_stride: tl.int64,
    octaves: tl.tensor,
    persistence: tl.float64,
    step: tl.float64,
    HASHED: tl.constexpr,
    HAS_STD: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """`blocks` programs share an image's box, cut at the border."""
    program = tl.program_id(0)
    sample = (program // blocks).to(tl.int64)
    box = boxes + sample * box_stride
    top, left = tl.load(box).to(tl.int64), tl.load(box + side_stride).to(tl.int64)
    h, w = tl.load(box + 2 * side_stride).to(tl.int64), tl.load(box + 3 * side_stride).to(tl.int64)
    y, x = tl.maximum(top, 0), tl.maximum(left, 0)
    rows = tl.maximum(tl.minimum(top + h, height) - y, 0).to(INDEX)
    columns = tl.maximum(tl.minimum(left + w, width) - x, 0).to(INDEX)
    elements = channels.to(INDEX) * rows * columns
    seed = tl.load(seeds + sample * seed_stride)
    start = (program % blocks).to(INDEX) * BLOCK
    for begin in range(start, elements, (blocks * BLOCK).to(INDEX)):
        element = begin + tl.arange(0, BLOCK)
        inside = element < elements
        row = element // columns
        c, i, j = row // rows, (row % rows).to(tl.int64), (element % columns).to(tl.int64)
        noise = fractal(
            seed, tables + sample * 256, j + (x - left), i + (y - top), c, octaves, persistence, step, HASHED
        )
        patch = noise * strength
        if HAS_STD:
            patch = patch / tl.load(std + c * std_stride, mask=inside, other=1.0).to(tl.float32)
        place = images + sample * image_stride + c * channel_stride + (y + i) * row_stride + (x + j) * column_stride
        image = tl.load(place, mask=inside)
        wide = image.to(tl.float64) if images.dtype.element_ty == tl.float64 else image.to(tl.float32)
        tl.store(place, (wide + patch).to(images.dtype.element_ty), mask=inside)


def synthesize_anomalies_(
    images: Tensor,
    boxes: Tensor,
    seeds: Tensor,
    strength: float,
    std: Tensor | None,
    octaves: int,
    persistence: float,
    frequency: float,
    variant: str,
) -> None:
    hashed = is_hashed(variant)
    n, c, h, w = images.shape
    if images.numel() == 0:
        return
    blocks = min(triton.cdiv(c * h * w, BLOCK), BLOCKS)
    with torch.cuda.device_of(images):  # type: ignore[no-untyped-call]
        _add_kernel[(n * blocks,)](
            images,
            boxes,
            seeds,
            shuffles(seeds, hashed),
            images if std is None else std,
            strength,
            c,
            h,
            w,
            blocks,
            *images.stride(),
            *boxes.stride(),
            seeds.stride(0),
            0 if std is None else std.stride(0),
            octaves,
            persistence,
            pixel_step(frequency, hashed),
            HASHED=hashed,
            HAS_STD=std is not None,
            INDEX=index_type(c * h * w),
            BLOCK=BLOCK,
            **OPTIONS,
        )


def synthesize_anomalies(
    images: Tensor,
    boxes: Tensor,
    seeds: Tensor,
    strength: float,
    std: Tensor | None,
    octaves: int,
    persistence: float,
    frequency: float,
    variant: str,
) -> Tensor:
    result = images.clone(memory_format=torch.preserve_format)
    synthesize_anomalies_(result, boxes, seeds, strength, std, octaves, persistence, frequency, variant)
    return result
