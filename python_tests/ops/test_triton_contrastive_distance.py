# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels: on a GPU where there is one, else on the CPU in Triton's interpreter (see conftest.py)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tolerances import TOLERANCES
from torch import Tensor
from triton_device import DEVICE, MARKS

from scrd_fast.ops import contrastive_distance

pytest.importorskip("triton")

WARNINGS = "ignore:Conversion of an array:DeprecationWarning", "ignore:invalid value encountered:RuntimeWarning"
pytestmark = [*MARKS, pytest.mark.filterwarnings(*WARNINGS)]  # of the interpreter
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
LAYOUTS = ["contiguous", "channels_last", "end_of_batch", "cut"]
# Fewer and more values than a block and than a chunk has, one value.
SHAPES = [(2, 3, 5, 7), (2, 1, 1, 1), (2, 17, 31, 33)]


def made(layout: str, dtype: torch.dtype, seed: int, shapes: list[tuple[int, ...]] = SHAPES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def one(n: int, c: int, h: int, w: int) -> Tensor:
        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(DEVICE, dtype)

        if layout == "cut":
            return random(n, c + 1, h + 2, w)[:, 1:, 1 : h + 1]
        if layout == "end_of_batch":
            return random(n + 3, c, h, w)[3:]
        x = random(n, c, h, w)
        return x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x

    return [one(*shape) for shape in shapes]


def independent(teacher: list[Tensor], student: list[Tensor]) -> Tensor:
    pairs = zip(teacher, student, strict=True)
    return torch.stack([1 - F.cosine_similarity(t.double().flatten(1), s.double().flatten(1)) for t, s in pairs], 1)


@pytest.mark.parametrize("with_noise", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_distances_and_gradients_equal_those_of_torch(layout: str, dtype: torch.dtype, with_noise: bool) -> None:
    lists = [[x.requires_grad_() for x in made(layout, dtype, seed)] for seed in range(3)]
    exact = [[x.detach().double().requires_grad_() for x in some] for some in lists]
    d_clean, d_noisy = contrastive_distance(lists[0], lists[1] if with_noise else None, lists[2], backend="triton")
    right = [independent(teacher, exact[2]) for teacher in exact[:2]]
    tolerance = TOLERANCES["contrastive_distance", dtype]
    torch.testing.assert_close(d_clean.double(), right[0], **tolerance._asdict())
    loss, ideal = d_clean.double().sum(), right[0].sum()
    wanted = [0, 2]
    if with_noise:
        assert d_noisy is not None
        torch.testing.assert_close(d_noisy.double(), right[1], **tolerance._asdict())
        loss, ideal, wanted = loss - 0.3 * d_noisy.double().sum(), ideal - 0.3 * right[1].sum(), [0, 1, 2]
    found = torch.autograd.grad(loss, [x for i in wanted for x in lists[i]])
    expected = torch.autograd.grad(ideal, [x for i in wanted for x in exact[i]])
    rounding = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}.get(dtype, 0.0)
    for a, e in zip(found, expected, strict=True):
        atol = tolerance.atol * float(e.abs().max()) + 1e-6  # of one value: two terms of size 1 cancel
        torch.testing.assert_close(a.double(), e, rtol=tolerance.rtol + rounding, atol=atol)


@pytest.mark.parametrize("teacher_grad", [True, False])
@pytest.mark.parametrize("with_noise", [True, False])
def test_the_gradient_is_the_references(with_noise: bool, teacher_grad: bool) -> None:
    shapes = [SHAPES[0], SHAPES[2]]  # of one value the gradient is a difference of equal terms
    clean, noisy, student = (made("channels_last", torch.float32, seed, shapes) for seed in range(3))
    noisy = noisy if with_noise else []
    dots = torch.ops.scrd_fast_triton.contrastive_distance(clean, noisy, student, 1e-8)[2]
    grads = torch.randn(2, *dots.shape[:2], device=DEVICE)
    arguments = (
        grads[0],
        grads[1] if with_noise else grads.new_empty(0),
        dots,
        clean,
        noisy,
        student,
        1e-8,
        teacher_grad,
    )
    found = torch.ops.scrd_fast_triton.contrastive_distance_backward(*arguments)
    expected = torch.ops.scrd_fast.contrastive_distance_backward(*arguments)
    for actual, right in zip(found, expected, strict=True):
        assert len(actual) == len(right)
        for a, e in zip(actual, right, strict=True):
            assert a.stride() == e.stride()
            torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-6)


def test_a_sample_has_the_same_bits_in_any_batch_and_from_anywhere() -> None:
    shapes = [(3, 17, 31, 33), (3, 2, 5, 5)]
    lists = [made("contiguous", torch.bfloat16, seed, shapes) for seed in range(3)]
    whole = torch.ops.scrd_fast_triton.contrastive_distance(*lists, 1e-8)
    moved = [[torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape) for x in some] for some in lists]
    for n in range(3):
        alone = torch.ops.scrd_fast_triton.contrastive_distance(*([x[n : n + 1] for x in m] for m in moved), 1e-8)
        assert all(torch.equal(a, w[n : n + 1]) for a, w in zip(alone, whole, strict=True))


def test_zero_maps_and_empty_batches() -> None:
    student = [torch.zeros(1, 2, 3, 3, device=DEVICE, requires_grad=True)]
    d_clean, _ = contrastive_distance([torch.ones(1, 2, 3, 3, device=DEVICE)], None, student, backend="triton")
    assert d_clean.item() == 1
    d_clean.sum().backward()
    assert student[0].grad is not None
    assert student[0].grad.isfinite().all()
    none = [torch.zeros(0, 2, 3, 3, device=DEVICE)]
    d_clean, d_noisy = contrastive_distance(none, none, none, backend="triton")
    assert d_noisy is not None
    assert d_clean.shape == d_noisy.shape == (0, 1)
