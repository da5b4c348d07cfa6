# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tolerances import TOLERANCES
from torch import Tensor

from scrd_fast.ops import contrastive_distance

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
BACKENDS = ["auto", "reference", "native"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
SHAPES = [
    [(2, 3, 5, 4)],
    [(1, 1, 1, 1)],
    [(3, 8, 7, 7), (3, 16, 3, 3), (3, 32, 1, 2)],
    [(0, 4, 3, 3)],
    [(1, 43, 127, 3), (1, 64, 16, 16), (1, 5, 29, 113), (1, 40, 40, 25)],  # around a chunk's 16,384 values, and more
]


def contiguous(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape)


def channels_last(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def slice_of_larger(shape: tuple[int, ...]) -> Tensor:
    n, c, h, w = shape
    return torch.randn(n, c + 3, h + 2, w + 1)[:, 1 : c + 1, 2:, :w]


def end_of_batch(shape: tuple[int, ...]) -> Tensor:
    """As a teacher gives features of clean and of noisy images, in one batch."""
    return channels_last((2 * shape[0] + 1, *shape[1:]))[shape[0] + 1 :]


def every_second(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(2 * shape[0], *shape[1:])[::2]


def transposed(shape: tuple[int, ...]) -> Tensor:
    n, c, h, w = shape
    return torch.randn(c, w, n, h).permute(2, 0, 3, 1)


LAYOUTS = [contiguous, channels_last, slice_of_larger, end_of_batch, every_second, transposed]


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


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("with_noise", [True, False])
def test_gradients_equal_those_of_torch(
    with_noise: bool, layout: Callable[[tuple[int, ...]], Tensor], dtype: torch.dtype, backend: str, device: str
) -> None:
    torch.manual_seed(3)
    shapes = [(3, 8, 7, 7), (3, 5, 61, 61)]
    lists = [[x.requires_grad_() for x in maps(shapes, layout, dtype, device)] for _ in range(3)]
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


@pytest.mark.parametrize("layout", [contiguous, channels_last, end_of_batch])
def test_gradients_lie_as_the_student_does(layout: Callable[[tuple[int, ...]], Tensor]) -> None:
    student = layout((2, 3, 4, 5)).requires_grad_()
    contrastive_distance([torch.randn(2, 3, 4, 5)], None, [student])[0].sum().backward()
    assert student.grad is not None
    last = layout is not contiguous
    assert student.grad.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_a_sample_has_the_same_bits_in_any_batch(dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(4)
    lists = [maps([(5, 7, 51, 47), (5, 64, 3, 3)], channels_last, dtype, device) for _ in range(3)]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(bits_of(lists))
    finally:
        torch.set_num_threads(before)
    for n in range(5):
        results.append([x[n : n + 1] for x in results[0]])
        alone = bits_of([[x[n : n + 1] for x in some] for some in lists])
        assert all(torch.equal(a, b) for a, b in zip(alone, results[-1], strict=True))
    assert all(torch.equal(a, b) for r in results[1:3] for a, b in zip(r, results[0], strict=True))


def bits_of(lists: list[list[Tensor]]) -> list[Tensor]:
    clean, noisy, student = lists
    leaves = [x.detach().requires_grad_() for x in student]
    d_clean, d_noisy = contrastive_distance(clean, noisy, leaves)
    assert d_noisy is not None
    grads = torch.autograd.grad(d_clean.sum() - 0.3 * d_noisy.sum(), leaves)
    return [d_clean.detach(), d_noisy.detach(), *grads]


def test_a_second_derivative_is_refused() -> None:
    student = torch.randn(2, 3, 4, 4, requires_grad=True)
    d_clean, _ = contrastive_distance([torch.randn(2, 3, 4, 4)], None, [student])
    (grad,) = torch.autograd.grad(d_clean.sum(), student, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once only"):
        grad.sum().backward()


@pytest.mark.parametrize("with_noise", [True, False])
@pytest.mark.parametrize("teacher_grad", [True, False])
def test_opcheck_of_the_gradient(with_noise: bool, teacher_grad: bool) -> None:
    def lists() -> list[Tensor]:
        return [channels_last((2, 3, 5, 4)), contiguous((2, 4, 3, 3))]

    clean, noisy, student = lists(), lists() if with_noise else [], lists()
    d_clean, d_noisy, dots = torch.ops.scrd_fast.contrastive_distance(clean, noisy, student, 1e-8)
    torch.library.opcheck(
        torch.ops.scrd_fast.contrastive_distance_backward,
        (torch.randn_like(d_clean), torch.randn_like(d_noisy), dots, clean, noisy, student, 1e-8, teacher_grad),
    )


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
        (
            [torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 3).double()],
            None,
            [torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 3).double()],
            TypeError,
            "student must be float64 at every scale or at none",
        ),
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
