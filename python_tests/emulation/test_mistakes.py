# SPDX-License-Identifier: Apache-2.0
"""The emulation must be known to catch mistakes: kernels with one each, and right ones that must pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from emulation import BUILDS, ORDERS, EmulationError, emulate
from numpy.typing import NDArray

Numbers = NDArray[Any]

THREADS, ROWS = 128, 24
RIGHT = [
    "right", "right_plain", "vector_load", "dynamic_right", "exchange_right", "accumulate_right", "warp_operations",
]  # fmt: skip
# Each mistake, the builds that must catch it in every order, and what they say.
EVERYWHERE = ("plain", "asan", "tsan")
RACE, OUTSIDE = "data race", "AddressSanitizer"
CAUGHT = {
    "no_barrier": (("tsan",), RACE),
    "no_barrier_plain": (("tsan",), RACE),
    "no_second_barrier": (("tsan",), RACE),
    "exchange_unsynced": (("tsan",), RACE),
    "accumulate_racing": (("tsan",), RACE),
    "early_return": (EVERYWHERE, "__syncthreads"),
    "two_barriers": (EVERYWHERE, "a different __syncthreads"),
    "bad_mask": (EVERYWHERE, "returned|deadlock"),
    "ragged_block": (EVERYWHERE, "whole warps"),
    "shared_overflow_index": (EVERYWHERE, "index 128 of a SharedArray of 128"),
    "shared_overflow_pointer": (("asan",), OUTSIDE),
    "shared_overflow_plain": (("asan",), "index 128 out of bounds"),
    "dynamic_overflow": (("asan",), OUTSIDE),
}
X = np.asarray([i % 7 + i // THREADS for i in range(ROWS * THREADS)], dtype=np.float32)


def run(case: str, build: str, order: str, x: Numbers = X, shift: int = 0) -> Numbers:
    out = np.zeros(X.size // 4, dtype=np.float32)
    return emulate("mistakes", build, np.float32, order=order, random_seed=7, case=case, x=x, out=out, shift=shift)


def expected(case: str) -> Numbers:
    threads = list(range(THREADS))
    if case.startswith("right"):
        return np.asarray(np.sum(X.reshape(ROWS, THREADS), 1))
    return np.asarray(
        {
            "vector_load": np.sum(X.reshape(-1, 4), 1),
            "dynamic_right": [np.nan if t == 0 else 1 for t in threads],  # nobody writes the first element
            "exchange_right": [t ^ 1 for t in threads],
            "accumulate_right": [2] * (THREADS // 2),
            "warp_operations": [0] * THREADS,
        }[case]
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("case", RIGHT)
def test_a_right_kernel_passes(case: str, build: str, order: str) -> None:
    want = expected(case)
    np.testing.assert_array_equal(run(case, build, order)[: want.size], want)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("case", "build"), [(case, build) for case in CAUGHT for build in CAUGHT[case][0]])
def test_a_mistake_is_caught(case: str, build: str, order: str) -> None:
    with pytest.raises(EmulationError, match=CAUGHT[case][1]):
        run(case, build, order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("build", BUILDS)
def test_shared_memory_that_was_not_written_is_no_number(build: str, order: str) -> None:
    assert np.isnan(run("uninitialised", build, order)[:ROWS]).all()


@pytest.mark.parametrize("order", ORDERS)
def test_a_vector_load_over_the_end_is_caught(order: str) -> None:
    with pytest.raises(EmulationError, match=OUTSIDE):
        run("vector_load", "asan", order, x=X[:-1])


@pytest.mark.parametrize("order", ORDERS)
def test_a_misaligned_vector_load_is_caught(order: str) -> None:
    with pytest.raises(EmulationError, match="misaligned address"):
        run("vector_load", "asan", order, shift=1)


def test_an_error_names_the_place() -> None:
    with pytest.raises(EmulationError, match=r"block \(\d,0,0\) thread \(\d+,0,0\) at .*mistakes_driver.cpp:\d+: "):
        run("two_barriers", "plain", "forward")
