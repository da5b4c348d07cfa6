# SPDX-License-Identifier: Apache-2.0
"""A run's results as text, from its JSON: every row, with those that lose, fail or could not run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["render"]

UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
IDLE_LOAD = 0.5


def seconds(value: float) -> str:
    """Three digits and a unit.

    >>> seconds(0.01234), seconds(3.2e-6), seconds(0.0)
    ('12.3 ms', '3.2 us', '0 s')
    """
    size, unit = next((u for u in UNITS if value >= u[0]), (1.0, "s"))
    return f"{value / size:.3g} {unit}"


def render(results: dict[str, Any]) -> str:
    lines = _header(results)
    cases = list(dict.fromkeys((row["op"], row["case"]) for row in results["rows"]))
    for op, case in cases:
        rows = [row for row in results["rows"] if (row["op"], row["case"]) == (op, case)]
        lines += ["", f"{op}: {case}, {' x '.join(map(str, rows[0]['shape']))} {rows[0]['dtype']}"]
        lines += _case(rows)
    failed = [row for row in results["rows"] if row["status"] == "FAIL"]
    if results["left_out"]:
        lines += ["", "left out for lack of time: " + ", ".join(results["left_out"])]
    if failed:
        lines += ["", f"{len(failed)} rows FAIL"]
    return "\n".join(lines)


def _header(results: dict[str, Any]) -> list[str]:
    machine, versions = results["machine"], results["versions"]
    dirty = {True: ", with changes", False: "", None: ""}[results["dirty"]]
    lines = [
        f"processor: {machine['cpu']}, {machine['cores']} cores, {results['threads']} threads, "
        f"flags {' '.join(machine['flags']) or 'unknown'}",
        "versions: " + ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        f"commit: {results['commit'] or 'unknown'}{dirty}; {results['time']}; seed {results['seed']}"
        + ("; quick" if results["quick"] else ""),
        f"load before and after: {results['before']['load_1min']}, {results['after']['load_1min']}{_busy(results)}",
        *_peaks(results["peaks"]),
    ]
    if machine["gpu"]:
        lines.insert(0, f"GPU: {machine['gpu']['name']}, sm {machine['gpu']['sm']}")
        for when in ("before", "after"):
            facts = results[when].get("gpu", {})
            lines.append(f"GPU {when}: " + ", ".join(f"{name} {value}" for name, value in facts.items()))
    return lines


def _busy(results: dict[str, Any]) -> str:
    """What ran here before the measurement began was not ours."""
    load = results["before"]["load_1min"]
    return "; BUSY: other processes are in these numbers" if load is not None and load > IDLE_LOAD else ""


def _peaks(peaks: dict[str, Any]) -> list[str]:
    return [
        f"peaks of {name}: copy {max(p['copy'].values()) / 1e9:.3g} GB/s at best, products "
        + ", ".join(f"float{bits} {rate / 1e9:.4g} GFLOP/s" for bits, rate in p["flops"].items())
        for name, p in peaks.items()
    ]


def _case(rows: Sequence[dict[str, Any]]) -> list[str]:
    device = any("device_warm" in row["times"] for row in rows)
    head = ["contender", "variant", "on", "warm", "p20-p80", "n", "cold"]
    head += ["device warm", "device cold"] if device else []
    head += ["M samples/s", "x opensimplex+numba", "x reference", "roofline", "compile"]
    body = [head]
    notes = {}
    for i, row in enumerate(rows):
        if row["status"] != "ok":
            notes[i + 1] = f"  {row['status']}: {row['reason']}"
        body.append(_cells(row, device))
    widths = [max(len(line[column]) for line in body) for column in range(len(head))]
    lines = []
    for i, line in enumerate(body):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        lines.append("  " + text + notes.get(i, ""))
    return lines


def _cells(row: dict[str, Any], device: bool) -> list[str]:
    where = f"{row['device']} {row['isa'] or ''}".strip()
    cells = [row["contender"], row["variant"], where]
    if row["status"] != "ok":
        return cells + [""] * (9 + 2 * device)
    times, ratios = row["times"], row["ratios"]

    def time(column: str) -> str:
        return seconds(times[column]["median"]) if column in times else ""

    def ratio(name: str) -> str:
        return f"{ratios[name]:.3g}" if name in ratios else ""

    warm = times["wall_warm"]
    cells += [time("wall_warm"), f"{seconds(warm['p20'])}-{seconds(warm['p80'])}", str(warm["n"]), time("wall_cold")]
    if device:
        note = f" ({row['how']})" if "device_warm" in times else ""
        cells += [time("device_warm") + note, time("device_cold")]
    percent = row["percent"] or {}
    share = max(percent, key=lambda name: percent[name]) if percent else ""
    cells += [
        f"{row['rate'] / 1e6:.3g}" if row["rate"] else "",
        ratio("opensimplex+numba"),
        ratio("reference"),
        f"{percent[share]:.2g} % {share}" if share else "",
        seconds(row["compile_s"]) if row["compile_s"] is not None else "",
    ]
    return cells
