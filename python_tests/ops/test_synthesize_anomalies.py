# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import opensimplex
import pytest
import torch
from tolerances import TOLERANCES
from torch import Tensor

from scrd_fast.ops import simplex_noise, synthesize_anomalies
from scrd_fast.ops._library import choose
from scrd_fast.ops.synthesize_anomalies import _reference_
from scrd_fast.synthesis import draw_anomalies

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
BACKENDS = ["auto", "native", "reference"]
BOXES = torch.tensor([[0, 0, 10, 12], [5, 7, 3, 1], [19, 17, 1, 2]], dtype=torch.int32)
SEEDS = torch.tensor([3, -5, 2**60])


@pytest.fixture
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def published_patch(seed: int, channels: int, height: int, width: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    noise = opensimplex.OpenSimplex(seed)
    z, y, x = (np.arange(n, dtype=np.float64) for n in (channels, height, width))
    octaves = ((0.6**o, 2.0**o / 32) for o in range(6))
    return np.asarray(sum(a * noise.noise3array(x * f, y * f, z * f) for a, f in octaves))


def expected_images(images: Tensor, strength: float, std: Tensor | None) -> Tensor:
    result = images.double().clone()
    for n, (top, left, height, width) in enumerate(BOXES.tolist()):
        patch = torch.from_numpy(published_patch(int(SEEDS[n]), images.shape[1], height, width)) * strength
        if std is not None:
            patch = patch / std.double()[:, None, None]
        result[n, :, top : top + height, left : left + width] += patch
    return result


def layouts(dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(0)
    images = torch.rand(3, 3, 20, 19).to(dtype)
    return {
        "contiguous": images,
        "channels_last": images.contiguous(memory_format=torch.channels_last),
        "slice": torch.rand(3, 5, 22, 24).to(dtype)[:, 1:4, 2:, 3:22],
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("std", [None, torch.tensor([0.229, 0.224, 0.225])], ids=["plain", "normalised"])
def test_equals_the_published_noise(
    std: Tensor | None, dtype: torch.dtype, layout: str, inplace: bool, backend: str
) -> None:
    images = layouts(dtype)[layout]
    before = images.clone()
    expected = expected_images(images, 0.2, std)
    result = synthesize_anomalies(images, BOXES, SEEDS, std=std, inplace=inplace, backend=backend)
    torch.testing.assert_close(result.double(), expected, **TOLERANCES["synthesize_anomalies", dtype]._asdict())
    assert result.dtype == dtype
    assert (result.data_ptr() == images.data_ptr()) is inplace
    assert torch.equal(images, result if inplace else before)


@pytest.mark.cuda
@pytest.mark.parametrize("variant", ["opensimplex", "hashed"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("std", [None, torch.tensor([0.229, 0.224, 0.225])], ids=["plain", "normalised"])
def test_cuda_equals_cpu(std: Tensor | None, dtype: torch.dtype, layout: str, variant: str) -> None:
    images = layouts(dtype)[layout]
    on_gpu = None if std is None else std.cuda()
    actual = synthesize_anomalies(
        images.cuda(), BOXES.cuda(), SEEDS.cuda(), std=on_gpu, variant=variant, backend="native"
    )
    torch.testing.assert_close(
        actual.cpu(),
        synthesize_anomalies(images, BOXES, SEEDS, std=std, variant=variant),
        **TOLERANCES["synthesize_anomalies", dtype]._asdict(),
    )


@pytest.mark.cuda
def test_cuda_runs_in_a_graph_with_the_drawing_of_the_boxes() -> None:
    """Each replay draws boxes and seeds of its own, and nothing waits for the device."""
    images, generator = torch.zeros(4, 3, 96, 96, device="cuda"), torch.Generator("cuda").manual_seed(5)

    def step() -> Tensor:
        return synthesize_anomalies(images, *draw_anomalies(4, 96, generator))

    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    first = captured.clone()
    graph.replay()
    for result in (first, captured):
        assert ((result != 0).flatten(1).sum(1) >= 3 * 10 * 10 // 2).all()
    assert not torch.equal(first, captured)


def test_the_gradient_passes_through() -> None:
    images = torch.rand(3, 3, 20, 19, requires_grad=True)
    upstream = torch.rand(3, 3, 20, 19)
    synthesize_anomalies(images, BOXES, SEEDS).backward(upstream)
    assert images.grad is not None
    assert torch.equal(images.grad, upstream)


@pytest.mark.parametrize("kernel", ["auto", "native", "reference", "triton", "compiled"])
def test_autograd_sees_that_images_were_changed_in_place(kernel: str) -> None:
    weight = torch.rand(1, requires_grad=True)
    images = torch.rand(3, 3, 20, 19)

    def loss(images: Tensor, weight: Tensor) -> Tensor:
        kept = (images * weight).sum()  # keeps the images for the weight's gradient
        backend = "auto" if kernel == "compiled" else kernel
        synthesize_anomalies(images, BOXES, SEEDS, inplace=True, backend=backend)
        return kept

    if kernel == "compiled":
        loss = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss(images, weight).backward()


def test_std_gets_no_gradient() -> None:
    std = torch.ones(3, requires_grad=True)
    assert not synthesize_anomalies(torch.rand(3, 3, 20, 19), BOXES, SEEDS, std=std).requires_grad


@pytest.mark.parametrize("std", [None, torch.ones(3)], ids=["plain", "normalised"])
def test_opcheck(std: Tensor | None) -> None:
    rest = (BOXES, SEEDS, 0.2, std, 2, 0.6, 1 / 32, "opensimplex")
    torch.library.opcheck(
        torch.ops.scrd_fast.synthesize_anomalies, (torch.rand(3, 3, 20, 19, requires_grad=True), *rest)
    )
    torch.library.opcheck(torch.ops.scrd_fast.synthesize_anomalies_, (torch.rand(3, 3, 20, 19), *rest))


def test_compiles_into_one_graph() -> None:
    images = torch.rand(3, 3, 20, 19)
    compiled = torch.compile(synthesize_anomalies, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(images, BOXES, SEEDS), synthesize_anomalies(images, BOXES, SEEDS))


# Over the border, outside, without a side, and with numbers whose sums leave 32 bits.
LARGE = 2**31 - 1
CUT_BOXES = torch.tensor(
    [
        [15, -3, 10, 10], [-4, 13, 9, 9], [30, 2, 5, 5], [2, 3, -1, 4], [5, 5, LARGE, LARGE], [18, 17, LARGE, 1],
        [LARGE, LARGE, LARGE, LARGE], [-LARGE - 1, 0, -1, 5], [0, -LARGE - 1, 5, -1], [-LARGE, -LARGE, LARGE, LARGE],
    ],
    dtype=torch.int32,
)  # fmt: skip
INSIDE = [(15, 0, 5, 7), (0, 13, 5, 6), None, None, (5, 5, 15, 14), (18, 17, 2, 1), None, None, None, None]


def add_inside(images: Tensor, seeds: Tensor) -> Tensor:
    """By hand, from whole patches of noise."""
    result = images.double()
    for n, (box, inside) in enumerate(zip(CUT_BOXES.tolist(), INSIDE, strict=True)):
        if inside is None:
            continue
        top, left, h, w = inside
        i, j = top - box[0], left - box[1]
        noise = simplex_noise(seeds[n : n + 1], (3, i + h, j + w), backend="reference")[0]
        result[n, :, top : top + h, left : left + w] += 0.2 * noise[:, i:, j:]
    return result


def cut_images() -> tuple[Tensor, Tensor, Tensor]:
    """Images that are part of a larger tensor, with that tensor, and seeds."""
    torch.manual_seed(2)
    whole = torch.rand(len(INSIDE), 5, 40, 44)
    return whole, whole[:, 1:4, 10:30, 11:30], torch.arange(len(INSIDE))


@pytest.mark.parametrize("kernel", ["operator", "reference", "triton", "compiled"])
def test_boxes_are_cut_at_the_border(kernel: str) -> None:
    """Under compile and on a GPU nobody looks at the boxes first."""
    whole, images, seeds = cut_images()
    before, expected = whole.clone(), add_inside(images, seeds)
    rest = (0.2, None, 6, 0.6, 1 / 32, "opensimplex")
    if kernel == "compiled":
        compiled = torch.compile(synthesize_anomalies, fullgraph=True, backend="aot_eager")
        compiled(images, CUT_BOXES, seeds, inplace=True)
    else:
        choose("synthesize_anomalies_", kernel.replace("operator", "auto"), images.device, _reference_)(
            images, CUT_BOXES, seeds, *rest
        )
    tolerance = TOLERANCES["synthesize_anomalies", torch.float32]
    torch.testing.assert_close(images.double(), expected, **tolerance._asdict())
    images.copy_(before[:, 1:4, 10:30, 11:30])
    assert torch.equal(whole, before)  # nothing beside the images


def boxes_of_all_sizes() -> Tensor:
    """For 40 images of 70 x 90 pixels: from one pixel to the whole image, thin ones, cut at every border, with many
    that begin alike and differ in size."""
    random = torch.Generator().manual_seed(4)
    sizes = torch.randint(1, 30, (30, 2), generator=random)
    corners = torch.randint(0, 41, (30, 2), generator=random)
    special = [
        [0, 0, 70, 90], [33, 0, 1, 90], [0, 77, 70, 1], [69, 89, 1, 1], [-5, 3, 60, 20], [-5, 60, 9, 50],
        [-5, -7, 100, 120], [20, -7, 30, 12], [60, 3, 30, 12], [-LARGE + 40, -LARGE + 50, LARGE, LARGE],
    ]  # fmt: skip
    return torch.cat([torch.tensor(special), torch.cat([corners, sizes], 1)]).int()


@pytest.mark.usefixtures("_threads_restored")
@pytest.mark.parametrize("variant", ["opensimplex", "hashed"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_images_that_share_work_are_as_if_alone(channels: int, variant: str) -> None:
    torch.manual_seed(3)
    boxes, seeds = boxes_of_all_sizes(), torch.arange(40) * 7919
    images, order = torch.rand(40, channels, 70, 90), torch.randperm(40)
    rest = (0.2, None, 3, 0.6, 1 / 32, variant)
    add = choose("synthesize_anomalies_", "native", images.device, _reference_)
    together, shuffled, alone = images.clone(), images[order], images.clone()
    torch.set_num_threads(1)
    add(together, boxes, seeds, *rest)
    for n in range(40):
        add(alone[n : n + 1], boxes[n : n + 1], seeds[n : n + 1], *rest)
    torch.set_num_threads(3)
    add(shuffled, boxes[order], seeds[order], *rest)
    assert torch.equal(together, alone)
    assert torch.equal(together[order], shuffled)
    near = boxes[:, 0] > -LARGE // 2  # the reference makes whole boxes
    expected = images[near]
    _reference_(expected, boxes[near], seeds[near], *rest)
    torch.testing.assert_close(together[near], expected, **TOLERANCES["synthesize_anomalies", torch.float32]._asdict())


@pytest.mark.cuda
def test_cuda_cuts_boxes_at_the_border() -> None:
    whole, images, seeds = cut_images()
    on_gpu = whole.cuda()
    view = on_gpu[:, 1:4, 10:30, 11:30]
    synthesize_anomalies(view, CUT_BOXES.cuda(), seeds.cuda(), inplace=True, backend="native")
    tolerance = TOLERANCES["synthesize_anomalies", torch.float32]
    torch.testing.assert_close(view.cpu().double(), add_inside(images, seeds), **tolerance._asdict())
    view.copy_(images)
    assert torch.equal(on_gpu.cpu(), whole)


def test_empty_batch_and_empty_boxes() -> None:
    none = synthesize_anomalies(torch.empty(0, 3, 8, 8), BOXES[:0], SEEDS[:0])
    assert none.shape == (0, 3, 8, 8)
    images = torch.rand(3, 3, 20, 19)
    assert torch.equal(synthesize_anomalies(images, torch.zeros_like(BOXES), SEEDS), images)


I3 = torch.rand(3, 3, 20, 19)


@pytest.mark.parametrize(
    ("images", "boxes", "seeds", "options", "error", "text"),
    [
        (I3[0], BOXES, SEEDS, {}, ValueError, r"images must be \[N, C, H, W\], got \[3, 20, 19\]"),
        (I3.int(), BOXES, SEEDS, {}, TypeError, "images must be float32"),
        (I3, BOXES.long(), SEEDS, {}, TypeError, "boxes must be int32, got torch.int64"),
        (I3, BOXES[:2], SEEDS, {}, ValueError, r"boxes must be \[3, 4\]"),
        (I3, BOXES, SEEDS.int(), {}, TypeError, "seeds must be int64"),
        (I3, BOXES, SEEDS[:1], {}, ValueError, r"seeds must be \[3\]"),
        (I3, BOXES, SEEDS, {"std": torch.ones(2)}, ValueError, r"std must be \[3\]"),
        (I3, BOXES, SEEDS, {"strength": -1.0}, ValueError, "strength must be finite and not negative"),
        (I3, BOXES + 15, SEEDS, {}, ValueError, r"boxes\[0\] must lie inside the image of 20 x 19 pixels"),
        (I3, BOXES - 1, SEEDS, {}, ValueError, r"boxes\[0\] must lie inside"),
        (I3, BOXES, SEEDS, {"octaves": 0}, ValueError, "octaves must be 1 to 32"),
        (I3, BOXES, SEEDS, {"variant": "perlin"}, ValueError, "variant must be one of"),
        (I3, BOXES, SEEDS, {"frequency": -1.0}, ValueError, "frequency must be positive"),
        ([1.0], BOXES, SEEDS, {}, TypeError, "images must be a tensor, got list"),
        (I3, BOXES.tolist(), SEEDS, {}, TypeError, "boxes must be a tensor, got list"),
        (
            torch.rand(200).as_strided((3, 3, 20, 19), (19, 19, 1, 1)),
            BOXES,
            SEEDS,
            {"inplace": True},
            ValueError,
            "images must not share memory",
        ),
        (I3[:1].expand(3, 3, 20, 19), BOXES, SEEDS, {"inplace": True}, ValueError, "images must not share memory"),
        (I3.clone().requires_grad_(), BOXES, SEEDS, {"inplace": True}, ValueError, "must not require a gradient"),
        (I3.to("meta"), BOXES, SEEDS, {}, ValueError, "boxes must be on the images' device meta, got cpu"),
    ],
)
def test_bad_input_is_named(
    images: Tensor, boxes: Tensor, seeds: Tensor, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        synthesize_anomalies(images, boxes, seeds, **options)


def test_the_kernel_itself_protects_memory() -> None:
    kernel, rest = torch.ops.scrd_fast.synthesize_anomalies_, (2, 0.6, 1 / 32, "opensimplex")
    with pytest.raises(RuntimeError, match=r"images must be \[N, C, H, W\]"):
        kernel(I3[0], BOXES, SEEDS, 0.2, None, *rest)
    with pytest.raises(RuntimeError, match="boxes must be int32"):
        kernel(I3, BOXES[:2], SEEDS, 0.2, None, *rest)
    with pytest.raises(RuntimeError, match="seeds must be int64"):
        kernel(I3, BOXES, SEEDS[:2], 0.2, None, *rest)
    with pytest.raises(RuntimeError, match="std must be float32"):
        kernel(I3, BOXES, SEEDS, 0.2, torch.ones(2), *rest)
    with pytest.raises(RuntimeError, match="not implemented for 'Int'"):
        kernel(I3.int(), BOXES, SEEDS, 0.2, None, *rest)
