# SPDX-License-Identifier: Apache-2.0
"""One training step: from a batch of normal images to the model's new weights.

The clean images and the same with synthetic anomalies go through the frozen teacher in one batch, the clean features
through bottleneck and student. Nothing here waits for the device: what happens is looked at when the loop asks.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from scrd_fast.budget import Budget
from scrd_fast.data.cache import TensorCache
from scrd_fast.distributed import gather, share_batch_norms
from scrd_fast.model.folding import fast_form
from scrd_fast.model.objectives import needs_noise, objective_loss, trains_weights
from scrd_fast.model.scrd import SCRD, LossParts
from scrd_fast.ops import contrastive_distance
from scrd_fast.settings import TrainSettings
from scrd_fast.synthesis import add_anomalies, draw_anomalies

__all__ = ["Step", "mix"]


def mix(seed: int, stream: int, step: int) -> int:
    """A seed of its own for each stream of random numbers and each step: counters, so that nothing must be stored."""
    return (seed * 0x9E3779B97F4A7C15 + stream * 0xBF58476D1CE4E5B9 + step * 0x94D049BB133111EB) % 2**63


class _Trained(nn.Module):
    """What is trained, and so what Fabric wraps: clean features to student maps and scale weights."""

    def __init__(self, model: SCRD) -> None:
        super().__init__()
        self.bottleneck, self.student, self.scale_adaptation = model.bottleneck, model.student, model.scale_adaptation
        self._reconstruct = model.reconstruct

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        return self._reconstruct(features)


class Step:
    """Holds model, optimizer and teacher. `cache` keeps the clean features of the images, by their number."""

    def __init__(
        self, fabric: Any, model: SCRD, settings: TrainSettings, cache: TensorCache | None, budget: Budget
    ) -> None:
        self.fabric, self.settings, self.cache, self.budget = fabric, settings, cache, budget
        self.scaling = model.config.preprocessing
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.scale_adaptation.requires_grad_(trains_weights(settings.objective))  # several processes wait for all
        if fabric.world_size > 1:
            for part in (model.bottleneck, model.student):
                share_batch_norms(part.to(fabric.device))
        optimizer = torch.optim.Adam(model.trainable_parameters(), lr=settings.lr, betas=(0.5, 0.999), fused=True)
        bf16 = settings.precision == "bf16"
        teacher, self._teacher_dtype = fast_form(model.teacher, bf16, model.teacher.multiple)
        trained, self.teacher = (self._compiled(module) for module in (_Trained(model), teacher.to(fabric.device)))
        self.trained, self.optimizer = fabric.setup(trained, optimizer)
        # On the device once and for all: a copy in each step would wait for it.
        self.mean, self.std = (torch.tensor(x, device=fabric.device) for x in (self.scaling.mean, self.scaling.std))
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=fabric.device)  # iteration; -1: none yet

    def _compiled(self, module: nn.Module) -> Any:
        if not self.settings.compile:
            return module
        return torch.compile(module, mode="reduce-overhead" if self.fabric.device.type == "cuda" else None)

    def __call__(self, iteration: int, images: Tensor, numbers: list[int]) -> LossParts:
        """Of this process's share of a batch: images [n, 3, S, S] in [0, 1], on the device, and their numbers."""
        images = (images - self.mean[:, None, None]) / self.std[:, None, None]
        images = images.contiguous(memory_format=torch.channels_last)
        with self.budget("noise"):
            noisy = self._noisy(images, iteration) if needs_noise(self.settings.objective) else None
        pieces, parts = self.settings.accumulate, []
        for i in range(pieces):
            own = slice(i * len(numbers) // pieces, (i + 1) * len(numbers) // pieces)
            waits = self.fabric.world_size > 1 and i < pieces - 1  # gradients are exchanged once
            with self.fabric.no_backward_sync(self.trained) if waits else nullcontext():
                parts.append(self._gradients(images[own], None if noisy is None else noisy[own], numbers[own]))
        with self.budget("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.budget.steps += 1
        joined = _joined(parts)
        bad = ~joined.loss.isfinite() & (self.first_bad < 0)
        self.first_bad = torch.where(bad, iteration, self.first_bad)
        return joined

    def _noisy(self, images: Tensor, iteration: int) -> Tensor:
        """Boxes and seeds are drawn for the whole batch, so that a share of it gets what it always gets."""
        settings, share = self.settings, len(images)
        generator = torch.Generator(images.device).manual_seed(mix(settings.seed, 2, iteration))
        boxes, seeds = draw_anomalies(share * self.fabric.world_size, images.shape[2], generator)
        own = slice(share * self.fabric.global_rank, share * (self.fabric.global_rank + 1))
        return add_anomalies(settings.noise, images, boxes[own], seeds[own], strength=settings.strength, std=self.std)

    def _gradients(self, images: Tensor, noisy: Tensor | None, numbers: list[int]) -> LossParts:
        with self.budget("teacher"), torch.no_grad():
            clean, distorted = self._features(images, noisy, numbers)
        with self.fabric.autocast():
            with self.budget("student"):
                student, weights = self.trained(clean)
                student = [s.to(f.dtype) for s, f in zip(student, clean, strict=True)]
            with self.budget("loss"):
                own = contrastive_distance(clean, distorted, student)
                d_clean, d_noisy, w = (None if x is None else gather(self.fabric, x) for x in (*own, weights))
                assert d_clean is not None  # for the type checker: only d_noisy can be
                assert w is not None
                loss = objective_loss(self.settings.objective, d_clean, d_noisy, w)
        del clean, distorted, student  # what the backward pass needs of them it holds itself, and lets go earlier
        with self.budget("backward"):
            self.fabric.backward(loss / self.settings.accumulate)
        weights = w.detach().clone()  # a CUDA graph writes the next ones to the same place
        return LossParts(loss.detach(), d_clean.detach(), None if d_noisy is None else d_noisy.detach(), weights)

    def _features(
        self, images: Tensor, noisy: Tensor | None, numbers: list[int]
    ) -> tuple[list[Tensor], list[Tensor] | None]:
        if self.cache is None:
            features = self._teach(images if noisy is None else torch.cat([images, noisy]))
            n = len(images)
            return [f[:n] for f in features], None if noisy is None else [f[n:] for f in features]
        place = {number: i for i, number in enumerate(numbers)}
        kept = self.cache.batch(numbers, lambda missing: self._teach(images[[place[number] for number in missing]]))
        clean = [f.to(images.device, self._teacher_dtype or f.dtype, non_blocking=True) for f in kept]
        if noisy is None:
            return clean, None
        # Under autocast a teacher may end in a layer that stays in float32; what was kept is bfloat16.
        return clean, [f.to(c.dtype) for f, c in zip(self._teach(noisy), clean, strict=True)]

    def _teach(self, images: Tensor) -> list[Tensor]:
        if self._teacher_dtype is not None:
            features: list[Tensor] = self.teacher(images.to(self._teacher_dtype))
            return features
        with self.fabric.autocast():
            return list(self.teacher(images))


def _joined(parts: list[LossParts]) -> LossParts:
    if len(parts) == 1:
        return parts[0]
    noisy = [p.d_noisy for p in parts if p.d_noisy is not None]
    return LossParts(
        torch.stack([p.loss for p in parts]).mean(),
        torch.cat([p.d_clean for p in parts]),
        torch.cat(noisy) if noisy else None,
        torch.cat([p.weights for p in parts]),
    )
