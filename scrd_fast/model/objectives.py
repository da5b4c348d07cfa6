# SPDX-License-Identifier: Apache-2.0
"""The training objectives, from the distances of a batch to one number.

`d_clean` and `d_noisy` are [N, K]: student to clean and to noisy teacher, per sample and scale; `weights` is [N, K],
the softmax of the scale adaptation. Numerator and denominator of a ratio are each averaged over the batch and then
divided.
"""

from __future__ import annotations

from torch import Tensor

from scrd_fast.config import Objective

__all__ = ["needs_noise", "objective_loss", "trains_weights"]

_FLOOR = 1e-6  # of a ratio's denominator: a noisy teacher never comes this close, equal images do


def needs_noise(objective: Objective) -> bool:
    return objective != "rd4ad"


def trains_weights(objective: Objective) -> bool:
    """Whether the loss depends on the scale weights."""
    return objective == "paper"


def objective_loss(objective: Objective, d_clean: Tensor, d_noisy: Tensor | None, weights: Tensor) -> Tensor:
    """The loss of one batch, a scalar.

    - `rd4ad`: sum over scales of d(E, D), plain reverse distillation.
    - `authors`: ratio of the sums over scales, as the authors' code computes it. There the scale weights multiply
      both arguments of a cosine, which cancels, so they do not appear.
    - `paper`: the weights stand on the per-scale distances, as the abstract says.
    - `scrd`: rd4ad + authors; the sum learns fast, the ratio pushes away from the noise.

    >>> import torch
    >>> d_clean, d_noisy = torch.tensor([[0.1, 0.2, 0.3]]), torch.tensor([[0.2, 0.4, 0.6]])
    >>> weights = torch.full((1, 3), 1 / 3)
    >>> [round(objective_loss(o, d_clean, d_noisy, weights).item(), 3) for o in ("rd4ad", "authors", "paper", "scrd")]
    [0.6, 0.5, 0.5, 1.1]
    """
    pull = d_clean.sum(1).mean()
    if objective == "rd4ad":
        return pull
    if d_noisy is None:
        raise ValueError(f"d_noisy must be given for the objective {objective}, got None")
    if objective == "paper":
        return _ratio((weights * d_clean).sum(1).mean(), (weights * d_noisy).sum(1).mean())
    ratio = _ratio(pull, d_noisy.sum(1).mean())
    return ratio if objective == "authors" else pull + ratio


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return numerator / denominator.clamp_min(_FLOOR)
