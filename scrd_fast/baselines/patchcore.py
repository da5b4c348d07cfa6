# SPDX-License-Identifier: Apache-2.0
"""PatchCore: the distance of each patch to the nearest of a bank of patches of normal images.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022. A patch is what the teacher's second and
third map say at a place, averaged over 3 x 3 neighbours, the third map upsampled to the second. The bank is a greedy
coreset (k-center) of all patches.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from scrd_fast.baselines.common import Features, Sample, fitted, prediction_of_maps
from scrd_fast.config import Preprocessing
from scrd_fast.model.prediction import Prediction
from scrd_fast.model.teacher import Teacher

__all__ = ["PatchCore", "greedy_coreset", "locally_aware_patches", "nearest_distances"]

PROJECTED = 128  # dimensions in which the coreset is chosen, as in the authors' code
CHUNK = 4096  # patches that are compared with the bank at once: 32 MB of distances for a bank of 2,000


class PatchCore:
    """PatchCore as a `Baseline`.

    Held: `bank_size` patches of C_2 + C_3 float32; while fitting `candidates` patches, a uniform sample of all, twice
    (100,000 of 1,536 channels are 0.6 GB), and their projections to 128 dimensions.
    """

    def __init__(
        self,
        teacher: Teacher,
        preprocessing: Preprocessing,
        seed: int,
        *,
        bank_size: int = 2_000,
        candidates: int = 100_000,
    ) -> None:
        self._features = Features("patchcore", teacher, preprocessing)
        self._seed, self._bank_size, self._candidates = seed, bank_size, candidates
        self._bank: Tensor | None = None

    def fit(self, batches: Iterable[Tensor]) -> None:
        sample = Sample(self._candidates, self._seed)
        for _, features in self._features.of_all(batches):
            sample.add(_rows(locally_aware_patches(features)))
        patches = sample.rows()
        self._bank = patches[greedy_coreset(_projected(patches, self._seed), self._bank_size)]

    def predict(self, images: Tensor) -> Prediction:
        bank = fitted(self._bank, "patchcore")
        patches = locally_aware_patches(self._features.of(images))
        n, _, height, width = patches.shape
        maps = nearest_distances(_rows(patches), bank).view(n, height, width)
        return prediction_of_maps(maps, (images.shape[2], images.shape[3]))


def locally_aware_patches(features: list[Tensor]) -> Tensor:
    """[N, C_2 + C_3, H_2, W_2] of three maps."""
    fine, coarse = (F.avg_pool2d(f, 3, stride=1, padding=1) for f in features[1:])
    return torch.cat([fine, F.interpolate(coarse, size=fine.shape[2:], mode="bilinear")], dim=1)


def greedy_coreset(points: Tensor, count: int) -> Tensor:
    """Indices of `count` rows of points [M, D], all of them where M is less.

    The first row, then always the one that is farthest from those chosen (Gonzalez 1985).

    >>> greedy_coreset(torch.tensor([[0.0], [1.0], [5.0], [9.0]]), 3)
    tensor([0, 3, 2])
    """
    points = points - points.mean(0)  # distances stay, and lose less to rounding below
    squares = points.square().sum(1)
    nearest = torch.full_like(squares, torch.inf)
    chosen: list[int] = []
    for _ in range(min(count, len(points))):
        at = int(nearest.argmax())
        chosen.append(at)
        distances = squares + squares[at] - 2 * (points @ points[at])
        nearest = torch.minimum(nearest, distances.clamp_min(0))
        nearest[at] = -1  # below any distance: never chosen twice
    return torch.tensor(chosen, dtype=torch.int64, device=points.device)


def nearest_distances(patches: Tensor, bank: Tensor) -> Tensor:
    """Euclidean distance [M] of each row of patches [M, C] to its nearest in bank [B, C]."""
    # A product of matrices finds the nearest: around the mean, since of a distance that is small against the norms it
    # leaves little but rounding. The distance to that one is then computed as it is defined.
    centre, found = bank.mean(0), []
    for part in torch.split(patches, CHUNK):
        nearest = torch.cdist(part - centre, bank - centre, compute_mode="use_mm_for_euclid_dist").argmin(1)
        found.append((part - bank[nearest]).norm(dim=1))
    return torch.cat(found)


def _rows(patches: Tensor) -> Tensor:
    """[N, C, H, W] to [N H W, C]."""
    return patches.permute(0, 2, 3, 1).flatten(0, 2)


def _projected(patches: Tensor, seed: int) -> Tensor:
    """Random projection to `PROJECTED` dimensions, which keeps distances (Johnson & Lindenstrauss)."""
    channels = patches.shape[1]
    if channels <= PROJECTED:
        return patches
    generator = torch.Generator().manual_seed(seed)  # of the CPU: every device gets the same numbers
    matrix = torch.randn(channels, PROJECTED, generator=generator) / PROJECTED**0.5
    projected: Tensor = patches @ matrix.to(patches.device)
    return projected
