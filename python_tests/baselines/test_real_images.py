# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score

from scrd_fast.baselines import make_baseline
from scrd_fast.config import Preprocessing
from scrd_fast.data.datasets import open_dataset
from scrd_fast.data.images import ImageStore
from scrd_fast.model.teacher import Teacher


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("method", ["patchcore", "padim", "knn", "mahalanobis"])
def test_tumours_are_found_in_brain_mri(real_data: Path, method: str) -> None:
    """With weights that have seen photographs; 200 normal images, every third test image."""
    preprocessing, data = Preprocessing(size=128), open_dataset(real_data / "brain_tumor_mri")
    normal, test = (ImageStore(items, preprocessing, cache="off") for items in (data.train[:200], data.test[::3]))
    baseline = make_baseline(method, Teacher("tf_efficientnet_lite0", "package"), preprocessing, seed=0)
    baseline.fit(normal.batch(rows.tolist()) for rows in torch.arange(len(normal)).split(32))
    found = baseline.predict(test.batch(range(len(test))))
    assert roc_auc_score([item.label for item in test.items], found.scores["top5"]) > 0.75
