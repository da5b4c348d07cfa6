# SPDX-License-Identifier: Apache-2.0
"""The Triton kernel: on a GPU where there is one, else on the CPU in Triton's interpreter (see conftest.py)."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor
from triton_device import DEVICE, MARKS

from scrd_fast.ops import simplex_noise, synthesize_anomalies

pytest.importorskip("triton")
kernels = importlib.import_module(
    "scrd_fast.ops.triton.synthesize_anomalies"
)  # the name in the package is the function

WARNING = "ignore:Conversion of an array:DeprecationWarning"  # of the interpreter
pytestmark = [*MARKS, pytest.mark.filterwarnings(WARNING)]
# One unit in the last place of the images: the interpreter cuts bfloat16 off instead of rounding it.
ULP = {torch.float64: 0.0, torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
ATOL = 2e-6  # of the noise, see test_triton_simplex_noise.py; what is added is smaller
BITS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
H, W = 20, 19
SEEDS = [3, -5, 2**60, -(2**63)]
INSIDE = [[0, 0, 6, 7], [5, 7, 3, 1], [19, 17, 1, 2], [4, 4, 0, 5]]
# Over each border, larger than the image, beside it, and with sides that overflow 32 bits.
OUTSIDE = [[-3, 15, 7, 9], [17, -2, 9, 5], [-4, -4, 27, 26], [20, 0, 4, 4], [5, -9, 3, 9], [2, 3, -1, 4]]
HUGE = [[2**31 - 1, 2**31 - 1, 2**31 - 1, 2**31 - 1], [18, 17, 2**31 - 1, 2**31 - 1], [-(2**31), 0, 2**31 - 1, 5]]


def guarded(layout: str, n: int, dtype: torch.dtype, channels: int = 3) -> tuple[Tensor, Tensor]:
    """Random images of that layout, and the buffer of NaN that they lie in."""
    buffer = torch.full((n + 1, channels + 2, H + 3, W + 4), torch.nan, dtype=dtype, device=DEVICE)
    if layout == "channels_last":
        buffer = buffer.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        buffer = torch.full((n + 1, channels + 2, W + 4, H + 3), torch.nan, dtype=dtype, device=DEVICE).mT
    images = buffer[:n, 1:-1, 2:-1, 1:-3]
    torch.manual_seed(0)
    return images.copy_(torch.rand(n, channels, H, W)), buffer


def run(
    images: Tensor,
    boxes: list[list[int]],
    std: Tensor | None = None,
    strength: float = 0.2,
    octaves: int = 2,
    variant: str = "opensimplex",
) -> None:
    """In place, without the checks of the public function."""
    places = torch.tensor(boxes, dtype=torch.int32, device=DEVICE).reshape(-1, 4)
    seeds = torch.tensor(SEEDS * 3, device=DEVICE)[: len(boxes)]
    arguments = (strength, std, octaves, 0.6, 1 / 3, variant)
    torch.ops.scrd_fast_triton.synthesize_anomalies_(images, places, seeds, *arguments)


def expected(images: Tensor, boxes: list[list[int]], std: Tensor | None = None, strength: float = 0.2) -> Tensor:
    """By the noise's reference, in float64."""
    result = images.double()
    for n, (top, left, h, w) in enumerate(boxes):
        y, x = slice(max(top, 0), max(min(top + h, H), 0)), slice(max(left, 0), max(min(left + w, W), 0))
        if h <= 0 or w <= 0 or y.start >= y.stop or x.start >= x.stop:
            continue
        rows, columns = y.stop - top, x.stop - left
        seeds, size = torch.tensor((SEEDS * 3)[n : n + 1]), (images.shape[1], rows, columns)
        patch = strength * simplex_noise(seeds, size, octaves=2, frequency=1 / 3, backend="reference")[0].double()
        patch = patch.to(images.device)
        if std is not None:
            patch = patch / std.double()[:, None, None]
        result[n, :, y, x] += patch[:, y.start - top :, x.start - left :]
    return result


def assert_equal_outside(actual: Tensor, before: Tensor, boxes: list[list[int]]) -> None:
    bits = BITS[actual.dtype]
    outside = torch.ones(len(boxes), H, W, dtype=torch.bool)
    for n, (top, left, h, w) in enumerate(boxes):
        outside[n, max(top, 0) : max(top + h, 0), max(left, 0) : max(left + w, 0)] = False
    mask = outside[:, None].expand(actual.shape).to(actual.device)
    assert torch.equal(actual.contiguous().view(bits)[mask], before.contiguous().view(bits)[mask])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("dtype", list(ULP), ids=str)
@pytest.mark.parametrize("normalised", [False, True])
def test_equals_the_reference_and_touches_nothing_else(layout: str, dtype: torch.dtype, normalised: bool) -> None:
    images, buffer = guarded(layout, 4, dtype)
    images[:, :, 10, 10] = torch.nan  # in no box: the payload is to survive
    before, nans = images.clone(), int(buffer.isnan().sum())
    std = torch.tensor([0.229, 9, 0.224, 9, 0.225, 9], device=DEVICE)[::2].to(dtype) if normalised else None
    run(images, INSIDE, std)
    torch.testing.assert_close(
        images.double(), expected(before, INSIDE, std), rtol=ULP[dtype], atol=5 * ATOL * 0.2, equal_nan=True
    )
    assert_equal_outside(images, before, INSIDE)
    assert int(buffer.isnan().sum()) == nans


@pytest.mark.parametrize("boxes", [OUTSIDE, HUGE], ids=["outside", "huge"])
@pytest.mark.parametrize("variant", ["opensimplex", "hashed"])
def test_cuts_boxes_at_the_border(variant: str, boxes: list[list[int]]) -> None:
    images, buffer = guarded("contiguous", len(boxes), torch.float32)
    before, nans = images.clone(), int(buffer.isnan().sum())
    run(images, boxes, variant=variant)
    assert_equal_outside(images, before, boxes)
    assert int(buffer.isnan().sum()) == nans
    if variant == "opensimplex":
        torch.testing.assert_close(images.double(), expected(before, boxes), rtol=ULP[torch.float32], atol=ATOL)
    visible = images != before
    assert visible[0 if boxes is OUTSIDE else 1].any()


def test_channels_are_slices_and_hashed_is_the_noise_of_that_name() -> None:
    images, _ = guarded("contiguous", 1, torch.float64, channels=5)
    before = images.clone()
    run(images, [[3, 4, 9, 11]], variant="hashed", strength=1.0)
    seeds = torch.tensor(SEEDS[:1], device=DEVICE)
    noise = torch.ops.scrd_fast_triton.simplex_noise(seeds, (5, 9, 11), 2, 0.6, 1 / 3, "hashed")
    torch.testing.assert_close((images - before)[:, :, 3:12, 4:15], noise.double(), rtol=0, atol=1e-15)


def test_bits_do_not_depend_on_the_number_of_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = guarded("contiguous", 2, torch.float32)
    other, boxes = images.clone(), INSIDE[:1] + OUTSIDE[:1]
    run(images, boxes, octaves=1)
    monkeypatch.setattr(kernels, "BLOCK", 16)  # the first box holds 126 elements: four rounds
    monkeypatch.setattr(kernels, "BLOCKS", 2)
    monkeypatch.setattr(kernels, "index_type", lambda elements: kernels.tl.int64)  # as if there were 2^30 elements
    run(other, boxes, octaves=1)
    assert torch.equal(images, other)


@pytest.mark.parametrize("inplace", [False, True])
def test_by_name(inplace: bool) -> None:
    images, _ = guarded("channels_last", 4, torch.float32)
    boxes = torch.tensor(INSIDE, dtype=torch.int32, device=DEVICE)
    seeds = torch.tensor(SEEDS, device=DEVICE)
    before, version = images.clone(), images._version
    options: dict[str, Any] = {"octaves": 2, "frequency": 1 / 3}
    result = synthesize_anomalies(images, boxes, seeds, inplace=inplace, backend="triton", **options)
    torch.testing.assert_close(result.double(), expected(before, INSIDE), rtol=ULP[torch.float32], atol=ATOL)
    assert (result.data_ptr() == images.data_ptr()) is inplace
    assert (images._version > version) is inplace
    assert torch.equal(images, result if inplace else before)


def test_empty_batch_and_inference_mode() -> None:
    empty = torch.empty(0, 3, 8, 8, device=DEVICE)
    run(empty, [])
    with torch.inference_mode():
        images = torch.zeros(1, 1, H, W, device=DEVICE)
        run(images, [[0, 0, 5, 5]], octaves=1)
    assert (images != 0).any()


def test_the_gradient_passes_through() -> None:
    images = torch.rand(4, 3, H, W, device=DEVICE, requires_grad=True)
    upstream = torch.rand(4, 3, H, W, device=DEVICE)
    boxes, seeds = torch.tensor(INSIDE, dtype=torch.int32, device=DEVICE), torch.tensor(SEEDS, device=DEVICE)
    synthesize_anomalies(images, boxes, seeds, octaves=1, backend="triton").backward(upstream)
    assert images.grad is not None
    assert torch.equal(images.grad, upstream)


def test_opcheck() -> None:
    boxes, seeds = torch.tensor(INSIDE[:1], dtype=torch.int32, device=DEVICE), torch.tensor([3], device=DEVICE)
    rest = (boxes, seeds, 0.2, torch.ones(3, device=DEVICE), 1, 0.6, 1 / 32, "opensimplex")
    images = torch.rand(1, 3, H, W, device=DEVICE)
    torch.library.opcheck(torch.ops.scrd_fast_triton.synthesize_anomalies_, (images, *rest))
    torch.library.opcheck(torch.ops.scrd_fast_triton.synthesize_anomalies, (images.clone().requires_grad_(), *rest))


def test_compiles_into_one_graph() -> None:
    images = torch.rand(1, 3, H, W, device=DEVICE)
    boxes, seeds = torch.tensor(INSIDE[:1], dtype=torch.int32, device=DEVICE), torch.tensor([3], device=DEVICE)

    def synthesized(images: Tensor) -> Tensor:
        return synthesize_anomalies(images, boxes, seeds, octaves=1, backend="triton") * 2

    compiled = torch.compile(synthesized, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(images), synthesized(images))


@pytest.mark.cuda
def test_cuda_graph_and_no_synchronisation() -> None:
    images = torch.zeros(2, 3, 64, 64, device="cuda")
    boxes = torch.tensor([[0, 0, 16, 16], [3, 4, 20, 30]], dtype=torch.int32, device="cuda")
    seeds, std = torch.tensor([1, 2], device="cuda"), torch.tensor([0.2, 0.3, 0.4], device="cuda")
    synthesize_anomalies(images, boxes, seeds, std=std, inplace=True, backend="triton")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        expected = synthesize_anomalies(torch.zeros_like(images), boxes, seeds, std=std, backend="triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(images, expected)
    images.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        synthesize_anomalies(images, boxes, seeds, std=std, inplace=True, backend="triton")
    seeds.copy_(torch.tensor([3, 4]))
    boxes += 1
    graph.replay()
    zeros = torch.zeros_like(images)
    assert torch.equal(images, synthesize_anomalies(zeros, boxes, seeds, std=std, backend="triton"))
