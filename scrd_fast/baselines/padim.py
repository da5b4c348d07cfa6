# SPDX-License-Identifier: Apache-2.0
"""PaDiM: at each place a Gaussian of normal features, and the Mahalanobis distance to it.

Defard et al., "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization", ICPR 2021. The
features are a random choice of the channels of the three maps, brought to the size of the first.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from scrd_fast.baselines.common import Features, fitted, prediction_of_maps
from scrd_fast.config import Preprocessing
from scrd_fast.model.prediction import Prediction
from scrd_fast.model.teacher import Teacher

__all__ = ["Gaussians", "PaDiM"]

SHRINKAGE = 0.01  # added to the diagonal of each covariance, as in the paper
CHUNK = 1024  # places whose covariances are inverted at once: 80 MB of float64 for 100 channels


class PaDiM:
    """PaDiM as a `Baseline`.

    Held: for each of the P places of the first map a mean [d] and a matrix [d, d] in float32, d = `channels` or all
    that there are; while fitting a mean and a matrix in float64, twice. With d = 100 these are 164 and 656 MB for 256
    pixels and a first map at stride 4.
    """

    def __init__(self, teacher: Teacher, preprocessing: Preprocessing, seed: int, *, channels: int = 100) -> None:
        self._features = Features("padim", teacher, preprocessing)
        self._channels, self._seed = channels, seed
        self._fitted: tuple[Tensor, Tensor] | None = None  # mean [P, d], whitening [P, d, d]

    def fit(self, batches: Iterable[Tensor]) -> None:
        gaussians = Gaussians()
        for _, features in self._features.of_all(batches):
            gaussians.add(self._embedding(features).flatten(2).permute(2, 0, 1))
        self._fitted = gaussians.mean.float(), gaussians.whitening(SHRINKAGE)

    def predict(self, images: Tensor) -> Prediction:
        mean, whitening = fitted(self._fitted, "padim")
        embedding = self._embedding(self._features.of(images))
        if embedding.shape[2:].numel() != len(mean):
            raise ValueError(f"images must be of the size fitted on, got {list(images.shape[2:])}")
        offsets = embedding.flatten(2).permute(2, 1, 0) - mean[:, :, None]  # [P, d, N]
        maps = torch.bmm(whitening, offsets).norm(dim=1).T.reshape(-1, *embedding.shape[2:])
        return prediction_of_maps(maps, (images.shape[2], images.shape[3]))

    def _embedding(self, features: list[Tensor]) -> Tensor:
        """[N, d, H_1, W_1]: the chosen channels alone are upsampled."""
        counts = [f.shape[1] for f in features]
        generator = torch.Generator().manual_seed(self._seed)  # of the CPU: every device gets the same numbers
        wanted = torch.zeros(sum(counts), dtype=torch.bool)
        wanted[torch.randperm(sum(counts), generator=generator)[: self._channels]] = True
        size = features[0].shape[2:]
        parts = zip(features, torch.split(wanted, counts), strict=True)
        return torch.cat([F.interpolate(f[:, chosen.to(f.device)], size=size) for f, chosen in parts], dim=1)


class Gaussians:
    """Mean [P, d] and covariance [P, d, d] of rows at P places, in float64, by one pass over batches.

    Batches are merged by the formula of Chan, Golub and LeVeque (1979), which loses nothing to a large mean.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.empty(0)
        self._products = torch.empty(0)  # [P, d, d], sums of products of offsets from the mean

    def add(self, rows: Tensor) -> None:
        """Rows [P, n, d]."""
        rows = rows.double()
        n, mean = rows.shape[1], rows.mean(1)
        offsets = rows - mean[:, None]
        if not self.count:
            self.count, self.mean, self._products = n, mean, torch.bmm(offsets.mT, offsets)
            return
        apart, total = mean - self.mean, self.count + n
        self._products.baddbmm_(offsets.mT, offsets)
        self._products.baddbmm_(apart[:, :, None], apart[:, None] * (self.count * n / total))
        self.mean = self.mean + apart * (n / total)
        self.count = total

    def covariance(self) -> Tensor:
        """Unbiased; 0 where there was one row only."""
        return self._products / max(self.count - 1, 1)

    def whitening(self, shrinkage: float) -> Tensor:
        """float32 [P, d, d]: the norm of what it makes of an offset is the Mahalanobis distance.

        It is the inverse of the Cholesky factor of covariance + `shrinkage` I.
        """
        eye = torch.eye(self.mean.shape[1], dtype=torch.float64, device=self.mean.device)
        inverses = []
        for covariance in torch.split(self.covariance(), CHUNK):
            factor = torch.linalg.cholesky(covariance + shrinkage * eye)
            inverses.append(torch.linalg.solve_triangular(factor, eye, upper=False).float())
        return torch.cat(inverses)
