# SPDX-License-Identifier: Apache-2.0
"""Images and teachers for the tests of the baselines."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scrd_fast.baselines import Baseline, make_baseline
from scrd_fast.baselines.nsa import NSA
from scrd_fast.config import Preprocessing
from scrd_fast.model.teacher import Teacher

SIZE = 64
PREPROCESSING = Preprocessing(size=SIZE)


def textures(count: int, seed: int) -> Tensor:
    """Smooth gray images [count, 3, 64, 64], in 8 bits as a reader gives them."""
    coarse = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.2
    fine = F.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic").clamp(0, 1)
    return ((fine * 255).round() / 255).expand(-1, 3, -1, -1).contiguous()


def with_square(images: Tensor) -> Tensor:
    changed = images.clone()
    changed[:, :, 24:40, 16:32] = 0.95
    return changed


def random_teacher(seed: int = 0) -> Teacher:
    torch.manual_seed(seed)
    return Teacher("resnet18", "random")


class _OneGrid(nn.Module):
    """Three maps that share one grid of patches, as those of a vision transformer do."""

    channels = (8, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(24, 3, 16, 16, generator=generator))

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(F.conv2d(images, cast("Tensor", self.weight), stride=16).split(8, dim=1))


def one_grid_teacher() -> Teacher:
    return cast("Teacher", _OneGrid())


def quick(method: str, teacher: Teacher, seed: int = 0) -> Baseline:
    """As `make_baseline`, with fewer iterations where it would take long."""
    if method == "nsa":
        return NSA(teacher, PREPROCESSING, seed, iterations=3)
    return make_baseline(method, teacher, PREPROCESSING, seed)
