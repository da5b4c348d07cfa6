# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-untyped-decorators=False
"""`contrastive_distance` and its gradient in Triton: two launches a scale, and one.

The order of a sample's sums follows from the number of its values alone: lane r of a chunk adds values r, r + BLOCK,
and so on, then halves of the lanes are added, then chunks one after the other in float64.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from scrd_fast.ops._cosine import accumulator
from scrd_fast.ops.contrastive_distance import distances_of, gradient_format, slopes_of
from scrd_fast.ops.triton.simplex_noise import OPTIONS

__all__ = ["contrastive_distance", "contrastive_distance_backward"]

BLOCK = 1024
CHUNK = 16 * BLOCK


@triton.jit
def _sum_lanes(lanes: tl.tensor) -> tl.tensor:
    """[1024] -> [1]. In `tl.sum` the order would be the compiler's, which looks at alignments."""
    for _ in tl.static_range(10):
        first, second = tl.split(tl.permute(tl.reshape(lanes, (2, lanes.shape[0] // 2)), (1, 0)))
        lanes = first + second
    return lanes


@triton.jit(do_not_specialize=["chunks"])
def _sums_kernel(
    clean: tl.tensor,  # [N, values], as the others
    noisy: tl.tensor,
    student: tl.tensor,
    partial: tl.tensor,  # [N, chunks, 5]
    values: tl.tensor,
    chunks: tl.tensor,
    clean_stride: tl.tensor,
    noisy_stride: tl.tensor,
    student_stride: tl.tensor,
    NOISY: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A program for each chunk of each sample."""
    tl.static_assert(BLOCK == 1024)
    program = tl.program_id(0)
    sample = (program // chunks).to(tl.int64)
    lane = (program % chunks).to(tl.int64) * CHUNK + tl.arange(0, BLOCK)
    dtype: tl.constexpr = partial.dtype.element_ty
    cs = tl.zeros((BLOCK,), dtype)
    ns = tl.zeros((BLOCK,), dtype)
    cc = tl.zeros((BLOCK,), dtype)
    nn = tl.zeros((BLOCK,), dtype)
    ss = tl.zeros((BLOCK,), dtype)
    for start in range(0, CHUNK, BLOCK):
        at = lane + start
        inside = at < values
        c = tl.load(clean + sample * clean_stride + at, mask=inside, other=0.0).to(dtype)
        s = tl.load(student + sample * student_stride + at, mask=inside, other=0.0).to(dtype)
        cs, cc, ss = tl.fma(c, s, cs), tl.fma(c, c, cc), tl.fma(s, s, ss)
        if NOISY:
            n = tl.load(noisy + sample * noisy_stride + at, mask=inside, other=0.0).to(dtype)
            ns, nn = tl.fma(n, s, ns), tl.fma(n, n, nn)
    to = partial + program.to(tl.int64) * 5 + tl.arange(0, 1)
    tl.store(to, _sum_lanes(cs))
    tl.store(to + 1, _sum_lanes(ns))
    tl.store(to + 2, _sum_lanes(cc))
    tl.store(to + 3, _sum_lanes(nn))
    tl.store(to + 4, _sum_lanes(ss))


@triton.jit(do_not_specialize=["chunks", "stride"])
def _join_kernel(
    partial: tl.tensor,  # [N, chunks, 5]
    dots: tl.tensor,  # [N, stride], float64
    chunks: tl.tensor,
    stride: tl.tensor,
) -> None:
    """A program for each sample. The chunks one after the other."""
    sample = tl.program_id(0).to(tl.int64)
    dot = tl.arange(0, 8)
    total = tl.zeros((8,), tl.float64)
    for chunk in range(0, chunks):
        total += tl.load(partial + (sample * chunks + chunk) * 5 + dot, mask=dot < 5, other=0.0).to(tl.float64)
    tl.store(dots + sample * stride + dot, total, mask=dot < 5)


@triton.jit(do_not_specialize=["blocks"])
def _combine_kernel(
    x: tl.tensor,  # [N, values], as the others
    y: tl.tensor,
    z: tl.tensor,
    factors: tl.tensor,  # [N, 3]
    out: tl.tensor,
    values: tl.tensor,
    blocks: tl.tensor,
    x_stride: tl.tensor,
    y_stride: tl.tensor,
    z_stride: tl.tensor,
    THREE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """out = a x + b y + c z, `blocks` programs a sample."""
    program = tl.program_id(0)
    sample = (program // blocks).to(tl.int64)
    at = (program % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < values
    dtype: tl.constexpr = factors.dtype.element_ty
    a = tl.load(factors + sample * 3)
    b = tl.load(factors + sample * 3 + 1)
    total = a * tl.load(x + sample * x_stride + at, mask=inside, other=0.0).to(dtype)
    total = tl.fma(tl.zeros((BLOCK,), dtype) + b, tl.load(y + sample * y_stride + at, mask=inside).to(dtype), total)
    if THREE:
        c = tl.load(factors + sample * 3 + 2)
        total = tl.fma(tl.zeros((BLOCK,), dtype) + c, tl.load(z + sample * z_stride + at, mask=inside).to(dtype), total)
    tl.store(out + sample * values + at, total.to(out.dtype.element_ty), mask=inside)


def _rows(x: Tensor, like: Tensor) -> Tensor:
    """[N, values] in the order of `like`, without a copy where x lies so."""
    x = x.permute(0, 2, 3, 1) if gradient_format(like) == torch.channels_last else x
    return x.flatten(1)


def contrastive_distance(
    clean: list[Tensor], noisy: list[Tensor], student: list[Tensor], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    n, count = student[0].shape[0], len(student)
    dots = student[0].new_zeros((n, count, 5), dtype=torch.float64)
    for k, s in enumerate(student):
        if n == 0:
            break
        maps = [_rows(x, s) for x in (clean[k], noisy[k] if noisy else clean[k], s)]
        values = maps[0].shape[1]
        chunks = triton.cdiv(values, CHUNK)
        partial = s.new_empty((n, chunks, 5), dtype=accumulator(s))
        with torch.cuda.device_of(s):  # type: ignore[no-untyped-call]
            _sums_kernel[(n * chunks,)](
                *maps,
                partial,
                values,
                chunks,
                *(x.stride(0) for x in maps),
                NOISY=bool(noisy),
                CHUNK=CHUNK,
                BLOCK=BLOCK,
                **OPTIONS,
            )
            _join_kernel[(n,)](partial, dots[:, k], chunks, 5 * count, **OPTIONS)
    d_clean, d_noisy = (d.to(accumulator(student[0])) for d in distances_of(dots, eps))
    return d_clean, d_noisy if noisy else d_clean.new_empty(0), dots.to(accumulator(student[0]))


def contrastive_distance_backward(
    grad_clean: Tensor,
    grad_noisy: Tensor,
    dots: Tensor,
    clean: list[Tensor],
    noisy: list[Tensor],
    student: list[Tensor],
    eps: float,
    teacher_grad: bool,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    slopes = slopes_of(dots, grad_clean, grad_noisy if noisy else torch.zeros_like(grad_clean), eps)
    to_student = [
        _combined(slopes[0][:, k], [student[k], clean[k], noisy[k] if noisy else clean[k]], bool(noisy), student[k])
        for k in range(len(student))
    ]
    if not teacher_grad:
        return [], [], to_student
    to_clean, to_noisy = (
        [_combined(s[:, k], [t, student[k], t], False, student[k]) for k, t in enumerate(teacher)]
        for s, teacher in zip(slopes[1:], (clean, noisy), strict=True)
    )
    return to_clean, to_noisy, to_student


def _combined(factors: Tensor, maps: list[Tensor], three: bool, student: Tensor) -> Tensor:
    out = torch.empty_like(student, memory_format=gradient_format(student))
    rows = [_rows(x, student) for x in maps]
    n, values = rows[0].shape
    blocks = triton.cdiv(values, BLOCK)
    if n > 0:
        with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
            _combine_kernel[(n * blocks,)](
                *rows,
                factors.contiguous(),
                out,
                values,
                blocks,
                *(x.stride(0) for x in rows),
                THREE=three,
                BLOCK=BLOCK,
                **OPTIONS,
            )
    return out
