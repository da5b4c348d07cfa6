# SPDX-License-Identifier: Apache-2.0
r"""Anomaly maps: the cosine distance of teacher and student per pixel, upsampled, summed over scales and blurred.

    M_k = 1 - cos(teacher_k, student_k)       over channels, [N, H_k, W_k]
    map = sum_k w_k A_k M_k B_k^T             [N, H, W]

Bilinear upsampling (`align_corners=True`) and the Gaussian blur are linear and separable, so one matrix per axis
does both: A_k = G U_k, with U_k = `interpolation_matrix(H_k, H)` and G = `blur_matrix(H)`. The blur equals
`scipy.ndimage.gaussian_filter(map, sigma, mode=border, truncate=4)`. The map is that of RD4AD (Deng & Li 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scrd_fast.ops import _anomaly_map_reference as reference
from scrd_fast.ops._checks import check_choice, check_same_maps
from scrd_fast.ops._cosine import accumulator
from scrd_fast.ops._library import choose, define

__all__ = ["AnomalyMap", "anomaly_map"]

SCHEMA = (
    "anomaly_map(Tensor[] teacher, Tensor[] student, Tensor? weights, SymInt[] size, float sigma, str border, "
    "str combine, float? top, bool return_map, float eps) -> (Tensor, Tensor, Tensor, Tensor)"
)
BACKWARD_SCHEMA = (
    "anomaly_map_backward(Tensor? grad_map, Tensor grad_mean, Tensor[] teacher, Tensor[] student, Tensor? weights, "
    "SymInt[] size, float sigma, str border, str combine, float eps, bool teacher_grad) "
    "-> (Tensor[], Tensor[], Tensor)"
)


class AnomalyMap(NamedTuple):
    """What `anomaly_map` returns; what was not asked for is None."""

    map: Tensor | None  # [N, 1, H, W]
    mean: Tensor  # [N]
    max: Tensor | None  # [N], None without the map
    top: Tensor | None  # [N], None unless `top` was given


def anomaly_map(
    teacher: Sequence[Tensor],  # K maps [N, C_k, H_k, W_k]
    student: Sequence[Tensor],
    weights: Tensor | None,  # [N, K]
    size: tuple[int, int],
    *,
    sigma: float = 4.0,
    border: str = "reflect",
    combine: str = "add",
    top: float | None = None,
    return_map: bool = True,
    eps: float = 1e-8,
    backend: str = "auto",
) -> AnomalyMap:
    """Anomaly map of `size` (H, W) in pixels, and its mean, maximum and mean of the largest pixels.

    Features are float32, float16, bfloat16 (sums in float32) or float64; the results are float32 (float64 for
    float64 features). `weights=None` is the plain sum over scales. `sigma` is in output pixels, with a radius of
    int(4 sigma + 0.5); 0 is no blur. `border` has scipy's names: "reflect" repeats the edge pixel, "mirror" does
    not. `combine="multiply"` multiplies the upsampled scales instead (no weights then). `top=0.01` asks for the
    mean of the ceil(0.01 H W) largest pixels. `return_map=False` with `top=None` gives the mean alone, which
    needs no map. Map and mean are differentiable in both feature lists and the weights, max and top are not.

    Raises ValueError (shapes, lengths, devices, choices) or TypeError (dtypes); `UnavailableError` for a backend
    asked for by name that cannot run here.

    >>> import torch
    >>> from scrd_fast.ops import anomaly_map
    >>> teacher = [torch.ones(1, 8, 16, 16), torch.ones(1, 16, 8, 8)]
    >>> result = anomaly_map(teacher, [-x for x in teacher], None, (64, 64), top=0.01)
    >>> result.map.shape, round(float(result.mean), 4), round(float(result.top), 4)
    (torch.Size([1, 1, 64, 64]), 4.0, 4.0)
    """
    teacher, student = list(teacher), list(student)
    _check(teacher, student, weights, size, sigma, border, combine, top, eps)
    run = choose("anomaly_map", backend, student[0].device, reference.anomaly_map)
    keep = return_map or top is not None
    full, mean, largest, top_mean = run(teacher, student, weights, list(size), sigma, border, combine, top, keep, eps)
    return AnomalyMap(full if return_map else None, mean, largest if keep else None, None if top is None else top_mean)


def _check(
    teacher: list[Tensor],
    student: list[Tensor],
    weights: Tensor | None,
    size: tuple[int, int],
    sigma: float,
    border: str,
    combine: str,
    top: float | None,
    eps: float,
) -> None:
    check_same_maps(("teacher", "student"), teacher, student)
    check_choice("border", border, ("reflect", "mirror"))
    check_choice("combine", combine, ("add", "multiply"))
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be (height, width), both at least 1, got {tuple(size)}")
    if not 0 <= sigma < float("inf"):
        raise ValueError(f"sigma must be finite and not negative, got {sigma}")
    if top is not None and not 0 < top <= 1:
        raise ValueError(f"top must be a share of the pixels, above 0 and at most 1, got {top}")
    if not eps > 0:
        raise ValueError(f"eps must be greater than 0, got {eps}")
    if weights is None:
        return
    if combine == "multiply":
        raise ValueError('weights must be None with combine="multiply": a product has no weighted sum')
    expected = [teacher[0].shape[0], len(teacher)]
    if list(weights.shape) != expected:
        raise ValueError(f"weights must be {expected}, a weight per sample and scale, got {list(weights.shape)}")
    if weights.device != teacher[0].device:
        raise ValueError(f"weights must be on the features' device {teacher[0].device}, got {weights.device}")
    if not weights.is_floating_point():
        raise TypeError(f"weights must be floating-point, got {weights.dtype}")


def _fake(
    teacher: list[Tensor],
    student: list[Tensor],
    weights: Tensor | None,
    size: list[int],
    sigma: float,
    border: str,
    combine: str,
    top: float | None,
    return_map: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n = teacher[0].shape[0]
    mean = teacher[0].new_empty((n,), dtype=accumulator(teacher[0]))
    full = mean.new_empty((n, 1, *size) if return_map else (0,))
    return full, mean, mean.new_empty((n if return_map else 0,)), mean.new_empty((0 if top is None else n,))


def _fake_backward(
    grad_map: Tensor | None,
    grad_mean: Tensor,
    teacher: list[Tensor],
    student: list[Tensor],
    weights: Tensor | None,
    size: list[int],
    sigma: float,
    border: str,
    combine: str,
    eps: float,
    teacher_grad: bool,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    def like(maps: list[Tensor]) -> list[Tensor]:
        return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in maps]

    to_weights = grad_mean.new_empty(0) if weights is None else torch.empty_like(weights)
    return like(teacher) if teacher_grad else [], like(student), to_weights


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    teacher, student, weights, size, sigma, border, combine, _, return_map, eps = inputs
    ctx.save_for_backward(*teacher, *student, *([] if weights is None else [weights]))
    ctx.scales, ctx.return_map = len(teacher), return_map
    ctx.arguments = (size, sigma, border, combine, eps)
    ctx.mark_non_differentiable(output[2], output[3])


def _backward(ctx: Any, grad_map: Tensor, grad_mean: Tensor, *_: Any) -> tuple[Any, ...]:
    saved, k = list(ctx.saved_tensors), ctx.scales
    teacher, student, weights = saved[:k], saved[k : 2 * k], saved[2 * k] if len(saved) > 2 * k else None
    teacher_grad = any(x.requires_grad for x in teacher)
    to_teacher, to_student, to_weights = torch.ops.scrd_fast.anomaly_map_backward(
        grad_map if ctx.return_map else None,
        grad_mean,
        teacher,
        student,
        weights,
        *ctx.arguments,
        teacher_grad,
    )
    return (
        to_teacher if teacher_grad else [None] * k,
        to_student,
        None if weights is None else to_weights,
        *[None] * 7,
    )


define(SCHEMA, reference.anomaly_map)
define(BACKWARD_SCHEMA, reference.anomaly_map_backward)
torch.library.register_fake("scrd_fast::anomaly_map", _fake)
torch.library.register_fake("scrd_fast::anomaly_map_backward", _fake_backward)
torch.library.register_autograd("scrd_fast::anomaly_map", _backward, setup_context=_setup_context)
