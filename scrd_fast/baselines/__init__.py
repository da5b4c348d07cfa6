# SPDX-License-Identifier: Apache-2.0
"""Rivals on the features of the same frozen teacher, measured by the same loop.

baseline = make_baseline("patchcore", Teacher("resnet18", "pretrained"), Preprocessing(size=256), seed=0)
baseline.fit(batches of normal images)
prediction = baseline.predict(images)
"""

from __future__ import annotations

from typing import Any

from scrd_fast.baselines.common import Baseline
from scrd_fast.baselines.nsa import NSA
from scrd_fast.baselines.padim import PaDiM
from scrd_fast.baselines.patchcore import PatchCore
from scrd_fast.baselines.pooled import KNN, Mahalanobis
from scrd_fast.config import Preprocessing
from scrd_fast.errors import ScrdFastError
from scrd_fast.model.teacher import Teacher

__all__ = ["METHODS", "Baseline", "make_baseline"]

_CLASSES: dict[str, Any] = {
    "patchcore": PatchCore,
    "padim": PaDiM,
    "knn": KNN,
    "mahalanobis": Mahalanobis,
    "nsa": NSA,
}
METHODS = tuple(_CLASSES)


def make_baseline(method: str, teacher: Teacher, preprocessing: Preprocessing, seed: int) -> Baseline:
    """A baseline of the name `method`, one of `METHODS`, with the settings that its class names.

    `preprocessing` gives the normalisation; an image is always seen whole, whatever its `tiles`. What is random
    follows from `seed` alone. Raises `ScrdFastError` for another name.

    >>> import torch
    >>> baseline = make_baseline("knn", Teacher("resnet18", "random"), Preprocessing(size=64), seed=0)
    >>> baseline.fit([torch.rand(4, 3, 64, 64), torch.rand(2, 3, 64, 64)])
    >>> baseline.predict(torch.rand(3, 3, 64, 64)).map.shape
    torch.Size([3, 1, 64, 64])
    """
    if method not in METHODS:
        raise ScrdFastError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    made: Baseline = _CLASSES[method](teacher, preprocessing, seed)
    return made
