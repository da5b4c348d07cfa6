# SPDX-License-Identifier: Apache-2.0
"""A training step as the method's authors publish it, in plain eager PyTorch and float32.

Clean and noisy images go through the teacher one after the other; bottleneck and student run on both, though only the
clean images' maps are used; the scale weights multiply both arguments of a cosine, where they cancel; Adam is given
all parameters, the teacher's too.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from scrd_fast.model.scrd import SCRD

__all__ = ["AuthorsStep"]


class AuthorsStep:
    """Images are normalised, [N, 3, S, S]; the noise is made before, as a data loader would."""

    def __init__(self, model: SCRD) -> None:
        self.model = model.train()
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.5, 0.999))

    def __call__(self, images: Tensor, noisy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss and what it is a ratio of: both distances, summed over the scales."""
        model = self.model
        with torch.no_grad():
            clean_features, noisy_features = model.teacher(images), model.teacher(noisy)
        embedding = model.bottleneck(clean_features)
        student = model.student(embedding)
        weights = model.scale_adaptation(embedding)
        unused = model.student(model.bottleneck(noisy_features))
        del unused  # it was made for nothing but the batch-norms' statistics
        d_clean, d_noisy = (_distance(features, student, weights) for features in (clean_features, noisy_features))
        loss = d_clean / d_noisy
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach(), d_clean.detach(), d_noisy.detach()


def _distance(teacher: list[Tensor], student: list[Tensor], weights: Tensor) -> Tensor:
    total = torch.zeros((), device=weights.device)
    for k, t, s in zip(itertools.count(), teacher, student, strict=False):
        w = weights[:, k, None]
        total = total + (1 - F.cosine_similarity(w * t.flatten(1), w * s.flatten(1))).mean()
    return total
