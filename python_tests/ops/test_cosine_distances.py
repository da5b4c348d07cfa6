# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tolerances import TOLERANCES
from torch import Tensor

from scrd_fast.ops import _library, cosine_distances
from scrd_fast.ops.cosine_distances import _reference_backward

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
BACKENDS = ["native", "reference"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
LAYOUTS = ["contiguous", "channels_last", "slice", "channels_last slice", "transposed", "mixed"]
# The model's proportions; primes; one pixel; one channel; more pixels than a tile; whole and ragged vectors.
SHAPES = [(2, 24, 16, 16), (3, 7, 5, 11), (2, 37, 1, 1), (1, 1, 3, 2), (1, 3, 41, 37), (2, 65, 3, 9), (0, 3, 4, 4)]


def need(backend: str, device: str) -> None:
    if reason := _library.why_not("cosine_distances", backend, torch.device(device)):
        pytest.skip(reason)


def made(shape: tuple[int, ...], layout: str, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Teacher and student, of whatever layout."""
    n, c, h, w = shape

    def one(turn: int) -> Tensor:
        if layout.endswith("slice"):
            whole = torch.randn(n + 1, c + 3, h + 2, w + 1).to(device, dtype)
            if layout == "channels_last slice":
                whole = whole.contiguous(memory_format=torch.channels_last)
            return whole[1:, 2 : 2 + c, 1 : 1 + h, :w]
        if layout == "transposed":
            return torch.randn(c, w, n, h).to(device, dtype).permute(2, 0, 3, 1)
        last = layout == "channels_last" or (layout == "mixed" and turn == 1)
        x = torch.randn(shape).to(device, dtype)
        return x.contiguous(memory_format=torch.channels_last) if last else x

    return one(0), one(1)


def independent(teacher: Tensor, student: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(teacher.double(), student.double(), dim=1, eps=1e-8).cpu()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_torch(layout: str, dtype: torch.dtype, device: str, backend: str) -> None:
    need(backend, device)
    torch.manual_seed(0)
    pairs = [made(shape, layout, dtype, device) for shape in SHAPES]
    for shape, (teacher, student) in zip(SHAPES, pairs, strict=True):
        (distance,) = cosine_distances([teacher], [student], backend=backend)
        assert distance.shape == (shape[0], *shape[2:])
        assert distance.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert distance.is_contiguous()
        expected = independent(teacher, student)
        torch.testing.assert_close(distance.cpu().double(), expected, **TOLERANCES["cosine_distances", dtype]._asdict())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("device", DEVICES)
def test_takes_any_number_of_scales_of_any_precision(device: str, backend: str) -> None:
    """Under autocast a feature may stay in float32 beside others in bfloat16."""
    need(backend, device)
    torch.manual_seed(1)
    dtypes = [torch.float32, torch.bfloat16, torch.float16] * 4
    pairs = [made((2, 5 + k, 3, 2 + k), "contiguous", dtype, device) for k, dtype in enumerate(dtypes)]
    found = cosine_distances([t for t, _ in pairs], [s for _, s in pairs], backend=backend)
    for distance, (teacher, student) in zip(found, pairs, strict=True):
        torch.testing.assert_close(distance.cpu().double(), independent(teacher, student), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sample_has_the_same_bits_in_any_batch(dtype: torch.dtype, layout: str, device: str) -> None:
    need("native", device)
    torch.manual_seed(2)
    pairs = [made((5, 67, 9, 7), layout, dtype, device), made((5, 131, 3, 3), layout, dtype, device)]
    teacher, student = [t for t, _ in pairs], [s for _, s in pairs]
    whole = cosine_distances(teacher, student, backend="native")
    for n in range(5):
        alone = cosine_distances([t[n : n + 1] for t in teacher], [s[n : n + 1] for s in student], backend="native")
        assert all(torch.equal(a, w[n : n + 1]) for a, w in zip(alone, whole, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "slice"])
def test_large_planes_are_cut_anew_in_large_batches(layout: str, dtype: torch.dtype) -> None:
    """Into runs of 4,096 pixels where there are images enough for all threads, else of 1,024."""
    need("native", "cpu")
    torch.manual_seed(8)
    count = 2 * torch.get_num_threads()
    teacher, student = made((count, 7, 67, 79), layout, dtype)
    (whole,) = cosine_distances([teacher], [student], backend="native")
    tolerance = TOLERANCES["cosine_distances", dtype]._asdict()
    torch.testing.assert_close(whole.double(), independent(teacher, student), **tolerance)
    (alone,) = cosine_distances([teacher[1:2]], [student[1:2]], backend="native")
    assert torch.equal(alone, whole[1:2])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_number_of_threads_changes_no_bit(layout: str) -> None:
    need("native", "cpu")
    torch.manual_seed(3)
    teacher, student = made((2, 64, 48, 48), layout, torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(cosine_distances([teacher], [student], backend="native")[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_by_finite_differences(layout: str, backend: str) -> None:
    need(backend, "cpu")
    torch.manual_seed(4)
    pairs = [made((2, 3, 4, 5), layout, torch.float64), made((2, 5, 1, 2), layout, torch.float64)]
    inputs = [x.detach().requires_grad_() for pair in pairs for x in pair]

    def run(*x: Tensor) -> tuple[Tensor, ...]:
        return tuple(cosine_distances(list(x[0::2]), list(x[1::2]), backend=backend))

    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_gradients_equal_those_of_torch(dtype: torch.dtype, layout: str, device: str) -> None:
    """In the features' dtype and layout, more pixels than a tile and a ragged number of channels."""
    need("native", device)
    torch.manual_seed(5)
    teacher, student = (x.requires_grad_() for x in made((2, 37, 39, 33), layout, dtype, device))
    towards = torch.randn(2, 39, 33, device=device)
    (distance,) = cosine_distances([teacher], [student], backend="native")
    found = torch.autograd.grad(distance, (teacher, student), towards)
    exact = [x.detach().double().requires_grad_() for x in (teacher, student)]
    expected = torch.autograd.grad(1 - F.cosine_similarity(exact[0], exact[1], dim=1), exact, towards.double())
    rounding = {torch.float32: 1e-5, torch.float16: 2**-11, torch.bfloat16: 2**-8}[dtype]
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == dtype
        assert f.stride() == teacher.stride()
        torch.testing.assert_close(f.double(), e, rtol=rounding, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("teacher_grad", [True, False])
def test_the_reference_of_the_gradient(teacher_grad: bool, layout: str) -> None:
    """It runs where there are no kernels; `backend="reference"` is torch's own autograd."""
    torch.manual_seed(8)
    pairs = [made((2, 3, 4, 5), layout, torch.float64), made((3, 7, 1, 2), layout, torch.float64)]
    teacher, student = ([x.detach().requires_grad_() for x in side] for side in zip(*pairs, strict=True))
    distances = [1 - F.cosine_similarity(t, s, dim=1) for t, s in zip(teacher, student, strict=True)]
    grads = [torch.randn_like(d) for d in distances]
    expected = torch.autograd.grad(distances, [*teacher, *student], grads)
    to_teacher, to_student = _reference_backward(grads, teacher, student, 1e-8, teacher_grad)
    assert len(to_teacher) == (2 if teacher_grad else 0)
    for found, right in zip([*to_teacher, *to_student], expected[0 if teacher_grad else 2 :], strict=True):
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("every_second", [False, True])
def test_a_samples_gradient_has_the_same_bits_in_any_batch(every_second: bool) -> None:
    """Channels-last too, where the images of a batch lie apart."""
    need("native", "cpu")
    torch.manual_seed(9)
    teacher, student = (x.contiguous(memory_format=torch.channels_last) for x in torch.randn(2, 6, 19, 7, 5))
    if every_second:
        teacher, student = teacher[::2], student[::2]
    backward = torch.ops.scrd_fast.cosine_distances_backward
    grads = torch.randn(teacher.shape[0], 7, 5)
    whole = backward([grads], [teacher], [student], 1e-8, True)
    for n in range(teacher.shape[0]):
        part = slice(n, n + 1)
        alone = backward([grads[part]], [teacher[part]], [student[part]], 1e-8, True)
        for of_whole, of_alone in zip(whole, alone, strict=True):
            assert torch.equal(of_alone[0], of_whole[0][part])


def test_a_second_derivative_is_refused() -> None:
    """Torch would take it for zero."""
    student = torch.randn(1, 3, 2, 2, requires_grad=True)
    (distance,) = cosine_distances([torch.randn(1, 3, 2, 2)], [student])
    (slope,) = torch.autograd.grad(distance.square().sum(), student, create_graph=True)
    with pytest.raises(RuntimeError, match="scrd_fast::cosine_distances can be differentiated once only"):
        torch.autograd.grad(slope.square().sum(), student)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice", "mixed"])
@pytest.mark.parametrize("teacher_grad", [True, False])
def test_opcheck(teacher_grad: bool, layout: str) -> None:
    pairs = [made((2, 3, 5, 4), layout, torch.float32), made((2, 4, 3, 3), layout, torch.float32)]
    teacher = [t.detach().requires_grad_(teacher_grad) for t, _ in pairs]
    student = [s.detach().requires_grad_() for _, s in pairs]
    torch.library.opcheck(torch.ops.scrd_fast.cosine_distances, (teacher, student, 1e-8))
    grads = [torch.rand(2, 5, 4), torch.rand(2, 3, 3)]
    torch.library.opcheck(
        torch.ops.scrd_fast.cosine_distances_backward,
        (grads, [t.detach() for t in teacher], [s.detach() for s in student], 1e-8, teacher_grad),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("eps", [1e-8, 1e-30])
def test_zero_vectors_are_at_distance_one_with_finite_gradients(eps: float, backend: str) -> None:
    need(backend, "cpu")
    teacher = torch.ones(1, 3, 1, 2)
    student = torch.tensor([0.0, 1.0]).expand(1, 3, 1, 2).clone().requires_grad_()
    (distance,) = cosine_distances([teacher], [student], eps=eps, backend=backend)
    torch.testing.assert_close(distance.detach(), torch.tensor([[[1.0, 0.0]]]))
    distance.sum().backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 1])
def test_bad_values_stay_in_their_pixel(place: int, bad: float, layout: str, device: str, backend: str) -> None:
    """And show there, in the gradients too."""
    need(backend, device)
    torch.manual_seed(6)
    pair = made((2, 40, 5, 6), layout, torch.float32, device)
    results = []
    for value in (0.5, bad):
        pair[place][1, 7, 2, 3] = value
        teacher, student = (x.detach().requires_grad_() for x in pair)
        (distance,) = cosine_distances([teacher], [student], backend=backend)
        results.append([distance[:, None].detach(), *torch.autograd.grad(distance.sum(), [teacher, student])])
    for before, after in zip(*results, strict=True):
        assert after[1, :, 2, 3].isnan().all()
        after[1, :, 2, 3] = before[1, :, 2, 3]
        assert torch.equal(after, before)


def test_half_precision_is_read_exactly() -> None:
    """Numbers of either 16-bit type beside a one: what the kernel reads is what torch converts."""
    need("native", "cpu")
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        every = bits.view(dtype)
        student = every[every.isfinite() & (every.float().abs() < 1e18) & (every.float().abs() > 1e-18)]
        # Beside a partner of its own size, so that the least number turns the vector as far as the largest does.
        size = student.float().abs().log2().floor().exp2().to(dtype)
        student = torch.stack([student, size])[None, :, None]  # [1, 2, 1, W]
        teacher = torch.ones_like(student)
        for layout in (torch.contiguous_format, torch.channels_last):
            pair = [x.contiguous(memory_format=layout) for x in (teacher, student)]
            (found,) = cosine_distances([pair[0]], [pair[1]], backend="native")
            expected = independent(teacher, student)
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=3e-7)


X = torch.ones(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (([X], [X, X]), {}, ValueError, "teacher and student must hold equally many maps, got 1 and 2"),
        (([], []), {}, ValueError, "teacher must hold at least one feature map"),
        (([X], [X[:, :2]]), {}, ValueError, r"teacher\[0\] and student\[0\] must have one shape"),
        (([X[0]], [X[0]]), {}, ValueError, r"teacher\[0\] must be \[N, C, H, W\]"),
        (([X], [X.half()]), {}, ValueError, r"must have one dtype and device"),
        (([X.long()], [X.long()]), {}, TypeError, r"teacher\[0\] must be float32, float16, bfloat16 or float64"),
        (([X, X.double()], [X, X.double()]), {}, TypeError, "teacher must be float64 at every scale or at none"),
        (([X], [X]), {"eps": 0.0}, ValueError, "eps must be greater than 0, got 0.0"),
        (([X], [X]), {"backend": "cuda"}, ValueError, "backend must be one of"),
    ],
)
def test_bad_input_is_named(arguments: Any, options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        cosine_distances(*arguments, **options)
