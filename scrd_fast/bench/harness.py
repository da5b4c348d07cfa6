# SPDX-License-Identifier: Apache-2.0
"""Contenders of one case take turns; a row's time counts only if its numbers are right before and after.

The numbers are compared with a float64 oracle on the very inputs that are timed, among them the results that the
timed calls themselves left behind.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from scrd_fast.bench.roofline import Work
from scrd_fast.bench.timing import Captured, Clock, Rotation, Samples, Summary
from scrd_fast.errors import UnavailableError

__all__ = ["Bound", "Case", "Contender", "LocalRunner", "Row", "Runner", "Schedule", "Tolerance", "measure", "worst"]

Call = Callable[[], Any]
PAUSE = 0.005  # seconds between two turns: threads of the one before stop spinning


class Tolerance(NamedTuple):
    rtol: float
    atol: float


@dataclass(frozen=True)
class Contender:
    """One way to compute a case. `build` prepares what does not depend on the inputs, the function that it
    returns what does (it is not timed); a call then computes once and returns a tensor, an array, or a function that
    makes one of what the call left behind."""

    name: str
    build: Callable[[Case, torch.device], Callable[[Any], Call]]
    variant: str = ""
    backend: str = ""
    isa: str | None = None  # forces the CPU kernel's instruction set; such a contender has a process of its own
    compiles: bool = False  # its first calls compile: a time of its own, in a process that can be given up
    on_cpu: bool = False  # runs on the CPU whatever the case's device
    on_gpu: bool = False  # left out where the case's device is the CPU
    environment: str = ""  # its package lives in an environment of its own, whose Python the run is told
    ours: bool = True  # an unexpected error of ours fails the run, one of a rival makes its row unavailable
    tolerance: Tolerance | None = None  # of a rival that computes less exactly than its case asks for
    slow: bool = False  # left out of quick runs

    @property
    def key(self) -> tuple[str, str]:
        return self.name, self.variant

    @property
    def remote(self) -> bool:
        return self.isa is not None or self.compiles or bool(self.environment)


@dataclass(frozen=True)
class Case:
    """One operator on inputs of one shape. `inputs` draws them from a seed, `oracle` computes in float64, `work`
    counts what the inputs of a seed take."""

    op: str
    name: str
    shape: tuple[int, ...]
    inputs: Callable[[int, torch.device], Any]
    oracle: Callable[[Any, str], Tensor]
    work: Callable[[int, str], Work]
    tolerance: Callable[[str], Tolerance]
    contenders: tuple[Contender, ...]
    dtype: str = "float32"
    quick: bool = False
    on_gpu: bool = False  # left out where the device is the CPU, for which it is too large
    unit: str = "elements"  # what Work.samples counts, and so the rate
    rivals: tuple[str, ...] = ()  # a row says how many times faster it is than these
    parts: tuple[str, ...] = ()  # the operators whose kernels it runs, where those are not `op` itself
    most_sets: int | None = None  # fewer sets of inputs than the schedule's, where one is larger than every cache
    limit: float | None = None  # seconds of turns after which a contender stops, be it after the first

    @property
    def kernels(self) -> tuple[str, ...]:
        return self.parts or (self.op,)


@dataclass(frozen=True)
class Schedule:
    """How long: `rounds` turns for each contender, a turn of about `slot` seconds warm and as many cold; one that
    has used `limit` seconds stops after `least` turns. `rotations` is the number of sets of inputs, `peaks` how often
    each way to a peak is tried."""

    rounds: int = 9
    least: int = 3
    slot: float = 0.05
    limit: float = 30.0
    compile_limit: float = 180.0
    rotations: int = 3
    peaks: int = 15


class Bound(NamedTuple):
    """A row's share of what the device can do, in percent. Beyond 100 and a measurement's margin lies a wrong count
    or a wrong time."""

    bytes: float
    flops: float
    instructions: float


@dataclass
class Row:
    op: str
    case: str
    contender: str
    variant: str
    backend: str
    isa: str | None
    device: str
    dtype: str
    shape: tuple[int, ...]
    status: str = "ok"  # or FAIL, unavailable
    reason: str = ""
    times: dict[str, Summary] = field(default_factory=dict)
    how: str = ""  # of the device time: graph or events
    compile_s: float | None = None
    errors: tuple[float, ...] = ()  # before and after, in units of the tolerance
    work: Work | None = None
    rate: float | None = None  # `unit` per second, warm wall time
    percent: Bound | None = None
    ratios: dict[str, float] = field(default_factory=dict)
    unit: str = "elements"

    @property
    def key(self) -> tuple[str, ...]:
        return self.op, self.case, self.contender, self.variant, self.device, self.dtype

    def drop(self, status: str, reason: str) -> None:
        """No time survives a failure."""
        self.status, self.reason = status, " ".join(reason.split())[:300]
        self.times, self.compile_s, self.rate, self.percent, self.ratios = {}, None, None, None, {}


class Runner(Protocol):
    """A contender with its inputs, in this process or in another."""

    contender: Contender
    device: str

    def open(self) -> dict[str, Any]:
        """Prepare; returns what the row says of the contender: isa, backend, how, compile_s."""
        ...

    def check(self) -> float:
        """The worst error in units of the tolerance; at most 1 is right."""
        ...

    def sample(self, slot: float) -> Samples: ...

    def close(self) -> None: ...


def worst(actual: Any, expected: Tensor, tolerance: Tolerance) -> float:
    """The largest error in units of atol + rtol * |expected|; infinite for a wrong shape or a NaN.

    >>> worst(torch.tensor([1.5]), torch.tensor([1.0]).double(), Tolerance(rtol=0.0, atol=0.25))
    2.0
    """
    found = torch.as_tensor(actual() if callable(actual) else actual).detach().to("cpu", torch.float64)
    if found.shape != expected.shape:
        return math.inf
    if found.numel() == 0:
        return 0.0
    error = ((found - expected).abs() / (tolerance.atol + tolerance.rtol * expected.abs())).max().item()
    return math.inf if math.isnan(error) else float(error)


class LocalRunner:
    def __init__(
        self,
        case: Case,
        contender: Contender,
        device: torch.device,
        inputs: Sequence[Any],
        expected: Sequence[Tensor],
        clock: Clock,
    ) -> None:
        self.case, self.contender, self.device = case, contender, device.type
        self._torch_device, self._inputs, self._expected, self._clock = device, inputs, expected, clock
        self._rotation = Rotation([])
        self._graph: Captured | None = None
        self._sampled = False

    def open(self) -> dict[str, Any]:
        self._own_threads()
        bind = self.contender.build(self.case, self._torch_device)
        self._rotation = Rotation([bind(inputs) for inputs in self._inputs])
        first = self._once()
        second = self._once() if self.contender.compiles else 0.0
        self._graph = self._clock.capture(self._rotation)
        if self._graph is not None:
            # Calls in place counted their capture, which ran nothing.
            self._rotation.restart()
            self._once()
            self._graph.replay()
            self._rotation.replayed()
        return {
            "compile_s": max(first - second, 0.0) if self.contender.compiles else None,
            "how": "graph" if self._graph else self._clock.how,
        }

    def _own_threads(self) -> None:
        """numba and torch may share an OpenMP: a rival that sets its threads sets torch's, for all turns after."""
        torch.set_num_threads(self._clock.threads)

    def _once(self) -> float:
        start = time.perf_counter()
        for _ in self._rotation.calls:
            self._rotation()
        self._clock.synchronize()
        return time.perf_counter() - start

    def check(self) -> float:
        self._own_threads()
        tolerance = self.contender.tolerance or self.case.tolerance(self.contender.variant)
        self._clock.synchronize()
        last = zip(self._rotation.last, self._expected, strict=True)
        errors = [worst(a, e, tolerance) for a, e in last if a is not None]
        if self._graph is not None:  # what its last replay left behind, which was a timed one after the timing
            errors += [worst(a, e, tolerance) for a, e in zip(self._graph.results, self._expected, strict=True)]
        if self._sampled:  # before the timing, those of `open` are fresh
            errors += [worst(c(), e, tolerance) for c, e in zip(self._rotation.calls, self._expected, strict=True)]
        return max(errors)

    def sample(self, slot: float) -> Samples:
        self._sampled = True
        self._own_threads()
        self._rotation.restart()
        return self._clock.sample(self._rotation, self._graph, slot)

    def run(self) -> None:
        """One synchronised call, for runners that bring their own clock."""
        self._sampled = True
        self._rotation()
        self._clock.synchronize()

    def seconds(self) -> float:
        """Of one such call, roughly."""
        return max(self._once() / len(self._rotation.calls), 1e-7)

    def close(self) -> None:
        self._rotation, self._graph = Rotation([]), None


def measure(
    case: Case, runners: Sequence[Runner], schedule: Schedule, time_left: Callable[[], float] = lambda: math.inf
) -> list[Row]:
    """A row for each runner. The turns go round, so that whatever drifts on the machine hits all alike. When no time
    is left, the first round is the last."""
    rows = [_row(case, runner) for runner in runners]
    samples: list[Samples] = [{} for _ in runners]
    used = [0.0 for _ in runners]
    for row, runner in zip(rows, runners, strict=True):
        _guard(row, runner, lambda row=row, runner=runner: _open(row, runner))  # type: ignore[misc]
    for turn in range(schedule.rounds):
        if turn > 0 and time_left() <= 0:
            break
        for place in range(len(runners)):
            i = (place + turn) % len(runners)  # nobody always follows the same neighbour
            if rows[i].status != "ok" or _had_enough(case, schedule, turn, used[i]):
                continue
            time.sleep(PAUSE)
            start = time.perf_counter()
            _guard(rows[i], runners[i], lambda i=i: _collect(samples[i], runners[i].sample(schedule.slot)))  # type: ignore[misc]
            used[i] += time.perf_counter() - start
    for row, runner, taken in zip(rows, runners, samples, strict=True):
        if row.status == "ok":
            _guard(row, runner, lambda row=row, runner=runner: _verify(row, runner, "after"))  # type: ignore[misc]
        if row.status == "ok":
            row.times = {column: Summary.of(values) for column, values in taken.items()}
        runner.close()
    return rows


def _had_enough(case: Case, schedule: Schedule, turns: int, used: float) -> bool:
    """Whether a contender that took `used` seconds for that many turns has no more."""
    if case.limit is not None and used > case.limit:
        return True
    return used > schedule.limit and turns >= schedule.least


def _row(case: Case, runner: Runner) -> Row:
    c = runner.contender
    backend, isa = c.backend, c.isa
    row = Row(case.op, case.name, c.name, c.variant, backend, isa, runner.device, case.dtype, case.shape)
    row.unit = case.unit
    return row


def _open(row: Row, runner: Runner) -> None:
    for name, value in runner.open().items():
        setattr(row, name, value)
    _verify(row, runner, "before")


def _verify(row: Row, runner: Runner, when: str) -> None:
    error = runner.check()
    row.errors = (*row.errors, error)
    if not error <= 1:
        row.drop("FAIL", f"wrong {when} the timing: error {error:.3g} times the tolerance")


def _collect(into: Samples, more: Samples) -> None:
    for column, values in more.items():
        into.setdefault(column, []).extend(values)


def _guard(row: Row, runner: Runner, step: Callable[[], None]) -> None:
    try:
        step()
    except Exception as error:
        absent = isinstance(error, (UnavailableError, ImportError))
        text = str(error) if absent else f"{type(error).__name__}: {error}"
        row.drop("unavailable" if absent or not runner.contender.ours else "FAIL", text)


def quick(schedule: Schedule) -> Schedule:
    return dataclasses.replace(schedule, rounds=3, least=1, slot=0.02, limit=1.0, rotations=2, peaks=5)
