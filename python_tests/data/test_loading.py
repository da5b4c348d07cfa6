# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
import time

import pytest
import torch

from scrd_fast.data.loading import Prefetcher, pinned


def test_all_come_in_their_order_and_no_thread_stays() -> None:
    before = threading.active_count()
    with Prefetcher(lambda step: step * 10, range(3, 20), depth=3) as results:
        assert list(results) == [step * 10 for step in range(3, 20)]
    assert threading.active_count() == before


def test_the_next_are_made_while_one_is_used() -> None:
    made: list[int] = []
    with Prefetcher(lambda step: made.append(step), range(100), depth=2) as results:
        next(results)
        deadline = time.monotonic() + 30
        while len(made) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)
        assert made == [0, 1, 2]  # and not all of them


def test_an_error_comes_where_its_result_would_have() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise OSError("no such image")
        return step

    with Prefetcher(make, range(5)) as results:
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(OSError, match="no such image"):
            next(results)
        assert next(results) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_error_of_the_consumer_ends_the_thread(error: type[BaseException]) -> None:
    before = threading.enumerate()

    def consume() -> None:
        with Prefetcher(lambda step: step, range(1000)) as results:
            next(results)
            raise error

    with pytest.raises(error):
        consume()
    assert threading.enumerate() == before


def test_closing_ends_the_thread_though_results_wait() -> None:
    before = threading.enumerate()
    results = Prefetcher(lambda step: step, range(1000))
    next(results)
    results.close()
    results.close()
    assert threading.enumerate() == before


def test_leaving_early_waits_for_one_call_and_begins_no_other() -> None:
    made: list[int] = []
    go = threading.Event()

    def make(step: int) -> int:
        if step > 0:
            go.wait(30)
        made.append(step)
        return step

    with Prefetcher(make, range(1000), depth=50) as results:
        assert next(results) == 0
        threading.Timer(0.05, go.set).start()
    assert made == [0, 1]


def test_a_batch_for_the_cpu_stays_where_it_is() -> None:
    batch = torch.rand(2, 3)
    assert pinned(batch, torch.device("cpu")) is batch
