# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made import CPU, ENOUGH, SCHEDULE, WORK, case, contender, doubled, rows_of
from torch import Tensor

from scrd_fast.bench import harness
from scrd_fast.bench.harness import LocalRunner, Row, Schedule, Tolerance, measure, worst
from scrd_fast.bench.results import plain
from scrd_fast.bench.roofline import Peaks
from scrd_fast.bench.run import judge
from scrd_fast.bench.timing import CpuClock, CudaClock, Rotation, Summary, cache_bytes, cores
from scrd_fast.errors import UnavailableError

NO_TIME = {"times": {}, "compile_s": None, "rate": None, "percent": None, "ratios": {}}


def assert_no_time(row: Row, status: str) -> None:
    assert row.status == status
    stored = plain(row)
    assert {name: stored[name] for name in NO_TIME} == NO_TIME


class WrongWhen:
    """Right, but for those of its calls that `wrong` says."""

    def __init__(self, wrong: Callable[[int], bool]) -> None:
        self.calls, self._wrong = 0, wrong

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return 2 * x + (1e-3 if self._wrong(self.calls) else 0)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101])
def test_percentiles_are_numpys(count: int) -> None:
    samples = np.random.default_rng(count).random(count)
    found = Summary.of(list(samples))
    expected = np.quantile(samples, [0.5, 0.2, 0.8])
    np.testing.assert_allclose([found.median, found.p20, found.p80], expected, rtol=0, atol=1e-12)
    assert found.n == count


@pytest.mark.parametrize("samples", [[], [1.0, math.nan], [-1.0], [math.inf]])
def test_a_summary_of_nonsense_is_refused(samples: list[float]) -> None:
    with pytest.raises(ValueError, match="samples must be finite times"):
        Summary.of(samples)


def test_a_right_contender_has_every_column() -> None:
    (row,) = rows_of(contender("good", doubled))
    assert row.status == "ok"
    assert set(row.times) == {"wall_warm", "wall_cold"}
    assert all(t.n >= SCHEDULE.rounds and t.p20 <= t.median <= t.p80 for t in row.times.values())
    assert row.errors == (0.0, 0.0)


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: 2 * x + 1e-3,
        lambda x: (2 * x)[:2],
        lambda x: 2 * x * math.nan,
        lambda x: torch.zeros(3),
        lambda x: np.full(3, np.inf),
    ],
)
def test_a_wrong_contender_fails_without_a_time(compute: Callable[[Tensor], Any]) -> None:
    wrong, good = rows_of(contender("wrong", compute), contender("good", doubled))
    assert_no_time(wrong, "FAIL")
    assert "wrong before the timing" in wrong.reason
    assert len(wrong.errors) == 1
    assert good.status == "ok"


def test_a_contender_that_becomes_wrong_fails_without_a_time() -> None:
    (row,) = rows_of(contender("decays", WrongWhen(lambda call: call > 20)))
    assert_no_time(row, "FAIL")
    assert "wrong after the timing" in row.reason
    assert row.errors[0] == 0


def test_what_the_timed_calls_left_behind_is_checked_too() -> None:
    """Right whenever somebody looks: at the first calls and at the check's own."""
    state = WrongWhen(lambda call: False)
    timed = False

    def compute(x: Tensor) -> Tensor:
        return state(x) + (1 if timed else 0)

    made = contender("cheats", compute)

    class Runner:
        contender, device = made, "cpu"

        def __init__(self) -> None:
            self.inner: Any = None

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def sample(self, slot: float) -> Any:
            nonlocal timed
            timed = True
            samples = self.inner.sample(slot)
            timed = False
            return samples

    cheat, wrapped = case(made), Runner()
    wrapped.inner = LocalRunner(cheat, made, CPU, [torch.ones(3)], [torch.full((3,), 2.0).double()], CpuClock(1))
    (row,) = measure(cheat, [wrapped], SCHEDULE)
    assert_no_time(row, "FAIL")
    assert "wrong after the timing" in row.reason


def _raise(error: Exception) -> Callable[[Tensor], Any]:
    def compute(x: Tensor) -> Any:
        del x
        raise error

    return compute


@pytest.mark.parametrize(
    ("error", "ours", "status"),
    [
        (RuntimeError("broken"), True, "FAIL"),
        (RuntimeError("broken"), False, "unavailable"),
        (UnavailableError("no kernel"), True, "unavailable"),
        (ImportError("no module"), True, "unavailable"),
        (ValueError("something else"), True, "FAIL"),
    ],
    ids=str,
)
def test_an_error_is_told_apart_from_an_absence(error: Exception, ours: bool, status: str) -> None:
    row, good = rows_of(contender("raises", _raise(error), ours=ours), contender("good", doubled))
    assert_no_time(row, status)
    assert str(error) in row.reason
    assert good.status == "ok"


def test_every_contender_has_its_turn_in_every_round() -> None:
    log: list[str] = []

    class Fake:
        device = "cpu"

        def __init__(self, name: str) -> None:
            self.contender = contender(name, doubled)

        def open(self) -> dict[str, Any]:
            return {}

        def check(self) -> float:
            return 0.0

        def sample(self, slot: float) -> dict[str, list[float]]:
            assert slot == SCHEDULE.slot
            log.append(self.contender.name)
            return {"wall_warm": [1.0]}

        def close(self) -> None:
            return None

    rows = measure(case(), [Fake(name) for name in "abc"], SCHEDULE)
    assert log == [*"abc", *"bca", *"cab"]
    assert [row.times["wall_warm"].n for row in rows] == [3, 3, 3]


def test_caches_are_counted_once(tmp_path: Path) -> None:
    mine = cores()[0]
    for i, (level, kind, size) in enumerate(
        [("1", "Data", "32K"), ("1", "Instruction", "64K"), ("2", "Unified", "1024K"), ("3", "Unified", "8M")]
    ):
        folder = tmp_path / f"cpu{mine}" / "cache" / f"index{i}"
        folder.mkdir(parents=True)
        for name, text in (("level", level), ("type", kind), ("size", size), ("shared_cpu_list", str(mine))):
            (folder / name).write_text(text + "\n")
    # The second level seen once more, as another processor sees a shared cache.
    shutil.copytree(tmp_path / f"cpu{mine}" / "cache" / "index2", tmp_path / f"cpu{mine}" / "cache" / "index9")
    assert cache_bytes(tmp_path) == 32 * 1024 + 2**20 + 8 * 2**20
    assert cache_bytes(tmp_path / "none") == 64 * 2**20


def test_no_contender_sets_the_threads_of_another() -> None:
    """numba.set_num_threads sets torch's too where both have one OpenMP."""
    before, seen = torch.get_num_threads(), []

    def greedy(x: Tensor) -> Tensor:
        torch.set_num_threads(before + 1)
        return 2 * x

    def modest(x: Tensor) -> Tensor:
        seen.append(torch.get_num_threads())
        return 2 * x

    try:
        rows_of(contender("greedy", greedy), contender("modest", modest))
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {before}


def test_inputs_take_turns() -> None:
    seen: list[int] = []
    rotation = Rotation([lambda i=i: seen.append(i) or i for i in range(3)])  # type: ignore[misc]
    for _ in range(7):
        rotation()
    assert seen == [0, 1, 2, 0, 1, 2, 0]
    assert rotation.last == [0, 1, 2]


def test_the_error_is_in_units_of_the_tolerance() -> None:
    expected = torch.tensor([1.0, 10.0], dtype=torch.float64)
    tolerance = Tolerance(rtol=0.01, atol=0.1)
    assert worst(np.array([1.0, 10.4]), expected, tolerance) == pytest.approx(0.4 / 0.2)
    assert worst(torch.tensor([[1.0, 10.0]]), expected, tolerance) == math.inf
    assert worst(torch.empty(0), torch.empty(0).double(), tolerance) == 0


@pytest.mark.parametrize("short", ["copy", "flops64", "flops32"])
def test_more_than_the_peak_fails(short: str) -> None:
    """A row of 24 bytes and 6 operations in a time that one peak does not allow."""
    rows = rows_of(contender("reference", doubled))
    rows[0].times["wall_warm"] = Summary(1.0, 1.0, 1.0, 3)
    peaks = Peaks(
        "cpu",
        {64: 22.8 if short == "copy" else 1e3},
        {32: 14.0 if short == "flops32" else 1e3, 64: 5.0 if short == "flops64" else 1e3},
    )
    judge(rows, {"": WORK}, {"cpu": peaks}, [])
    assert_no_time(rows[0], "FAIL")
    assert "of the device's peak" in rows[0].reason


@pytest.mark.parametrize(("peak", "status"), [(24.0, "ok"), (22.9, "ok"), (22.8, "FAIL")])
def test_a_measured_peak_has_a_margin(peak: float, status: str) -> None:
    """24 bytes a second are up to 105 % of it, and said to be."""
    (row,) = rows_of(contender("reference", doubled))
    row.times["wall_warm"] = Summary(1.0, 1.0, 1.0, 3)
    judge([row], {"": WORK}, {"cpu": Peaks("cpu", {64: peak}, {32: 1e3, 64: 1e3})}, [])
    assert row.status == status
    assert row.percent == (None if status == "FAIL" else pytest.approx((2400 / peak, 0.6, 1.5)))


def test_a_read_among_the_turns_is_a_peak() -> None:
    """For work that only reads; what was measured before and after may have been a slower time of the machine."""
    reads = dataclasses.replace(WORK, reads=True)
    for others, status in ((["read"], "ok"), ([], "FAIL")):
        rows = rows_of(*(contender(name, doubled) for name in ("scrd_fast", *others)))
        for row, seconds in zip(rows, (2.0, 1.0), strict=False):
            row.times["wall_warm"] = Summary(seconds, seconds, seconds, 3)
        judge(rows, {"": reads}, {"cpu": Peaks("cpu", {64: 3.0}, {32: 1e3, 64: 1e3}, {64: 3.0})}, [])
        assert [row.status for row in rows] == [status] * len(rows)
        assert status == "FAIL" or rows[0].percent.bytes == pytest.approx(50)  # type: ignore[union-attr]


def test_rates_and_ratios() -> None:
    rows = rows_of(
        *(contender(n, doubled) for n in ("scrd_fast", "reference", "opensimplex+numba", "opensimplex+numba, 1 thread"))
    )
    for row, seconds in zip(rows, (1.0, 8.0, 4.0, 2.0), strict=True):
        row.times["wall_warm"] = Summary(seconds, seconds, seconds, 3)
    judge(rows, {"": WORK}, {"cpu": ENOUGH}, ["opensimplex+numba", "reference", "nobody"])
    assert [row.rate for row in rows] == [6.0, 0.75, 1.5, 3.0]
    assert rows[0].ratios == {"opensimplex+numba": 2.0, "reference": 8.0}  # the rival's better row counts
    assert rows[1].ratios == {"opensimplex+numba": 0.25, "reference": 1.0}  # a loss is a ratio too


def test_a_ratio_is_to_the_rivals_row_of_the_same_variant_if_it_has_any() -> None:
    names = [("fast", "map"), ("fast", "mean"), ("plain", "map"), ("plain", "mean"), ("other", "map, mirror")]
    rows = rows_of(*(contender(name, doubled, variant=variant) for name, variant in names))
    for row, seconds in zip(rows, (1.0, 2.0, 6.0, 4.0, 8.0), strict=True):
        row.times["wall_warm"] = Summary(seconds, seconds, seconds, 3)
    rows[3].drop("FAIL", "wrong")
    judge(rows, dict.fromkeys(("map", "mean", "map, mirror"), WORK), {"cpu": ENOUGH}, ["plain", "other"])
    assert rows[0].ratios == {"plain": 6.0, "other": 8.0}
    assert rows[1].ratios == {"other": 4.0}  # plain's mean failed: its map is no stand-in


@pytest.mark.parametrize(("limit", "turns"), [(None, 9), (2.5, 3), (0.5, 1)])
def test_a_contender_stops_at_the_cases_limit(limit: float | None, turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn takes a second on this clock."""
    now = 0.0

    def tick(slot: float) -> dict[str, list[float]]:
        nonlocal now
        assert slot > 0
        now += 1
        return {"wall_warm": [1.0]}

    made = contender("slow", doubled)
    limited = dataclasses.replace(case(made), limit=limit)
    runner = LocalRunner(limited, made, CPU, [torch.ones(3)], [torch.full((3,), 2.0).double()], CpuClock(1))
    monkeypatch.setattr(harness.time, "perf_counter", lambda: now)
    monkeypatch.setattr(runner, "sample", tick)
    (row,) = measure(limited, [runner], Schedule(rounds=9))
    assert row.times["wall_warm"].n == turns


def test_the_first_round_is_the_last_when_no_time_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    made = contender("good", doubled)
    runner = LocalRunner(case(made), made, CPU, [torch.ones(3)], [torch.full((3,), 2.0).double()], CpuClock(1))
    sample, turns = runner.sample, []

    def counted(slot: float) -> Any:
        turns.append(slot)
        return sample(slot)

    monkeypatch.setattr(runner, "sample", counted)
    (row,) = measure(case(made), [runner], Schedule(rounds=9, slot=1e-4), lambda: 0.0)
    assert row.status == "ok"
    assert len(turns) == 1


@pytest.mark.cuda
def test_cuda_times_the_device_and_the_wall_apart() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    clock = CudaClock(device, 1)
    inputs = [torch.rand(1000, device=device) for _ in range(2)]
    rotation = Rotation([lambda x=x: x * 2 for x in inputs])  # type: ignore[misc]
    graph = clock.capture(rotation)
    assert graph is not None
    graph.replay()
    clock.synchronize()
    assert all(torch.equal(out, 2 * x) for out, x in zip(graph.results, inputs, strict=True))
    samples = clock.sample(rotation, graph, 0.001)
    assert set(samples) == {"wall_warm", "wall_cold", "device_warm", "device_cold"}
    assert all(time > 0 for times in samples.values() for time in times)
    assert all(torch.equal(out, 2 * x) for out, x in zip(rotation.last, inputs, strict=True))
    syncing = Rotation([lambda: inputs[0].sum().item()])
    assert clock.capture(syncing) is None
    assert clock.sample(syncing, None, 0.001)["device_warm"]
