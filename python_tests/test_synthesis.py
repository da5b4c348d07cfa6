# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

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
