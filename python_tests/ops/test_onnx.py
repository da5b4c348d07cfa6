# SPDX-License-Identifier: Apache-2.0
"""In an ONNX file the operators are plain ONNX; in a graph that torch exports for itself they stay what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scrd_fast.ops import anomaly_map

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


class Map(nn.Module):
    def __init__(self, border: str, combine: str) -> None:
        super().__init__()
        self.options = {"border": border, "combine": combine, "top": 0.05}

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        pairs = [first, second], [first.sin(), second.cos()]
        found = anomaly_map(*pairs, None, (32, 48), **self.options)
        return found.map, found.mean, found.max, found.top


def inputs(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, 8, 8, 12, generator=generator), torch.randn(count, 16, 4, 6, generator=generator)


@pytest.mark.parametrize(("border", "combine"), [("reflect", "add"), ("mirror", "multiply")])
def test_an_onnx_file_of_a_map_runs_elsewhere(border: str, combine: str, tmp_path: Path) -> None:
    model, path, batch = Map(border, combine).eval(), tmp_path / "map.onnx", torch.export.Dim("batch")
    shapes = ({0: batch}, {0: batch})
    torch.onnx.export(model, inputs(2), str(path), dynamo=True, dynamic_shapes=shapes, verbose=False)
    assert {node.domain for node in onnx.load(path).graph.node} == {""}
    session = onnxruntime.InferenceSession(str(path))
    for count in (1, 3):
        given = inputs(count)
        names = [i.name for i in session.get_inputs()]
        found = session.run(None, dict(zip(names, [x.numpy() for x in given], strict=True)))
        for a, b in zip(found, model(*given), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strict", [False, True])
def test_a_graph_of_torch_keeps_the_operators(strict: bool) -> None:
    graph = torch.export.export(Map("reflect", "add"), inputs(2), strict=strict).graph
    assert torch.ops.scrd_fast.anomaly_map.default in {node.target for node in graph.nodes}
