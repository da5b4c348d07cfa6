# SPDX-License-Identifier: Apache-2.0
"""Gradients of `contrastive_distance`."""

from __future__ import annotations

import pytest
import torch
from contrast_maps import BACKENDS, DEVICES, DTYPES, LAYOUTS, Shape, independent, need, three
from tolerances import TOLERANCES
from torch import Tensor

from scrd_fast.ops import contrastive_distance
from scrd_fast.ops.contrastive_distance import _reference, _reference_backward

SHAPES: list[Shape] = [(3, 8, 7, 7), (3, 5, 61, 61)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("eps", [1e-8, 5.0])  # 5: more than the norm of the second scale, less than the first one's
def test_gradients_by_finite_differences(eps: float, backend: str) -> None:
    need(backend)
    torch.manual_seed(1)
    shapes = [(2, 3, 5, 4), (2, 4, 3, 1)]
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes * 3]

    def distances(*x: Tensor) -> tuple[Tensor, Tensor | None]:
        return contrastive_distance(x[:2], x[2:4], x[4:], eps=eps, backend=backend)

    assert torch.autograd.gradcheck(distances, inputs)
    without_noise = lambda *x: contrastive_distance(x[:2], None, x[2:], eps=eps, backend=backend)[0]  # noqa: E731
    assert torch.autograd.gradcheck(without_noise, inputs[:4])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("with_noise", [True, False])
def test_gradients_equal_those_of_torch(
    with_noise: bool, layout: str, dtype: torch.dtype, backend: str, device: str
) -> None:
    need(backend, device)
    torch.manual_seed(3)
    lists = [[x.requires_grad_() for x in maps] for maps in three(SHAPES, layout, dtype, device)]
    factors = torch.rand(2, 3, 2, dtype=torch.float64)
    exact = [[x.detach().cpu().double().requires_grad_() for x in some] for some in lists]

    def loss(clean: Tensor, noisy: Tensor | None) -> Tensor:
        total = (clean.cpu() * factors[0]).sum()
        return total if noisy is None else total - (noisy.cpu() * factors[1]).sum()

    found = contrastive_distance(lists[0], lists[1] if with_noise else None, lists[2], backend=backend)
    right = independent(exact[0], exact[2]), independent(exact[1], exact[2]) if with_noise else None
    wanted = [0, 1, 2] if with_noise else [0, 2]
    grads = torch.autograd.grad(loss(*found), [x for i in wanted for x in lists[i]])
    expected = torch.autograd.grad(loss(*right), [x for i in wanted for x in exact[i]])
    tolerance = TOLERANCES["contrastive_distance", dtype]
    for actual, ideal in zip(grads, expected, strict=True):
        assert actual.dtype == dtype
        scale = float(ideal.abs().max())
        rounding = torch.finfo(dtype).eps if dtype in (torch.float16, torch.bfloat16) else 0
        atol = tolerance.atol * scale + (6e-8 if dtype == torch.float16 else 0)  # its smallest number
        torch.testing.assert_close(actual.cpu().double(), ideal, rtol=tolerance.rtol + rounding, atol=atol)


@pytest.mark.parametrize("eps", [1e-8, 30.0])  # 30: between the norms of the two scales
@pytest.mark.parametrize("with_noise", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_reference_of_the_gradient(layout: str, with_noise: bool, eps: float) -> None:
    """It runs where there are no kernels; `backend="reference"` is torch's own autograd."""
    torch.manual_seed(2)
    lists = [[x.requires_grad_() for x in maps] for maps in three(SHAPES, layout, torch.float64)]
    clean, noisy, student = lists[0], lists[1] if with_noise else [], lists[2]
    found = contrastive_distance(clean, noisy or None, student, eps=eps, backend="reference")
    grads = torch.randn(2, *found[0].shape, dtype=torch.float64)
    pairs = [(d, g) for d, g in zip(found, grads, strict=True) if d is not None]
    expected = torch.autograd.grad([d for d, _ in pairs], [*clean, *noisy, *student], [g for _, g in pairs])
    clean, noisy, student = ([x.detach() for x in some] for some in (clean, noisy, student))
    dots = _reference(clean, noisy, student, eps)[2]
    grad_noisy = grads[1] if with_noise else grads.new_empty(0)
    arguments = (grads[0], grad_noisy, dots, clean, noisy, student, eps, True)
    for run in (_reference_backward, torch.ops.scrd_fast.contrastive_distance_backward):
        results = [x for some in run(*arguments) for x in some]
        for actual, right in zip(results, expected, strict=True):
            torch.testing.assert_close(actual, right, rtol=1e-12, atol=1e-12)
        # All lie densely, as the student does.
        kind = torch.channels_last if layout in CHANNELS_LAST_STUDENT else torch.contiguous_format
        assert all(x.is_contiguous(memory_format=kind) for x in results)


CHANNELS_LAST_STUDENT = {"channels_last", "parts of a batch", "student channels_last"}


def test_a_second_derivative_is_refused() -> None:
    student = torch.randn(2, 3, 4, 4, requires_grad=True)
    d_clean, _ = contrastive_distance([torch.randn(2, 3, 4, 4)], None, [student])
    (grad,) = torch.autograd.grad(d_clean.sum(), student, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once only"):
        grad.sum().backward()


def test_the_sums_have_no_gradient() -> None:
    lists = [[x.requires_grad_() for x in maps] for maps in three([(2, 3, 4, 4)], "contiguous", torch.float32)]
    d_clean, d_noisy, dots = torch.ops.scrd_fast.contrastive_distance(*lists, 1e-8)
    assert d_clean.requires_grad
    assert d_noisy.requires_grad
    assert not dots.requires_grad


@pytest.mark.parametrize("layout", ["contiguous", "parts of a batch", "student contiguous", "student channels_last"])
@pytest.mark.parametrize("with_noise", [True, False])
@pytest.mark.parametrize("teacher_grad", [True, False])
def test_opcheck_of_the_gradient(with_noise: bool, teacher_grad: bool, layout: str) -> None:
    clean, noisy, student = three([(2, 3, 5, 4), (2, 4, 3, 3)], layout, torch.bfloat16)
    noisy = noisy if with_noise else []
    d_clean, d_noisy, dots = torch.ops.scrd_fast.contrastive_distance(clean, noisy, student, 1e-8)
    torch.library.opcheck(
        torch.ops.scrd_fast.contrastive_distance_backward,
        (torch.randn_like(d_clean), torch.randn_like(d_noisy), dots, clean, noisy, student, 1e-8, teacher_grad),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("zero", ["clean", "noisy", "student", "all"])
def test_zero_maps_have_distance_one_and_finite_gradients(zero: str, backend: str) -> None:
    need(backend)
    lists = three([(2, 3, 4, 4)], "contiguous", torch.float32)
    for name, maps in zip(("clean", "noisy", "student"), lists, strict=True):
        if zero in (name, "all"):
            maps[0].zero_()
        maps[0].requires_grad_()
    distances = contrastive_distance(*lists, backend=backend)
    for name, distance in zip(("clean", "noisy"), distances, strict=True):
        assert distance is not None
        if zero in (name, "student", "all"):
            assert torch.equal(distance, torch.ones(2, 1))
    total = distances[0].sum() + distances[1].sum()  # type: ignore[union-attr]
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(total, [maps[0] for maps in lists]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_batches(dtype: torch.dtype, backend: str) -> None:
    need(backend)
    lists = [[x.requires_grad_() for x in maps] for maps in three([(0, 3, 4, 4)], "channels_last", dtype)]
    d_clean, d_noisy = contrastive_distance(*lists, backend=backend)
    assert d_noisy is not None
    (d_clean.sum() + d_noisy.sum()).backward()
    assert d_clean.shape == d_noisy.shape == (0, 1)
    for maps in lists:
        assert maps[0].grad is not None
        assert maps[0].grad.shape == (0, 3, 4, 4)
