# SPDX-License-Identifier: Apache-2.0
"""The detector: everything between a decoded image and a decision as one module, which can be exported."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from scrd_fast.calibration import Calibration
from scrd_fast.choices import Precision
from scrd_fast.errors import ScrdFastError
from scrd_fast.export.resizing import resize_batch
from scrd_fast.model.inference import network_of
from scrd_fast.model.prediction import TOP, Prediction, prediction_from, prediction_of
from scrd_fast.model.scrd import SCRD
from scrd_fast.model.tiling import predict_tiles
from scrd_fast.ops._axis_matrix import axis_matrix
from scrd_fast.ops._cosine import cosine_distance
from scrd_fast.ops.anomaly_map import AnomalyMap

__all__ = ["Detector"]


class Detector(nn.Module):
    """Decoded images, float32 [N, 3, H, W] in [0, 1] of any size, to scores and decisions.

    The outputs, by name: `score` [N], the model's stored score; `percentile` [N], the share of the calibration's normal
    images that score no higher, 0 to 1; `decision` [N], bool, whether the score is above the threshold; `map`
    [N, 1, P, P], P being the model's canvas; and `score_mean` and so on, [N], every score that the model has. All but
    the decision are float32.

    `plain` computes the map by two matrix products a scale instead of this package's operators: other runtimes know
    those. Raises `ScrdFastError` where batch-norms stay that bfloat16 would round.
    """

    def __init__(
        self, model: SCRD, calibration: Calibration, *, precision: Precision = "32", plain: bool = False
    ) -> None:
        super().__init__()
        self.config, self.plain = model.config, plain
        self.network, dtype = network_of(model, precision)
        if dtype is None:
            name = model.config.teacher.name
            raise ScrdFastError(f"--precision bf16: batch-norms of {name} cannot be folded, bf16 would round them")
        self.dtype = dtype
        scaling = model.config.preprocessing
        for name, channels in (("mean", scaling.mean), ("std", scaling.std)):
            self.register_buffer(name, torch.tensor(channels)[:, None, None])
        # float32, rounded such that comparisons with a float32 score come out as in float64.
        self.register_buffer("normals", torch.from_numpy(_rounded(calibration.scores, up=True)))
        self.register_buffer("threshold", torch.from_numpy(_rounded((calibration.threshold,), up=False)))
        self.scales = len(model.teacher.channels)
        if plain:
            for k, (_, side, _) in enumerate(model.teacher.shapes(scaling.size)):
                matrix = axis_matrix(
                    side, scaling.size, model.config.sigma, "reflect", torch.float32, torch.device("cpu")
                )
                self.register_buffer(f"axis_{k}", matrix)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        canvases = resize_batch(images, self.config.preprocessing)
        prediction = predict_tiles((canvases - self.get_buffer("mean")) / self.get_buffer("std"), self.config, self._of)
        score = prediction.scores[self.config.score]
        normals, threshold = self.get_buffer("normals"), self.get_buffer("threshold")
        outputs = {
            "score": score,
            "percentile": (normals <= score[:, None]).sum(1).float() / len(normals),
            "decision": score > threshold,
            "map": prediction.map,
        }
        # An output has one name in every format, so the stored score is there twice.
        return outputs | {f"score_{name}": value.clone() for name, value in prediction.scores.items()}

    def _of(self, inputs: Tensor) -> Prediction:
        inputs = inputs.to(self.dtype).contiguous(memory_format=torch.channels_last)
        *maps, weights = self.network(inputs)
        features, student = maps[: self.scales], maps[self.scales :]
        size = self.config.preprocessing.size
        if not self.plain:
            return prediction_of(self.config, features, student, weights, (size, size))
        return prediction_from(self.config, self._plain_map(features, student, weights), weights)

    def _plain_map(self, features: list[Tensor], student: list[Tensor], weights: Tensor) -> AnomalyMap:
        """sum_k w_k A_k M_k A_k^T: height and width are alike, and so are their matrices."""
        distances = [cosine_distance(t, s, 1e-8) for t, s in zip(features, student, strict=True)]
        full = torch.zeros(())
        for k, distance in enumerate(distances):
            matrix = self.get_buffer(f"axis_{k}")
            scale = matrix @ distance @ matrix.T
            full = full + (scale * weights[:, k, None, None] if self.config.map_weights else scale)
        pixels = full.flatten(1)
        top = [pixels.topk(math.ceil(share * pixels.shape[1])).values.mean(1) for share in TOP]
        means = torch.stack([d.mean((1, 2)) for d in distances], dim=1)
        return AnomalyMap(full[:, None], pixels.mean(1), pixels.amax(1), torch.stack(top, dim=1), means)


def _rounded(values: tuple[float, ...], *, up: bool) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """The least float32 that is not below each value, or the largest that is not above it."""
    exact = np.array(values, dtype=np.float64)
    nearest = exact.astype(np.float32)
    wrong = nearest < exact if up else nearest > exact
    beside = np.nextafter(nearest, np.float32(np.inf if up else -np.inf))
    return np.where(wrong, beside, nearest)
