# SPDX-License-Identifier: Apache-2.0
"""Evaluation as the method's authors do it: image by image in float32, the map made in numpy and scipy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from scrd_fast.bench.map_rivals import authors_map
from scrd_fast.config import IMAGENET_MEAN, IMAGENET_STD
from scrd_fast.model.scrd import SCRD

__all__ = ["evaluate", "map_of"]


class _Files(torch.utils.data.Dataset[Tensor]):
    def __init__(self, paths: Sequence[Path], size: int) -> None:
        from torchvision import transforms  # type: ignore[import-untyped]

        self.paths = paths
        self.transform: Any = transforms.Compose(
            [
                transforms.Resize((size, size)),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image: Tensor = self.transform(Image.open(self.paths[index]).convert("RGB"))
        return image


def evaluate(model: SCRD, paths: Sequence[Path], size: int) -> Iterator[tuple[npt.NDArray[np.float64], float]]:
    """Map [size, size] and score, its maximum, of each file. The loader has no workers, as a loader has by default."""
    for image in DataLoader(_Files(paths, size), batch_size=1, shuffle=False):
        found = map_of(model, image)
        yield found, float(found.max())


def map_of(model: SCRD, image: Tensor) -> npt.NDArray[np.float64]:
    """Of one normalised image [1, 3, S, S]: the sum over scales, each weighing the same, blurred."""
    with torch.no_grad():
        features = model.teacher(image.to(next(model.parameters()).device))
        student = model.student(model.bottleneck(features))
        return authors_map(features, student, (image.shape[2], image.shape[3]))
