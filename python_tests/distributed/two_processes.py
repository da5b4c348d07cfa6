# SPDX-License-Identifier: Apache-2.0
"""What one process of two has of a batch, started by torchrun: `two_processes.py FILE` writes the first one's findings.

With WORLD_SIZE 1 the same script is the one process that they are compared with.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from torch import Tensor, nn

from scrd_fast import SCRD
from scrd_fast.distributed import gather, is_first, launch, share_batch_norms
from scrd_fast.model.objectives import objective_loss, trains_weights
from scrd_fast.ops import contrastive_distance


class Reconstruction(nn.Module):
    def __init__(self, model: SCRD) -> None:
        super().__init__()
        self.bottleneck, self.student, self.scale_adaptation = model.bottleneck, model.student, model.scale_adaptation
        self.reconstruct = model.reconstruct

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        return self.reconstruct(features)


def gradients(fabric: Any, objective: Any, images: Tensor, noisy: Tensor) -> dict[str, Tensor]:
    """Of a whole batch in float64, where only mistakes are larger than 1e-9; and the batch-norms' statistics."""
    torch.manual_seed(5)
    model = SCRD.create("resnet18", weights="random", size=64, objective=objective).double()
    model.scale_adaptation.requires_grad_(trains_weights(objective))
    if fabric.world_size > 1:
        share_batch_norms(model.bottleneck)
        share_batch_norms(model.student)
    model.train()
    wrapped = fabric.setup_module(Reconstruction(model))
    own = slice(
        len(images) * fabric.global_rank // fabric.world_size,
        len(images) * (fabric.global_rank + 1) // fabric.world_size,
    )
    with torch.no_grad():
        clean, distorted = model.teacher(images[own]), model.teacher(noisy[own])
    student, weights = wrapped(clean)
    d_clean, d_noisy = contrastive_distance(clean, distorted, student)
    assert d_noisy is not None
    loss = objective_loss(objective, *(gather(fabric, x) for x in (d_clean, d_noisy, weights)))
    fabric.backward(loss)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    statistics = {k: v.double() for k, v in model.state_dict().items() if "running" in k or "tracked" in k}
    return found | statistics | {"loss": loss.detach()}


def main() -> None:
    torch.use_deterministic_algorithms(True)
    fabric = launch(torch.device("cpu"), "32")
    generator = torch.Generator().manual_seed(1)
    images, noisy = (torch.randn(4, 3, 64, 64, generator=generator, dtype=torch.float64) for _ in range(2))
    results = {objective: gradients(fabric, objective, images, noisy) for objective in ("authors", "paper", "scrd")}
    if is_first():
        torch.save(results, sys.argv[1])
    if os.environ.get("WORLD_SIZE", "1") != "1":
        fabric.barrier()


if __name__ == "__main__":
    main()
