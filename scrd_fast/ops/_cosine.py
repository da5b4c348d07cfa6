# SPDX-License-Identifier: Apache-2.0
"""The cosine distance along one dimension and its gradient, for the references of the operators that need it.

d(x, y) = 1 - <x, y> / (max(|x|, eps) max(|y|, eps))
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["accumulator", "cosine_distance", "cosine_distance_grad"]


def accumulator(x: Tensor) -> torch.dtype:
    """What sums are made in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _norm(x: Tensor, eps: float) -> Tensor:
    """max(|x|, eps). torch's `sum` adds in a tree, its `norm` one after the other: 2e-5 off on large maps."""
    least = max(eps * eps, torch.finfo(x.dtype).tiny)  # before the root, whose derivative at 0 is infinite
    return x.square().sum(1, keepdim=True).clamp_min(least).sqrt()


def cosine_distance(x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Along dimension 1, which goes."""
    x, y = x.to(accumulator(x)), y.to(accumulator(y))
    return 1 - ((x * y).sum(1, keepdim=True) / (_norm(x, eps) * _norm(y, eps))).squeeze(1)


def cosine_distance_grad(x: Tensor, y: Tensor, grad: Tensor, eps: float) -> Tensor:
    """Gradient of `sum(grad * cosine_distance(x, y))` with respect to x, in x's dtype."""
    a, b = x.to(accumulator(x)), y.to(accumulator(y))
    norm_a, norm_b = _norm(a, eps), _norm(b, eps)
    cosine = (a * b).sum(1, keepdim=True) / (norm_a * norm_b)
    # Below eps the norm is a constant, so its own derivative vanishes.
    shrink = torch.where(norm_a > eps, cosine / norm_a.square(), torch.zeros_like(cosine))
    return (grad.unsqueeze(1).to(a.dtype) * (shrink * a - b / (norm_a * norm_b))).to(x.dtype)
