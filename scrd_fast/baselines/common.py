# SPDX-License-Identifier: Apache-2.0
"""What the baselines share: the teacher's features, a bounded sample of a stream, predictions from small maps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

import scrd_fast.ops  # noqa: F401 - defines the operator that is called below
from scrd_fast.config import SCORES, ModelConfig, Preprocessing
from scrd_fast.data.reading import normalise
from scrd_fast.errors import ScrdFastError
from scrd_fast.model.prediction import TOP, Prediction, peak_of
from scrd_fast.model.teacher import Teacher

__all__ = ["Baseline", "Features", "Sample", "fitted", "prediction_of_maps", "prediction_of_scores"]

SIGMA = ModelConfig().sigma  # of the blur, in pixels of the input: all methods get the same
T = TypeVar("T")


class Baseline(Protocol):
    """An anomaly detector that learns from normal images alone.

    Images are float32 [N, 3, S, S] in [0, 1], not normalised, on the teacher's device. `fit` reads its batches once
    and forgets what was fitted before. The numbers of an image do not depend on the rest of its batch, up to the
    rounding of float32. Both raise `ScrdFastError`: `fit` where there are no images, `predict` before `fit`, both for
    images or features that are not finite; ValueError for other shapes.
    """

    def fit(self, batches: Iterable[Tensor]) -> None: ...

    def predict(self, images: Tensor) -> Prediction: ...


class Features:
    """Images to the teacher's three maps, float32 [N, C_k, H_k, W_k], of whatever sizes the teacher gives."""

    def __init__(self, method: str, teacher: Teacher, preprocessing: Preprocessing) -> None:
        self._method, self._teacher, self._preprocessing = method, teacher, preprocessing

    @torch.no_grad()
    def of(self, images: Tensor) -> list[Tensor]:
        """Raises as `Baseline` says."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be [N, 3, S, S], got {list(images.shape)}")
        features = [f.float() for f in self._teacher(normalise(images, self._preprocessing))]
        if not all(bool(f.isfinite().all()) for f in features):
            raise ScrdFastError(f"{self._method}: the teacher's features of these images are not finite")
        return features

    def of_all(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Each batch that is not empty, with its features; raises at the end where there was none."""
        found = False
        for images in batches:
            if len(images):
                found = True
                yield images, self.of(images)
        if not found:
            raise ScrdFastError(f"{self._method}: no images to fit on")


class Sample:
    """At most `size` rows of a stream of rows, every row as likely as any other.

    Which ones follows from the seed and the order of the rows, however they are batched. Holds `size` rows in memory,
    and them twice while `rows` is called.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self._keys = torch.full((size,), torch.inf, dtype=torch.float64)
        self._rows: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        if self._rows is None:
            self._rows = rows.new_empty((len(self._keys), *rows.shape[1:]))
        size = len(self._keys)
        keys = torch.cat([self._keys, torch.from_numpy(self._generator.random(len(rows)))])
        kept = keys.topk(size, largest=False).indices
        free = torch.ones(size, dtype=torch.bool)
        free[kept[kept < size]] = False
        slots, taken = free.nonzero()[:, 0], kept[kept >= size]
        self._keys[slots] = keys[taken]
        self._rows[slots.to(rows.device)] = rows[(taken - size).to(rows.device)]

    def rows(self) -> Tensor:
        """In an order as random as the choice."""
        assert self._rows is not None  # for the type checker: rows were added
        order = self._keys.argsort()[: int(self._keys.isfinite().sum())]
        return self._rows[order.to(self._rows.device)]


def fitted(value: T | None, method: str) -> T:
    """What `fit` has left, or the error that it was not called."""
    if value is None:
        raise ScrdFastError(f"{method}: predict needs fit to be called before")
    return value


def prediction_of_maps(maps: Tensor, size: tuple[int, int]) -> Prediction:
    """From anomaly maps [N, h, w], upsampled to `size` (H, W), blurred and read as those of the package's own model.

    There are no scales: the weights are equal, and all of `scales` is the map's mean before the blur.
    """
    full, mean, largest, means = torch.ops.scrd_fast.anomaly_map(
        [maps.contiguous()], None, list(size), SIGMA, "reflect", list(TOP), True
    )
    top1, top5 = means.unbind(1)
    scores = {"mean": mean, "max": largest, "top1": top1, "top5": top5}
    scales = maps.mean((1, 2))[:, None].expand(-1, 3)
    return Prediction(full, scores, torch.full_like(scales, 1 / 3), scales, peak_of(full))


def prediction_of_scores(values: Tensor, size: tuple[int, int]) -> Prediction:
    """From one number an image, [N]: the map is constant, and every score is that number."""
    full = values[:, None, None, None].expand(-1, 1, *size)
    scales = values[:, None].expand(-1, 3)
    scores: dict[str, Tensor] = dict.fromkeys(SCORES, values)
    return Prediction(full, scores, torch.full_like(scales, 1 / 3), scales, peak_of(full))
