# SPDX-License-Identifier: Apache-2.0
"""`anomaly_map` and its gradient in plain PyTorch: the oracle, the fallback and the baseline of the kernels."""

from __future__ import annotations

import math
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from scrd_fast.ops._cosine import accumulator, cosine_distance, cosine_distance_grad

__all__ = ["anomaly_map", "anomaly_map_backward", "blur_matrix", "interpolation_matrix"]


def interpolation_matrix(source: int, target: int) -> Tensor:
    """[target, source] in float64: what `F.interpolate(bilinear, align_corners=True)` does along one axis."""
    eye = torch.eye(source, dtype=torch.float64)[None, None]
    return F.interpolate(eye, size=(target, source), mode="bilinear", align_corners=True)[0, 0]


def blur_matrix(size: int, sigma: float, border: str) -> Tensor:
    """[size, size] in float64: what `scipy.ndimage.gaussian_filter1d(mode=border)` does along one axis."""
    if sigma == 0:
        return torch.eye(size, dtype=torch.float64)
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offsets.to(torch.float64) / sigma) ** 2)
    kernel /= kernel.sum()
    position = torch.arange(size)[:, None] + offsets
    if border == "reflect":  # period 2 size: d c b a | a b c d | d c b a
        position = position.remainder(2 * size)
        position = torch.minimum(position, 2 * size - 1 - position)
    else:  # mirror, period 2 size - 2: d c b | a b c d | c b a
        period = max(2 * size - 2, 1)
        position = position.remainder(period)
        position = torch.minimum(position, (period - position).clamp_min(0)) if size > 1 else position * 0
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, position, kernel.expand(size, -1).contiguous())


def _axis(source: int, target: int, sigma: float, border: str, like: Tensor) -> Tensor:
    matrix = blur_matrix(target, sigma, border) @ interpolation_matrix(source, target)
    return matrix.to(device=like.device, dtype=accumulator(like))


def _distance_grad(x: Tensor, y: Tensor, grad: Tensor, eps: float) -> Tensor:
    return cosine_distance_grad(x, y, grad, eps).contiguous()


def anomaly_map(
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
    distances = [cosine_distance(t, s, eps) for t, s in zip(teacher, student, strict=True)]
    like = distances[0]  # each output that was not asked for is an empty tensor of its own
    if combine == "multiply":
        full = _separable(reduce(torch.mul, [_upsample(d, size) for d in distances]), size, sigma, border)
    elif not return_map:
        mean = _mean_score(distances, weights, size, sigma, border)
        return like.new_empty(0), mean, like.new_empty(0), like.new_empty(0)
    else:
        scales = [_separable(d, size, sigma, border) for d in distances]
        if weights is not None:
            scales = [weights[:, k, None, None].to(m.dtype) * m for k, m in enumerate(scales)]
        full = reduce(torch.add, scales)
    pixels = full.flatten(1)
    mean = pixels.mean(1)
    if not return_map:
        return like.new_empty(0), mean, like.new_empty(0), like.new_empty(0)
    largest = like.new_empty(0) if top is None else pixels.topk(math.ceil(top * pixels.shape[1])).values.mean(1)
    return full[:, None].contiguous(), mean, pixels.amax(1), largest


def _upsample(distance: Tensor, size: list[int]) -> Tensor:
    return F.interpolate(distance[:, None], size=tuple(size), mode="bilinear", align_corners=True)[:, 0]


def _separable(distance: Tensor, size: list[int], sigma: float, border: str) -> Tensor:
    """A_k M_k B_k^T, [N, H, W]."""
    rows = _axis(distance.shape[1], size[0], sigma, border, distance)
    columns = _axis(distance.shape[2], size[1], sigma, border, distance)
    return _product(rows, distance, columns.T)


def _product(rows: Tensor, x: Tensor, columns: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):  # which would multiply in bf16
        return rows @ x @ columns


def _mean_score(distances: list[Tensor], weights: Tensor | None, size: list[int], sigma: float, border: str) -> Tensor:
    """mean(map) = sum_k w_k a_k^T M_k b_k with the column means a_k, b_k of A_k, B_k: no map is needed."""
    terms = []
    for k, distance in enumerate(distances):
        rows = _axis(distance.shape[1], size[0], sigma, border, distance).mean(0)
        columns = _axis(distance.shape[2], size[1], sigma, border, distance).mean(0)
        term = (distance * (rows[:, None] * columns)).sum((1, 2))
        terms.append(term if weights is None else weights[:, k].to(term.dtype) * term)
    return reduce(torch.add, terms)


def anomaly_map_backward(
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
    grad = (grad_mean / (size[0] * size[1]))[:, None, None].expand(-1, *size)
    if grad_map is not None:
        grad = grad + grad_map[:, 0]
    distances = [cosine_distance(t, s, eps) for t, s in zip(teacher, student, strict=True)]
    if combine == "multiply":
        to_distances = _product_grads(grad, distances, size, sigma, border)
    else:
        to_distances = [_separable_grad(grad, d, sigma, border) for d in distances]
    to_weights = grad_mean.new_empty(0)
    if weights is not None:
        products = [(g * d).sum((1, 2)) for g, d in zip(to_distances, distances, strict=True)]
        to_weights = torch.stack(products, dim=1).to(weights.dtype)
        to_distances = [weights[:, k, None, None].to(g.dtype) * g for k, g in enumerate(to_distances)]
    pairs = list(zip(teacher, student, to_distances, strict=True))
    to_teacher = [_distance_grad(t, s, g, eps) for t, s, g in pairs] if teacher_grad else []
    return to_teacher, [_distance_grad(s, t, g, eps) for t, s, g in pairs], to_weights


def _separable_grad(grad: Tensor, distance: Tensor, sigma: float, border: str) -> Tensor:
    """A_k^T G B_k, [N, H_k, W_k]."""
    rows = _axis(distance.shape[1], grad.shape[1], sigma, border, distance)
    columns = _axis(distance.shape[2], grad.shape[2], sigma, border, distance)
    return _product(rows.T, grad, columns)


def _product_grads(grad: Tensor, distances: list[Tensor], size: list[int], sigma: float, border: str) -> list[Tensor]:
    sharp = _separable_grad(grad, grad, sigma, border)  # the blur alone: its matrices are square
    upsampled = [_upsample(d, size) for d in distances]
    result = []
    for k, distance in enumerate(distances):
        others = reduce(torch.mul, upsampled[:k] + upsampled[k + 1 :], torch.ones_like(grad))
        result.append(_separable_grad(sharp * others, distance, 0, border))
    return result
