# SPDX-License-Identifier: Apache-2.0
"""The network of an ONNX file in 8-bit integers, by onnxruntime's static quantisation."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor

__all__ = ["quantise"]

# With what lies between convolutions, so that maps stay in 8 bits from one to the next.
OPERATORS = ("Conv", "Relu", "Clip", "Add", "Concat", "MaxPool")


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Iterable[Tensor]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, object] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch.numpy()}


def quantise(source: Path, target: Path, batches: Iterable[Tensor]) -> None:
    """Write `source` with the network's weights and feature maps in 8 bits to `target`.

    `batches` of typical images [N, 3, H, W] in [0, 1] fix the ranges of the feature maps. Resize, distances, map,
    scores and decision stay in float32.
    """
    model = onnx.load(source)
    logging.disable(logging.WARNING)  # advice that does not hold for graphs of dynamic shapes
    try:
        quantize_static(
            source,
            target,
            _Batches(batches),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=_network_nodes(model.graph),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.disable(logging.NOTSET)
    made = onnx.load(target)
    onnx.helper.set_model_props(made, {p.key: p.value for p in model.metadata_props})
    onnx.checker.check_model(made, full_check=True)
    onnx.save(made, target)


def _network_nodes(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes that follow a convolution and lead to one: all else is no part of the network."""
    after: set[str] = set()
    for node in graph.node:  # they are sorted: what a node needs comes before it
        if node.op_type == "Conv" or after & set(node.input):
            after |= set(node.output)
    before: set[str] = set()
    for node in reversed(graph.node):
        if node.op_type == "Conv" or before & set(node.output):
            before |= set(node.input)
    between = [n for n in graph.node if n.op_type == "Conv" or (after & set(n.input) and before & set(n.output))]
    return [n.name for n in between if n.op_type in OPERATORS]
