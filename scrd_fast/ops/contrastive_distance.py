# SPDX-License-Identifier: Apache-2.0
r"""Contrastive distances: how far the student's features are from the clean and from the noisy teacher's.

    d(X, Y)_k = 1 - <vec X_k, vec Y_k> / (max(|X_k|, eps) max(|Y_k|, eps))

Each sample's whole map, channels and pixels, is one vector: the global distance of reverse distillation
(Deng & Li 2022, and the loss of Li et al., ICLR 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scrd_fast.ops._checks import check_same_maps
from scrd_fast.ops._cosine import accumulator, cosine_distance, cosine_distance_grad
from scrd_fast.ops._library import choose, define, define_backward

__all__ = ["contrastive_distance"]

SCHEMA = "contrastive_distance(Tensor[] clean, Tensor[] noisy, Tensor[] student, float eps) -> (Tensor, Tensor)"
BACKWARD_SCHEMA = (
    "contrastive_distance_backward(Tensor grad_clean, Tensor grad_noisy, Tensor[] clean, Tensor[] noisy, "
    "Tensor[] student, float eps, bool teacher_grad) -> (Tensor[], Tensor[], Tensor[])"
)


def contrastive_distance(
    clean: Sequence[Tensor],  # K maps [N, C_k, H_k, W_k]
    noisy: Sequence[Tensor] | None,
    student: Sequence[Tensor],
    *,
    eps: float = 1e-8,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Cosine distances of whole feature maps: student to clean teacher, student to noisy teacher.

    Maps are float32, float16, bfloat16 (sums in float32) or float64; the distances are [N, K] in float32
    (float64 for float64 maps), between 0 and 2. `noisy=None` gives None for the second. Differentiable in all
    three lists. A zero map is at distance 1 from everything.

    Raises ValueError (shapes, lengths, devices, eps) or TypeError (dtype); `UnavailableError` for a backend
    asked for by name that cannot run here.

    >>> import torch
    >>> from scrd_fast.ops import contrastive_distance
    >>> teacher, student = torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    >>> contrastive_distance([teacher], [-teacher], [student])
    (tensor([[0.],
            [0.]]), tensor([[2.],
            [2.]]))
    """
    clean, student = list(clean), list(student)
    noisy_maps = [] if noisy is None else list(noisy)
    _check(clean, None if noisy is None else noisy_maps, student, eps)
    run = choose("contrastive_distance", backend, student[0].device, _reference)
    d_clean, d_noisy = run(clean, noisy_maps, student, eps)
    return d_clean, None if noisy is None else d_noisy


def _check(clean: list[Tensor], noisy: list[Tensor] | None, student: list[Tensor], eps: float) -> None:
    check_same_maps(("student", "clean"), student, clean)
    if noisy is not None:
        check_same_maps(("student", "noisy"), student, noisy)
    if not eps > 0:
        raise ValueError(f"eps must be greater than 0, got {eps}")


def _distances(teacher: list[Tensor], student: list[Tensor], eps: float) -> Tensor:
    return torch.stack(
        [cosine_distance(t.flatten(1), s.flatten(1), eps) for t, s in zip(teacher, student, strict=True)], dim=1
    )


def _reference(clean: list[Tensor], noisy: list[Tensor], student: list[Tensor], eps: float) -> tuple[Tensor, Tensor]:
    d_clean = _distances(clean, student, eps)
    return d_clean, _distances(noisy, student, eps) if noisy else d_clean.new_empty(0)


def _distance_grad(x: Tensor, y: Tensor, grad: Tensor, eps: float) -> Tensor:
    return cosine_distance_grad(x.flatten(1), y.flatten(1), grad, eps).view(x.shape)


def _reference_backward(
    grad_clean: Tensor,
    grad_noisy: Tensor,
    clean: list[Tensor],
    noisy: list[Tensor],
    student: list[Tensor],
    eps: float,
    teacher_grad: bool,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    def grads(of: list[Tensor], to: list[Tensor], grad: Tensor) -> list[Tensor]:
        pairs = enumerate(zip(of, to, strict=True))
        return [_distance_grad(x, y, grad[:, k], eps) for k, (x, y) in pairs]

    to_student = grads(student, clean, grad_clean)
    if noisy:
        pushed = grads(student, noisy, grad_noisy)
        to_student = [pull + push for pull, push in zip(to_student, pushed, strict=True)]
    if not teacher_grad:
        return [], [], to_student
    return grads(clean, student, grad_clean), grads(noisy, student[: len(noisy)], grad_noisy), to_student


def _fake(clean: list[Tensor], noisy: list[Tensor], student: list[Tensor], eps: float) -> tuple[Tensor, Tensor]:
    n, dtype = student[0].shape[0], accumulator(student[0])
    d_clean = student[0].new_empty((n, len(student)), dtype=dtype)
    return d_clean, torch.empty_like(d_clean) if noisy else d_clean.new_empty(0)


def _fake_backward(
    grad_clean: Tensor,
    grad_noisy: Tensor,
    clean: list[Tensor],
    noisy: list[Tensor],
    student: list[Tensor],
    eps: float,
    teacher_grad: bool,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    def like(maps: list[Tensor]) -> list[Tensor]:
        return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in maps]

    return (like(clean), like(noisy), like(student)) if teacher_grad else ([], [], like(student))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    clean, noisy, student, eps = inputs
    ctx.save_for_backward(*clean, *noisy, *student)
    ctx.counts, ctx.eps = (len(clean), len(noisy)), eps


def _backward(ctx: Any, grad_clean: Tensor, grad_noisy: Tensor) -> tuple[Any, ...]:
    saved = list(ctx.saved_tensors)
    a, b = ctx.counts[0], sum(ctx.counts)
    clean, noisy, student = saved[:a], saved[a:b], saved[b:]
    teacher_grad = any(x.requires_grad for x in clean + noisy)
    to_clean, to_noisy, to_student = torch.ops.scrd_fast.contrastive_distance_backward(
        grad_clean, grad_noisy, clean, noisy, student, ctx.eps, teacher_grad
    )
    if not teacher_grad:
        to_clean, to_noisy = [None] * len(clean), [None] * len(noisy)
    return to_clean, to_noisy, to_student, None


define(SCHEMA, _reference)
torch.library.register_fake("scrd_fast::contrastive_distance", _fake)
define_backward(BACKWARD_SCHEMA, _reference_backward, _fake_backward)
torch.library.register_autograd("scrd_fast::contrastive_distance", _backward, setup_context=_setup_context)
