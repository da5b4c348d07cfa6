# SPDX-License-Identifier: Apache-2.0
"""Time and memory of a training step, ours against the authors': `python benchmarks/bench_train.py --out FILE.json`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

from scrd_fast.bench.machine import commit, machine, state, versions
from scrd_fast.bench.timing import cores
from scrd_fast.bench.train import Setup, measure
from scrd_fast.device import pick_device
from scrd_fast.files import write_atomically


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for field in dataclasses.fields(Setup):
        kind = {"str": str, "int": int}[str(field.type)]
        default = {"device": "auto", "threads": len(cores())}.get(field.name, field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=default)
    parser.add_argument("--out", type=Path)
    arguments = vars(parser.parse_args())
    out = arguments.pop("out")
    device = pick_device(arguments["device"])
    setup = Setup(**arguments | {"device": device.type})
    facts: dict[str, Any] = {
        "schema": "scrd_fast.train/1",
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "setup": dataclasses.asdict(setup),
        "machine": machine(device),
        "versions": versions(),
        **commit(),
        "before": state(device),
    }
    rows = measure(setup, lambda text: print(text, file=sys.stderr))
    facts |= {"after": state(device), "rows": rows}
    print(f"{facts['machine'].get('cpu')}, {setup.threads} threads, {facts['machine'].get('gpu') or 'no GPU'}")
    print(f"torch {facts['versions']['torch']}, {setup.teacher}, {setup.size} px, batch {setup.batch_size}")
    for row in rows:
        print(
            f"{row['contender']:40s} {row['seconds']:8.3f} s a step, {row['times faster']:5.2f} x; "
            f"{row['peak_bytes'] / 1e9:6.2f} GB, {row['memory share']:4.0%}; "
            f"{row['floor_share']:4.0%} of the matmul rate "
            f"({row['matmul_rate'] / 1e9:.0f} GFLOP/s, {row['matmul_side']} rows)"
        )
        if row["budget"]:
            total = sum(row["budget"].values())
            print("    " + ", ".join(f"{part} {x / total:.0%}" for part, x in row["budget"].items() if x))
    if out is not None:
        write_atomically(out, (json.dumps(facts, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
