# SPDX-License-Identifier: Apache-2.0
"""csrc/synthesize_anomalies/synthesize_anomalies_kernels.cuh on the CPU: numbers, memory, races."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from emulation import BUILDS, ORDERS, emulate
from tolerances import TOLERANCES
from torch import Tensor

from scrd_fast.ops import synthesize_anomalies

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
# In the middle, at two borders, over the corner, wholly outside, empty, and with sums that leave 32 bits.
LARGE = 2**31 - 1
BOXES = torch.tensor(
    [
        [3, 4, 9, 11], [0, 0, 19, 1], [15, 13, 9, 9], [-4, -5, 9, 9], [30, 2, 5, 5], [5, 5, 0, 7],
        [17, 15, LARGE, LARGE], [-LARGE - 1, 0, -1, 5], [0, -LARGE - 1, 5, -1], [LARGE, LARGE, LARGE, LARGE],
    ],
    dtype=torch.int32,
)  # fmt: skip
INSIDE = [(3, 4, 9, 11), (0, 0, 19, 1), (15, 13, 4, 4), (0, 0, 5, 4), *[(0, 0, 0, 0)] * 2, (17, 15, 2, 2)]
INSIDE += [(0, 0, 0, 0)] * 3
N = len(INSIDE)
SEEDS = torch.tensor([3, -5, 2**60, *range(N - 3)])
OPTIONS: dict[str, Any] = {"strength": 0.5, "octaves": 2}


def emulated(images: Tensor, build: str, std: Tensor | None, variant: str, **options: Any) -> Tensor:
    """What the kernel leaves in the memory that `images` is a view of, as that view."""
    memory = torch.empty(0, dtype=images.dtype).set_(images.untyped_storage())
    bits = memory.view(torch.int16) if images.element_size() == 2 else memory
    shape = np.array([*images.shape, *images.stride(), images.storage_offset()])
    arguments = OPTIONS | options | ({} if std is None else {"std": std.numpy()})
    changed = emulate(
        "synthesize_anomalies", build, bits.numpy().dtype, images=bits.numpy(), shape=shape, variant=variant,
        boxes=BOXES.numpy(), seeds=SEEDS.numpy(), dtype=str(images.dtype).removeprefix("torch."), **arguments,
    )  # fmt: skip
    return (
        torch.from_numpy(changed).view(images.dtype).as_strided(images.shape, images.stride(), images.storage_offset())
    )


def make_images(dtype: torch.dtype, layout: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(N, 3, 19, 17, generator=generator).to(dtype)
    if layout == "channels_last":
        return images.contiguous(memory_format=torch.channels_last)
    if layout == "slice":
        return torch.rand(N, 5, 22, 24, generator=generator).to(dtype)[:, 1:4, 2:21, 3:20]
    return images


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference_cut_at_the_border(dtype: torch.dtype, layout: str, build: str) -> None:
    images, std = make_images(dtype, layout), torch.tensor([0.229, 0.224, 0.225])
    expected = images.to(torch.float64, copy=True)  # rounded nowhere: the tolerance is for one rounding
    torch.ops.scrd_fast.synthesize_anomalies_(expected, BOXES, SEEDS, 0.5, std, 2, 0.6, 0.25, "opensimplex")
    actual = emulated(images, build, std, "opensimplex", order="random").double()
    torch.testing.assert_close(actual, expected, **TOLERANCES["synthesize_anomalies", dtype]._asdict())


@pytest.mark.parametrize("variant", ["opensimplex", "hashed"])
def test_nothing_outside_the_boxes_changes(variant: str) -> None:
    images = make_images(torch.float32, "slice")
    actual = emulated(images, "asan", None, variant)
    outside = torch.ones(N, 19, 17, dtype=torch.bool)
    for n, (top, left, height, width) in enumerate(INSIDE):
        outside[n, top : top + height, left : left + width] = False
    assert torch.equal(actual.movedim(1, -1)[outside], images.movedim(1, -1)[outside])
    assert not torch.equal(actual, images)
    around = actual.as_strided((N, 5, 22, 24), (2640, 528, 24, 1), 0)  # the tensor that it is a slice of
    whole = images.as_strided((N, 5, 22, 24), (2640, 528, 24, 1), 0)
    inner = torch.zeros(N, 5, 22, 24, dtype=torch.bool)
    inner[:, 1:4, 2:21, 3:20] = True
    assert torch.equal(around[~inner], whole[~inner])


@pytest.mark.parametrize("build", BUILDS)
def test_gives_the_same_bits_in_every_order(build: str) -> None:
    images = make_images(torch.float32, "contiguous")
    first, *others = (
        emulated(images, build, None, "opensimplex", order=order, random_seed=seed)
        for order in ORDERS
        for seed in (1, 2)
    )
    assert all(torch.equal(first, other) for other in others)


def test_a_box_as_large_as_the_image_takes_more_runs_than_the_grid_has_blocks() -> None:
    torch.manual_seed(1)
    images = torch.rand(2, 3, 61, 59)
    boxes = torch.tensor([[0, 0, 61, 59]] * 2, dtype=torch.int32)
    expected = synthesize_anomalies(
        images, boxes, SEEDS[:2], strength=0.5, octaves=1, frequency=0.25, backend="reference"
    )
    shape = np.array([*images.shape, *images.stride(), 0])
    actual = emulate(
        "synthesize_anomalies", "plain", np.float32, images=images.numpy(), shape=shape, variant="opensimplex",
        boxes=boxes.numpy(), seeds=SEEDS[:2].numpy(), dtype="float32", strength=0.5, octaves=1, max_grid_x=12,
    )  # fmt: skip
    torch.testing.assert_close(
        torch.from_numpy(actual).view_as(images),
        expected,
        **TOLERANCES["synthesize_anomalies", torch.float32]._asdict(),
    )
