# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs in the harness, with a stand-in for torch.cuda that captures without computing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fake_cuda
import pytest
import torch
from fake_cuda import FakeCuda
from made import CPU, SCHEDULE, case, contender
from torch import Tensor

from scrd_fast.bench import timing
from scrd_fast.bench.harness import Contender, LocalRunner, Row, measure
from scrd_fast.bench.simplex import _InPlace
from scrd_fast.bench.timing import CudaClock, Rotation


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return fake_cuda.install(monkeypatch)


def row_of(made: Contender) -> Row:
    on = case(made)
    inputs = [on.inputs(seed, CPU) for seed in (0, 5, 9)]
    expected = [on.oracle(x, "") for x in inputs]
    (row,) = measure(on, [LocalRunner(on, made, CPU, inputs, expected, CudaClock(CPU, 1))], SCHEDULE)
    return row


@pytest.mark.parametrize("compiles", [False, True])
def test_what_is_captured_is_replayed_and_right(cuda: FakeCuda, compiles: bool) -> None:
    row = row_of(contender("good", lambda x: cuda.filled(lambda: 2 * x, x), compiles=compiles))
    assert (row.status, row.how, row.errors) == ("ok", "graph", (0.0, 0.0))
    assert set(row.times) == {"wall_warm", "wall_cold", "device_warm", "device_cold"}
    assert (row.compile_s is not None) is compiles


def test_results_of_before_the_capture_stay(cuda: FakeCuda) -> None:
    inputs = [torch.ones(3), torch.full((3,), 7.0)]
    rotation = Rotation([lambda x=x: cuda.filled(lambda: 2 * x, x) for x in inputs])  # type: ignore[misc]
    captured = CudaClock(CPU, 1).capture(rotation)
    assert captured is not None
    assert [torch.equal(last, 2 * x) for last, x in zip(rotation.last, inputs, strict=True)] == [True, True]
    assert all(result.isnan().all() for result in captured.results)
    captured.replay()
    assert [torch.equal(result, 2 * x) for result, x in zip(captured.results, inputs, strict=True)] == [True, True]


@pytest.mark.parametrize(("from_replay", "when"), [(1, "before"), (4, "after")])
def test_a_wrong_replay_fails(cuda: FakeCuda, from_replay: int, when: str) -> None:
    """The calls themselves are right."""

    def compute(x: Tensor) -> Tensor:
        replays, captured = 0, cuda.recorded is not None

        def kernel() -> Tensor:
            nonlocal replays
            replays += 1
            return 2 * x + (1e-3 if captured and replays >= from_replay else 0)

        return cuda.filled(kernel, x)

    row = row_of(contender("wrong", compute))
    assert row.status == "FAIL"
    assert f"wrong {when} the timing" in row.reason


def test_wrong_calls_fail_beside_a_right_replay(cuda: FakeCuda) -> None:
    row = row_of(contender("wrong", lambda x: cuda.filled(lambda: 2 * x, x) + (0 if cuda.recorded is not None else 1)))
    assert row.status == "FAIL"


def in_place(cuda: FakeCuda, add: Callable[[Tensor, bool], object]) -> Contender:
    def bind(x: Tensor) -> _InPlace:
        def launch(work: Tensor) -> None:
            captured = cuda.recorded is not None
            cuda.launch(lambda: add(work, captured))

        return _InPlace(x, launch)

    return Contender("in place", lambda case, device: lambda x: bind(x))


def test_replays_in_place_are_counted(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Doubling 0, 1, 2 is adding them."""
    monkeypatch.setattr(timing, "MOST_PILED_UP", 3)
    seen: list[float] = []

    def add(work: Tensor, _: bool) -> None:
        work += torch.arange(3.0)
        seen.append(float(work[1]))

    made = in_place(cuda, add)
    on = case(made)
    runner = LocalRunner(on, made, CPU, [on.inputs(0, CPU)], [on.oracle(on.inputs(0, CPU), "")], CudaClock(CPU, 1))
    (row,) = measure(on, [runner], SCHEDULE)
    assert (row.status, row.how) == ("ok", "graph")
    assert len(seen) > 20
    assert max(seen) < 12  # sums begin anew


def test_a_replay_that_adds_something_else_fails(cuda: FakeCuda) -> None:
    def add(work: Tensor, captured: bool) -> Any:
        return work.add_(torch.arange(3.0) * (1.001 if captured else 1))

    made = in_place(cuda, add)
    on = case(made)
    runner = LocalRunner(on, made, CPU, [on.inputs(0, CPU)], [on.oracle(on.inputs(0, CPU), "")], CudaClock(CPU, 1))
    (row,) = measure(on, [runner], SCHEDULE)
    assert row.status == "FAIL"


def test_a_call_that_waits_is_timed_by_events(cuda: FakeCuda) -> None:
    def compute(x: Tensor) -> Tensor:
        cuda.wait()
        return 2 * x

    row = row_of(contender("waits", compute))
    assert (row.status, row.how) == ("ok", "events")
    assert row.times["device_warm"].n >= SCHEDULE.rounds


def test_a_capture_that_fails_leaves_sums_in_place_right(cuda: FakeCuda) -> None:
    calls = [_InPlace(torch.arange(3.0) + n, lambda work: cuda.launch(lambda: work.add_(1.0))) for n in range(2)]

    def broken() -> None:
        if cuda.recorded is not None:
            raise RuntimeError("operation not permitted when stream is capturing")

    rotation = Rotation([*calls, broken])
    assert CudaClock(CPU, 1).capture(rotation) is None
    assert [torch.equal(call._result(), torch.arange(1.0, 4).double() + n) for n, call in enumerate(calls)] == [
        True
    ] * 2
