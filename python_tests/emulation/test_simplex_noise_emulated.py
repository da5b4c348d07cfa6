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


def emulated(
    size: Size,
    build: str,
    variant: str = "opensimplex",
    order: str = "forward",
    random_seed: int = 1,
    seeds: list[int] = SEEDS,
    shift: int = 0,
) -> NDArray[np.float32]:
    depth, height, width = size
    flat = emulate(
        "simplex_noise", build, np.float32, order=order, random_seed=random_seed, shift=shift, variant=variant,
        seeds=np.asarray(seeds, dtype=np.int64), depth=depth, height=height, width=width, **OPTIONS,
    )  # fmt: skip
    return flat.reshape(len(seeds), *size)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_reference(variant: str, size: Size, build: str) -> None:
    expected = simplex_noise(torch.tensor(SEEDS), size, **OPTIONS, variant=variant, backend="reference")
    actual = torch.from_numpy(emulated(size, build, variant, order="random"))
    torch.testing.assert_close(actual, expected, **TOLERANCES["simplex_noise", torch.float32]._asdict())


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gives_the_same_bits_in_every_order(variant: str, build: str) -> None:
    size = (3, 11, 23)
    first = emulated(size, build, variant)
    runs = [(order, seed) for order in ORDERS for seed in (1, 2)]
    assert all(np.array_equal(first, emulated(size, build, variant, order, seed)) for order, seed in runs)


def test_takes_memory_that_begins_off_a_vectors_boundary() -> None:
    assert np.array_equal(emulated((2, 7, 13), "asan", shift=1), emulated((2, 7, 13), "plain"))


def test_takes_more_samples_than_a_grid_has_rows() -> None:
    seeds = list(range(65537))
    actual = emulated((1, 1, 2), "plain", "hashed", seeds=seeds)
    few = [0, 65534, 65535, 65536]
    assert np.array_equal(actual[few], emulated((1, 1, 2), "plain", "hashed", seeds=few))
    assert not np.isnan(actual).any()
