# SPDX-License-Identifier: Apache-2.0
"""What the model says of a batch, from the maps of teacher and student."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scrd_fast.config import ModelConfig
from scrd_fast.model.objectives import trains_weights
from scrd_fast.model.reference import combined_score, scale_weights
from scrd_fast.ops import anomaly_map
from scrd_fast.ops.anomaly_map import AnomalyMap

__all__ = ["TOP", "Prediction", "compared", "peak_of", "prediction_from", "prediction_of"]

TOP = (0.01, 0.05)  # shares of the pixels, of the scores top1 and top5


class Prediction(NamedTuple):
    """Anomaly maps and every score of a batch."""

    map: Tensor  # [N, 1, H, W]
    scores: dict[str, Tensor]  # "mean", "max", "top1", "top5" and, of a trained model, "combined", each [N]
    weights: Tensor  # [N, 3], of the scales
    scales: Tensor  # [N, 3], mean distance of each scale, before weights and blur
    peak: Tensor  # int64 [N, 2], row and column of the map's largest pixel


def prediction_of(
    config: ModelConfig, features: list[Tensor], student: list[Tensor], weights: Tensor, size: tuple[int, int]
) -> Prediction:
    """The prediction of `size` (H, W) that follows from teacher and student maps and the scale weights [N, 3]."""
    chosen = weights if config.map_weights else None
    found = anomaly_map(features, student, chosen, size, sigma=config.sigma, top=TOP, return_scales=True)
    return prediction_from(config, found, weights)


def prediction_from(config: ModelConfig, found: AnomalyMap, weights: Tensor) -> Prediction:
    """The same from a map with its `TOP` and the scales' means, and the scale weights."""
    assert found.map is not None  # for the type checker: all were asked for
    assert found.max is not None
    assert found.top is not None
    assert found.scales is not None
    top1, top5 = found.top.unbind(1)
    scores = {"mean": found.mean, "max": found.max, "top1": top1, "top5": top5}
    return compared(config, Prediction(found.map, scores, weights, found.scales, peak_of(found.map)))


def compared(config: ModelConfig, prediction: Prediction) -> Prediction:
    """With what follows from the reference, if there is one.

    These are the combined score and, where no objective has trained the scale weights, those that say which scale is
    the least usual.
    """
    if config.reference is None:
        return prediction
    scores, scales = prediction.scores, prediction.scales
    scores = scores | {"combined": combined_score(config.reference, scales, scores["top1"])}
    weights = prediction.weights if trains_weights(config.objective) else scale_weights(config.reference, scales)
    return prediction._replace(scores=scores, weights=weights)


def peak_of(maps: Tensor) -> Tensor:
    """Row and column of the largest pixel of maps [N, 1, H, W], int64 [N, 2]."""
    at, width = maps.flatten(1).argmax(1), maps.shape[3]
    return torch.stack([at // width, at % width], dim=1)
