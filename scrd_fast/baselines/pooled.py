# SPDX-License-Identifier: Apache-2.0
"""kNN and Mahalanobis distance on one feature vector an image.

The vector is the global average of each of the teacher's three maps, joined, each channel with mean 0 and variance 1
over the normal images. kNN on deep features: Bergman, Cohen and Hoshen, "Deep Nearest Neighbor Anomaly Detection",
2020. Mahalanobis: Rippel, Mertens and Merhof, "Modeling the Distribution of Normal Data in Pre-Trained Deep Features
for Anomaly Detection", ICPR 2020, with the shrinkage of Ledoit and Wolf (2004).

They have no map: that of a `Prediction` is constant, and its four scores are one number.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from scrd_fast.baselines.common import Features, fitted, prediction_of_scores
from scrd_fast.config import Preprocessing
from scrd_fast.errors import MissingExtraError, ScrdFastError
from scrd_fast.model.prediction import Prediction
from scrd_fast.model.teacher import Teacher

__all__ = ["KNN", "Mahalanobis"]

CONSTANT = 1e-6  # standard deviation below which a channel says nothing, relative to its largest value


class _Vectors:
    """Pooled, standardised features [N, C], float64: they are few."""

    def __init__(self, method: str, teacher: Teacher, preprocessing: Preprocessing) -> None:
        self._features = Features(method, teacher, preprocessing)
        self._mean = self._deviation = torch.empty(0)

    def of_all(self, batches: Iterable[Tensor]) -> Tensor:
        """Of the normal images, by which all others are standardised from now on."""
        vectors = torch.cat([_pooled(features) for _, features in self._features.of_all(batches)])
        self._mean, deviation = vectors.mean(0), vectors.std(0, correction=0)
        constant = deviation <= CONSTANT * vectors.abs().amax(0)
        self._deviation = torch.where(constant, 1.0, deviation)
        return self._standard(vectors)

    def of(self, images: Tensor) -> Tensor:
        return self._standard(_pooled(self._features.of(images)))

    def _standard(self, vectors: Tensor) -> Tensor:
        return (vectors - self._mean) / self._deviation


def _pooled(features: list[Tensor]) -> Tensor:
    return torch.cat([f.double().mean((2, 3)) for f in features], dim=1)


class KNN:
    """Mean Euclidean distance to the k nearest normal images, as a `Baseline`.

    `k` is 2 as in Bergman and Hoshen's code, and all of them where there are fewer. Held: a vector of C_1 + C_2 + C_3
    float64 for each normal image.
    """

    def __init__(self, teacher: Teacher, preprocessing: Preprocessing, _seed: int, *, k: int = 2) -> None:
        self._vectors = _Vectors("knn", teacher, preprocessing)
        self._k = k
        self._normal: Tensor | None = None

    def fit(self, batches: Iterable[Tensor]) -> None:
        self._normal = self._vectors.of_all(batches)

    def predict(self, images: Tensor) -> Prediction:
        normal = fitted(self._normal, "knn")
        distances = torch.cdist(self._vectors.of(images), normal, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances.topk(min(self._k, len(normal)), largest=False).values
        return prediction_of_scores(nearest.mean(1).float(), (images.shape[2], images.shape[3]))


class Mahalanobis:
    """Mahalanobis distance to the normal images, with Ledoit and Wolf's covariance, as a `Baseline`.

    It needs two normal images. Held: the precision matrix [C, C] in float64, C = C_1 + C_2 + C_3 (26 MB for 1,792);
    while fitting also a vector for each normal image. Raises `MissingExtraError` without scikit-learn.
    """

    def __init__(self, teacher: Teacher, preprocessing: Preprocessing, _seed: int) -> None:
        self._vectors = _Vectors("mahalanobis", teacher, preprocessing)
        self._fitted: tuple[Tensor, Tensor] | None = None  # mean [C], precision [C, C]

    def fit(self, batches: Iterable[Tensor]) -> None:
        try:
            from sklearn.covariance import LedoitWolf
        except ImportError:
            raise MissingExtraError("scikit-learn", "model") from None
        normal = self._vectors.of_all(batches)
        if len(normal) < 2:
            raise ScrdFastError("mahalanobis: a covariance needs at least 2 images to fit on, got 1")
        found = LedoitWolf().fit(normal.cpu().numpy())
        mean, precision = (torch.from_numpy(x).to(normal) for x in (found.location_, found.precision_))
        self._fitted = mean, precision

    def predict(self, images: Tensor) -> Prediction:
        mean, precision = fitted(self._fitted, "mahalanobis")
        offsets = self._vectors.of(images) - mean
        squares = ((offsets @ precision) * offsets).sum(1)
        return prediction_of_scores(squares.clamp_min(0).sqrt().float(), (images.shape[2], images.shape[3]))
