# SPDX-License-Identifier: Apache-2.0
"""Convolutions of an ONNX file in 8-bit integers, by onnxruntime's static quantisation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor

__all__ = ["quantise"]


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Iterable[Tensor]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, object] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch.numpy()}


def quantise(source: Path, target: Path, batches: Iterable[Tensor]) -> None:
    """Write `source` with the convolutions' weights and inputs in 8 bits to `target`.

    `batches` of typical images [N, 3, H, W] in [0, 1] fix the ranges of the inputs. Resize, map, scores and decision
    stay in float32. Weights have 7 bits, so that no product overflows on CPUs without VNNI instructions.
    """
    quantize_static(
        source,
        target,
        _Batches(batches),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    model = onnx.load(target)
    onnx.helper.set_model_props(model, {p.key: p.value for p in onnx.load(source).metadata_props})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, target)
