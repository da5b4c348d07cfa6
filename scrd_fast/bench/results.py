# SPDX-License-Identifier: Apache-2.0
"""A run's JSON, and the CSV that is made from it."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

from scrd_fast.bench.harness import Row
from scrd_fast.errors import ScrdFastError
from scrd_fast.files import nearest, write_atomically

__all__ = [
    "COLUMNS",
    "KEY",
    "SCHEMA",
    "Results",
    "load",
    "plain",
    "save",
    "seconds",
    "share",
    "to_csv",
    "unfinished",
    "unit_of",
]

SCHEMA = "scrd_fast.bench/1"
COLUMNS = ("wall_warm", "wall_cold", "device_warm", "device_cold")
STATISTICS = ("median", "p20", "p80", "n")
KEY = ("op", "case", "contender", "variant", "device", "dtype")
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
Results = dict[str, Any]


def seconds(value: float) -> str:
    """Three digits and a unit.

    >>> seconds(0.01234), seconds(3.2e-6), seconds(0.0)
    ('12.3 ms', '3.2 us', '0 s')
    """
    size, unit = next((u for u in UNITS if value >= u[0]), (1.0, "s"))
    return f"{value / size:.3g} {unit}"


def share(percent: float) -> str:
    """Two digits, or all before the point.

    >>> share(3.14), share(41.7), share(101.2)
    ('3.1 %', '42 %', '101 %')
    """
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"


def plain(row: Row) -> dict[str, Any]:
    """A row as JSON has it. Whatever is not ok has no time, whoever filled it."""
    found = dataclasses.asdict(row)
    if row.percent is not None:
        found["percent"] = row.percent._asdict()
    # JSON has no infinity, and a NaN's error is infinite.
    found["errors"] = [error if error < float("inf") else None for error in row.errors]
    if row.status != "ok":
        found |= {"times": {}, "compile_s": None, "rate": None, "percent": None, "ratios": {}}
    return found


def save(path: Path, results: Results) -> None:
    write_atomically(path, (json.dumps(results, indent=1, allow_nan=False) + "\n").encode())


def load(path: Path) -> Results:
    """ScrdFastError where the file is not a result of this schema."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScrdFastError(f"{path}: {error.strerror}{nearest(path)}") from None
    except ValueError as error:
        raise ScrdFastError(f"{path}: not JSON: {error}") from None
    found = results.get("schema") if isinstance(results, dict) else None
    if found != SCHEMA:
        raise ScrdFastError(f"{path}: expected a benchmark result of schema {SCHEMA}, got {found!r}")
    return dict(results)


def unfinished(results: Results) -> bool:
    """Whether the run was killed after one of its cases."""
    return not results.get("finished", True)


def to_csv(results: Results) -> str:
    """One line a row; times in seconds, empty where there is none."""
    facts = {
        "commit": results["commit"],
        "machine": (results["machine"]["gpu"] or {}).get("name") or results["machine"]["cpu"],
        "threads": results["threads"],
        "torch": results["versions"]["torch"],
    }
    times = [f"{column}_{statistic}" for column in COLUMNS for statistic in STATISTICS]
    ratios = sorted({name for row in results["rows"] for name in row["ratios"]})
    shares = ["percent_bytes", "percent_flops", "percent_instructions"]
    own = [*KEY, "shape", "backend", "isa", "status", "reason"]
    out = io.StringIO()
    writer = csv.DictWriter(
        out, [*own, *times, "compile_s", "rate", "unit", *shares, *ratios, *facts], lineterminator="\n"
    )
    writer.writeheader()
    for row in results["rows"]:
        line = {name: row[name] for name in (*own, "compile_s", "rate")} | row["ratios"] | facts
        line["unit"] = unit_of(row)
        line["shape"] = "x".join(map(str, row["shape"]))
        for column, values in row["times"].items():
            line |= {f"{column}_{statistic}": values[statistic] for statistic in STATISTICS}
        line |= {f"percent_{name}": value for name, value in (row["percent"] or {}).items()}
        writer.writerow(line)
    return out.getvalue()


def unit_of(row: dict[str, Any]) -> str:
    """Of the rate. Results of before there were several say nothing."""
    return str(row.get("unit", "octave samples"))
