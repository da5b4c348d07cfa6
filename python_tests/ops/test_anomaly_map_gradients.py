# SPDX-License-Identifier: Apache-2.0
"""Gradients of `anomaly_map`, and what has none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scrd_fast.ops import _library, anomaly_map
from scrd_fast.ops.anomaly_map import _reference as reference
from scrd_fast.ops.anomaly_map import _reference_backward as reference_backward

BACKENDS = ["native", "reference"]


def need(backend: str) -> None:
    if reason := _library.why_not("anomaly_map", backend, torch.device("cpu")):
        pytest.skip(reason)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("combine", "weighted"), [("add", True), ("add", False), ("multiply", False)])
@pytest.mark.parametrize("return_map", [True, False])
def test_gradients_by_finite_differences(combine: str, weighted: bool, return_map: bool, backend: str) -> None:
    need(backend)
    torch.manual_seed(5)
    shapes = [(2, 3, 4, 5), (2, 4, 3, 2)]
    inputs = [x.requires_grad_() for x in [torch.randn(shape, dtype=torch.float64) for shape in shapes * 2]]
    weights = [torch.rand(2, 2, dtype=torch.float64, requires_grad=True)] if weighted else []

    def run(*x: Tensor) -> list[Tensor]:
        result = anomaly_map(
            x[:2], x[2:4], x[4] if weighted else None, (9, 7), sigma=1.3, combine=combine,
            return_map=return_map, backend=backend,
        )  # fmt: skip
        return [r for r in (result.map, result.mean) if r is not None]

    assert torch.autograd.gradcheck(run, [*inputs, *weights])


@pytest.mark.parametrize("with_map", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_reference_of_the_gradient(weighted: bool, with_map: bool) -> None:
    """It runs where there are no kernels; `backend="reference"` is torch's own autograd."""
    torch.manual_seed(13)
    distances = [torch.rand(2, *size, dtype=torch.float64, requires_grad=True) for size in ((5, 4), (1, 3))]
    weights = torch.rand(2, 2, dtype=torch.float64, requires_grad=True) if weighted else None
    full, mean, *_ = reference(distances, weights, [9, 7], 1.3, "mirror", [], True)
    grad_map, grad_mean = torch.randn_like(full), torch.randn_like(mean)
    results, grads = ([full, mean], [grad_map, grad_mean]) if with_map else ([mean], [grad_mean])
    inputs = distances if weights is None else [*distances, weights]
    expected = torch.autograd.grad(results, inputs, grads)
    to_distances, to_weights = reference_backward(
        grad_map if with_map else None, grad_mean, distances, weights, [9, 7], 1.3, "mirror"
    )
    found = [*to_distances, to_weights] if weighted else to_distances
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-12, atol=1e-12)


def test_a_second_derivative_is_refused() -> None:
    """Torch would take it for zero."""
    student = torch.randn(1, 3, 2, 2, requires_grad=True)
    weights = torch.ones(1, 1, requires_grad=True)
    full = anomaly_map([torch.randn(1, 3, 2, 2)], [student], weights, (5, 5)).map
    assert full is not None
    (slope,) = torch.autograd.grad(full.square().sum(), weights, create_graph=True)
    with pytest.raises(RuntimeError, match="scrd_fast::anomaly_map can be differentiated once only"):
        torch.autograd.grad(slope.square().sum(), weights)


@pytest.mark.parametrize("backend", BACKENDS)
def test_maximum_and_largest_pixels_have_no_gradient(backend: str) -> None:
    need(backend)
    result = anomaly_map(
        [torch.ones(1, 3, 4, 4)], [torch.ones(1, 3, 4, 4, requires_grad=True)], None, (5, 5), top=0.1, backend=backend
    )
    assert result.map is not None
    assert result.max is not None
    assert result.top is not None
    assert result.map.requires_grad
    assert not result.max.requires_grad
    assert not result.top.requires_grad


def test_autocast_does_not_lower_the_precision() -> None:
    torch.manual_seed(8)
    teacher, student = torch.randn(2, 8, 16, 16), torch.randn(2, 8, 16, 16, requires_grad=True)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            result = anomaly_map([teacher], [student], None, (64, 64))
        assert result.map is not None
        (gradient,) = torch.autograd.grad(result.map.square().sum(), student)
        results.append((result.map, gradient))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_vectors_give_one_and_finite_gradients(backend: str) -> None:
    need(backend)
    student = torch.zeros(1, 3, 4, 4, requires_grad=True)
    result = anomaly_map([torch.randn(1, 3, 4, 4)], [student], None, (8, 8), backend=backend)
    assert result.map is not None
    torch.testing.assert_close(result.map, torch.ones(1, 1, 8, 8))
    result.mean.sum().backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_inference_leaves_nothing_that_training_could_stumble_over(backend: str) -> None:
    """A size that no other test has, so that its matrices are made under inference mode."""
    need(backend)
    student = torch.randn(1, 3, 5, 6)
    with torch.inference_mode():
        before = anomaly_map([torch.ones(1, 3, 5, 6)], [student.clone()], None, (51, 61), backend=backend)
    student.requires_grad_()
    after = anomaly_map([torch.ones(1, 3, 5, 6)], [student], None, (51, 61), backend=backend)
    assert before.map is not None
    assert after.map is not None
    assert torch.equal(before.map, after.map)
    after.map.square().sum().backward()
    assert student.grad is not None
