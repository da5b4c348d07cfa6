# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tolerances import TOLERANCES
from torch import Tensor

from scrd_fast.errors import UnavailableError
from scrd_fast.ops import contrastive_distance

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
BACKENDS = ["auto", "reference"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
SHAPES = [[(2, 3, 5, 4)], [(1, 1, 1, 1)], [(3, 8, 7, 7), (3, 16, 3, 3), (3, 32, 1, 2)], [(0, 4, 3, 3)]]


def contiguous(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape)


def channels_last(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def slice_of_larger(shape: tuple[int, ...]) -> Tensor:
    n, c, h, w = shape
    return torch.randn(n, c + 3, h + 2, w + 1)[:, 1 : c + 1, 2:, :w]


LAYOUTS = [contiguous, channels_last, slice_of_larger]


def maps(
    shapes: list[tuple[int, ...]],
    layout: Callable[[tuple[int, ...]], Tensor],
    dtype: torch.dtype,
    device: str = "cpu",
) -> list[Tensor]:
    return [layout(shape).to(device=device, dtype=dtype) for shape in shapes]


def independent(teacher: list[Tensor], student: list[Tensor]) -> Tensor:
    pairs = zip(teacher, student, strict=True)
    columns = [1 - F.cosine_similarity(t.double().flatten(1), s.double().flatten(1), dim=1) for t, s in pairs]
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_equals_cosine_similarity_of_flattened_maps(
    shapes: list[tuple[int, ...]],
    layout: Callable[[tuple[int, ...]], Tensor],
    dtype: torch.dtype,
    device: str,
    backend: str,
) -> None:
    torch.manual_seed(0)
    clean, noisy, student = (maps(shapes, layout, dtype, device) for _ in range(3))
    d_clean, d_noisy = contrastive_distance(clean, noisy, student, backend=backend)
    tolerance = TOLERANCES["contrastive_distance", dtype]._asdict()
    assert d_noisy is not None
    torch.testing.assert_close(d_clean.double(), independent(clean, student), **tolerance)
    torch.testing.assert_close(d_noisy.double(), independent(noisy, student), **tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_by_finite_differences(backend: str) -> None:
    torch.manual_seed(1)
    shapes = [(2, 3, 5, 4), (2, 4, 3, 1)]
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes * 3]

    def distances(*x: Tensor) -> tuple[Tensor, Tensor | None]:
        return contrastive_distance(x[:2], x[2:4], x[4:], backend=backend)

    assert torch.autograd.gradcheck(distances, inputs)
    without_noise = lambda *x: contrastive_distance(x[:2], None, x[2:], backend=backend)[0]  # noqa: E731
    assert torch.autograd.gradcheck(without_noise, inputs[:4])


def test_the_gradient_formula_equals_autograd_of_the_reference() -> None:
    torch.manual_seed(2)
    teacher, noisy = [torch.randn(3, 5, 4, 4)], [torch.randn(3, 5, 4, 4)]
    student = [torch.randn(3, 5, 4, 4, requires_grad=True)]
    grads = []
    for backend in BACKENDS:
        d_clean, d_noisy = contrastive_distance(teacher, noisy, student, backend=backend)
        assert d_noisy is not None
        (d_clean.sum() / d_noisy.sum()).backward()
        grads.append(student[0].grad.clone())  # type: ignore[union-attr]
        student[0].grad = None
    torch.testing.assert_close(grads[0], grads[1], **TOLERANCES["contrastive_distance", torch.float32]._asdict())


@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_opcheck(noisy: bool, grad: bool) -> None:
    def lists() -> list[Tensor]:
        return [torch.randn(2, 3, 5, 4, requires_grad=grad), torch.randn(2, 4, 3, 3, requires_grad=grad)]

    torch.library.opcheck(torch.ops.scrd_fast.contrastive_distance, (lists(), lists() if noisy else [], lists(), 1e-8))


def test_compiles_into_one_graph() -> None:
    clean, noisy, student = ([torch.randn(2, 3, 4, 4)] for _ in range(3))
    compiled = torch.compile(contrastive_distance, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(
        compiled(clean, noisy, student), contrastive_distance(clean, noisy, student), strict=True
    ):
        torch.testing.assert_close(actual, expected)


def test_zero_maps_have_distance_one_and_finite_gradients() -> None:
    student = [torch.zeros(2, 3, 4, 4, requires_grad=True)]
    d_clean, _ = contrastive_distance([torch.randn(2, 3, 4, 4)], None, student)
    d_clean.sum().backward()
    assert torch.equal(d_clean, torch.ones(2, 1))
    assert student[0].grad is not None
    assert student[0].grad.isfinite().all()


def test_large_halves_do_not_overflow() -> None:
    big = [torch.full((1, 64, 16, 16), 6e4, dtype=torch.float16)]
    d_clean, _ = contrastive_distance(big, None, big)
    torch.testing.assert_close(d_clean, torch.zeros(1, 1), rtol=0, atol=1e-5)


def test_bad_values_stay_in_their_sample() -> None:
    student = torch.randn(3, 2, 4, 4)
    teacher = torch.randn(3, 2, 4, 4)
    expected = contrastive_distance([teacher], None, [student])[0]
    teacher[1, 0, 0, 0] = float("nan")
    actual = contrastive_distance([teacher], None, [student])[0]
    assert actual[1].isnan().all()
    assert torch.equal(actual[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize(
    ("clean", "noisy", "student", "error", "text"),
    [
        ([], None, [], ValueError, "student must hold at least one"),
        (
            [torch.ones(1, 2, 3, 3)] * 2,
            None,
            [torch.ones(1, 2, 3, 3)],
            ValueError,
            "equally many maps, got 1 and 2",
        ),
        (
            [torch.ones(1, 2, 3, 3)],
            None,
            [torch.ones(1, 2, 3, 4)],
            ValueError,
            r"got \[1, 2, 3, 4\] and \[1, 2, 3, 3\]",
        ),
        ([torch.ones(2, 3)], None, [torch.ones(2, 3)], ValueError, r"student\[0\] must be \[N, C, H, W\]"),
        ([torch.ones(1, 2, 3, 3).int()], None, [torch.ones(1, 2, 3, 3).int()], TypeError, "got torch.int32"),
        (
            [torch.ones(1, 2, 3, 3)],
            None,
            [torch.ones(1, 2, 3, 3).double()],
            ValueError,
            "one dtype and device",
        ),
        ([torch.ones(1, 2, 3, 3)], [], [torch.ones(1, 2, 3, 3)], ValueError, "student and noisy"),
    ],
)
def test_bad_input_is_named(
    clean: list[Tensor], noisy: list[Tensor] | None, student: list[Tensor], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        contrastive_distance(clean, noisy, student)


def test_eps_and_backend_are_checked() -> None:
    x = [torch.ones(1, 2, 3, 3)]
    with pytest.raises(ValueError, match="eps must be greater than 0, got 0"):
        contrastive_distance(x, None, x, eps=0)
    with pytest.raises(ValueError, match="backend must be one of"):
        contrastive_distance(x, None, x, backend="fast")
    with pytest.raises(UnavailableError, match="no native kernel"):
        contrastive_distance(x, None, x, backend="native")
