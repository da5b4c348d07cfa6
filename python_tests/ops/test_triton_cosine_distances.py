# SPDX-License-Identifier: Apache-2.0
"""The Triton kernel: on a GPU where there is one, else on the CPU in Triton's interpreter (see conftest.py)."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tolerances import TOLERANCES
from torch import Tensor
from triton_device import DEVICE, MARKS

from scrd_fast.ops import cosine_distances

pytest.importorskip("triton")
kernels = importlib.import_module("scrd_fast.ops.triton.cosine_distances")  # the name in the package is the function

WARNINGS = "ignore:Conversion of an array:DeprecationWarning", "ignore:invalid value encountered:RuntimeWarning"
pytestmark = [*MARKS, pytest.mark.filterwarnings(*WARNINGS)]  # of the interpreter
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
LAYOUTS = ["contiguous", "channels_last", "channels_of_channels_last", "cut", "transposed"]
WITHOUT_COPY = LAYOUTS[:3]
# More and fewer channels and pixels than a tile has, primes, one pixel, one channel, an empty batch.
SHAPES = [(2, 70, 19, 17), (3, 5, 3, 7), (1, 33, 1, 1), (2, 1, 1, 5), (0, 3, 4, 4)]


def in_layout(x: Tensor, layout: str) -> Tensor:
    """x in that layout, amid NaN."""
    n, c, h, w = x.shape
    if layout == "transposed":
        buffer = torch.full((n, c, w, h), torch.nan, dtype=x.dtype, device=x.device)
        return buffer.mT.copy_(x)
    if layout == "contiguous":
        return torch.full((n + 1, c + 1, h, w), torch.nan, dtype=x.dtype, device=x.device)[1:, 1:].copy_(x)
    if layout == "cut":
        return torch.full((n, c, h + 2, w + 1), torch.nan, dtype=x.dtype, device=x.device)[:, :, 1:-1, 1:].copy_(x)
    more = 3 if layout == "channels_of_channels_last" else 0
    buffer = torch.full((n + 1, h, w, c + more), torch.nan, dtype=x.dtype, device=x.device)
    return buffer[1:, :, :, more:].permute(0, 3, 1, 2).copy_(x)


def pair(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(sum(shape))
    teacher, student = torch.randn(2, *shape)
    return teacher.to(DEVICE, dtype), (0.7 * teacher + student).to(DEVICE, dtype)


def run(teacher: Tensor, student: Tensor, eps: float = 1e-8) -> Tensor:
    """The operator itself, for one scale."""
    (distance,) = torch.ops.scrd_fast_triton.cosine_distances([teacher], [student], eps)
    return distance


def expected(teacher: Tensor, student: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(teacher.double(), student.double(), dim=1, eps=1e-8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    teacher, student = pair(shape, dtype)
    for layout in LAYOUTS:
        actual = run(in_layout(teacher, layout), in_layout(student, layout))
        assert actual.is_contiguous()
        assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        tolerance = TOLERANCES["anomaly_map", dtype]._asdict()
        torch.testing.assert_close(actual.double(), expected(teacher, student), **tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts_and_alignments_do_not_change_a_bit(dtype: torch.dtype) -> None:
    teacher, student = pair((2, 48, 8, 16), dtype)
    result = run(teacher, student)
    for first in LAYOUTS:
        assert torch.equal(run(in_layout(teacher, first), in_layout(student, "channels_last")), result)
    shifted = torch.empty(student.numel() + 1, dtype=dtype, device=DEVICE)[1:].view(student.shape).copy_(student)
    assert torch.equal(run(teacher, shifted), result)


@pytest.mark.parametrize("layout", WITHOUT_COPY)
def test_even_layouts_are_not_copied(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda teacher, student, *_, **__: seen.extend((teacher.data_ptr(), student.data_ptr()))

    monkeypatch.setattr(kernels, "_distance_kernel", Kernel())
    teacher, student = (in_layout(x, layout) for x in pair((2, 5, 4, 3)))
    run(teacher, student)
    assert seen == [teacher.data_ptr(), student.data_ptr()]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_sample_alone_gets_the_same_bits(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = (in_layout(x, layout) for x in pair((4, 37, 5, 7)))
    whole = run(teacher, student)
    for n in range(4):
        assert torch.equal(run(teacher[n : n + 1], student[n : n + 1])[0], whole[n])
    monkeypatch.setattr(kernels, "PIXELS", 16)
    assert torch.equal(run(teacher, student), whole)


def test_scales_by_name() -> None:
    teacher, student = zip(*(pair(shape) for shape in ((2, 24, 16, 16), (2, 40, 8, 8), (2, 112, 4, 4))), strict=True)
    actual = cosine_distances(teacher, student, backend="triton")
    reference = cosine_distances(teacher, student, backend="reference")
    torch.testing.assert_close(actual, reference, **TOLERANCES["anomaly_map", torch.float32]._asdict())


def test_zero_vectors_are_at_distance_one() -> None:
    teacher, student = pair((1, 6, 2, 2))
    teacher[:, :, 0], student[:, :, :, 0] = 0, 0
    actual = run(teacher, student)[0]
    assert (actual[0] == 1).all()
    assert actual[1, 0] == 1
    torch.testing.assert_close(actual[1, 1].double(), expected(teacher, student)[0, 1, 1], rtol=0, atol=1e-6)


def test_each_norm_is_clamped() -> None:
    teacher, student = torch.zeros(2, 1, 4, 1, 1, device=DEVICE)
    teacher[0, 0], student[0, :2] = 1e-3, 3e-2
    torch.testing.assert_close(run(teacher, student, 0.01).item(), 1 - 1e-3 * 3e-2 / (0.01 * 3e-2 * 2**0.5))
    torch.testing.assert_close(run(teacher, student, 1.0).item(), 1 - 1e-3 * 3e-2)


def test_large_features() -> None:
    """The product of norms is 2^127."""
    large = torch.full((1, 4, 1, 1), 2.0**62.5, device=DEVICE)
    torch.testing.assert_close(run(large, -large), torch.full((1, 1, 1), 2.0, device=DEVICE))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_values_stay_in_their_pixel(bad: float) -> None:
    teacher, student = pair((2, 40, 4, 5))
    before = run(teacher, student)
    teacher[1, 37, 2, 3] = bad
    after = run(teacher, student)
    assert after[1, 2, 3].isnan()
    before[1, 2, 3] = after[1, 2, 3] = 0
    assert torch.equal(after, before)


def test_writes_nothing_beyond_its_result() -> None:
    teacher, student = pair((2, 3, 5, 7))
    buffer = torch.full((100,), torch.nan, device=DEVICE)
    kernels._fill(buffer[10:80].view(2, 5, 7), teacher, student, 1e-8)
    assert not buffer[10:80].isnan().any()
    assert buffer[:10].isnan().all()
    assert buffer[80:].isnan().all()


@pytest.mark.parametrize("teacher_grad", [False, True])
def test_gradients_are_those_of_the_reference(teacher_grad: bool) -> None:
    shapes = [(2, 5, 4, 3), (2, 7, 2, 2)]
    gradients = []
    for backend in ("triton", "reference"):
        teacher, student = zip(*(pair(shape, torch.float64) for shape in shapes), strict=True)
        inputs = [x.requires_grad_() for x in (*student, *(teacher if teacher_grad else ()))]
        distances = cosine_distances(teacher, student, backend=backend)
        gradients.append(torch.autograd.grad([d.square().sum() for d in distances], inputs))
    for actual, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-12, atol=1e-12)


def test_inference_mode() -> None:
    with torch.inference_mode():
        teacher, student = pair((1, 3, 2, 2))
        distance = run(teacher, student)
    assert distance.is_inference()
    torch.testing.assert_close(distance.double(), expected(teacher, student), rtol=0, atol=1e-6)


@pytest.mark.parametrize("n", [0, 2])
def test_opcheck(n: int) -> None:
    teacher, student = torch.randn(2, n, 3, 2, 5, device=DEVICE)
    arguments = ([teacher, teacher[:, :2]], [student.requires_grad_(), student[:, :2]], 1e-8)
    torch.library.opcheck(torch.ops.scrd_fast_triton.cosine_distances.default, arguments)


def test_compiles_into_one_graph() -> None:
    def doubled(teacher: Tensor, student: Tensor) -> Tensor:
        return cosine_distances([teacher], [student], backend="triton")[0] * 2

    teacher, student = pair((2, 3, 4, 5))
    compiled = torch.compile(doubled, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(teacher, student), doubled(teacher, student))


@pytest.mark.cuda
def test_cuda_graph_and_no_synchronisation() -> None:
    teacher, student = pair((2, 64, 16, 16))
    before = cosine_distances([teacher], [student], backend="triton")[0]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = cosine_distances([teacher], [student], backend="triton")[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(before, again)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = cosine_distances([teacher], [student], backend="triton")[0]
    teacher.mul_(-1)
    graph.replay()
    assert not torch.equal(captured, before)
    assert torch.equal(captured, cosine_distances([teacher], [student], backend="triton")[0])
