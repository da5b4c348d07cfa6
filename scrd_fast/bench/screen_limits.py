# SPDX-License-Identifier: Apache-2.0
"""What `scrd-fast screen` promises beside its speed: flat memory, and results that survive being killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scrd_fast.bench.processes import environment, members, observe, stop
from scrd_fast.bench.screen_made import Setup, link_images, make_images, make_run, screen_command
from scrd_fast.screening.writers import RESULTS, read_part

__all__ = ["compare", "kills", "memory", "rows_of"]

DISTINCT = 200  # files, under as many names as are asked for
POINTS = 200  # of a series that are kept
PATIENCE = 10.0  # seconds that workers may outlive the process that started them
Row = Mapping[str, Any]


def memory(setup: Setup, counts: Sequence[int], folder: Path, log: Callable[[str], None]) -> list[dict[str, Any]]:
    """Memory of all processes over time, for a run over each number of files."""
    run = make_run(folder / "run", setup)
    files = sorted(make_images(folder / "distinct", min(DISTINCT, max(counts)), side=96).iterdir())
    found = []
    for count in counts:
        log(f"{count} files")
        data, out = link_images(folder / f"{count}", files, count), folder / f"out-{count}"
        done = observe(screen_command(run, data, out, setup, "32"), environment(setup.threads), interval=0.25)
        if done.code != 0 or len(rows_of(out)) != count:
            raise RuntimeError(f"{count} files, {len(rows_of(out))} rows, exit code {done.code}: {done.stderr[-2000:]}")
        sizes = [size for _, size in done.series]
        quarter = max(len(sizes) // 4, 1)
        found.append(
            {
                "images": count,
                "seconds": done.seconds,
                "peak_bytes": done.peak_bytes,
                "largest_process_bytes": done.largest_bytes,
                # The first quarter has the start in it.
                "second_quarter_bytes": statistics.median(sizes[quarter : 2 * quarter] or sizes),
                "last_quarter_bytes": statistics.median(sizes[-quarter:]),
                "series": done.series[:: -(-len(sizes) // POINTS)],
            }
        )
    return found


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Of all parts that a run has committed."""
    return [row for path in sorted((out / RESULTS).glob("*.parquet")) for row in read_part(path)]


def compare(expected: Sequence[Row], found: Sequence[Row]) -> dict[str, int]:
    """Rows by `sample_id` that are lost, double, new, or differ in a bit of any column."""
    right = {row["sample_id"]: row for row in expected}
    counts = Counter(row["sample_id"] for row in found)
    return {
        "rows": len(found),
        "lost": len(right.keys() - counts.keys()),
        "double": sum(n - 1 for n in counts.values()),
        "new": len(counts.keys() - right.keys()),
        # A float's text has all of its bits, and the one of NaN is equal to itself.
        "changed": sum(repr(row) != repr(right.get(row["sample_id"], row)) for row in found),
    }


def kills(setup: Setup, count: int, folder: Path, log: Callable[[str], None], shard_size: int = 50) -> dict[str, Any]:
    """`kill -9` at so many random moments, in as many runs as it takes, each of which is then let to its end.

    By turns the main process alone and all its processes are killed. Moments are uniform in an unkilled run's time.
    """
    run, data = make_run(folder / "run", setup), make_images(folder / "images", setup.images, side=96)
    env = environment(setup.threads)

    def command(out: Path) -> list[str]:
        return screen_command(run, data, out, setup, "32", "--shard-size", str(shard_size), "--overlays", "0")

    unkilled = observe(command(folder / "unkilled"), env)
    if unkilled.code != 0:
        raise RuntimeError(f"exit code {unkilled.code}: {unkilled.stderr[-2000:]}")
    expected = rows_of(folder / "unkilled")
    if len(expected) != setup.images:
        raise RuntimeError(f"{len(expected)} rows of {setup.images} images")
    draw = random.Random(setup.seed)
    totals: Counter[str] = Counter(rows=0, lost=0, double=0, new=0, changed=0)
    moments: list[dict[str, Any]] = []
    runs = left_over = 0
    while len(moments) < count:
        out, ended = folder / f"killed-{runs}", False
        while not ended:
            # Where all rows are committed there is nothing left to interrupt: on to a new run.
            last = len(moments) == count or len(rows_of(out)) == setup.images
            moment, whole = None if last else draw.uniform(0, unkilled.seconds), len(moments) % 2 == 1
            ended, orphans = _killed_at(command(out), env, moment, whole)
            left_over += orphans
            if not ended:
                moments.append({"seconds": moment, "all": whole, "rows_then": len(rows_of(out))})
                log(f"kill {len(moments)} of {count}: {moments[-1]['rows_then']} rows are committed")
        totals.update(compare(expected, rows_of(out)))
        runs += 1
    return {
        "kills": len(moments),
        "runs": runs,
        "images": setup.images,
        "amid_the_rows": sum(0 < moment["rows_then"] < setup.images for moment in moments),
        "unkilled_seconds": unkilled.seconds,
        **totals,
        "processes_left_over": left_over,
        "moments": moments,
    }


def _killed_at(command: Sequence[str], env: Mapping[str, str], moment: float | None, whole: bool) -> tuple[bool, int]:
    """Whether the command ended by itself before, and how many of its processes outlived it."""
    process = subprocess.Popen(
        command, env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None  # for the type checker
    with contextlib.closing(process.stderr):
        try:
            _, said = process.communicate(timeout=moment)
            if process.returncode != 0:
                raise RuntimeError(f"exit code {process.returncode}: {said[-2000:]}")
            ended = True
        except subprocess.TimeoutExpired:
            (os.killpg if whole else os.kill)(process.pid, signal.SIGKILL)
            process.wait()
            ended = False
        except BaseException:  # we are stopped ourselves
            stop(process.pid)
            raise
    until = time.monotonic() + PATIENCE
    while members(process.pid) and time.monotonic() < until:
        time.sleep(0.05)
    orphans = len(members(process.pid))
    stop(process.pid)
    return ended, orphans
