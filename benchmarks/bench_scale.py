# SPDX-License-Identifier: Apache-2.0
"""What of a screening run grows with the number of inputs: `python benchmarks/bench_scale.py 1000000 --out FILE.json`.

The manifest, the look at finished parts, and the worklist, of made names and rows: no image is read, no model runs.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from scrd_fast.bench.machine import commit, machine, state, versions
from scrd_fast.calibration import Decision
from scrd_fast.data.frames import Source
from scrd_fast.files import write_atomically
from scrd_fast.screening.inputs import Input
from scrd_fast.screening.manifest import MANIFEST, Manifest
from scrd_fast.screening.report import write_worklist
from scrd_fast.screening.writers import RESULTS, SCHEMA, is_finished, part_path, write_part

RUN_ID = "0" * 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="+")
    parser.add_argument("--shard-size", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    cpu = torch.device("cpu")
    facts: dict[str, Any] = {
        "schema": "scrd_fast.scale/1",
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(cpu),
        "versions": versions(),
        **commit(),
        "before": state(cpu),
        "shard_size": arguments.shard_size,
        "rows": [],
    }
    for count in sorted(arguments.rows):
        facts["rows"].append(_measured(count, arguments.shard_size))
        facts["after"] = state(cpu)
        print(json.dumps(facts["rows"][-1]), flush=True)
        if arguments.out is not None:
            write_atomically(arguments.out, (json.dumps(facts, indent=1) + "\n").encode())


def _measured(count: int, shard_size: int) -> dict[str, Any]:
    found: dict[str, Any] = {"inputs": count}
    with tempfile.TemporaryDirectory(prefix="scrd_fast_scale_") as folder:
        out = Path(folder)
        (out / RESULTS).mkdir()
        clock = _Clock(found)
        manifest = clock("manifest_write", lambda: Manifest.create(out / MANIFEST, _inputs(count), shard_size))
        clock("manifest_open", lambda: Manifest.open(out / MANIFEST))
        clock("manifest_shard", lambda: manifest.shard(manifest.shards // 2))
        for number in range(manifest.shards):
            _write(out, number, range(number * shard_size, min((number + 1) * shard_size, count)))
        clock("parts_look", lambda: sum(is_finished(part_path(out, k), RUN_ID) for k in range(manifest.shards)))
        with _Temporary() as temporary:
            clock("worklist", lambda: write_worklist(out, Decision(0.95)))
        found["worklist_temporary_bytes"] = temporary.most
        found["manifest_bytes"] = (out / MANIFEST).stat().st_size
        found["worklist_bytes"] = (out / "worklist.csv").stat().st_size
        found["parts_bytes"] = sum(path.stat().st_size for path in (out / RESULTS).iterdir())
    return found


class _Clock:
    """Notes the processor and wall seconds of a step, and the most memory of the process by then."""

    def __init__(self, found: dict[str, Any]) -> None:
        self._found = found

    def __call__(self, name: str, step: Callable[[], Any]) -> Any:
        wall, own = time.perf_counter(), time.process_time()
        result = step()
        self._found[f"{name}_seconds"] = round(time.perf_counter() - wall, 3)
        self._found[f"{name}_cpu_seconds"] = round(time.process_time() - own, 3)
        self._found[f"{name}_peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return result


class _Temporary:
    """The largest size that nameless files of this process reach."""

    def __init__(self) -> None:
        self.most, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> _Temporary:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            sizes = 0
            for path in Path("/proc/self/fd").iterdir():
                try:
                    sizes += path.stat().st_size if "(deleted)" in str(path.readlink()) else 0
                except OSError:
                    continue
            self.most = max(self.most, sizes)


def _name(number: int) -> str:
    return f"/archive/{number // 1000:06d}/study-{number // 4:08d}/{number:09d}.dcm"


def _inputs(count: int) -> Iterator[Input]:
    return (Input(Source(Path(_name(number)))) for number in range(count))


def _write(out: Path, number: int, inputs: range) -> None:
    """A part of one picture an input, with values in every column that a DICOM file without a map has."""
    n, generator = len(inputs), np.random.default_rng(number)
    known: dict[str, Any] = {
        "run_id": [RUN_ID] * n,
        "input_id": [f"{i:016x}" for i in inputs],
        "sample_id": [f"{i:016x}-0" for i in inputs],
        "path": [_name(i) for i in inputs],
        "frame": np.zeros(n, np.int32),
        "status": ["ok"] * n,
        "decision": ["normal"] * n,
        "flags": [[]] * n,
        "burned_in": ["no"] * n,
        "shown_by": ["window"] * n,
        "study": [f"{i // 4:016x}" for i in inputs],
    }
    columns = []
    for field in SCHEMA:
        values = known.get(field.name)
        if values is None and pa.types.is_float64(field.type):
            values = generator.random(n)
        elif values is None and pa.types.is_int32(field.type):
            values = generator.integers(0, 2000, n, dtype=np.int32)
        columns.append(pa.nulls(n, field.type) if values is None else pa.array(values, field.type))
    write_part(part_path(out, number), [pa.Table.from_arrays(columns, schema=SCHEMA)], {"run_id": RUN_ID})


if __name__ == "__main__":
    main()
