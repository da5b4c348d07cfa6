# SPDX-License-Identifier: Apache-2.0
"""The service under load, against the screener on the same files: `python benchmarks/bench_serve.py --out FILE.json`.

Both are on this machine, with the clients that load the service, which take some of its time. Each round measures the
screener, with processes that read as the service has them, then the service with 1 to 16 clients, each of which sends
its next upload when it has its last answer. All uploads are PNG files of 256 to 1,024 pixels.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from scrd_fast.bench.machine import commit, machine, state, versions
from scrd_fast.bench.screen_made import Setup, make_images, make_run
from scrd_fast.bench.timing import cores
from scrd_fast.device import pick_device, usable_cores
from scrd_fast.files import write_atomically
from scrd_fast.screening.screener import Screener

CLIENTS = (1, 2, 4, 8, 16)
SIDES = (256, 512, 1024)  # pixels


def main() -> None:
    arguments = _arguments()
    given = {name: value for name, value in vars(arguments).items() if name != "out"}
    setup, device = Setup(threads=len(cores()), **given), pick_device(arguments.device)
    facts: dict[str, Any] = {
        "schema": "scrd_fast.serve/1",
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "setup": dataclasses.asdict(setup),
        "machine": machine(device),
        "versions": versions(),
        **commit(),
        "before": state(device),
    }
    print(f"{facts['machine'].get('cpu')}, {setup.threads} threads, load {os.getloadavg()[0]:.1f}")
    print(f"torch {facts['versions']['torch']}, {setup.teacher}, {setup.size} px, batches of {setup.batch_size}")
    with tempfile.TemporaryDirectory(prefix="scrd_fast_bench_") as folder:
        facts["rows"] = _measured(setup, Path(folder))
    facts["after"] = state(device)
    for row in facts["rows"]:
        latency = "" if row["p50_ms"] is None else ", ".join(f"p{p} {row[f'p{p}_ms']:7.1f} ms" for p in (50, 95, 99))
        print(f"{row['name']:11s} {row['images_per_second']:7.2f} images/s, {row['of_screener']:4.0%}  {latency}")
    if arguments.out is not None:
        write_atomically(arguments.out, (json.dumps(facts, indent=1) + "\n").encode())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default="resnet18")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _measured(setup: Setup, folder: Path) -> list[dict[str, Any]]:
    run, files = make_run(folder / "run", setup), []
    for side in SIDES:
        made = make_images(folder / f"images-{side}", -(-setup.images // len(SIDES)), side, setup.seed)
        files += sorted(made.iterdir())
    files = [files[i * 97 % len(files)] for i in range(setup.images)]  # sizes in turn
    screened: list[float] = []
    served: dict[int, list[tuple[float, list[float]]]] = {clients: [] for clients in CLIENTS}
    for _ in range(setup.rounds):
        screened.append(_screener_rate(run, files, setup))
        for clients, found in _service_rates(run, files, setup).items():
            served[clients].append(found)
    own = statistics.median(screened)
    rows = [{"name": "screener", "images_per_second": own, "of_screener": 1.0, "rounds": screened}]
    rows[0] |= {f"p{p}_ms": None for p in (50, 95, 99)}
    for clients, found in served.items():
        rates, latencies = [rate for rate, _ in found], sorted(x for _, times in found for x in times)
        rate = statistics.median(rates)
        row = {"name": f"{clients} client{'s' * (clients > 1)}", "images_per_second": rate, "of_screener": rate / own}
        row |= {"rounds": rates, "n": len(latencies)}
        rows.append(row | {f"p{p}_ms": 1e3 * latencies[int(p / 100 * (len(latencies) - 1))] for p in (50, 95, 99)})
    return rows


def _screener_rate(run: Path, files: list[Path], setup: Setup) -> float:
    options: dict[str, Any] = {"device": setup.device, "batch_size": setup.batch_size, "workers": usable_cores()}
    with Screener.from_pretrained(run, **options) as screener:
        list(screener.screen(files[: setup.batch_size]))  # its processes begin
        start = time.perf_counter()
        failed = sum(result.error is not None for result in screener.screen(files))
        seconds = time.perf_counter() - start
    assert not failed
    return len(files) / seconds


def _service_rates(run: Path, files: list[Path], setup: Setup) -> dict[int, tuple[float, list[float]]]:
    flags = ["--port", "0", "--device", setup.device, "--batch-size", str(setup.batch_size), "-q"]
    command = [sys.executable, "-m", "scrd_fast", "serve", str(run), *flags]
    contents = [file.read_bytes() for file in files]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = f"{process.stdout.readline().strip()}/score"
        try:
            with httpx.Client(timeout=300, limits=httpx.Limits(max_connections=None)) as client:

                def ask(content: bytes) -> float:
                    start = time.perf_counter()
                    client.post(url, files={"file": content}).raise_for_status()
                    return time.perf_counter() - start

                _load(ask, contents[: setup.batch_size], setup.batch_size)  # its processes begin
                return {clients: _load(ask, contents, clients) for clients in CLIENTS}
        finally:
            process.send_signal(signal.SIGTERM)


def _load(ask: Any, contents: list[bytes], clients: int) -> tuple[float, list[float]]:
    """Images a second, and the seconds of each."""
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        latencies = list(pool.map(ask, contents))
    return len(contents) / (time.perf_counter() - start), latencies


if __name__ == "__main__":
    main()
