# SPDX-License-Identifier: Apache-2.0
"""csrc/simplex_noise/simplex_noise_kernels.cuh on the CPU: numbers, memory, races."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from emulation import BUILDS, ORDERS, emulate
from numpy.typing import NDArray
from tolerances import TOLERANCES

from scrd_fast.ops import simplex_noise

Size = tuple[int, int, int]
SEEDS = [0, -1, 2**63 - 1, -(2**63), 77]
# A pixel; primes; several blocks with a ragged last one; exactly one block.
SIZES = [(1, 1, 1), (2, 7, 13), (3, 11, 23), (1, 16, 16)]
VARIANTS = ("opensimplex", "hashed")
OPTIONS: dict[str, Any] = {"octaves": 2, "persistence": 0.6, "frequency": 0.25}


def emulated(size: Size, build: str, variant: str, seeds: list[int] = SEEDS, **options: Any) -> NDArray[np.float32]:
    depth, height, width = size
    options = {"variant": variant, "depth": depth, "height": height, "width": width, **OPTIONS, **options}
    flat = emulate("simplex_noise", build, np.float32, seeds=np.asarray(seeds, dtype=np.int64), **options)
    return flat.reshape(len(seeds), *size)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_reference(variant: str, size: Size, build: str) -> None:
    expected = simplex_noise(torch.tensor(SEEDS), size, **OPTIONS, variant=variant, backend="reference")
    actual = torch.from_numpy(emulated(size, build, variant, order="random"))
    torch.testing.assert_close(actual, expected, **TOLERANCES["simplex_noise", torch.float32]._asdict())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gives_the_same_bits_in_every_order(variant: str, build: str, order: str) -> None:
    """Also where a block takes several samples, one after another."""
    first = emulated((3, 11, 23), "plain", variant)
    assert np.array_equal(emulated((3, 11, 23), build, variant, order=order, random_seed=3), first)
    assert np.array_equal(emulated((3, 11, 23), build, variant, order=order, max_grid_y=2), first)


@pytest.mark.parametrize("variant", VARIANTS)
def test_takes_memory_that_begins_off_a_vectors_boundary(variant: str) -> None:
    assert np.array_equal(emulated((2, 7, 13), "asan", variant, shift=1), emulated((2, 7, 13), "plain", variant))


def test_takes_more_samples_than_a_grid_has_rows() -> None:
    last = [0, 65534, 65535, 65536]
    actual = emulated((1, 1, 2), "plain", "hashed", list(range(65537)))
    assert np.array_equal(actual[last], emulated((1, 1, 2), "plain", "hashed", last))
    assert not np.isnan(actual).any()
