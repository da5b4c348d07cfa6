# SPDX-License-Identifier: Apache-2.0
"""The trained model as it is applied to many images: without batch-norms, in the dtype that it computes in."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from scrd_fast.config import Precision
from scrd_fast.model.folding import fast_form
from scrd_fast.model.prediction import Prediction, prediction_of
from scrd_fast.model.scrd import SCRD
from scrd_fast.model.tiling import predict_tiles

__all__ = ["Predictor", "network_of"]


class _Network(nn.Module):
    """Normalised images [N, 3, S, S] to three teacher maps, three student maps and the scale weights [N, 3]."""

    def __init__(self, model: SCRD) -> None:
        super().__init__()
        self.teacher, self.bottleneck = model.teacher.encoder, model.bottleneck
        self.student, self.scale_adaptation = model.student, model.scale_adaptation

    def forward(self, images: Tensor) -> list[Tensor]:
        features = list(self.teacher(images))
        embedding = self.bottleneck(features)
        return [*features, *self.student(embedding), self.scale_adaptation(embedding)]


def network_of(model: SCRD, precision: Precision) -> tuple[nn.Module, torch.dtype | None]:
    """A copy of the model's network in its fast form, and the dtype it computes in; None: whatever autocast chooses.

    Of normalised images [N, 3, S, S] it gives three teacher maps, three student maps and the scale weights [N, 3].
    """
    network = _Network(model)
    fast, dtype = fast_form(network, precision == "bf16", model.teacher.multiple)
    own = copy.deepcopy(network).eval() if fast is network else fast
    return own.requires_grad_(False), dtype


class Predictor:
    """Predicts as `SCRD.predict` does, up to rounding, and faster: batch-norms are part of the convolutions.

    The model is copied and stays as it is. `precision` "bf16" keeps weights and features in bfloat16, where batch-norms
    are left computes by autocast. With `compile` the network is compiled, on a GPU as CUDA graphs; then every batch
    should have the same size.
    """

    def __init__(
        self,
        model: SCRD,
        device: torch.device,
        *,
        precision: Precision = "32",
        compile: bool = False,  # noqa: A002
    ) -> None:
        self.config, self.device = model.config, device
        network, dtype = network_of(model, precision)
        self._dtype, self._autocast = dtype or torch.float32, dtype is None
        placed = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network: Any = placed
        scaling = self.config.preprocessing
        # On the device once and for all: a copy in each call would wait for it.
        self._mean, self._std = (torch.tensor(x, device=device)[:, None, None] for x in (scaling.mean, scaling.std))
        if compile:
            self._network = torch.compile(placed, mode="reduce-overhead" if device.type == "cuda" else None)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Prediction:
        """Of images [N, 3, P, P] in [0, 1], P = `config.preprocessing.canvas`.

        They may lie in pinned memory of the CPU, and are then copied meanwhile.
        """
        inputs = (images.to(self.device, non_blocking=True) - self._mean) / self._std
        return predict_tiles(inputs, self.config, self._of)

    def _of(self, inputs: Tensor) -> Prediction:
        inputs = inputs.to(self._dtype).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16) if self._autocast else nullcontext():
            *maps, weights = cast("list[Tensor]", self._network(inputs))
        height, width = inputs.shape[2:]
        weights = weights.clone()  # the next call of a CUDA graph overwrites it
        return prediction_of(self.config, maps[:3], maps[3:], weights, (height, width))
