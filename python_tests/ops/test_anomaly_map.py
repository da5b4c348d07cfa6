# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from blurring import by_numpy, gaussian_filter
from tolerances import TOLERANCES
from torch import Tensor

from scrd_fast.ops import _library, anomaly_map
from scrd_fast.ops.anomaly_map import _reference as reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
BACKENDS = ["native", "reference"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
# Feature sizes and map sizes: the model's, primes, not square, one pixel, a map smaller than the blur's radius.
CASES = [
    ([(2, 24, 16, 16), (2, 40, 8, 8), (2, 112, 4, 4)], (64, 64)),
    ([(1, 3, 7, 5), (1, 2, 3, 11)], (29, 31)),
    ([(3, 1, 1, 1)], (5, 3)),
    ([(2, 4, 6, 6)], (1, 1)),
    ([(1, 5, 1, 9)], (1, 40)),
    ([(0, 3, 4, 4)], (8, 8)),
]


def need(backend: str, device: str = "cpu") -> None:
    if reason := _library.why_not("anomaly_map", backend, torch.device(device)):
        pytest.skip(reason)


def features(shapes: list[tuple[int, ...]], dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    return [torch.randn(shape).to(device=device, dtype=dtype) for shape in shapes]


def independent(
    teacher: list[Tensor],
    student: list[Tensor],
    weights: Tensor | None,
    size: tuple[int, int],
    sigma: float = 4.0,
    border: str = "reflect",
    combine: str = "add",
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """torch's cosine and interpolation, scipy's blur, float64, [N, H, W]."""
    scales = []
    for t, s in zip(teacher, student, strict=True):
        distance = 1 - F.cosine_similarity(t.double(), s.double(), dim=1, eps=1e-8)
        scales.append(F.interpolate(distance[:, None], size=size, mode="bilinear", align_corners=True)[:, 0])
    stacked = torch.stack(scales, dim=1).cpu()
    if weights is not None:
        stacked = stacked * weights.double().cpu()[:, :, None, None]
    combined = (stacked.sum(1) if combine == "add" else stacked.prod(1)).numpy()
    blurred = [gaussian_filter(m, sigma, border) for m in combined]
    return np.stack(blurred) if blurred else combined


@pytest.mark.parametrize("border", ["reflect", "mirror"])
@pytest.mark.parametrize("sigma", [0.0, 0.6, 4.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 40)], ids=str)
def test_the_blur_without_scipy_is_scipys(size: tuple[int, int], sigma: float, border: str) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    image = np.random.default_rng(0).random(size)
    expected = ndimage.gaussian_filter(image, sigma, mode=border, truncate=4.0)
    np.testing.assert_allclose(by_numpy(image, sigma, border), expected, rtol=1e-13, atol=1e-13)
    np.testing.assert_array_equal(gaussian_filter(image, sigma, border), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shapes", "size"), CASES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_torch_and_scipy(
    shapes: list[tuple[int, ...]],
    size: tuple[int, int],
    dtype: torch.dtype,
    device: str,
    backend: str,
    weighted: bool,
) -> None:
    need(backend, device)
    torch.manual_seed(0)
    teacher, student = features(shapes, dtype, device), features(shapes, dtype, device)
    weights = torch.rand(shapes[0][0], len(shapes), device=device, dtype=torch.float64) if weighted else None
    if weights is not None and dtype != torch.float64:
        weights = weights.float()
    result = anomaly_map(teacher, student, weights, size, top=0.07, backend=backend)
    expected = torch.from_numpy(independent(teacher, student, weights, size))
    tolerance = TOLERANCES["anomaly_map", dtype]._asdict()
    assert result.map is not None
    assert result.max is not None
    assert result.top is not None
    torch.testing.assert_close(result.map[:, 0].cpu().double(), expected, **tolerance)
    pixels = expected.flatten(1)
    torch.testing.assert_close(result.mean.cpu().double(), pixels.mean(1), **tolerance)
    torch.testing.assert_close(result.max.cpu().double(), pixels.amax(1), **tolerance)
    largest = pixels.sort(dim=1, descending=True).values[:, : math.ceil(0.07 * pixels.shape[1])]
    torch.testing.assert_close(result.top.cpu().double(), largest.mean(1), **tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("border", ["reflect", "mirror"])
@pytest.mark.parametrize("combine", ["add", "multiply"])
@pytest.mark.parametrize("sigma", [0.0, 0.6, 4.0, 7.3])
@pytest.mark.parametrize("size", [(1, 2), (9, 33), (40, 40), (3, 150), (7, 1), (1, 1)], ids=str)
def test_every_border_combination_and_blur(
    size: tuple[int, int], sigma: float, combine: str, border: str, backend: str
) -> None:
    need(backend)
    torch.manual_seed(3)
    shapes = [(2, 4, 6, 5), (2, 8, 3, 2)]
    teacher, student = features(shapes, torch.float64), features(shapes, torch.float64)
    options: dict[str, Any] = {"sigma": sigma, "border": border, "combine": combine, "backend": backend}
    result = anomaly_map(teacher, student, None, size, **options)
    expected = independent(teacher, student, None, size, sigma, border, combine)
    assert result.map is not None
    np.testing.assert_allclose(result.map[:, 0].numpy(), expected, rtol=1e-11, atol=1e-11)
    alone = anomaly_map(teacher, student, None, size, **options, return_map=False)
    assert alone.map is None
    assert alone.max is None
    np.testing.assert_allclose(alone.mean.numpy(), expected.mean((1, 2)), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("layout", ["channels_last", "slice"])
def test_layouts_do_not_change_the_numbers(layout: str) -> None:
    torch.manual_seed(4)
    whole = torch.randn(2, 12, 9, 9)
    part = whole[:, 2:10, 1:, :8]
    student = torch.randn(2, 8, 8, 8)
    strided = part if layout == "slice" else part.contiguous(memory_format=torch.channels_last)
    expected = anomaly_map([part.contiguous()], [student], None, (32, 32))
    actual = anomaly_map([strided], [student], None, (32, 32))
    torch.testing.assert_close(actual.map, expected.map, **TOLERANCES["anomaly_map", torch.float32]._asdict())


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("border", ["reflect", "mirror"])
@pytest.mark.parametrize(("top", "return_map"), [([0.1], True), ([0.1, 0.5], True), ([], True), ([], False)])
def test_opcheck(border: str, top: list[float], return_map: bool, weighted: bool) -> None:
    distances = [torch.rand(2, 5, 4, requires_grad=True), torch.rand(2, 3, 3, requires_grad=True)]
    weights = torch.rand(2, 2, requires_grad=True) if weighted else None
    arguments = (distances, weights, [9, 7], 1.3, border, top, return_map)
    torch.library.opcheck(torch.ops.scrd_fast.anomaly_map, arguments)


@pytest.mark.parametrize(("top", "return_map"), [([0.0], True), ([2.0], True), ([float("nan")], True), ([0.1], False)])
def test_the_operator_itself_protects_its_memory(top: list[float], return_map: bool) -> None:
    need("native")
    with pytest.raises(RuntimeError, match="top"):
        torch.ops.scrd_fast.anomaly_map([torch.rand(1, 2, 2)], None, [4, 4], 1.0, "reflect", top, return_map)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(dynamic: bool) -> None:
    teacher, student = [torch.randn(2, 3, 4, 4)], [torch.randn(2, 3, 4, 4)]
    compiled = torch.compile(anomaly_map, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    expected = anomaly_map(teacher, student, None, (16, 16), top=0.1, return_scales=True)
    for a, b in zip(compiled(teacher, student, None, (16, 16), top=0.1, return_scales=True), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("combine", ["add", "multiply"])
@pytest.mark.parametrize("size", [(64, 64), (37, 141)], ids=str)
def test_a_sample_has_the_same_bits_in_any_batch(size: tuple[int, int], combine: str, device: str) -> None:
    need("native", device)
    torch.manual_seed(6)
    shapes = [(5, 24, 16, 16), (5, 40, 8, 8)]
    teacher, student = features(shapes, torch.float32, device), features(shapes, torch.float32, device)
    weights = torch.rand(5, 2, device=device) if combine == "add" else None
    options: dict[str, Any] = {"combine": combine, "top": (0.01, 0.05), "return_scales": True, "backend": "native"}
    whole = anomaly_map(teacher, student, weights, size, **options)
    for n in range(5):
        part = slice(n, n + 1)
        own = None if weights is None else weights[part]
        alone = anomaly_map([t[part] for t in teacher], [s[part] for s in student], own, size, **options)
        for a, w in zip(alone, whole, strict=True):
            assert a is not None
            assert w is not None
            assert torch.equal(a, w[part])


def test_the_number_of_threads_changes_no_bit() -> None:
    need("native")
    torch.manual_seed(9)
    shapes = [(3, 24, 32, 32), (3, 40, 8, 8)]
    teacher, student = features(shapes, torch.float32), features(shapes, torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(
                anomaly_map(teacher, student, None, (200, 150), top=0.05, return_scales=True, backend="native")
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert a is not None
            assert b is not None
            assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["smooth", "constant", "ties", "zeros of either sign", "outlier", "negative"])
def test_the_largest_pixels_are_found_whatever_their_values(kind: str, device: str, backend: str) -> None:
    """One channel of a distance map at full size and no blur: the map is the distances themselves."""
    need(backend, device)
    torch.manual_seed(10)
    h, w = 67, 45
    maps = {
        "smooth": torch.linspace(0, 1, h)[:, None] * torch.linspace(1, 2, w),
        "constant": torch.full((h, w), 0.7),
        "ties": torch.randint(0, 4, (h, w)) / 4,
        "zeros of either sign": torch.where(torch.rand(h, w) < 0.5, -0.0, 0.0),
        "outlier": torch.rand(h, w).index_put((torch.tensor(3), torch.tensor(4)), torch.tensor(1e30)),
        "negative": -torch.rand(h, w) * 1e-3,
    }
    distance = maps[kind][None].to(device)
    shares = [1e-9, 0.01, 0.05, 0.5, 0.999, 1.0]
    operator = reference if backend == "reference" else torch.ops.scrd_fast.anomaly_map
    full, _, largest, top = operator([distance], None, [h, w], 0.0, "reflect", shares, True)
    assert torch.equal(full[0, 0], distance[0])
    assert largest.item() == maps[kind].max().item()
    ranked = maps[kind].flatten().double().sort(descending=True).values
    expected = torch.stack([ranked[: math.ceil(share * h * w)].mean() for share in shares])
    torch.testing.assert_close(top[0].double().cpu(), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_values_stay_in_their_image(bad: float, device: str, backend: str) -> None:
    need(backend, device)
    torch.manual_seed(7)
    teacher, student = (torch.randn(3, 2, 4, 4, device=device) for _ in range(2))
    options: dict[str, Any] = {"top": (0.01, 0.5), "return_scales": True, "backend": backend}
    expected = anomaly_map([teacher], [student], None, (8, 8), **options)
    teacher[1, 0, 2, 2] = bad
    actual = anomaly_map([teacher], [student], None, (8, 8), **options)
    for a, e in zip(actual, expected, strict=True):
        assert a is not None
        assert e is not None
        torch.testing.assert_close(a[[0, 2]], e[[0, 2]], rtol=0, atol=1e-6)
        assert a[1].isnan().any()
    assert actual.mean[1].isnan()
    assert actual.max is not None
    assert actual.top is not None
    assert actual.max[1].isnan()
    assert actual.top[1].isnan().all()


def test_one_share_and_several() -> None:
    torch.manual_seed(11)
    teacher, student = features([(2, 4, 6, 6)], torch.float32), features([(2, 4, 6, 6)], torch.float32)
    both = anomaly_map(teacher, student, None, (30, 20), top=(0.01, 0.1)).top
    assert both is not None
    assert both.shape == (2, 2)
    for i, share in enumerate((0.01, 0.1)):
        one = anomaly_map(teacher, student, None, (30, 20), top=share, return_map=False)
        assert one.map is None
        assert one.top is not None
        assert torch.equal(one.top, both[:, i])


@pytest.mark.cuda
@pytest.mark.parametrize("backend", ["native", "triton"])
def test_can_be_captured_in_a_graph(backend: str) -> None:
    """The first call of all with this size is the captured one."""
    need(backend, "cuda")
    torch.manual_seed(12)
    teacher, student = (features([(2, 8, 16, 16)], torch.float32, "cuda") for _ in range(2))
    anomaly_map(teacher, student, None, (21, 22), top=0.05, backend=backend)  # compiles, loads
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = anomaly_map(teacher, student, None, (73, 71), top=0.05, return_scales=True, backend=backend)
    student[0].copy_(torch.randn_like(student[0]))
    graph.replay()
    expected = anomaly_map(teacher, student, None, (73, 71), top=0.05, return_scales=True, backend=backend)
    for a, b in zip(captured, expected, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


X = torch.ones(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (([X], [X, X], None, (8, 8)), {}, ValueError, "teacher and student must hold equally many"),
        (
            ([X], [X[:, :2]], None, (8, 8)),
            {},
            ValueError,
            r"teacher\[0\] and student\[0\] must have one shape",
        ),
        (([X], [X], None, (8, 0)), {}, ValueError, r"size must be \(height, width\)"),
        (
            ([X], [X], None, (8, 8)),
            {"sigma": -1.0},
            ValueError,
            "sigma must be at least 0 and below 2\\^14 pixels, got -1.0",
        ),
        (
            ([X], [X], None, (8, 8)),
            {"border": "wrap"},
            ValueError,
            "border must be one of reflect, mirror, got 'wrap'",
        ),
        (([X], [X], None, (8, 8)), {"combine": "max"}, ValueError, "combine must be one of add, multiply"),
        (([X], [X], None, (8, 8)), {"top": 0.0}, ValueError, "top must be a share"),
        (([X], [X], None, (8, 8)), {"top": (0.1, 1.5)}, ValueError, "top must be a share of the pixels.*got 1.5"),
        (([X], [X], None, (2**15, 2**15)), {}, ValueError, r"size must have fewer than 2\^30 pixels"),
        (([X], [X], None, (8, 8)), {"eps": 0.0}, ValueError, "eps must be greater than 0"),
        (([X], [None], None, (8, 8)), {}, TypeError, r"student\[0\] must be a tensor, got NoneType"),
        (([X], [X], None, (8.5, 8)), {}, TypeError, r"size must be two integers \(height, width\), got \(8.5, 8\)"),
        (([X], [X], [[1.0], [1.0]], (8, 8)), {}, TypeError, "weights must be a tensor or None, got list"),
        (([X], [X], torch.ones(2, 2), (8, 8)), {}, ValueError, r"weights must be \[2, 1\]"),
        (([X], [X], torch.ones(2, 1).long(), (8, 8)), {}, TypeError, "weights must be floating-point"),
        (([X], [X], torch.ones(2, 1), (8, 8)), {"combine": "multiply"}, ValueError, "weights must be None"),
        (([X], [X], None, (8, 8)), {"backend": "cuda"}, ValueError, "backend must be one of"),
    ],
)
def test_bad_input_is_named(arguments: Any, options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        anomaly_map(*arguments, **options)
