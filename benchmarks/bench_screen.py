# SPDX-License-Identifier: Apache-2.0
"""Screening against the ways there are beside it: `python benchmarks/bench_screen.py --out FILE.json`.

With --memory, --kills N or --fuzz N, another question about `scrd-fast screen`, with a small model.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scrd_fast.bench.fuzz import fuzz
from scrd_fast.bench.machine import commit, machine, state, versions
from scrd_fast.bench.screen import CONTENDERS, measure
from scrd_fast.bench.screen_anomalib import RIVALS
from scrd_fast.bench.screen_limits import kills, memory
from scrd_fast.bench.screen_made import Setup, make_images
from scrd_fast.bench.timing import cores
from scrd_fast.data.reading import EXTENSIONS
from scrd_fast.device import pick_device
from scrd_fast.files import write_atomically

SMALL = {"teacher": "resnet18", "size": 64, "images": 600}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for field in dataclasses.fields(Setup):
        kind = {"str": str, "int": int}[str(field.type)]
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, help=f"default: {field.default}")
    parser.add_argument("--data", type=Path, help="folder of images, of which the first are taken; default: textures")
    parser.add_argument("--anomalib", type=Path, help="the Python of an environment with anomalib")
    parser.add_argument("--only", nargs="+", default=[""], help="contenders whose names have one of these texts")
    parser.add_argument("--out", type=Path)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--memory", nargs="*", type=int, metavar="FILES", help="over so many files; default: 1000 20000")
    mode.add_argument("--kills", type=int, metavar="N")
    mode.add_argument("--fuzz", type=int, metavar="N", help="broken files of each format")
    parser.add_argument("--time-limit", type=float, default=1800.0, help="seconds that the run of --fuzz may take")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # not without ending what was started
    small = any(x is not None for x in (arguments.memory, arguments.kills, arguments.fuzz))
    given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Setup)}
    given = {name: value for name, value in given.items() if value is not None}
    setup = Setup(**{"threads": len(cores()), **(SMALL if small else {}), **given})
    device = pick_device(setup.device)
    facts: dict[str, Any] = {
        "schema": "scrd_fast.screen/1",
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "setup": dataclasses.asdict(setup),
        "machine": machine(device),
        "versions": versions(),
        **commit(),
        "before": state(device),
    }
    print(f"{facts['machine'].get('cpu')}, {setup.threads} threads, {facts['machine'].get('gpu') or 'no GPU'}")
    print(f"torch {facts['versions']['torch']}, {setup.teacher}, {setup.size} px, batch {setup.batch_size}")
    with tempfile.TemporaryDirectory(prefix="scrd_fast_bench_") as folder:
        facts |= _measured(arguments, setup, Path(folder))
    facts["after"] = state(device)
    if arguments.out is not None:
        write_atomically(arguments.out, (json.dumps(facts, indent=1) + "\n").encode())


def _log(text: str) -> None:
    print(text, file=sys.stderr)


def _measured(arguments: argparse.Namespace, setup: Setup, folder: Path) -> dict[str, Any]:
    if arguments.memory is not None:
        rows = memory(setup, arguments.memory or [1000, 20000], folder, _log)
        _print_memory(rows)
        return {"mode": "memory", "rows": rows}
    if arguments.kills is not None:
        found = kills(setup, arguments.kills, folder, _log)
        print(", ".join(f"{name.replace('_', ' ')} {x}" for name, x in found.items() if isinstance(x, int)))
        return {"mode": "kills", **found}
    if arguments.fuzz is not None:
        found = fuzz(setup, arguments.fuzz, folder, arguments.time_limit, _log)
        _print_fuzz(found)
        return {"mode": "fuzz", **found}
    contenders = [name for name in CONTENDERS if any(text in name for text in arguments.only)]
    if arguments.anomalib is None:
        contenders = [name for name in contenders if name not in RIVALS]
    rows = measure(setup, _images(arguments.data, setup, folder), contenders, arguments.anomalib, _log)
    _print_rates(rows)
    return {"mode": "speed", "data": "textures" if arguments.data is None else arguments.data.name, "rows": rows}


def _images(data: Path | None, setup: Setup, folder: Path) -> Path:
    if data is None:
        return make_images(folder / "images", setup.images, seed=setup.seed)
    files = [path for path in sorted(data.rglob("*")) if path.suffix.lower() in EXTENSIONS][: setup.images]
    (folder / "images").mkdir()
    for number, path in enumerate(files):
        shutil.copy(path, folder / "images" / f"{number:05d}{path.suffix.lower()}")
    return folder / "images"


def _print_rates(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        faster = f", {row['times_faster']:5.2f} x" if row["times_faster"] else ""
        share = f", {row['share_of_model_only']:4.0%} of the model only" if row["share_of_model_only"] else ""
        print(
            f"{row['contender']:32s} {row['images_per_second']:8.2f} images/s "
            f"({row['images_per_second_whole']:7.2f} with the start){faster}; {row['peak_bytes'] / 1e9:5.2f} GB{share}"
        )
        if stages := row.get("seconds_by_stage"):
            print("    " + ", ".join(f"{stage} {x:.2f} s" for stage, x in stages.items()))
        if "map_difference" in row:
            of_maps, of_scores = row["map_difference"], row["score_difference"]
            print(f"    agrees with ours: maps of the same pixels to {of_maps:.1e}, scores of files to {of_scores:.1e}")
        if "layers" in row:
            memory_bank = f", memory {row['memory_bank']}" if row["memory_bank"] else ""
            print(f"    random weights, not trained, {', '.join(row['layers'])}{memory_bank}")


def _print_memory(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        peak, second, last = (row[f"{name}_bytes"] / 1e6 for name in ("peak", "second_quarter", "last_quarter"))
        print(
            f"{row['images']:7d} images: peak {peak:.0f} MB of all processes, median of the second quarter "
            f"{second:.0f} MB, of the last {last:.0f} MB; {row['seconds']:.0f} s"
        )


def _print_fuzz(found: dict[str, Any]) -> None:
    for name, counts in found["formats"].items():
        print(f"{name:16s} " + ", ".join(f"{n} {what}" for what, n in sorted(counts.items())))
    ended = "ended" if found["ended"] else "did NOT end well"
    print(
        f"{found['inputs']} inputs in {found['seconds']:.0f} s, {ended}, exit code {found['exit_code']}; "
        f"peak {found['peak_bytes'] / 1e6:.0f} MB of all processes; "
        f"without a row {len(found['without_a_row'])}; traceback {found['traceback']}; "
        f"intact but not read: {', '.join(found['intact_but_not_read']) or 'none'}"
    )


if __name__ == "__main__":
    main()
