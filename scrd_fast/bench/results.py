# SPDX-License-Identifier: Apache-2.0
"""A run's JSON, and what is made from the JSON alone: comparison, CSV and plot."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

from scrd_fast.bench.harness import Row
from scrd_fast.errors import MissingExtraError, ScrdFastError
from scrd_fast.files import nearest, write_atomically

__all__ = ["COLUMNS", "SCHEMA", "compare", "load", "plain", "plot", "save", "to_csv", "unfinished"]

SCHEMA = "scrd_fast.bench/1"
COLUMNS = ("wall_warm", "wall_cold", "device_warm", "device_cold")
STATISTICS = ("median", "p20", "p80", "n")
KEY = ("op", "case", "contender", "variant", "device", "dtype")
Results = dict[str, Any]


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


def _by_key(results: Results) -> dict[tuple[str, ...], dict[str, Any]]:
    return {tuple(row[name] for name in KEY): row for row in results["rows"]}


def compare(before: Results, after: Results, tolerance: float) -> tuple[list[str], bool]:
    """What changed by more than `tolerance` (a share of the median), as lines, and whether anything got worse:
    a time that grew, or a row that was ok and is no longer."""
    lines, worse = _differences(before, after), False
    new = _by_key(after)
    for key, old in _by_key(before).items():
        if old["status"] != "ok":
            continue
        row, name = new.get(key), ", ".join(part for part in key if part)
        if row is None or row["status"] != "ok":
            worse = True
            lines.append(f"worse: {name}: was ok, is {row['status'] + ' (' + row['reason'] + ')' if row else 'absent'}")
            continue
        for column in COLUMNS:
            if column in old["times"] and column in row["times"]:
                a, b = old["times"][column]["median"], row["times"][column]["median"]
                if b > a * (1 + tolerance):
                    worse = True
                    lines.append(f"worse: {name}: {column} {b / a:.2f} times {a:.3g} s")
                elif b * (1 + tolerance) < a:
                    lines.append(f"better: {name}: {column} {a / b:.2f} times faster than {a:.3g} s")
    return lines, worse


def _differences(before: Results, after: Results) -> list[str]:
    """What makes the two runs hard to compare."""
    lines = [
        f"note: the {name} run was not finished" for name, run in (("old", before), ("new", after)) if unfinished(run)
    ]
    for title, a, b in (
        ("processor", before["machine"]["cpu"], after["machine"]["cpu"]),
        ("GPU", before["machine"]["gpu"], after["machine"]["gpu"]),
        ("threads", before["threads"], after["threads"]),
        ("versions", before["versions"], after["versions"]),
    ):
        if a != b:
            lines.append(f"note: different {title}: {a} and {b}")
    return lines


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
        line["unit"] = _unit(row)
        line["shape"] = "x".join(map(str, row["shape"]))
        for column, values in row["times"].items():
            line |= {f"{column}_{statistic}": values[statistic] for statistic in STATISTICS}
        line |= {f"percent_{name}": value for name, value in (row["percent"] or {}).items()}
        writer.writerow(line)
    return out.getvalue()


def _unit(row: dict[str, Any]) -> str:
    """Of the rate. Results of before there were several say nothing."""
    return str(row.get("unit", "octave samples"))


def plot(results: Results, path: Path) -> None:
    """Bars of the rates, a panel a case, those of one unit on one axis; a row without a time has a name and no bar."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "model") from None
    cases = list(dict.fromkeys((row["op"], row["case"]) for row in results["rows"]))
    groups = [[r for r in results["rows"] if (r["op"], r["case"]) == case] for case in cases]
    figure = Figure(figsize=(9, sum(1 + 0.28 * len(group) for group in groups)), layout="constrained")
    axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[3 + len(group) for group in groups])[:, 0]
    last = {_unit(group[0]): axis for axis, group in zip(axes, groups, strict=True)}
    for axis, case, group in zip(axes, cases, groups, strict=True):
        names = [f"{r['contender']} {r['variant']} ({r['device']})" for r in group]
        rates = [r["rate"] or 0 for r in group]
        axis.barh(range(len(group)), rates)
        axis.set_yticks(range(len(group)), names, fontsize=7)
        axis.invert_yaxis()
        for i, row in enumerate(group):
            if row["status"] != "ok":
                axis.text(0.01, i, row["status"], transform=axis.get_yaxis_transform(), va="center", fontsize=7)
        axis.set_title(f"{case[0]}: {case[1]}", fontsize=9)
        unit = _unit(group[0])
        if axis is last[unit]:
            axis.set_xlabel(f"{unit} per second (warm, wall time)")
        else:
            axis.sharex(last[unit])
            axis.tick_params(labelbottom=False)
        if any(row["rate"] for row in group):
            axis.set_xscale("log")
    facts = (results["machine"]["gpu"] or {}).get("name") or results["machine"]["cpu"]
    figure.suptitle(f"{facts}, {results['threads']} threads, torch {results['versions']['torch']}", fontsize=9)
    figure.savefig(path, dpi=120)
