# SPDX-License-Identifier: Apache-2.0
"""Screening by Ray against the local engine on this machine: `python benchmarks/bench_ray.py --out FILE.json`.

Each contender is a command of its own, with one and with two workers, in rounds whose order alternates. Its rate is
that of the shards after its workers' first ones; `whole` is the command with its start.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import ray

from scrd_fast.bench.machine import commit, machine, state, versions
from scrd_fast.bench.screen_made import Setup, make_images, make_run, screen_command
from scrd_fast.bench.timing import cores
from scrd_fast.device import pick_device
from scrd_fast.files import write_atomically
from scrd_fast.screening.writers import RESULTS, read_part

CONTENDERS = [(engine, workers) for workers in (1, 2) for engine in ("local", "ray")]


def main() -> None:
    arguments = _arguments()
    given = {name: value for name, value in vars(arguments).items() if name not in ("shard_size", "out")}
    setup, device = Setup(threads=len(cores()), **given), pick_device("cpu")
    facts: dict[str, Any] = {
        "schema": "scrd_fast.ray/1",
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "setup": dataclasses.asdict(setup) | {"shard_size": arguments.shard_size},
        "machine": machine(device),
        "versions": versions() | {"ray": ray.__version__},
        **commit(),
        "before": state(device),
    }
    print(f"{facts['machine'].get('cpu')}, {setup.threads} threads, load {os.getloadavg()[0]:.1f}")
    print(f"torch {facts['versions']['torch']}, ray {ray.__version__}, {setup.teacher}, {setup.size} px")
    with tempfile.TemporaryDirectory(prefix="scrd_fast_bench_") as folder:
        facts["rows"] = _measured(setup, arguments.shard_size, Path(folder))
    facts["after"] = state(device)
    for row in facts["rows"]:
        print(
            f"{row['engine']:5s} {row['workers']} workers: {row['images_per_second']:7.2f} images/s "
            f"({row['images_per_second_whole']:7.2f} whole), {row['of_local']:.0%} of local"
        )
    if arguments.out is not None:
        write_atomically(arguments.out, (json.dumps(facts, indent=1) + "\n").encode())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default="resnet18")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shard-size", type=int, default=32)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _measured(setup: Setup, shard_size: int, folder: Path) -> list[dict[str, Any]]:
    run, images = make_run(folder / "run", setup), make_images(folder / "images", setup.images, seed=setup.seed)
    found: dict[tuple[str, int], list[tuple[float, float]]] = {contender: [] for contender in CONTENDERS}
    tables = []
    for turn in range(setup.rounds):
        for engine, workers in CONTENDERS[:: 1 if turn % 2 == 0 else -1]:
            out = folder / f"{turn}-{engine}-{workers}"
            options = (
                "--engine",
                engine,
                "--devices",
                str(workers),
                "--shard-size",
                str(shard_size),
                "--overlays",
                "0",
            )
            begun = time.perf_counter()
            subprocess.run(screen_command(run, images, out, setup, "32", *options), check=True, capture_output=True)
            whole = setup.images / (time.perf_counter() - begun)
            found[engine, workers].append((_rate(out, workers), whole))
            tables.append(_table(out))
    differing = sum(table != tables[0] for table in tables)
    print(f"{differing} of {len(tables)} tables are others than the first")
    rows = []
    for (engine, workers), rates in found.items():
        rate, whole = (statistics.median(values) for values in zip(*rates, strict=True))
        local = statistics.median(rate for rate, _ in found["local", workers])
        rows.append(
            {"engine": engine, "workers": workers, "images_per_second": rate, "images_per_second_whole": whole}
            | {"of_local": rate / local, "rounds": [{"rate": a, "whole": b} for a, b in rates]}
        )
    return rows


def _rate(out: Path, workers: int) -> float:
    """Images a second from the moment when so many parts were there."""
    parts = sorted((path.stat().st_mtime_ns, len(read_part(path, ["path"]))) for path in (out / RESULTS).iterdir())
    seconds = (parts[-1][0] - parts[workers - 1][0]) / 1e9
    return sum(rows for _, rows in parts[workers:]) / seconds


def _table(out: Path) -> list[dict[str, Any]]:
    return [row | {"run_id": ""} for path in sorted((out / RESULTS).iterdir()) for row in read_part(path)]


if __name__ == "__main__":
    main()
