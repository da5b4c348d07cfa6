# SPDX-License-Identifier: Apache-2.0
r"""Anomaly maps: the cosine distance of teacher and student per pixel, upsampled, summed over scales and blurred.

    M_k = 1 - cos(teacher_k, student_k)       over channels, [N, H_k, W_k]: the operator `cosine_distances`
    map = sum_k w_k A_k M_k B_k^T             [N, H, W]: the operator `anomaly_map`

Bilinear upsampling (`align_corners=True`) and the Gaussian blur are linear and separable, so one matrix per axis
does both: A_k = G U_k, with U_k = `interpolation_matrix(H_k, H)` and G = `blur_matrix(H)`. The blur equals
`scipy.ndimage.gaussian_filter(map, sigma, mode=border, truncate=4)`. The map is that of RD4AD (Deng & Li 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scrd_fast.ops._axis_matrix import axis_matrix
from scrd_fast.ops._checks import check_choice
from scrd_fast.ops._library import choose, define, define_backward, define_triton
from scrd_fast.ops.cosine_distances import check_features, cosine_distances

__all__ = ["AnomalyMap", "anomaly_map"]

SCHEMA = (
    "anomaly_map(Tensor[] distances, Tensor? weights, SymInt[] size, float sigma, str border, float[] top, "
    "bool return_map) -> (Tensor, Tensor, Tensor, Tensor)"
)
BACKWARD_SCHEMA = (
    "anomaly_map_backward(Tensor? grad_map, Tensor grad_mean, Tensor[] distances, Tensor? weights, SymInt[] size, "
    "float sigma, str border) -> (Tensor[], Tensor)"
)


class AnomalyMap(NamedTuple):
    """What `anomaly_map` returns; what was not asked for is None."""

    map: Tensor | None  # [N, 1, H, W]
    mean: Tensor  # [N]
    max: Tensor | None  # [N], None where neither map nor `top` was asked for
    top: Tensor | None  # [N], or [N, T] for T shares; None unless `top` was given
    scales: Tensor | None = None  # [N, K], mean distance of each scale; None unless asked for


def anomaly_map(
    teacher: Sequence[Tensor],  # K maps [N, C_k, H_k, W_k]
    student: Sequence[Tensor],
    weights: Tensor | None,  # [N, K]
    size: tuple[int, int],
    *,
    sigma: float = 4.0,
    border: str = "reflect",
    combine: str = "add",
    top: float | Sequence[float] | None = None,
    return_map: bool = True,
    return_scales: bool = False,
    eps: float = 1e-8,
    backend: str = "auto",
) -> AnomalyMap:
    """Anomaly map of `size` (H, W) in pixels, and its mean, maximum and mean of the largest pixels.

    Features are float32, float16, bfloat16 (sums in float32) or float64; the results are float32 (float64 for
    float64 features). `weights=None` is the plain sum over scales. `sigma` is in output pixels, with a radius of
    int(4 sigma + 0.5); 0 is no blur. `border` has scipy's names: "reflect" repeats the edge pixel, "mirror" does
    not. `combine="multiply"` multiplies the upsampled scales instead (no weights then). `top=0.01` asks for the
    mean of the ceil(0.01 H W) largest pixels, `top=(0.01, 0.05)` for two such means. `return_map=False` with
    `top=None` gives the mean alone, which needs no map. `return_scales` adds the plain mean of each scale's distances,
    neither weighted nor blurred. Map and mean are differentiable in both feature lists and
    the weights, once; max and top are not. An image's results do not depend on the rest of its batch nor on the
    number of threads, bit for bit, but for the reference.

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
    shares = [] if top is None else list(top) if isinstance(top, Sequence) else [float(top)]
    check_features(teacher, student, eps)
    _check(teacher, weights, size, sigma, border, combine, shares)
    distances = cosine_distances(teacher, student, eps=eps, backend=backend)
    scales = torch.stack([d.mean((1, 2)) for d in distances], dim=1) if return_scales else None
    run = choose("anomaly_map", backend, student[0].device, _reference)
    if combine == "multiply":
        distances = [_product(run, distances, size, border)]
    if weights is not None:
        weights = weights.to(distances[0].dtype)
    keep = return_map or bool(shares)
    full, mean, largest, means = run(distances, weights, list(size), float(sigma), border, shares, keep)
    return AnomalyMap(
        full if return_map else None,
        mean,
        largest if keep else None,
        None if top is None else means if isinstance(top, Sequence) else means[:, 0],
        scales,
    )


def _product(run: Callable[..., Any], distances: list[Tensor], size: tuple[int, int], border: str) -> Tensor:
    """The product of the upsampled scales, [N, H, W]: each is the map of one scale without a blur."""
    scales: list[Tensor] = [run([d], None, list(size), 0.0, border, [], True)[0][:, 0] for d in distances]
    return reduce(torch.mul, scales)


def _check(
    teacher: list[Tensor],
    weights: Tensor | None,
    size: tuple[int, int],
    sigma: float,
    border: str,
    combine: str,
    shares: list[float],
) -> None:
    check_choice("border", border, ("reflect", "mirror"))
    check_choice("combine", combine, ("add", "multiply"))
    if not all(isinstance(length, int | torch.SymInt) for length in size):
        raise TypeError(f"size must be two integers (height, width), got {tuple(size)}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be (height, width), both at least 1, got {tuple(size)}")
    if size[0] * size[1] >= 2**30:  # kernels count in 32 bits
        raise ValueError(f"size must have fewer than 2^30 pixels, got {tuple(size)}")
    if not 0 <= sigma < 2**14:
        raise ValueError(f"sigma must be at least 0 and below 2^14 pixels, got {sigma}")
    for share in shares:
        if not 0 < share <= 1:
            raise ValueError(f"top must be a share of the pixels, above 0 and at most 1, got {share}")
    if weights is None:
        return
    if not isinstance(weights, Tensor):
        raise TypeError(f"weights must be a tensor or None, got {type(weights).__name__}")
    if combine == "multiply":
        raise ValueError('weights must be None with combine="multiply": a product has no weighted sum')
    expected = [teacher[0].shape[0], len(teacher)]
    if list(weights.shape) != expected:
        raise ValueError(f"weights must be {expected}, a weight per sample and scale, got {list(weights.shape)}")
    if weights.device != teacher[0].device:
        raise ValueError(f"weights must be on the features' device {teacher[0].device}, got {weights.device}")
    if not weights.is_floating_point():
        raise TypeError(f"weights must be floating-point, got {weights.dtype}")


def _matrices(distance: Tensor, size: Sequence[int], sigma: float, border: str) -> tuple[Tensor, Tensor]:
    """A_k [H, H_k] and B_k [W, W_k]."""
    h, w = (
        axis_matrix(source, target, sigma, border, distance.dtype, distance.device)
        for source, target in zip(distance.shape[1:], size, strict=True)
    )
    return h, w


def _between(rows: Tensor, x: Tensor, columns: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):  # which would multiply in bf16
        return rows @ x @ columns


def _reference(
    distances: list[Tensor],
    weights: Tensor | None,
    size: list[int],
    sigma: float,
    border: str,
    top: list[float],
    return_map: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    like = distances[0]  # each output that was not asked for is an empty tensor of its own
    scales = []
    for k, d in enumerate(distances):
        rows, columns = _matrices(d, size, sigma, border)
        if return_map:
            scale = _between(rows, d, columns.T)
        else:  # mean(map) = sum_k w_k a_k^T M_k b_k with the column means a_k, b_k of A_k, B_k: no map is needed
            scale = (d * (rows.mean(0)[:, None] * columns.mean(0))).sum((1, 2), keepdim=True)
        scales.append(scale if weights is None else weights[:, k, None, None] * scale)
    full = reduce(torch.add, scales)
    if not return_map:
        return like.new_empty(0), full[:, 0, 0].contiguous(), like.new_empty(0), like.new_empty((full.shape[0], 0))
    pixels = full.flatten(1)
    ranked = pixels.detach()  # maximum and largest pixels have no gradient
    means = [ranked.topk(math.ceil(share * ranked.shape[1])).values.mean(1) for share in top]
    largest = torch.stack(means, dim=1) if top else like.new_empty((pixels.shape[0], 0))
    return full[:, None].contiguous(), pixels.mean(1), ranked.amax(1), largest


def _reference_backward(
    grad_map: Tensor | None,
    grad_mean: Tensor,
    distances: list[Tensor],
    weights: Tensor | None,
    size: list[int],
    sigma: float,
    border: str,
) -> tuple[list[Tensor], Tensor]:
    grad = (grad_mean / (size[0] * size[1]))[:, None, None].expand(-1, *size)
    if grad_map is not None:
        grad = grad + grad_map[:, 0]
    to_distances = []
    for d in distances:
        rows, columns = _matrices(d, size, sigma, border)
        to_distances.append(_between(rows.T, grad, columns))
    to_weights = grad_mean.new_empty(0)
    if weights is not None:
        to_weights = torch.stack([(g * d).sum((1, 2)) for g, d in zip(to_distances, distances, strict=True)], dim=1)
        to_distances = [weights[:, k, None, None] * g for k, g in enumerate(to_distances)]
    return [g.contiguous() for g in to_distances], to_weights


def _fake(
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
    return full, like.new_empty((n,)), like.new_empty((n if return_map else 0,)), like.new_empty((n, len(top)))


def _fake_backward(
    grad_map: Tensor | None,
    grad_mean: Tensor,
    distances: list[Tensor],
    weights: Tensor | None,
    size: list[int],
    sigma: float,
    border: str,
) -> tuple[list[Tensor], Tensor]:
    to_weights = grad_mean.new_empty(0 if weights is None else weights.shape)
    return [torch.empty_like(d, memory_format=torch.contiguous_format) for d in distances], to_weights


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    distances, weights, size, sigma, border, top, ctx.return_map = inputs
    ctx.save_for_backward(*distances, *([] if weights is None else [weights]))
    ctx.scales, ctx.arguments = len(distances), (size, sigma, border)
    ctx.no_top = None if top else []  # torch takes an empty list for one of tensors
    ctx.mark_non_differentiable(output[2], output[3])


def _backward(ctx: Any, grad_map: Tensor, grad_mean: Tensor, *_: Any) -> tuple[Any, ...]:
    distances, weights = list(ctx.saved_tensors[: ctx.scales]), [*ctx.saved_tensors[ctx.scales :], None][0]
    to_distances, to_weights = torch.ops.scrd_fast.anomaly_map_backward(
        grad_map if ctx.return_map else None, grad_mean, distances, weights, *ctx.arguments
    )
    return to_distances, None if weights is None else to_weights, None, None, None, ctx.no_top, None


define(SCHEMA, _reference)
torch.library.register_fake("scrd_fast::anomaly_map", _fake)
define_backward(BACKWARD_SCHEMA, _reference_backward, _fake_backward)
torch.library.register_autograd("scrd_fast::anomaly_map", _backward, setup_context=_setup_context)
define_triton(SCHEMA, _fake, _backward, _setup_context)
