# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-untyped-decorators=False
"""`cosine_distances` in Triton: one launch a scale.

The order of a pixel's sums follows from its number of channels alone: lane r adds channels r, r + 32, r + 64, ..., then
halves of the lanes are added. So neither the layout of the features, nor where they begin, nor how many images there
are changes a bit.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from scrd_fast.ops._cosine import accumulator
from scrd_fast.ops.triton.simplex_noise import INTERPRETED, OPTIONS

__all__ = ["cosine_distances"]

# A tile is square: along whichever side the features lie together, a row of it is 128 bytes of float32.
CHANNELS = 32
# A program of the interpreter takes milliseconds whatever its size.
PIXELS = 256 if INTERPRETED else 32


@triton.jit
def _sum_lanes(lanes: tl.tensor) -> tl.tensor:
    """[CHANNELS, PIXELS] -> [PIXELS]. In `tl.sum` the order would be the compiler's, which looks at alignments."""
    for _ in tl.static_range(5):
        halves = tl.reshape(lanes, (2, lanes.shape[0] // 2, lanes.shape[1]))
        first, second = tl.split(tl.permute(halves, (1, 2, 0)))
        lanes = first + second
    return tl.reshape(lanes, (lanes.shape[1],))


# Sizes, strides and alignments are compiled for: 16-byte loads need to know that they are multiples of 16, or one.
@triton.jit(do_not_specialize=["blocks", "eps"])
def _distance_kernel(
    teacher: tl.tensor,  # [N, C, P], in any layout
    student: tl.tensor,
    out: tl.tensor,  # [N, P]
    channels: tl.tensor,
    pixels: tl.tensor,
    blocks: tl.tensor,
    eps: tl.float64,
    teacher_image_stride: tl.tensor,
    teacher_channel_stride: tl.tensor,
    teacher_pixel_stride: tl.tensor,
    student_image_stride: tl.tensor,
    student_channel_stride: tl.tensor,
    student_pixel_stride: tl.tensor,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    """`blocks` programs an image."""
    tl.static_assert(CHANNELS == 32)
    program = tl.program_id(0)
    sample = (program // blocks).to(tl.int64)
    pixel = (program % blocks).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    channel, step = tl.arange(0, CHANNELS).to(tl.int64), tl.full((), CHANNELS, tl.int64)
    first, second = channel[:, None] * teacher_channel_stride, channel[:, None] * student_channel_stride
    t_place = teacher + sample * teacher_image_stride + first + pixel[None, :] * teacher_pixel_stride
    s_place = student + sample * student_image_stride + second + pixel[None, :] * student_pixel_stride
    dtype: tl.constexpr = out.dtype.element_ty
    ts = tl.zeros((CHANNELS, PIXELS), dtype)
    tt = tl.zeros((CHANNELS, PIXELS), dtype)
    ss = tl.zeros((CHANNELS, PIXELS), dtype)
    for start in range(0, channels, CHANNELS):
        inside = ((start + channel) < channels)[:, None] & (pixel < pixels)[None, :]
        t = tl.load(t_place, mask=inside, other=0.0).to(dtype)
        s = tl.load(s_place, mask=inside, other=0.0).to(dtype)
        ts, tt, ss = tl.fma(t, s, ts), tl.fma(t, t, tt), tl.fma(s, s, ss)
        t_place += step * teacher_channel_stride
        s_place += step * student_channel_stride
    smallest = tl.full((), eps, tl.float64).to(dtype)
    t_norm = tl.maximum(tl.sqrt(_sum_lanes(tt)), smallest)
    s_norm = tl.maximum(tl.sqrt(_sum_lanes(ss)), smallest)
    # One after the other: a GPU's fast division takes no divisor above 2^126, which a product of norms can be.
    distance = 1 - _sum_lanes(ts) / t_norm / s_norm
    tl.store(out + sample * pixels + pixel, distance, mask=pixel < pixels)


def _fill(out: Tensor, teacher: Tensor, student: Tensor, eps: float) -> None:
    n, c, h, w = teacher.shape
    # No copy where pixels lie evenly apart, as they do in contiguous and in channels-last features.
    teacher, student = teacher.flatten(2), student.flatten(2)
    blocks = triton.cdiv(h * w, PIXELS)
    with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
        _distance_kernel[(n * blocks,)](
            teacher,
            student,
            out,
            c,
            h * w,
            blocks,
            eps,
            *teacher.stride(),
            *student.stride(),
            CHANNELS=CHANNELS,
            PIXELS=PIXELS,
            **OPTIONS,
        )


def cosine_distances(teacher: list[Tensor], student: list[Tensor], eps: float) -> list[Tensor]:
    distances = [t.new_empty((t.shape[0], *t.shape[2:]), dtype=accumulator(t)) for t in teacher]
    for out, t, s in zip(distances, teacher, student, strict=True):
        if out.shape[0] > 0:
            _fill(out, t, s, eps)
    return distances
