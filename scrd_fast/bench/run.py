# SPDX-License-Identifier: Apache-2.0
"""What the verb `bench` does: choose the cases, measure them, judge the rows, write and show the result."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scrd_fast.bench.cases import select
from scrd_fast.bench.comparison import compare
from scrd_fast.bench.harness import Bound, Case, Contender, LocalRunner, Row, Runner, Schedule, measure, quick
from scrd_fast.bench.machine import commit, machine, state, versions
from scrd_fast.bench.plots import check_plot, plot
from scrd_fast.bench.remote import RemoteRunner, Worker
from scrd_fast.bench.results import SCHEMA, load, plain, save, to_csv
from scrd_fast.bench.roofline import Peaks, Work, measure_peaks, percent
from scrd_fast.bench.table import render
from scrd_fast.bench.timing import Clock, Samples, clock_for, cores
from scrd_fast.console import Console
from scrd_fast.device import pick_device
from scrd_fast.errors import ScrdFastError, UnavailableError
from scrd_fast.files import write_atomically

__all__ = ["Session", "bench", "chosen", "judge", "show", "show_comparison"]

QUICK_SECONDS = 75.0  # what has begun by then ends within two minutes, on a busy machine too
MARGIN = 5.0  # percent by which a row may exceed a peak: both are measured, at different times


class Session:
    """What all cases of a run share: the device, its clock, its peaks and the processes of the remote contenders.
    `pythons` has the interpreters of the environments that a contender's package may need for itself. After `seconds`
    nothing is begun that could be left out."""

    def __init__(
        self,
        device: torch.device,
        schedule: Schedule,
        seed: int,
        threads: int,
        pythons: Mapping[str, str] | None = None,
        seconds: float = math.inf,
    ) -> None:
        self._until = time.monotonic() + seconds
        self._pythons = dict(pythons or {})
        self.device, self.schedule, self.seed, self.threads = device, schedule, seed, threads
        self.peaks: dict[str, Peaks] = {}
        self._clocks: dict[str, Clock] = {}
        self._workers: dict[str, Worker] = {}
        self._case: Case | None = None
        self._inputs: dict[str, list[Any]] = {}
        self._right: dict[str, list[Tensor]] = {}
        self._works: dict[tuple[str, str], dict[str, Work]] = {}
        self._given_up: set[tuple[str, str]] = set()  # contenders and their variants

    def time_left(self) -> float:
        return self._until - time.monotonic()

    def clock(self, device: torch.device) -> Clock:
        if device.type not in self._clocks:
            self._clocks[device.type] = clock_for(device, self.threads)
        return self._clocks[device.type]

    def seeds(self, case: Case) -> list[int]:
        count = min(self.schedule.rotations, case.most_sets or self.schedule.rotations)
        return [self.seed + 1000 * turn for turn in range(count)]

    def measure_peaks(self, cases: Sequence[Case]) -> None:
        """Of every device that a contender runs on, at the sizes of the cases. Called before and after the cases:
        the better of the two is the peak, since other load on the machine only lowers it."""
        torch.set_num_threads(self.threads)
        here = torch.device("cpu")
        works = [case.work(self.seed, variant) for case in cases for variant in variants(case)]
        sizes = [work.bytes for work in works if not work.reads]
        reads = [work.bytes for work in works if work.reads]
        for device in {self.device, here}:
            found, known = measure_peaks(device, sizes, reads, self.schedule.peaks), self.peaks.get(device.type)
            self.peaks[device.type] = found.better(known) if known else found

    def runners(self, case: Case, contenders: Sequence[Contender]) -> list[Runner]:
        return [self._remote(case, c) if c.remote else self.runner(case, c) for c in contenders]

    def runner(self, case: Case, contender: Contender) -> LocalRunner | _Absent:
        """For a contender that needs no process of its own."""
        device = torch.device("cpu") if contender.on_cpu else self.device
        inputs, expected = self._prepared(case, contender.variant, device)
        return LocalRunner(case, contender, device, inputs, expected, self.clock(device))

    def _prepared(self, case: Case, variant: str, device: torch.device) -> tuple[list[Any], list[Tensor]]:
        """Inputs on the device, and the right answers. Those of one case are kept: all its contenders share them."""
        if self._case is not case:
            self._case, self._inputs, self._right = case, {}, {}
        if device.type not in self._inputs:
            self._inputs[device.type] = [case.inputs(seed, device) for seed in self.seeds(case)]
        inputs = self._inputs[device.type]
        if variant not in self._right:
            torch.set_num_threads(self.threads)
            self._right[variant] = [case.oracle(one, variant) for one in inputs]
        return inputs, self._right[variant]

    def work(self, case: Case) -> dict[str, Work]:
        """By variant, averaged over the sets of inputs that take turns."""
        key, seeds = (case.op, case.name), self.seeds(case)
        if key not in self._works:
            works = {variant: [case.work(seed, variant) for seed in seeds] for variant in variants(case)}
            self._works[key] = {variant: Work.mean(found) for variant, found in works.items()}
        return self._works[key]

    def _remote(self, case: Case, contender: Contender) -> Runner:
        device = self.device
        key = contender.isa or contender.environment or contender.name
        if contender.environment and contender.environment not in self._pythons:
            name = contender.environment
            return _Absent(contender, device.type, f"needs --{name} PYTHON of an environment with {name}")
        if contender.compiles and contender.key in self._given_up:
            return _Absent(contender, device.type, "given up in a case before this one")
        if contender.isa is not None and (why := self._no_isa(case, contender.isa)):
            return _Absent(contender, device.type, why)
        expected = self._prepared(case, contender.variant, device)[1]
        environment = {"SCRD_FAST_ISA": contender.isa} if contender.isa else {}
        python = self._pythons.get(contender.environment, sys.executable)

        def worker() -> Worker:
            if key not in self._workers or not self._workers[key].alive:
                self._workers[key] = Worker(environment, self.threads, python)
            return self._workers[key]

        worker()  # it starts while the others are prepared
        return RemoteRunner(worker, case, contender, device, self.seeds(case), expected, self._compile_limit)

    def _compile_limit(self) -> float:
        return min(self.schedule.compile_limit, self.time_left())

    @staticmethod
    def _no_isa(case: Case, isa: str) -> str | None:
        """Why a process for this instruction set need not be started."""
        from scrd_fast.bench.isa import instruction_set, missing_flags
        from scrd_fast.ops._library import why_not

        if missing := missing_flags(isa):
            return f"this processor has no {', '.join(missing)}"
        if instruction_set() is not None:
            return None
        reasons = [why_not(operator, "native", torch.device("cpu")) for operator in case.kernels]
        return next((reason for reason in reasons if reason), None)

    def note(self, rows: Sequence[Row]) -> None:
        """What took too long once is not tried again."""
        self._given_up |= {(row.contender, row.variant) for row in rows if "was given up" in row.reason}

    def environments(self) -> dict[str, dict[str, str | None]]:
        """The versions in the environments that took part."""
        found = {}
        for name in self._pythons.keys() & self._workers.keys():
            with contextlib.suppress(RuntimeError, UnavailableError):  # it has ended: its rows say so
                found[name] = self._workers[name].ask(60.0, step="versions", packages=[name, "torch"])
        return found

    def close(self) -> None:
        for worker in self._workers.values():
            worker.stop()


class _Absent:
    """A contender that is known not to run here."""

    def __init__(self, contender: Contender, device: str, reason: str) -> None:
        self.contender, self.device, self._reason = contender, device, reason

    def open(self) -> dict[str, Any]:
        raise UnavailableError(self._reason)

    def check(self) -> float:
        raise UnavailableError(self._reason)

    def sample(self, slot: float) -> Samples:
        del slot
        raise UnavailableError(self._reason)

    def close(self) -> None:
        return None


def variants(case: Case) -> list[str]:
    return list(dict.fromkeys(contender.variant for contender in case.contenders))


def chosen(case: Case, device: torch.device, short: bool) -> list[Contender]:
    """Instruction sets are the CPU's, Triton the GPU's, and a compilation takes too long for a quick run. None of a
    case that is for a GPU alone."""
    if case.on_gpu and device.type != "cuda":
        return []
    return [
        c
        for c in case.contenders
        if not (c.isa and device.type != "cpu")
        and not (c.on_gpu and device.type != "cuda")
        and not (c.backend == "triton" and device.type != "cuda")
        and not (c.slow and short)
    ]


def judge(rows: Sequence[Row], works: dict[str, Work], peaks: dict[str, Peaks], rivals: Sequence[str]) -> None:
    """Rates, shares of the peak, and ratios. A row beyond the device's peak and the margin of its measurement fails:
    its time or the count is wrong."""
    peaks = {device: _with_reads(known, rows, works) for device, known in peaks.items()}
    for row in rows:
        row.work = works[row.variant]
        if row.status != "ok":
            continue
        row.rate = row.work.samples / row.times["wall_warm"].median
        row.percent = Bound(*percent(row.work, _fastest(row), peaks[row.device]))
        if max(row.percent) > 100 + MARGIN:
            row.drop("FAIL", f"{max(row.percent):.0f} % of the device's peak: the time or the count of work is wrong")
    for row in rows:
        if row.status != "ok":
            continue
        own = row.times["wall_warm"].median
        for name in rivals:
            others = [r.times["wall_warm"].median for r in _rows_of(name, row.variant, rows) if r.status == "ok"]
            if others:
                row.ratios[name] = min(others) / own


def _fastest(row: Row) -> float:
    return max(row.times.get("device_warm", row.times["wall_warm"]).median, 1e-12)


def _with_reads(peaks: Peaks, rows: Sequence[Row], works: dict[str, Work]) -> Peaks:
    """The peaks with a plain read that took turns with the others: it had the same memory at the same time. Its better
    turns count, since others' turns may have been those in which the machine was fast; and for what is larger too."""
    read = dict(peaks.read)
    for row in rows:
        if row.contender == "read" and row.status == "ok" and row.device == peaks.device:
            size = works[row.variant].bytes
            rate = size / row.times.get("device_warm", row.times["wall_warm"]).p20
            read = {known: max(old, rate) if known > size else old for known, old in read.items()}
            read[size] = max(read.get(size, 0.0), rate)
    return dataclasses.replace(peaks, read=read)


def _rows_of(rival: str, variant: str, rows: Sequence[Row]) -> list[Row]:
    """The rival's rows of that variant, or all of them where it knows no variants: the same purpose then counts. A
    setting of it, after a comma, is the rival too, and its best counts: more threads can cost more than they bring."""
    found = [row for row in rows if row.contender == rival or row.contender.startswith(f"{rival},")]
    return [row for row in found if row.variant == variant] or found


def bench(
    console: Console,
    ops: Sequence[str],
    short: bool,
    out: Path | None,
    device_name: str,
    seed: int,
    threads: int | None,
    csv_path: Path | None = None,
    plot_path: Path | None = None,
    time_limit: float | None = None,
    pythons: Mapping[str, str] | None = None,
) -> bool:
    """Measure; returns whether a row of ours failed: one of a rival's is for the table alone.

    After `time_limit` seconds, of a short run `QUICK_SECONDS` unless it is given, no further case begins. `out` has
    what was measured so far after each case, so that a run that is killed loses one case.
    """
    for name, python in (pythons or {}).items():
        if shutil.which(python) is None:
            raise ScrdFastError(
                f"--{name} must be the Python of an environment with {name}, got {python}: no such program"
            )
    for path in (out, csv_path, plot_path):
        if path is not None and not path.parent.is_dir():
            raise ScrdFastError(f"{path.parent}: no such folder")
    if plot_path is not None:
        check_plot(plot_path)
    if time_limit is None and short:
        time_limit = QUICK_SECONDS
    device = pick_device(device_name)
    cases = [case for case in select(ops, short) if chosen(case, device, short)]
    schedule = quick(Schedule()) if short else Schedule()
    if time_limit is not None:
        schedule = dataclasses.replace(schedule, compile_limit=min(schedule.compile_limit, time_limit / 4))
    seconds = math.inf if time_limit is None else time_limit
    session = Session(device, schedule, seed, threads or len(cores()), pythons, seconds)
    try:
        results = _measure(session, cases, short, console.log, out)
    finally:
        session.close()
    if out is not None:
        save(out, results)
    show(console, results, out, csv_path, plot_path)
    ours = {contender.key for case in cases for contender in case.contenders if contender.ours}
    return any(row["status"] == "FAIL" and (row["contender"], row["variant"]) in ours for row in results["rows"])


def _measure(
    session: Session, cases: Sequence[Case], short: bool, log: Callable[[str], None], out: Path | None
) -> dict[str, Any]:
    facts = _facts(session, short)
    log("measuring the peaks of this machine")
    session.measure_peaks(cases)
    measured: list[tuple[Case, list[Row]]] = []
    after = facts["before"]
    for number, case in enumerate(cases, start=1):
        if session.time_left() <= 0:
            log(f"the time limit leaves {len(cases) - number + 1} cases out")
            break
        log(f"{number}/{len(cases)} {case.op}: {case.name}")
        runners = session.runners(case, chosen(case, session.device, short))
        rows = measure(case, runners, session.schedule, session.time_left)
        session.note(rows)
        measured.append((case, rows))
        after = state(session.device)
        if out is not None:
            save(out, facts | _found(session, cases, measured) | {"after": after, "finished": False})
    session.measure_peaks(cases)
    return facts | _found(session, cases, measured) | {"after": after, "finished": True}


def _facts(session: Session, short: bool) -> dict[str, Any]:
    """What is known before anything is measured."""
    from scrd_fast.ops._library import build_info

    return {
        "schema": SCHEMA,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seed": session.seed,
        "threads": session.threads,
        "quick": short,
        "schedule": dataclasses.asdict(session.schedule),
        "machine": machine(session.device),
        "versions": versions(),
        "build": build_info(),
        **commit(),
        "before": state(session.device),
    }


def _found(session: Session, cases: Sequence[Case], measured: Sequence[tuple[Case, Sequence[Row]]]) -> dict[str, Any]:
    """What was measured so far. The rows stay unjudged: a later peak may be better."""
    rows: list[dict[str, Any]] = []
    for case, unjudged in measured:
        judged = [dataclasses.replace(row, ratios={}) for row in unjudged]
        judge(judged, session.work(case), session.peaks, case.rivals)
        rows += [plain(row) for row in judged]
    return {
        "environments": session.environments(),
        "left_out": [f"{case.op}: {case.name}" for case in cases[len(measured) :]],
        "peaks": {name: dataclasses.asdict(p) for name, p in session.peaks.items()},
        "rows": rows,
    }


def show(
    console: Console, results: dict[str, Any], path: Path | None, csv_path: Path | None, plot_path: Path | None
) -> None:
    """The table, CSV and plot. Where a file holds the result, stdout has its path and stderr the table."""
    if csv_path is not None:
        write_atomically(csv_path, to_csv(results).encode())
    if plot_path is not None:
        for picture in plot(results, plot_path):
            console.log(f"wrote {picture}")
    if path is not None:
        console.log(render(results))
        console.result(path, results)
    elif console.json:
        console.result(Path(), results)
    else:
        print(render(results))


def show_comparison(console: Console, before: Path, after: Path, tolerance: float) -> bool:
    """Returns whether anything got worse."""
    old, new = load(before), load(after)
    found = compare(old, new, tolerance)
    if console.json:
        console.result(after, found.plain())
        return found.worse
    for name, path, run in (("old", before, old), ("new", after, new)):
        changed = ", with changes" if run["dirty"] else ""
        print(f"{name}: {path}, commit {(run['commit'] or 'unknown')[:12]}{changed}, {run['time']}")
    print(found)
    return found.worse
