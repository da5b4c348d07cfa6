# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels: on a GPU where there is one, else on the CPU in Triton's interpreter (see conftest.py)."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from blurring import gaussian_filter
from tolerances import TOLERANCES
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate
from triton_device import DEVICE, MARKS

from scrd_fast.ops import anomaly_map

pytest.importorskip("triton")
kernels = importlib.import_module("scrd_fast.ops.triton.anomaly_map")  # the name in the package is the function

WARNINGS = "ignore:Conversion of an array:DeprecationWarning", "ignore:invalid value encountered:RuntimeWarning"
pytestmark = [*MARKS, pytest.mark.filterwarnings(*WARNINGS)]  # of the interpreter
DTYPES = [torch.float32, torch.float64]
# Sizes of distances and map: odd and several tiles, one pixel from one and from many, below the blur's radius, one row.
CASES = [
    ([(35, 34), (9, 17), (5, 3)], (67, 70)),
    ([(1, 1), (4, 4)], (1, 1)),
    ([(3, 11)], (5, 3)),
    ([(1, 9), (1, 70)], (1, 40)),
]


def distances_of(shapes: list[tuple[int, int]], n: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(n)
    return [torch.rand(n, *shape, dtype=torch.float64).to(DEVICE, dtype) * 2 for shape in shapes]


def weights_of(n: int, k: int, dtype: torch.dtype) -> Tensor:
    return torch.linspace(-1, 3, n * k, dtype=torch.float64).view(n, k).to(DEVICE, dtype)


def run(
    distances: list[Tensor],
    weights: Tensor | None,
    size: tuple[int, int],
    sigma: float = 4.0,
    border: str = "reflect",
    top: tuple[float, ...] = (),
    return_map: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator itself."""
    arguments = (distances, weights, list(size), sigma, border, list(top), return_map)
    result: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.scrd_fast_triton.anomaly_map(*arguments)
    return result


def independent(
    distances: list[Tensor],
    weights: Tensor | None,
    size: tuple[int, int],
    sigma: float = 4.0,
    border: str = "reflect",
) -> Tensor:
    """torch's interpolation and scipy's blur, float64, [N, H, W]."""
    total = torch.zeros(distances[0].shape[0], *size, dtype=torch.float64)
    for k, d in enumerate(distances):
        scale = interpolate(d.cpu().double()[:, None], size=size, mode="bilinear", align_corners=True)[:, 0]
        total += scale if weights is None else weights.cpu().double()[:, k, None, None] * scale
    return torch.stack([torch.from_numpy(gaussian_filter(m.numpy(), sigma, border)) for m in total])


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert actual.dtype == dtype
    tolerance = TOLERANCES["anomaly_map", dtype]._asdict()
    torch.testing.assert_close(actual.cpu().double(), expected, **tolerance, equal_nan=True)


def top_of(pixels: Tensor, share: float) -> Tensor:
    wanted = math.ceil(share * pixels.shape[1])
    return pixels.sort(dim=1, descending=True).values[:, :wanted].mean(1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("shapes", "size"), CASES, ids=str)
def test_equals_torch_and_scipy(
    shapes: list[tuple[int, int]], size: tuple[int, int], weighted: bool, dtype: torch.dtype
) -> None:
    distances = distances_of(shapes, 2, dtype)
    weights = weights_of(2, len(shapes), dtype) if weighted else None
    full, mean, largest, top = run(distances, weights, size, top=(0.01, 0.3))
    expected = independent(distances, weights, size)
    pixels = expected.flatten(1)
    assert_close(full[:, 0], expected, dtype)
    assert_close(mean, pixels.mean(1), dtype)
    assert_close(largest, pixels.amax(1), dtype)
    assert_close(top, torch.stack([top_of(pixels, share) for share in (0.01, 0.3)], dim=1), dtype)
    assert torch.equal(largest, full.flatten(1).amax(1))


@pytest.mark.parametrize("border", ["reflect", "mirror"])
@pytest.mark.parametrize("sigma", [0.0, 0.6, 4.0])
@pytest.mark.parametrize("size", [(1, 2), (9, 33)], ids=str)
def test_every_border_and_blur(size: tuple[int, int], sigma: float, border: str) -> None:
    distances, weights = distances_of([(6, 5), (3, 2)], 2, torch.float64), weights_of(2, 2, torch.float64)
    full, mean, *_ = run(distances, weights, size, sigma, border)
    expected = independent(distances, weights, size, sigma, border)
    assert_close(full[:, 0], expected, torch.float64)
    assert_close(mean, expected.mean((1, 2)), torch.float64)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_mean_alone_is_the_same_mean(weighted: bool) -> None:
    distances = distances_of([(35, 70), (4, 4)], 2, torch.float32)
    weights = weights_of(2, 2, torch.float32) if weighted else None
    full, mean, largest, top = run(distances, weights, (40, 33), return_map=False)
    assert [x.shape for x in (full, largest, top)] == [(0,), (0,), (2, 0)]
    assert torch.equal(mean, run(distances, weights, (40, 33))[1])


def slices(distances: list[Tensor], weights: Tensor) -> tuple[list[Tensor], Tensor]:
    """The same, cut out of NaN, not aligned and with strides of their own."""

    def cut(x: Tensor) -> Tensor:
        buffer = torch.full([s + 3 for s in x.shape], torch.nan, dtype=x.dtype, device=x.device)
        return buffer[tuple(slice(1, -2) for _ in x.shape)].copy_(x)

    return [cut(d) for d in distances], cut(weights.T).T


def test_slices_and_samples_get_the_same_bits() -> None:
    distances, weights = distances_of([(33, 5), (3, 7)], 3, torch.float32), weights_of(3, 2, torch.float32)
    whole = run(distances, weights, (35, 9), top=(0.1, 0.9))
    for actual, expected in zip(run(*slices(distances, weights), (35, 9), top=(0.1, 0.9)), whole, strict=True):
        assert torch.equal(actual, expected)
    for n in range(3):
        alone = run([d[n : n + 1] for d in distances], weights[n : n + 1], (35, 9), top=(0.1, 0.9))
        for actual, expected in zip(alone, whole, strict=True):
            assert torch.equal(actual[0], expected[n])


def test_numbers_do_not_depend_on_the_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    distances = distances_of([(9, 33)], 1, torch.float64)
    full, mean, *_ = run(distances, None, (35, 70))
    for name, length in (("ROWS", 16), ("COLUMNS", 16), ("DEPTH", 32)):
        monkeypatch.setattr(kernels, name, length)
    other, other_mean, *_ = run(distances, None, (35, 70))
    torch.testing.assert_close(other, full, rtol=0, atol=1e-14)
    torch.testing.assert_close(other_mean, mean, rtol=0, atol=1e-14)


NAN, INF = float("nan"), float("inf")
MAPS = {
    "ties": [1.0, 3.0, 3.0, 2.0, 3.0, 1.0, 1.0, 2.0],
    "equal": [0.3] * 7,
    "negative": [-1.0, -5.0, -0.0, 0.0, -1e-40, -3e38, 2e-45, 4.0],
    "infinite": [INF, 1.0, -INF, 2.0, INF, 0.0, -INF, 3.0],
    "one": [-2.0],
}


def largest_of(pixels: Tensor, top: list[float]) -> tuple[Tensor, Tensor]:
    """Of maps [N, H, W]. What the kernel writes lies amid NaN, and nothing else is to be written."""
    n = pixels.shape[0]
    buffers = [torch.full((size + 20,), NAN, dtype=pixels.dtype, device=DEVICE) for size in (n, n * len(top))]
    outputs = [buffers[0][10:-10], buffers[1][10:-10].view(n, len(top))]
    kernels._largest(pixels[:, None].contiguous(), *outputs, top)
    for buffer in buffers:
        assert buffer[:10].isnan().all()
        assert buffer[-10:].isnan().all()
    return outputs[0], outputs[1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", list(MAPS))
def test_the_largest_pixels_of_special_maps(name: str, dtype: torch.dtype) -> None:
    pixels = torch.tensor([[MAPS[name]]], dtype=dtype, device=DEVICE)
    count = pixels.numel()
    shares = [k / count for k in (1, 3, 4, 7, 8) if k <= count]
    largest, means = largest_of(pixels, shares)
    expected = [top_of(pixels[0].cpu().double(), share) for share in shares]
    assert torch.equal(largest, pixels.amax((1, 2)))
    assert_close(means[0], torch.cat(expected), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_pixels_of_several_blocks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BLOCK", 128)
    torch.manual_seed(1)
    pixels = torch.randn(2, 11, 37, dtype=dtype).to(DEVICE)
    pixels[1] = pixels[1].mul(3).round()  # many are equal
    largest, means = largest_of(pixels, [0.01, 0.4])
    assert torch.equal(largest, pixels.amax((1, 2)))
    flat = pixels.cpu().double().flatten(1)
    assert_close(means, torch.stack([top_of(flat, share) for share in (0.01, 0.4)], dim=1), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("negative", [False, True])
def test_a_nan_is_the_largest_pixel_of_its_image(negative: bool, dtype: torch.dtype) -> None:
    pixels = torch.tensor([[[1.0, -2.0, 5.0]], [[1.0, 7.0, 3.0]]], dtype=dtype, device=DEVICE)
    pixels[0, 0, 1] = math.copysign(NAN, -1.0 if negative else 1.0)
    largest, means = largest_of(pixels, [0.3, 0.6, 1.0])
    assert largest[0].isnan()
    assert means[0].isnan().all()
    assert largest[1] == 7
    assert_close(means[1], torch.tensor([7, 5, 11 / 3], dtype=torch.float64), dtype)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_bad_values_stay_in_their_image(bad: float) -> None:
    distances = distances_of([(5, 4)], 3, torch.float32)
    expected = run(distances, None, (9, 8), top=(0.1,))
    distances[0][1, 2, 3] = bad
    actual = run(distances, None, (9, 8), top=(0.1,))
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a[[0, 2]], e[[0, 2]])
        assert not a[1].isfinite().any()
        assert not math.isnan(bad) or a[1].isnan().all()


@pytest.mark.parametrize(("combine", "top"), [("add", (0.02, 0.3)), ("multiply", 0.1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_by_name(dtype: torch.dtype, combine: str, top: Any) -> None:
    torch.manual_seed(2)
    shapes = [(2, 6, 9, 8), (2, 10, 5, 4)]
    teacher, student = ([torch.randn(shape).to(DEVICE, dtype) for shape in shapes] for _ in range(2))
    weights = weights_of(2, 2, torch.float32) if combine == "add" else None
    result = anomaly_map(teacher, student, weights, (18, 17), sigma=1.5, combine=combine, top=top, backend="triton")
    pairs = zip(teacher, student, strict=True)
    distances = [1 - cosine_similarity(t.double(), s.double(), dim=1) for t, s in pairs]
    if combine == "multiply":
        distances = [independent(distances[:1], None, (18, 17), 0) * independent(distances[1:], None, (18, 17), 0)]
    expected = independent(distances, weights, (18, 17), 1.5)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    shares = top if combine == "add" else (top,)
    means = torch.stack([top_of(expected.flatten(1), share) for share in shares], dim=1)
    for actual, by_hand in (
        (result.map, expected[:, None]),
        (result.mean, expected.mean((1, 2))),
        (result.max, expected.amax((1, 2))),
        (result.top, means if combine == "add" else means[:, 0]),
    ):
        assert actual is not None
        assert_close(actual, by_hand, wide)


@pytest.mark.parametrize("return_map", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_are_those_of_the_reference(weighted: bool, return_map: bool) -> None:
    gradients = []
    for backend in ("triton", "reference"):
        torch.manual_seed(3)
        shapes = [(2, 3, 4, 5), (2, 4, 3, 2)]
        inputs = [torch.randn(s, dtype=torch.float64).to(DEVICE).requires_grad_() for s in shapes * 2]
        inputs += [weights_of(2, 2, torch.float64).requires_grad_()] if weighted else []
        weights = inputs[4] if weighted else None
        result = anomaly_map(
            inputs[:2], inputs[2:4], weights, (9, 7), sigma=1.3, return_map=return_map, backend=backend
        )
        outputs = result.mean.sum() + (0 if result.map is None else result.map.square().sum())
        gradients.append(torch.autograd.grad(outputs, inputs))
    for actual, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("return_map", [False, True])
def test_empty_batch(return_map: bool) -> None:
    top = (0.1,) if return_map else ()
    full, mean, largest, means = run(distances_of([(3, 4)], 0, torch.float32), None, (8, 9), 4.0, "reflect", top)
    assert [x.shape for x in (full, mean, largest, means)] == [(0, 1, 8, 9), (0,), (0,), (0, len(top))]


def test_inference_mode_then_training() -> None:
    distances = distances_of([(3, 4)], 1, torch.float32)
    with torch.inference_mode():
        inferred = run(distances, None, (7, 11), sigma=0.77)[0]
    distances[0].requires_grad_()
    trained = run(distances, None, (7, 11), sigma=0.77)[0]
    trained.sum().backward()
    assert torch.equal(inferred, trained)
    assert distances[0].grad is not None


@pytest.mark.parametrize(("top", "return_map", "weighted"), [([0.1, 0.5], True, True), ([], False, False)])
def test_opcheck(top: list[float], return_map: bool, weighted: bool) -> None:
    distances = [d.requires_grad_() for d in distances_of([(3, 2), (2, 1)], 2, torch.float32)]
    weights = weights_of(2, 2, torch.float32).requires_grad_() if weighted else None
    arguments = (distances, weights, [5, 4], 1.3, "mirror", top, return_map)
    torch.library.opcheck(torch.ops.scrd_fast_triton.anomaly_map.default, arguments)


def test_compiles_into_one_graph() -> None:
    teacher, student = [torch.randn(2, 3, 4, 4, device=DEVICE)], [torch.randn(2, 3, 4, 4, device=DEVICE)]
    compiled = torch.compile(anomaly_map, fullgraph=True, backend="aot_eager")
    expected = anomaly_map(teacher, student, None, (9, 10), top=0.1, return_scales=True, backend="triton")
    actual = compiled(teacher, student, None, (9, 10), top=0.1, return_scales=True, backend="triton")
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.cuda
def test_cuda_graph_and_no_synchronisation() -> None:
    distances, weights = distances_of([(16, 16), (8, 8)], 2, torch.float32), weights_of(2, 2, torch.float32)
    before = run(distances, weights, (64, 64), top=(0.01, 0.05))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = run(distances, weights, (64, 64), top=(0.01, 0.05))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(again, before, strict=True):
        assert torch.equal(a, b)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(distances, weights, (64, 64), top=(0.01, 0.05))
    for d in distances:
        d.add_(torch.rand_like(d))
    graph.replay()
    for a, b in zip(captured, run(distances, weights, (64, 64), top=(0.01, 0.05)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)  # the graph has made matrices of its own
