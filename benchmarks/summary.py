# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of README.md and docs/benchmarks.md anew from benchmarks/results/*.json:

    python benchmarks/summary.py

An operator's numbers are those of its newest result that is finished and not quick.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scrd_fast.bench.results import SCHEMA, Results, load, seconds, share, unfinished
from scrd_fast.files import read_record

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")
BLOCK = re.compile(r"(<!-- made by benchmarks/summary.py: (\w+) -->\n).*?(<!-- until here -->)", flags=re.S)
EAGER, COMPILED, FLOORS = ("eager", "reference"), "torch.compile", ("read", "copy")
Row = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One case and variant: our row, and the rival's row of each column that has one."""

    ours: Row
    rivals: dict[str, Row]
    floor: Row | None

    @property
    def lead(self) -> float:
        """How many times faster than the fastest rival; below 1 is a loss."""
        times = [_time(row) for row in self.rivals.values() if row["status"] == "ok"]
        return min(times) / _time(self.ours) if times and self.ours["status"] == "ok" else float("nan")


def newest(folder: Path) -> dict[str, Results]:
    """By operator, sorted."""
    found: dict[str, Results] = {}
    for path in sorted(folder.glob("*.json")):
        if read_record(path).get("schema") != SCHEMA:
            continue
        run = load(path)
        for op in {row["op"] for row in run["rows"]} if not run["quick"] and not unfinished(run) else ():
            if op not in found or run["time"] > found[op]["time"]:
                found[op] = run
    return dict(sorted(found.items()))


def lines_of(run: Results, op: str) -> list[Line]:
    rows = [row for row in run["rows"] if row["op"] == op]
    return [_line(row, rows) for row in rows if row["contender"] == "scrd_fast"]


def _line(ours: Row, rows: Sequence[Row]) -> Line:
    others = [r for r in rows if r["case"] == ours["case"] and not r["contender"].startswith("scrd_fast")]
    columns: dict[str, list[Row]] = {}
    for name in dict.fromkeys(_rival(row) for row in others if row["contender"] not in FLOORS):
        column = "eager" if name in EAGER else "compiled" if name == COMPILED else "others"
        found = [row for row in others if _rival(row) == name]
        fitting = [row for row in found if row["variant"] == ours["variant"]]
        # Others' code that knows no such variant serves the same purpose with what it has.
        columns.setdefault(column, []).extend(fitting or (found if column == "others" else []))
    floor = [r for r in others if r["contender"] == ("copy" if ours["variant"] == "backward" else "read")]
    rivals = {name: min(found, key=_time) for name, found in columns.items() if found}
    return Line(ours, rivals, next(iter(floor), None))


def _rival(row: Row) -> str:
    """What follows a comma is a setting."""
    return str(row["contender"]).split(",")[0]


def _time(row: Row) -> float:
    return float(row["times"]["wall_warm"]["median"]) if row["status"] == "ok" else float("inf")


def _cell(line: Line, column: str) -> str:
    row = line.rivals.get(column)
    if row is None:
        return ""
    if row["status"] != "ok":
        return "wrong result" if row["status"] == "FAIL" else "given up" if "given up" in row["reason"] else "none"
    return seconds(_time(row)) + (f" ({row['contender']})" if column == "others" else "")


def _lead(line: Line) -> str:
    return "" if line.lead != line.lead else f"{line.lead:.3g}" + (" (a loss)" if line.lead < 1 else "")


def _roofline(line: Line) -> str:
    shares = line.ours["percent"] or {}
    best = max(shares, key=lambda name: shares[name], default="")
    return f"{share(shares[best])} ({best})" if best else ""


def _of_floor(line: Line) -> str:
    """The rate of our bytes by that of the floor's, in the same minutes."""
    if line.floor is None or "ok" not in (line.ours["status"], line.floor["status"]):
        return ""
    ours, floor = (row["work"]["bytes"] / _time(row) for row in (line.ours, line.floor))
    return share(100 * ours / floor)


def _name(line: Line) -> str:
    return ", ".join(part for part in (line.ours["case"], line.ours["variant"]) if part)


Column = tuple[str, Callable[[Line], str]]
COLUMNS: list[Column] = [
    ("`scrd_fast`", lambda line: seconds(_time(line.ours)) if line.ours["status"] == "ok" else line.ours["status"]),
    ("eager PyTorch", lambda line: _cell(line, "eager")),
    ("`torch.compile`", lambda line: _cell(line, "compiled")),
    ("others' code", lambda line: _cell(line, "others")),
    ("lead", _lead),
    ("of the roofline", _roofline),
]


def table(lines: Sequence[Line], columns: Sequence[Column]) -> list[str]:
    body = [[name for name, _ in columns], ["---"] * len(columns)]
    body += [[cell(line) for _, cell in columns] for line in lines]
    return ["| " + " | ".join(cells) + " |" for cells in body]


def overview(runs: dict[str, Results]) -> list[str]:
    """Of each operator the rows with the smallest, the middle and the largest lead."""
    chosen: list[Line] = []
    for op, run in runs.items():
        ranked = sorted((line for line in lines_of(run, op) if line.lead == line.lead), key=lambda line: line.lead)
        chosen += [ranked[i] for i in sorted({0, len(ranked) // 2, len(ranked) - 1})] if ranked else []
    names: Column = ("a call", lambda line: f"`{line.ours['op']}`: {_name(line)}")
    gpu = [] if any(run["machine"]["gpu"] for run in runs.values()) else ["", "**No GPU has been measured yet.**"]
    return [*table(chosen, [names, *COLUMNS]), "", *conditions(runs), *gpu]


def whole(runs: dict[str, Results], op: str) -> list[str]:
    """All rows of an operator."""
    lines = lines_of(runs[op], op)
    columns: list[Column] = [("a call", _name), *COLUMNS]
    if any(line.floor for line in lines):
        columns.append(("of a plain read or copy", _of_floor))
    return [f"`{op}`:", "", *table(lines, columns), "", *conditions({op: runs[op]})]


def conditions(runs: dict[str, Results]) -> list[str]:
    """A sentence for every run, with the operators that it measured."""
    found: dict[str, list[str]] = {}
    for op, run in runs.items():
        found.setdefault(_conditions(run), []).append(f"`{op}`")
    text = " ".join(f"{', '.join(ops)}: {facts}." for facts, ops in found.items())
    return textwrap.wrap(text, 120, break_on_hyphens=False)


def _conditions(run: Results) -> str:
    machine = run["machine"]
    flags = machine["flags"]
    level = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "neither AVX2 nor AVX-512"
    on = f"{machine['cpu']} with {level}, {run['threads']} threads"
    if machine["gpu"]:
        on = f"{machine['gpu']['name']}, {on}"
    return f"{on}, torch {run['versions']['torch']}, commit {(run['commit'] or 'unknown')[:7]}, {run['time'][:10]}"


def filled(text: str, runs: dict[str, Results]) -> str:
    """A page with its blocks written anew."""

    def block(match: re.Match[str]) -> str:
        made = overview(runs) if match[2] == "overview" else whole(runs, match[2])
        return f"{match[1]}\n" + "\n".join(made) + f"\n\n{match[3]}"

    return BLOCK.sub(block, text)


def main() -> None:
    runs = newest(ROOT / "benchmarks" / "results")
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8"), runs), encoding="utf-8")


if __name__ == "__main__":
    main()
