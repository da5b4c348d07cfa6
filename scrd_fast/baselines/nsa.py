# SPDX-License-Identifier: Apache-2.0
"""NSA: a small network learns to find patches of one normal image that were blended into another.

Schlüter et al., "Natural Synthetic Anomalies for Self-Supervised Anomaly Detection and Localization", ECCV 2022. Here
the network is a decoder on the frozen teacher's features, not an encoder-decoder of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scrd_fast.baselines.blending import blended
from scrd_fast.baselines.common import Features, Sample, fitted, prediction_of_maps
from scrd_fast.config import Preprocessing
from scrd_fast.model.prediction import Prediction
from scrd_fast.model.teacher import Teacher

__all__ = ["NSA"]

BATCH = 16
LEARNING_RATE = 3e-3
WIDTH = 32  # channels of the decoder


class NSA:
    """NSA as a `Baseline`: `iterations` steps of Adam on batches of 16, map = probability of an anomaly.

    Held: the decoder (40,000 weights and `WIDTH` for each channel of the teacher); while fitting `images` normal
    images of 8 bits, a uniform sample of all, twice (1,000 of 256 pixels are 0.2 GB). Two runs on a CPU give the same
    bits; on a GPU that is up to cuDNN. Raises `MissingExtraError` without OpenCV.
    """

    def __init__(
        self, teacher: Teacher, preprocessing: Preprocessing, seed: int, *, iterations: int = 400, images: int = 1_000
    ) -> None:
        self._features = Features("nsa", teacher, preprocessing)
        self._channels = teacher.channels
        self._seed, self._iterations, self._images = seed, iterations, images
        self._decoder: _Decoder | None = None

    def fit(self, batches: Iterable[Tensor]) -> None:
        sample = Sample(self._images, self._seed)
        for images, _ in self._features.of_all(batches):
            sample.add((images * 255).round().byte())
            device = images.device
        normal = sample.rows().permute(0, 2, 3, 1).cpu().numpy()
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
            torch.manual_seed(self._seed)
            decoder = _Decoder(self._channels)
        self._decoder = self._trained(decoder.to(device), normal, device)

    def predict(self, images: Tensor) -> Prediction:
        decoder = fitted(self._decoder, "nsa")
        with torch.no_grad():
            maps = decoder(self._features.of(images)).sigmoid()
        return prediction_of_maps(maps, (images.shape[2], images.shape[3]))

    def _trained(self, decoder: _Decoder, normal: np.ndarray, device: torch.device) -> _Decoder:
        generator = np.random.default_rng(self._seed)
        optimizer = torch.optim.Adam(decoder.parameters(), LEARNING_RATE)
        with torch.enable_grad():
            for _ in range(self._iterations):
                pairs = [blended(normal, generator) for _ in range(BATCH)]
                images, targets = (torch.from_numpy(np.stack(x)).to(device) for x in zip(*pairs, strict=True))
                logits = decoder(self._features.of(images.permute(0, 3, 1, 2).float() / 255))
                small = F.adaptive_avg_pool2d(targets, logits.shape[1:])
                optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(logits, small).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return decoder.eval()


class _Decoder(nn.Module):
    """Three maps [N, C_k, H_k, W_k] to logits [N, H_1, W_1]."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        # Teachers differ in the size of their features: each channel is standardised first.
        self.enter = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(c), nn.Conv2d(c, WIDTH, 1)) for c in channels)
        self.leave = nn.Sequential(
            nn.BatchNorm2d(3 * WIDTH), nn.ReLU(), nn.Conv2d(3 * WIDTH, WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.Conv2d(WIDTH, 1, 1),
        )  # fmt: skip

    def forward(self, features: list[Tensor]) -> Tensor:
        size = features[0].shape[2:]
        # Nearest: the gradient of a bilinear upsampling is not deterministic on a GPU.
        entered = [F.interpolate(enter(f), size=size) for enter, f in zip(self.enter, features, strict=True)]
        return self.leave(torch.cat(entered, dim=1))[:, 0]  # type: ignore[no-any-return]
