# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scrd_fast import synthesis
from scrd_fast.synthesis import box_range, draw_anomalies


@pytest.mark.parametrize("size", [32, 64, 96, 128, 256, 512])
def test_boxes_lie_inside_and_fill_their_range(size: int) -> None:
    boxes, seeds = draw_anomalies(4000, size, torch.Generator().manual_seed(0))
    assert boxes.dtype == torch.int32
    assert seeds.dtype == torch.int64
    top, left, height, width = boxes.long().unbind(1)
    low, bound = box_range(size)
    for extent in (height, width):
        assert extent.min() == low
        assert extent.max() == bound - 1
    for corner, extent in ((top, height), (left, width)):
        assert corner.min() == 0
        assert (corner + extent).max() == size
    assert len(seeds.unique()) == 4000


def test_the_place_is_uniform() -> None:
    boxes, _ = draw_anomalies(20000, 256, torch.Generator().manual_seed(1))
    top, height = boxes[:, 0].double(), boxes[:, 2].double()
    share = (top + 0.5) / (256 - height + 1)
    counts = torch.histc(share, bins=10, min=0, max=1)
    assert ((counts - 2000).abs() < 6 * 2000**0.5).all()


def test_a_generator_decides_everything() -> None:
    first = draw_anomalies(5, 128, torch.Generator().manual_seed(7))
    second = draw_anomalies(5, 128, torch.Generator().manual_seed(7))
    other = draw_anomalies(5, 128, torch.Generator().manual_seed(8))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[1], other[1])


class OnGpu(torch.Generator):
    """Says that it lives on a GPU. Fake tensors draw nothing, so that they take it."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda")


class StaysOnDevice(TorchDispatchMode):
    """Every operation's tensors lie on the GPU: nothing is copied there or back, which waits for the device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, result)):
            if isinstance(x, Tensor) and x.device.type != "cuda":
                raise AssertionError(f"{func} has a tensor on {x.device}")
        return result


def draw_faked() -> tuple[Tensor, Tensor]:
    """As on a GPU, without one: a fake tensor has no numbers, so that whoever waits for one fails."""
    with FakeTensorMode(), StaysOnDevice():
        return draw_anomalies(16, 256, OnGpu())


def test_the_host_waits_for_no_number() -> None:
    boxes, seeds = draw_faked()
    assert [(x.shape, x.dtype, x.device.type) for x in (boxes, seeds)] == [
        ((16, 4), torch.int32, "cuda"),
        ((16,), torch.int64, "cuda"),
    ]


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: int(x[0, 0]),
        lambda x: bool(x.any()),
        lambda x: x.tolist(),
        lambda x: x.nonzero(),
        lambda x: x[x > 3],
        lambda x: x.cpu(),
        lambda x: x + torch.tensor([1.0, 2.0]).to(x.device),
    ],
    ids=["item", "int", "bool", "tolist", "nonzero", "mask", "cpu", "upload"],
)
def test_a_wait_would_be_found(wait: Callable[[Tensor], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: here one of the numbers drawn is looked at."""
    rand = torch.rand

    def looked_at(*arguments: Any, **options: Any) -> Tensor:
        drawn = rand(*arguments, **options)
        wait(drawn)
        return drawn

    monkeypatch.setattr(synthesis.torch, "rand", looked_at)
    with pytest.raises((RuntimeError, AssertionError)):
        draw_faked()
