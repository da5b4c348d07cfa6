# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from blurring import gaussian_filter
from torch import Tensor
from torch._subclasses import FakeTensorMode

from scrd_fast.ops import _axis_matrix, anomaly_map
from scrd_fast.ops._axis_matrix import axis_matrix

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    kept = dict(_axis_matrix._cache)
    _axis_matrix._cache.clear()
    yield
    _axis_matrix._cache.clear()
    _axis_matrix._cache.update(kept)


def is_plain(x: Tensor) -> bool:
    return type(x) is Tensor and not x.is_inference() and not x.requires_grad


@pytest.mark.parametrize("border", ["reflect", "mirror"])
@pytest.mark.parametrize("sigma", [0.0, 0.3, 4.0])
@pytest.mark.parametrize(("source", "target"), [(1, 1), (1, 9), (9, 1), (5, 40), (40, 5), (7, 7)])
def test_upsamples_and_blurs(source: int, target: int, sigma: float, border: str) -> None:
    torch.manual_seed(0)
    x = torch.rand(source, dtype=torch.float64)
    upsampled = F.interpolate(x[None, None, :, None], size=(target, 1), mode="bilinear", align_corners=True)[0, 0, :, 0]
    expected = gaussian_filter(upsampled.numpy(), sigma, border)
    actual = axis_matrix(source, target, sigma, border, torch.float64, CPU) @ x
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_keeps_the_last_ones() -> None:
    first = axis_matrix(3, 5, 4.0, "reflect", torch.float32, CPU)
    assert axis_matrix(3, 5, 4.0, "reflect", torch.float32, CPU) is first
    for size in range(6, 6 + _axis_matrix.CACHED - 1):
        axis_matrix(3, size, 4.0, "reflect", torch.float32, CPU)
    assert axis_matrix(3, 5, 4.0, "reflect", torch.float32, CPU) is first
    for size in range(100, 100 + _axis_matrix.CACHED):
        axis_matrix(3, size, 4.0, "reflect", torch.float32, CPU)
    assert len(_axis_matrix._cache) == _axis_matrix.CACHED
    assert axis_matrix(3, 5, 4.0, "reflect", torch.float32, CPU) is not first


def test_what_is_made_under_inference_mode_can_be_trained_with() -> None:
    with torch.inference_mode():
        made = axis_matrix(3, 11, 4.0, "reflect", torch.float32, CPU)
    assert is_plain(made)
    assert axis_matrix(3, 11, 4.0, "reflect", torch.float32, CPU) is made


def test_a_fake_matrix_is_not_kept_nor_a_kept_one_faked() -> None:
    with FakeTensorMode():
        assert type(axis_matrix(3, 12, 4.0, "reflect", torch.float32, CPU)) is not Tensor
    assert not _axis_matrix._cache
    axis_matrix(3, 12, 4.0, "reflect", torch.float32, CPU)
    with FakeTensorMode():
        assert type(axis_matrix(3, 12, 4.0, "reflect", torch.float32, CPU)) is not Tensor


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_compiling_leaves_nothing_behind_and_takes_nothing(backend: str) -> None:
    torch.manual_seed(1)
    x, y = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)

    def run(a: Tensor, b: Tensor) -> Tensor | None:
        return anomaly_map([a], [b], None, (13, 17), backend=backend).map

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(x, y)
    assert all(is_plain(matrix) for matrix in _axis_matrix._cache.values())
    eager = run(x, y)
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="aot_eager")(x, y), eager)
    exported = torch.export.export(_Module(run), (x, y), strict=False).module()
    torch.testing.assert_close(exported(x, y), eager)
    assert all(is_plain(matrix) for matrix in _axis_matrix._cache.values())


class _Module(torch.nn.Module):
    def __init__(self, run: object) -> None:
        super().__init__()
        self.run = run

    def forward(self, a: Tensor, b: Tensor) -> Tensor | None:
        return self.run(a, b)  # type: ignore[operator, no-any-return]


@pytest.mark.cuda
def test_capture_leaves_nothing_behind_and_takes_nothing() -> None:
    device = torch.device("cuda", 0)
    x = torch.rand(9, device=device)
    kept = axis_matrix(9, 30, 4.0, "reflect", torch.float32, device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        inside = axis_matrix(9, 30, 4.0, "reflect", torch.float32, device)
        product = inside @ x
        axis_matrix(9, 31, 4.0, "reflect", torch.float32, device)
    assert inside is not kept
    assert len(_axis_matrix._cache) == 1
    graph.replay()
    torch.testing.assert_close(product, kept @ x)
