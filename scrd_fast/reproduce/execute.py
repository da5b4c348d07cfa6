# SPDX-License-Identifier: Apache-2.0
"""Doing what is not done yet: each run in a process of its own, several at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

import scrd_fast
from scrd_fast.bench.processes import environment
from scrd_fast.device import usable_cores
from scrd_fast.errors import ScrdFastError
from scrd_fast.files import read_record
from scrd_fast.reproduce.plan import Run, short_hash
from scrd_fast.runs import begin, new_record, write_json

__all__ = ["NEEDS_ANOMALIB", "execute", "locked", "time_methods"]

NEEDS_ANOMALIB = "not run: needs --anomalib"
PATIENCE = 120.0  # seconds that an interrupted run has for its checkpoint


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """`out` for this process alone, as long as it lives. Raises `ScrdFastError` for a folder of something else."""
    if out.exists() and not (out / "runs").is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise ScrdFastError(f"{out} is not empty and holds no runs of this command; choose a new folder")
    (out / "runs").mkdir(parents=True, exist_ok=True)
    with (out / "runs" / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ScrdFastError(f"{out}: another process works there") from None
        yield


def execute(runs: Sequence[Run], out: Path, jobs: int, anomalib: str | None, log: Callable[[str], None]) -> None:
    """Bring every run of `runs` to an end, good or bad, `jobs` at a time. Those that are finished stay as they are.

    An interruption ends those under way, which save a checkpoint, and is raised again.
    """
    open_runs = [run for run in runs if not run.is_finished(out)]
    open_runs = [run for run in open_runs if run.method.kind != "anomalib" or anomalib]
    threads = max(1, usable_cores() // jobs)
    with _Processes(threads, anomalib) as processes, ThreadPoolExecutor(jobs) as pool:
        try:
            waiting = {pool.submit(processes.run, run.folder(out), _record(run)): run for run in open_runs}
            for done, future in enumerate(as_completed(waiting), start=1):
                log(f"{done} of {len(waiting)}: {waiting[future]}: {future.result()}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            processes.stop()
            raise


def _record(run: Run) -> dict[str, Any]:
    named = {"data": run.data.name, "method": run.method.name, "seed": run.seed, "keeps_model": run.keeps_model}
    return new_record(run.identity) | named | _job(run)


def _job(run: Run) -> dict[str, Any]:
    settings = run.method.settings.model_dump(mode="json") | {"seed": run.seed}
    root = str(run.data.root.resolve())
    return {"kind": run.method.kind, "model": run.method.model, "root": root, "settings": settings}


def time_methods(runs: dict[str, Run], out: Path, rounds: int, machine: dict[str, Any]) -> dict[str, Any]:
    """Seconds an image of each method (name -> run), measured by one process alone; what is known already is kept."""
    timed = {name: _job(run) | {"folder": str(run.folder(out).resolve())} for name, run in runs.items()}
    versions = {"torch": torch.__version__, "scrd_fast": scrd_fast.__version__}
    ids = {name: run.id for name, run in runs.items()}
    identity = {"timed": ids, "rounds": rounds, "machine": machine, "versions": versions}
    folder = out / "runs" / f"timing-{short_hash(identity)}"
    if read_record(folder / "run.json").get("status") != "finished":
        with _Processes(usable_cores(), None) as processes:
            processes.run(folder, new_record(identity) | {"timed": timed, "rounds": rounds})
    return read_record(folder / "run.json")


class _Processes:
    """Starts processes of `worker`, and ends them with the block."""

    def __init__(self, threads: int, anomalib: str | None) -> None:
        self._environment = environment(threads) | {"OMP_WAIT_POLICY": "passive"}
        self._anomalib = [anomalib] if anomalib else []
        self._live: set[subprocess.Popen[bytes]] = set()
        self._lock, self._stopped = threading.Lock(), False

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, folder: Path, record: dict[str, Any]) -> str:
        """To its end; returns what became of it, in words. `run.json` then has more."""
        begin(folder, record)
        command = [sys.executable, "-m", "scrd_fast.reproduce.worker", str(folder), *self._anomalib]
        with (folder / "log.txt").open("ab") as log:
            with self._lock:
                if self._stopped:
                    return "not begun"
                process = subprocess.Popen(
                    command,
                    env=self._environment,
                    stdin=subprocess.PIPE,  # closes when this process ends, however it ends
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
                self._live.add(process)
            code = process.wait()
            _end_group(process)
        with self._lock:
            self._live.discard(process)
        assert process.stdin is not None  # for the type checker
        process.stdin.close()
        found = read_record(folder / "run.json")
        if found.get("status") == "running" and not self._stopped:
            reason = f"the process ended by signal {-code}" if code < 0 else f"the process ended with exit code {code}"
            found |= {"status": "failed", "reason": f"{reason}; see {folder.name}/log.txt"}
            write_json(folder / "run.json", found)
        return _outcome(found)

    def stop(self) -> None:
        """Ask the processes under way to save and end, and end those that do not."""
        with self._lock:
            self._stopped = True
            live = list(self._live)
        for process in live:
            process.send_signal(signal.SIGTERM)
        for process in live:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """A worker leads a group, in which another environment's Python may be left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _outcome(record: dict[str, Any]) -> str:
    if record["status"] == "finished":
        return f"finished in {record['seconds']:.0f} s"
    return f"failed: {record['reason']}" if record["status"] == "failed" else "stopped"
