# SPDX-License-Identifier: Apache-2.0
"""Pictures of one trained model at work: images, synthetic anomalies in them, the maps of both, the scales' weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scrd_fast.data.datasets import open_dataset
from scrd_fast.data.images import ImageStore
from scrd_fast.evaluation import printable
from scrd_fast.model.scrd import SCRD
from scrd_fast.reproduce.figures import Shown, draw_shown
from scrd_fast.reproduce.results import Result
from scrd_fast.synthesis import add_anomalies, draw_anomalies

__all__ = ["draw_gallery_of"]


def draw_gallery_of(result: Result, images: int, path: Path) -> None:
    """The first `images` test images of each class."""
    settings = result.run.method.settings
    model = SCRD.from_pretrained(result.folder / "train" / "model")
    items = open_dataset(result.run.data.root, settings.slice_axis).test
    chosen = [[item for item in items if item.label == label][:images] for label in (0, 1)]
    shown = [item for part in chosen for item in part]
    pixels = ImageStore(shown, settings.preprocessing(), cache="off").batch(range(len(shown)))
    generator = torch.Generator().manual_seed(0)
    boxes, seeds = draw_anomalies(len(shown), pixels.shape[-1], generator)
    noisy = add_anomalies(settings.noise, pixels, boxes, seeds, strength=settings.strength)
    clean, distorted = model.predict(pixels), model.predict(noisy)
    rows = [
        Shown(
            f"{'abnormal' if item.label else 'normal'}\n{printable(str(item.path))}",
            _picture(pixels[i]),
            _picture(noisy[i]),
            clean.map[i, 0].numpy(),
            distorted.map[i, 0].numpy(),
            clean.weights[i].tolist(),
        )
        for i, item in enumerate(shown)
    ]
    draw_shown(path, rows)


def _picture(image: Tensor) -> npt.NDArray[np.float32]:
    return np.asarray(image.permute(1, 2, 0).numpy(), dtype=np.float32)
