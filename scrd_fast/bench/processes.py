# SPDX-License-Identifier: Apache-2.0
"""A command and all processes that it starts: how long it took, and the memory of all of them over time. Linux only.

Memory is the proportional set size (`Pss` of /proc/PID/smaps_rollup), summed: a page that n processes share counts
once, where a sum of resident sets would count it n times. It is sampled, so that a short peak may be missed. Of each
single process the kernel keeps the peak itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import scrd_fast
from scrd_fast.memory import process_bytes

__all__ = ["Observed", "environment", "members", "observe", "stop"]


@dataclass
class Observed:
    """What became of a command."""

    code: int  # negative: ended by that signal
    stdout: str
    stderr: str
    seconds: float
    largest_bytes: int  # the largest resident set that one process ever had
    series: list[tuple[float, int]]  # seconds since the start, bytes of all processes

    @property
    def peak_bytes(self) -> int:
        return max((size for _, size in self.series), default=0)


def environment(threads: int) -> dict[str, str]:
    """That of a contender: this very package, and so many threads."""
    path = os.pathsep.join([str(Path(scrd_fast.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}


def observe(
    command: Sequence[str], env: Mapping[str, str], *, limit: float | None = None, interval: float = 1.0
) -> Observed:
    """Run `command` to its end, or for `limit` seconds, after which it and what it started are killed.

    A sample costs about 13 ms for each GB that the processes have: hence a second between two.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, env=env, start_new_session=True)
        series: list[tuple[float, int]] = []
        peaks = [0]
        done = threading.Event()

        def sample() -> None:
            while not done.wait(interval):
                now = time.perf_counter() - start
                pids = members(process.pid)
                series.append((round(now, 2), sum(process_bytes("Pss", pid, "smaps_rollup") for pid in pids)))
                peaks[0] = max([peaks[0], *(process_bytes("VmHWM", pid) for pid in pids)])
                if limit is not None and now > limit:
                    stop(process.pid)

        sampler = threading.Thread(target=sample)
        sampler.start()
        try:
            code = process.wait()
            seconds = time.perf_counter() - start
        finally:
            done.set()
            sampler.join()
            stop(process.pid)  # what it left behind; all of it, where we are interrupted
        return Observed(code, _text(out), _text(err), seconds, peaks[0], series)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def members(session: int) -> list[int]:
    """The living processes of a session: all that its first one started, whoever their parent is by now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            state, _, _, its_session = path.read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                found.append(int(path.parent.name))
    return found


def stop(session: int) -> None:
    """End what `observe` or a `Popen` with a session of its own has started, and nothing else."""
    for pid in members(session):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
