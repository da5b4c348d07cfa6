# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from baseline_images import PREPROCESSING, random_teacher, textures, with_square
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from scrd_fast.baselines.pooled import KNN, Mahalanobis
from scrd_fast.errors import MissingExtraError
from scrd_fast.model.teacher import Teacher

NORMAL, IMAGES = textures(30, seed=0), torch.cat([textures(4, seed=1), with_square(textures(4, seed=2))])


def pooled(teacher: Teacher, images: torch.Tensor) -> np.ndarray:
    mean, std = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        return np.concatenate([f.double().numpy().mean((2, 3)) for f in teacher((images - mean) / std)], axis=1)


@pytest.mark.parametrize("k", [1, 2, 100])
def test_knn_is_scikit_learns(k: int) -> None:
    teacher = random_teacher()
    baseline = KNN(teacher, PREPROCESSING, 0, k=k)
    baseline.fit(NORMAL.split(8))
    scaler = StandardScaler().fit(pooled(teacher, NORMAL))
    neighbours = NearestNeighbors(n_neighbors=min(k, 30)).fit(scaler.transform(pooled(teacher, NORMAL)))
    expected = neighbours.kneighbors(scaler.transform(pooled(teacher, IMAGES)))[0].mean(1)
    np.testing.assert_allclose(baseline.predict(IMAGES).scores["mean"], expected, rtol=1e-4)


def test_mahalanobis_is_scikit_learns() -> None:
    teacher = random_teacher()
    baseline = Mahalanobis(teacher, PREPROCESSING, 0)
    baseline.fit(NORMAL.split(8))
    scaler = StandardScaler().fit(pooled(teacher, NORMAL))
    fitted = LedoitWolf().fit(scaler.transform(pooled(teacher, NORMAL)))
    expected = fitted.mahalanobis(scaler.transform(pooled(teacher, IMAGES))) ** 0.5
    np.testing.assert_allclose(baseline.predict(IMAGES).scores["mean"], expected, rtol=1e-3)


@pytest.mark.parametrize("make", [KNN, Mahalanobis])
def test_channels_that_never_change_do_not_divide_by_zero(make: type[KNN] | type[Mahalanobis]) -> None:
    baseline = make(random_teacher(), PREPROCESSING, 0)
    baseline.fit([textures(1, seed=0).expand(4, -1, -1, -1)])
    found = baseline.predict(IMAGES).scores["mean"]
    assert found.isfinite().all()


def test_scikit_learn_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.covariance", None)
    with pytest.raises(MissingExtraError, match=r"scikit-learn is not installed.*\[model\]"):
        Mahalanobis(random_teacher(), PREPROCESSING, 0).fit([NORMAL])
