# SPDX-License-Identifier: Apache-2.0
r"""Cosine distances of teacher and student per pixel, at every scale.

    d_k[n, h, w] = 1 - <t, s> / (max(|t|, eps) max(|s|, eps))      t = teacher_k[n, :, h, w], s = student_k[n, :, h, w]

Each norm is clamped on its own, as `torch.nn.functional.cosine_similarity` does. It is the local distance of reverse
distillation (Deng & Li, CVPR 2022, equation 1), and the one pass over the features that an anomaly map needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scrd_fast.ops._checks import check_same_maps
from scrd_fast.ops._cosine import accumulator, cosine_distance, cosine_distance_grad
from scrd_fast.ops._library import choose, define, define_backward, define_triton

__all__ = ["cosine_distances"]

SCHEMA = "cosine_distances(Tensor[] teacher, Tensor[] student, float eps) -> Tensor[]"
BACKWARD_SCHEMA = (
    "cosine_distances_backward(Tensor[] grads, Tensor[] teacher, Tensor[] student, float eps, bool teacher_grad) "
    "-> (Tensor[], Tensor[])"
)


def cosine_distances(
    teacher: Sequence[Tensor],  # K maps [N, C_k, H_k, W_k]
    student: Sequence[Tensor],
    *,
    eps: float = 1e-8,
    backend: str = "auto",
) -> list[Tensor]:  # K maps [N, H_k, W_k]
    """The cosine distance of two features over channels, 0 to 2 up to rounding, for each pixel of each scale.

    Features are float32, float16, bfloat16 (sums in float32, distances float32) or float64 (distances float64),
    contiguous or channels-last without a copy. A zero vector is at distance 1 from everything. Differentiable in
    both lists, once. An image's distances do not depend on the rest of its batch nor on the number of threads, bit for
    bit, but for the reference.

    Raises ValueError (shapes, lengths, devices, eps) or TypeError (dtypes); `UnavailableError` for a backend asked for
    by name that cannot run here.

    >>> import torch
    >>> from scrd_fast.ops import cosine_distances
    >>> ones = torch.ones(1, 8, 2, 2)
    >>> cosine_distances([ones, ones], [-ones, ones])
    [tensor([[[2., 2.],
             [2., 2.]]]), tensor([[[0., 0.],
             [0., 0.]]])]
    """
    teacher, student = list(teacher), list(student)
    check_features(teacher, student, eps)
    run = choose("cosine_distances", backend, student[0].device, _reference)
    result: list[Tensor] = run(teacher, student, eps)
    return result


def check_features(teacher: list[Tensor], student: list[Tensor], eps: float) -> None:
    check_same_maps(("teacher", "student"), teacher, student)
    kinds = {t.dtype for t in teacher}
    if torch.float64 in kinds and len(kinds) > 1:
        raise TypeError(f"teacher must be float64 at every scale or at none, got {[str(t.dtype) for t in teacher]}")
    if not eps > 0:
        raise ValueError(f"eps must be greater than 0, got {eps}")


def _reference(teacher: list[Tensor], student: list[Tensor], eps: float) -> list[Tensor]:
    return [cosine_distance(t, s, eps).contiguous() for t, s in zip(teacher, student, strict=True)]


def _gradient_format(x: Tensor, y: Tensor) -> torch.memory_format:
    """Of both gradients of a pair: channels-last where both features are, however far apart their images lie."""
    first = (x[:1], y[:1])
    both = all(z.is_contiguous(memory_format=torch.channels_last) and not z.is_contiguous() for z in first)
    return torch.channels_last if both else torch.contiguous_format


def _reference_backward(
    grads: list[Tensor],
    teacher: list[Tensor],
    student: list[Tensor],
    eps: float,
    teacher_grad: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    def grads_of(of: list[Tensor], to: list[Tensor]) -> list[Tensor]:
        return [
            cosine_distance_grad(x, y, g, eps).contiguous(memory_format=_gradient_format(x, y))
            for x, y, g in zip(of, to, grads, strict=True)
        ]

    return grads_of(teacher, student) if teacher_grad else [], grads_of(student, teacher)


def _fake(teacher: list[Tensor], student: list[Tensor], eps: float) -> list[Tensor]:
    return [t.new_empty((t.shape[0], *t.shape[2:]), dtype=accumulator(t)) for t in teacher]


def _fake_backward(
    grads: list[Tensor],
    teacher: list[Tensor],
    student: list[Tensor],
    eps: float,
    teacher_grad: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    def like(of: list[Tensor], to: list[Tensor]) -> list[Tensor]:
        pairs = zip(of, to, strict=True)
        return [torch.empty_like(x, memory_format=_gradient_format(x, y)) for x, y in pairs]

    return like(teacher, student) if teacher_grad else [], like(student, teacher)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    teacher, student, ctx.eps = inputs
    ctx.scales = len(teacher)
    ctx.save_for_backward(*teacher, *student)


def _backward(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    teacher, student = list(ctx.saved_tensors[: ctx.scales]), list(ctx.saved_tensors[ctx.scales :])
    teacher_grad = any(t.requires_grad for t in teacher)
    to_teacher, to_student = torch.ops.scrd_fast.cosine_distances_backward(
        grads, teacher, student, ctx.eps, teacher_grad
    )
    return to_teacher if teacher_grad else [None] * ctx.scales, to_student, None


define(SCHEMA, _reference)
torch.library.register_fake("scrd_fast::cosine_distances", _fake)
define_backward(BACKWARD_SCHEMA, _reference_backward, _fake_backward)
torch.library.register_autograd("scrd_fast::cosine_distances", _backward, setup_context=_setup_context)
define_triton(SCHEMA, _fake, _backward, _setup_context)
