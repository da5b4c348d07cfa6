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
from scrd_fast.ops._cosine import accumulator
from scrd_fast.ops._library import choose, define, define_backward, define_triton

__all__ = ["contrastive_distance"]

# The third result is [N, K, 5], the sums <E,D>, <N,D>, <E,E>, <N,N>, <D,D>: thanks to them the backward reads once.
SCHEMA = "contrastive_distance(Tensor[] clean, Tensor[] noisy, Tensor[] student, float eps) -> (Tensor, Tensor, Tensor)"
BACKWARD_SCHEMA = (
    "contrastive_distance_backward(Tensor grad_clean, Tensor grad_noisy, Tensor dots, Tensor[] clean, Tensor[] noisy, "
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
    (float64 for float64 maps), 0 to 2 up to rounding. `noisy=None` gives None for the second. Differentiable in all
    three lists. A zero map is at distance 1 from everything.

    Raises ValueError (shapes, lengths, devices, eps) or TypeError (dtype); `UnavailableError` for a backend
    asked for by name that cannot run here.

    >>> import torch
    >>> from scrd_fast.ops import contrastive_distance
    >>> teacher, student = torch.ones(2, 3, 4, 4), -torch.ones(2, 3, 4, 4)
    >>> contrastive_distance([teacher], [0 * teacher], [student])
    (tensor([[2.],
            [2.]]), tensor([[1.],
            [1.]]))
    """
    clean, student = list(clean), list(student)
    noisy_maps = [] if noisy is None else list(noisy)
    _check(clean, None if noisy is None else noisy_maps, student, eps)
    run = choose("contrastive_distance", backend, student[0].device, _differentiable_reference)
    d_clean, d_noisy = run(clean, noisy_maps, student, eps)[:2]
    return d_clean, None if noisy is None else d_noisy


def _check(clean: list[Tensor], noisy: list[Tensor] | None, student: list[Tensor], eps: float) -> None:
    check_same_maps(("student", "clean"), student, clean)
    if noisy is not None:
        check_same_maps(("student", "noisy"), student, noisy)
    kinds = {s.dtype for s in student}
    if torch.float64 in kinds and len(kinds) > 1:
        raise TypeError(f"student must be float64 at every scale or at none, got {[str(s.dtype) for s in student]}")
    if not eps > 0:
        raise ValueError(f"eps must be greater than 0, got {eps}")


def _sums(x: list[Tensor], y: list[Tensor]) -> Tensor:
    """<X, Y> for each sample and scale, [N, K]. torch's `sum` adds in a tree, its `dot` one after the other."""
    return torch.stack([(a * b).flatten(1).sum(1) for a, b in zip(x, y, strict=True)], dim=1)


def _norm(squared: Tensor, eps: float) -> Tensor:
    """max(|X|, eps), of its square."""
    least = max(eps * eps, torch.finfo(squared.dtype).tiny)  # before the root, whose derivative at 0 is infinite
    return squared.clamp_min(least).sqrt()


def distances_of(dots: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Clean and noisy distances [N, K] from the sums [N, K, 5]."""
    clean_both, noisy_both, clean, noisy, student = dots.unbind(2)
    length = _norm(student, eps)
    return 1 - clean_both / _norm(clean, eps) / length, 1 - noisy_both / _norm(noisy, eps) / length


def _differentiable_reference(
    clean: list[Tensor], noisy: list[Tensor], student: list[Tensor], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    # Widened once: its gradient is then rounded once, too.
    clean, noisy, student = ([x.to(accumulator(x)) for x in maps] for maps in (clean, noisy, student))
    squared = _sums(student, student)
    none = torch.zeros_like(squared)
    both = [_sums(teacher, student) if teacher else none for teacher in (clean, noisy)]
    own = [_sums(teacher, teacher) if teacher else none for teacher in (clean, noisy)]
    dots = torch.stack([*both, *own, squared], dim=2)
    d_clean, d_noisy = distances_of(dots, eps)
    return d_clean, d_noisy if noisy else d_clean.new_empty(0), dots.detach()


def _reference(
    clean: list[Tensor], noisy: list[Tensor], student: list[Tensor], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        return _differentiable_reference(clean, noisy, student, eps)


def _slopes(both: Tensor, squared: Tensor, other_squared: Tensor, grad: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The gradient with respect to a map whose square is `squared`: so many times that map, so many the other one."""
    length, other = _norm(squared, eps), _norm(other_squared, eps)
    cosine = both / length / other
    # Below eps the norm is a constant, so its own derivative vanishes.
    own = torch.where(squared.sqrt() > eps, cosine / length.square(), torch.zeros_like(cosine))
    return grad * own, -grad / length / other


def slopes_of(dots: Tensor, grad_clean: Tensor, grad_noisy: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients as multiples of maps, [N, K, 3] each: to the student of (student, clean, noisy), to the clean and to
    the noisy teacher of (itself, student, nothing)."""
    clean_both, noisy_both, clean, noisy, student = dots.unbind(2)
    pulled, from_clean = _slopes(clean_both, student, clean, grad_clean, eps)
    pushed, from_noisy = _slopes(noisy_both, student, noisy, grad_noisy, eps)
    none = torch.zeros_like(pulled)
    to_clean = _slopes(clean_both, clean, student, grad_clean, eps)
    to_noisy = _slopes(noisy_both, noisy, student, grad_noisy, eps)
    return (
        torch.stack([pulled + pushed, from_clean, from_noisy], dim=2),
        torch.stack([*to_clean, none], dim=2),
        torch.stack([*to_noisy, none], dim=2),
    )


def _reference_backward(
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
    to_student = _combined(slopes[0], [student, clean, noisy], student)
    if not teacher_grad:
        return [], [], to_student
    to_clean, to_noisy = (
        _combined(s, [teacher, student], student) if teacher else []
        for s, teacher in zip(slopes[1:], (clean, noisy), strict=True)
    )
    return to_clean, to_noisy, to_student


def _combined(factors: Tensor, maps: list[list[Tensor]], student: list[Tensor]) -> list[Tensor]:
    """The sum of maps [N, C, H, W] times factors [N, K, 3], for each scale; laid out as the student is, dense."""
    found = []
    for k, like in enumerate(student):
        total = torch.zeros(like.shape, dtype=factors.dtype, device=like.device)
        for i, lists in enumerate(maps):
            if lists:
                total = total + factors[:, k, i, None, None, None] * lists[k].to(factors.dtype)
        found.append(total.to(like.dtype).contiguous(memory_format=gradient_format(like)))
    return found


def gradient_format(student: Tensor) -> torch.memory_format:
    """Channels-last where the student is, however far apart its samples lie."""
    first = student[:1]
    rows = first.is_contiguous(memory_format=torch.channels_last) and not first.is_contiguous()
    return torch.channels_last if rows else torch.contiguous_format


def _fake(clean: list[Tensor], noisy: list[Tensor], student: list[Tensor], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    n, count, dtype = student[0].shape[0], len(student), accumulator(student[0])
    d_clean = student[0].new_empty((n, count), dtype=dtype)
    d_noisy = torch.empty_like(d_clean) if noisy else d_clean.new_empty(0)
    return d_clean, d_noisy, d_clean.new_empty((n, count, 5))


def _fake_backward(
    grad_clean: Tensor,
    grad_noisy: Tensor,
    dots: Tensor,
    clean: list[Tensor],
    noisy: list[Tensor],
    student: list[Tensor],
    eps: float,
    teacher_grad: bool,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    def like(maps: list[Tensor]) -> list[Tensor]:
        return [torch.empty_like(s, memory_format=gradient_format(s)) for s, _ in zip(student, maps, strict=False)]

    return (like(clean), like(noisy), like(student)) if teacher_grad else ([], [], like(student))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    clean, noisy, student, eps = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(output[2], *clean, *noisy, *student)
    ctx.counts, ctx.eps = (len(clean), len(noisy)), eps


def _backward(ctx: Any, grad_clean: Tensor, grad_noisy: Tensor, _: Tensor) -> tuple[Any, ...]:
    dots, *saved = ctx.saved_tensors
    a, b = ctx.counts[0], sum(ctx.counts)
    clean, noisy, student = saved[:a], saved[a:b], saved[b:]
    teacher_grad = any(x.requires_grad for x in clean + noisy)
    to_clean, to_noisy, to_student = torch.ops.scrd_fast.contrastive_distance_backward(
        grad_clean, grad_noisy, dots, clean, noisy, student, ctx.eps, teacher_grad
    )
    if not teacher_grad:
        to_clean, to_noisy = [None] * len(clean), [None] * len(noisy)
    return to_clean, to_noisy, to_student, None


define(SCHEMA, _reference)
torch.library.register_fake("scrd_fast::contrastive_distance", _fake)
define_backward(BACKWARD_SCHEMA, _reference_backward, _fake_backward)
torch.library.register_autograd("scrd_fast::contrastive_distance", _backward, setup_context=_setup_context)
define_triton(SCHEMA, _fake, _backward, _setup_context)
define_triton(BACKWARD_SCHEMA, _fake_backward)
