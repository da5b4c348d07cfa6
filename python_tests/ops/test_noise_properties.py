# SPDX-License-Identifier: Apache-2.0
"""What holds for any seed, size and box, of the compiled kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import opensimplex
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import TOLERANCES
from torch import Tensor

from scrd_fast.ops import simplex_noise, synthesize_anomalies

TOLERANCE = TOLERANCES["simplex_noise", torch.float32]
VARIANTS = ["opensimplex", "hashed"]
SEED = st.integers(-(2**63), 2**63 - 1)
SIZE = st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 70))
# The largest value of one octave is below 1 (opensimplex by its norm, hashed by measurement: 0.9).
LARGEST = sum(0.6**octave for octave in range(6))
several = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def native(seeds: list[int], size: tuple[int, int, int], **options: Any) -> Tensor:
    return simplex_noise(torch.tensor(seeds), size, backend="native", **options)


@several
@given(seed=SEED, size=SIZE, octaves=st.integers(1, 7), exponent=st.integers(-7, 2), numerator=st.integers(1, 7))
def test_equals_the_published_package(
    seed: int, size: tuple[int, int, int], octaves: int, exponent: int, numerator: int
) -> None:
    """Frequencies of few bits: pixels meet the boundaries of the lattice, where rounding decides."""
    frequency = numerator * 2.0**exponent
    noise = opensimplex.OpenSimplex(seed)
    z, y, x = (np.arange(length, dtype=np.float64) for length in size)
    scales = [(0.6**octave, frequency * 2**octave) for octave in range(octaves)]
    expected = sum(amplitude * noise.noise3array(x * f, y * f, z * f) for amplitude, f in scales)
    actual = native([seed], size, octaves=octaves, frequency=frequency)[0]
    torch.testing.assert_close(actual.double(), torch.from_numpy(np.asarray(expected)), **TOLERANCE._asdict())


@several
@given(seeds=st.lists(SEED, min_size=1, max_size=20), size=SIZE, variant=st.sampled_from(VARIANTS))
def test_stays_in_its_range_and_repeats_itself(seeds: list[int], size: tuple[int, int, int], variant: str) -> None:
    noise = native(seeds, size, variant=variant)
    assert noise.shape == (len(seeds), *size)
    assert noise.isfinite().all()
    assert noise.abs().max() <= LARGEST
    assert torch.equal(noise, native(seeds, size, variant=variant))


@pytest.mark.usefixtures("_threads_restored")
@several
@given(
    seeds=st.lists(SEED, min_size=1, max_size=40),
    size=SIZE,
    variant=st.sampled_from(VARIANTS),
    threads=st.integers(1, 4),
    data=st.data(),
)
def test_bits_do_not_depend_on_batch_order_or_threads(
    seeds: list[int], size: tuple[int, int, int], variant: str, threads: int, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(seeds))))
    torch.set_num_threads(1)
    noise = native(seeds, size, variant=variant, octaves=2)
    torch.set_num_threads(threads)
    shuffled = native([seeds[i] for i in order], size, variant=variant, octaves=2)
    assert torch.equal(noise[torch.tensor(order)], shuffled)
    alone = data.draw(st.integers(0, len(seeds) - 1))
    assert torch.equal(noise[alone], native([seeds[alone]], size, variant=variant, octaves=2)[0])


def to_layout(images: Tensor, layout: str) -> Tensor:
    if layout == "channels_last":
        return images.contiguous(memory_format=torch.channels_last)
    if layout == "slice":
        n, c, height, width = images.shape
        whole = torch.full((n, c + 2, height + 3, width + 5), 7.0, dtype=images.dtype)
        view = whole[:, 1 : 1 + c, 2 : 2 + height, 3 : 3 + width]
        return view.copy_(images)
    if layout == "transposed":
        return images.transpose(2, 3).contiguous().transpose(2, 3)
    return images


@several
@given(
    data=st.data(),
    count=st.integers(0, 4),
    channels=st.integers(1, 4),
    height=st.integers(1, 24),
    width=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    layout=st.sampled_from(["contiguous", "channels_last", "slice", "transposed"]),
    variant=st.sampled_from(VARIANTS),
)
def test_the_box_gets_its_noise_and_nothing_else_changes(
    data: st.DataObject,
    count: int,
    channels: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    layout: str,
    variant: str,
) -> None:
    """Any box inside the image, those that touch its border and the empty ones among them."""
    rows = []
    for _ in range(count):
        h, w = data.draw(st.integers(0, height)), data.draw(st.integers(0, width))
        top = data.draw(st.sampled_from([0, height - h]) | st.integers(0, height - h))
        left = data.draw(st.sampled_from([0, width - w]) | st.integers(0, width - w))
        rows.append([top, left, h, w])
    boxes = torch.tensor(rows, dtype=torch.int32).reshape(count, 4)
    seeds = torch.tensor(data.draw(st.lists(SEED, min_size=count, max_size=count)), dtype=torch.int64)
    images = to_layout(torch.rand(count, channels, height, width).to(dtype), layout)
    before = images.clone()
    whole = images if images._base is None else images._base.clone()

    expected = before.to(torch.float64, copy=True)
    changed = torch.zeros(images.shape, dtype=torch.bool)
    for n, (top, left, h, w) in enumerate(rows):
        if h and w:
            noise = simplex_noise(seeds[n : n + 1], (channels, h, w), variant=variant, backend="reference")[0]
            expected[n, :, top : top + h, left : left + w] += 0.2 * noise
            changed[n, :, top : top + h, left : left + w] = True

    result = synthesize_anomalies(images, boxes, seeds, variant=variant, backend="native")
    assert torch.equal(images, before)
    torch.testing.assert_close(result.double(), expected, **TOLERANCES["synthesize_anomalies", dtype]._asdict())
    assert torch.equal(result[~changed], before[~changed])

    synthesize_anomalies(images, boxes, seeds, variant=variant, inplace=True, backend="native")
    assert torch.equal(images, result)
    if layout == "slice":
        around = images._base
        assert around is not None
        around = around.clone()
        around[:, 1 : 1 + channels, 2 : 2 + height, 3 : 3 + width] = before
        assert torch.equal(around, whole)


@pytest.mark.usefixtures("_threads_restored")
@several
@given(
    seeds=st.lists(SEED, min_size=1, max_size=6),
    variant=st.sampled_from(VARIANTS),
    threads=st.integers(1, 4),
    data=st.data(),
)
def test_an_images_bits_do_not_depend_on_the_others_or_on_threads(
    seeds: list[int], variant: str, threads: int, data: st.DataObject
) -> None:
    """Patches of up to 3,600 pixels in three channels: 64 points are made for all images that have them."""
    count = len(seeds)
    side = st.integers(0, 60)
    boxes = torch.tensor([[0, 4, data.draw(side), data.draw(side)] for _ in seeds], dtype=torch.int32)
    images, numbers = torch.rand(count, 3, 64, 64), torch.tensor(seeds)
    torch.set_num_threads(1)
    together = synthesize_anomalies(images, boxes, numbers, variant=variant, octaves=2)
    torch.set_num_threads(threads)
    order = torch.tensor(data.draw(st.permutations(range(count))))
    shuffled = synthesize_anomalies(images[order], boxes[order], numbers[order], variant=variant, octaves=2)
    assert torch.equal(shuffled, together[order])
    n = data.draw(st.integers(0, count - 1))
    one = slice(n, n + 1)
    alone = synthesize_anomalies(images[one], boxes[one], numbers[one], variant=variant, octaves=2)
    assert torch.equal(alone, together[one])
