# SPDX-License-Identifier: Apache-2.0
"""`add_anomalies`: one interface to every noise."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from test_synthesis import OnGpu, StaysOnDevice
from torch import Tensor
from torch._subclasses import FakeTensorMode

from scrd_fast.choices import Noise
from scrd_fast.noises import BLOB_REACH
from scrd_fast.ops import synthesize_anomalies
from scrd_fast.synthesis import add_anomalies, draw_anomalies

NOISES = get_args(Noise)
OWN = [n for n in NOISES if n not in ("opensimplex", "hashed")]
STD = torch.tensor([0.2, 0.25, 0.5])


def made(count: int = 6, size: int = 96, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, size, size, generator=generator), *draw_anomalies(count, size, generator)


@pytest.mark.parametrize("noise", ["opensimplex", "hashed"])
def test_simplex_noise_is_the_operators(noise: Noise) -> None:
    inputs = made()
    expected = synthesize_anomalies(*inputs, strength=0.3, std=STD, variant=noise)
    assert torch.equal(add_anomalies(noise, *inputs, strength=0.3, std=STD), expected)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("size", [32, 97, 256])
def test_an_anomaly_lies_at_its_box(noise: Noise, size: int) -> None:
    images, boxes, seeds = made(5, size)
    before = images.clone()
    result = add_anomalies(noise, images, boxes, seeds)
    assert torch.equal(images, before)
    assert result.isfinite().all()
    margin = (BLOB_REACH - 1) if noise == "blobs" else 0
    for image, old, (top, left, height, width) in zip(result, images, boxes.tolist(), strict=True):
        changed = image != old
        assert changed.any()
        rows, columns = (changed.any(0).any(axis).nonzero()[:, 0] for axis in (1, 0))
        beyond = (max(height, width) * (1 + margin) - torch.tensor([height, width])) / 2 if margin else torch.zeros(2)
        assert top - beyond[0] <= rows.min() <= rows.max() < top + height + beyond[0]
        assert left - beyond[1] <= columns.min() <= columns.max() < left + width + beyond[1]


@pytest.mark.parametrize("noise", NOISES)
def test_an_image_gets_what_it_always_gets(noise: Noise) -> None:
    """Alone, in another place, and in a part of the batch."""
    images, boxes, seeds = made(7)
    whole = add_anomalies(noise, images, boxes, seeds, std=STD)
    assert torch.equal(whole, add_anomalies(noise, images, boxes, seeds, std=STD))
    for i in range(7):
        own = slice(i, i + 1)
        assert torch.equal(add_anomalies(noise, images[own], boxes[own], seeds[own], std=STD)[0], whole[i])
    order = torch.tensor([3, 1, 6, 0])
    assert torch.equal(add_anomalies(noise, images[order], boxes[order], seeds[order], std=STD), whole[order])
    assert not torch.equal(add_anomalies(noise, images, boxes, seeds + 1, std=STD), whole)


@pytest.mark.parametrize("noise", [n for n in NOISES if n != "cutpaste"])
def test_strength_and_std_scale_what_is_added(noise: Noise) -> None:
    images, boxes, seeds = made()
    added = add_anomalies(noise, images, boxes, seeds, strength=1.0) - images
    scaled = add_anomalies(noise, images, boxes, seeds, strength=0.3, std=STD) - images
    torch.testing.assert_close(scaled, 0.3 * added / STD[:, None, None], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("noise", NOISES)
def test_no_strength_leaves_the_image(noise: Noise) -> None:
    images, boxes, seeds = made()
    assert torch.equal(add_anomalies(noise, images, boxes, seeds, strength=0), images)


@pytest.mark.parametrize("size", [33, 96, 255])
def test_a_pasted_patch_is_one_of_the_image(size: int) -> None:
    """By numpy: some place of the image has exactly these pixels, and the places differ."""
    images, boxes, seeds = made(20, size)
    places = set()
    pasted = add_anomalies("cutpaste", images, boxes, seeds, strength=0.7, std=STD).numpy()
    for image, old, (top, left, h, w) in zip(pasted, images.numpy(), boxes.tolist(), strict=True):
        patch = image[:, top : top + h, left : left + w]
        views = np.lib.stride_tricks.sliding_window_view(old, (3, h, w))[0]
        found = np.argwhere((views[:, :, 0, 0, 0] == patch[0, 0, 0]) & (views[:, :, -1, -1, -1] == patch[-1, -1, -1]))
        assert len(found) == 1
        y, x = found[0]
        expected = old.copy()
        expected[:, top : top + h, left : left + w] = old[:, y : y + h, x : x + w]
        assert np.array_equal(image, expected)
        places.add((y / (size - h), x / (size - w)))
    assert len(places) == 20
    assert min(y for y, _ in places) < 0.3
    assert max(x for _, x in places) > 0.7


@pytest.mark.parametrize("noise", OWN)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_round_once(noise: Noise, dtype: torch.dtype) -> None:
    images, boxes, seeds = made()
    images = images.to(dtype)
    result = add_anomalies(noise, images, boxes, seeds, std=STD)
    assert result.dtype == dtype
    exact = add_anomalies(noise, images.double(), boxes, seeds, std=STD)
    torch.testing.assert_close(result, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("noise", NOISES)
def test_layout_stays_and_no_gradient_flows(noise: Noise) -> None:
    images, boxes, seeds = made()
    last = images.to(memory_format=torch.channels_last).requires_grad_()
    result = add_anomalies(noise, last, boxes, seeds)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert not result.requires_grad
    assert torch.equal(result, add_anomalies(noise, images, boxes, seeds))


@pytest.mark.parametrize("noise", NOISES)
def test_images_need_not_be_square_and_batches_may_be_empty(noise: Noise) -> None:
    images, boxes, seeds = torch.rand(2, 1, 64, 101), torch.tensor([[0, 90, 7, 7], [57, 94, 7, 7]]).int(), torch.ones(2)
    result = add_anomalies(noise, images, boxes, seeds.long())
    assert (result != images).flatten(1).any(1).all()
    assert add_anomalies(noise, images[:0], boxes[:0], seeds[:0].long()).shape == (0, 1, 64, 101)


@pytest.mark.parametrize("noise", OWN)
def test_mistakes_are_named(noise: Noise) -> None:
    images, boxes, seeds = made()
    with pytest.raises(TypeError, match="seeds must be int64"):
        add_anomalies(noise, images, boxes, seeds.int())
    with pytest.raises(ValueError, match=r"boxes\[2\] must lie inside"):
        add_anomalies(noise, images, torch.where(torch.arange(6)[:, None] == 2, 90, boxes).int(), seeds)
    large = boxes.clone()
    large[4] = torch.tensor([0, 0, 5, 40])
    with pytest.raises(ValueError, match=r"boxes\[4\] must be at most 11 pixels"):
        add_anomalies(noise, images, large, seeds)
    with pytest.raises(ValueError, match=r"noise must be one of opensimplex, .*, got 'salt'"):
        add_anomalies("salt", images, boxes, seeds)  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", OWN)
def test_the_host_waits_for_no_number(noise: Noise) -> None:
    """As on a GPU, without one: a fake tensor has no numbers, so that whoever waits for one fails."""
    with FakeTensorMode(), StaysOnDevice():
        boxes, seeds = draw_anomalies(16, 256, OnGpu())
        images, std = torch.empty(16, 3, 256, 256, device="cuda"), torch.empty(3, device="cuda")
        result = add_anomalies(noise, images, boxes, seeds, std=std)
    assert (result.shape, result.dtype, result.device.type) == ((16, 3, 256, 256), torch.float32, "cuda")
