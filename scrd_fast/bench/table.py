# SPDX-License-Identifier: Apache-2.0
"""A run's results as text, from its JSON: every row, with those that lose, fail or could not run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from scrd_fast.bench.results import seconds, share, unfinished, unit_of

__all__ = ["render"]

IDLE_LOAD = 0.5


def _samples(row: dict[str, Any]) -> str:
    return f"{row['rate'] / 1e6:.3g}" if row["rate"] else ""


def _per_image(row: dict[str, Any]) -> str:
    return seconds(1 / row["rate"]) if row["rate"] else ""


def _gigabytes(row: dict[str, Any]) -> str:
    """From the same time as the share of the peak."""
    times = row["times"]
    return f"{row['work']['bytes'] / times.get('device_warm', times['wall_warm'])['median'] / 1e9:.3g}"


Rate = tuple[str, Callable[[dict[str, Any]], str]]
# The columns that a case's unit has, and what a row has in them.
RATES: dict[str, list[Rate]] = {
    "octave samples": [("M samples/s", _samples)],
    "images": [("per image", _per_image), ("GB/s", _gigabytes)],
}


def _rates(unit: str) -> list[Rate]:
    return RATES.get(unit, [(f"M {unit}/s", _samples)])


def render(results: dict[str, Any]) -> str:
    lines = _header(results)
    cases = list(dict.fromkeys((row["op"], row["case"]) for row in results["rows"]))
    for op, case in cases:
        rows = [row for row in results["rows"] if (row["op"], row["case"]) == (op, case)]
        lines += ["", f"{op}: {case}, {' x '.join(map(str, rows[0]['shape']))} {rows[0]['dtype']}"]
        lines += _case(rows)
    failed = [row for row in results["rows"] if row["status"] == "FAIL"]
    if results["left_out"]:
        why = "UNFINISHED, the run ended before" if unfinished(results) else "left out for lack of time"
        lines += ["", f"{why}: " + ", ".join(results["left_out"])]
    elif unfinished(results):
        lines += ["", "UNFINISHED, the run ended before its last words"]
    if failed:
        lines += ["", f"{len(failed)} rows FAIL"]
    return "\n".join(lines)


def _header(results: dict[str, Any]) -> list[str]:
    machine, versions = results["machine"], results["versions"]
    dirty = {True: ", with changes", False: "", None: ""}[results["dirty"]]
    lines = [
        f"processor: {machine['cpu']}, {machine['cores']} cores, {results['threads']} threads, "
        f"flags {' '.join(machine['flags']) or 'unknown'}",
        f"versions: {_versions(versions)}",
        *(f"environment of {name}: {_versions(found)}" for name, found in results.get("environments", {}).items()),
        f"commit: {results['commit'] or 'unknown'}{dirty}; {results['time']}; seed {results['seed']}"
        + ("; quick: few cases, short turns, no torch.compile" if results["quick"] else ""),
        f"load before and after: {results['before']['load_1min']}, {results['after']['load_1min']}{_busy(results)}",
        *_peaks(results["peaks"]),
    ]
    if machine["gpu"]:
        lines.insert(0, f"GPU: {machine['gpu']['name']}, sm {machine['gpu']['sm']}")
        for when in ("before", "after"):
            facts = results[when].get("gpu", {})
            lines.append(f"GPU {when}: " + ", ".join(f"{name} {value}" for name, value in facts.items()))
    return lines


def _versions(found: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items() if version)


def _busy(results: dict[str, Any]) -> str:
    """What ran here before the measurement began was not ours."""
    load = results["before"]["load_1min"]
    return "; BUSY: other processes are in these numbers" if load is not None and load > IDLE_LOAD else ""


def _peaks(peaks: dict[str, Any]) -> list[str]:
    return [
        f"peaks of {name}: copy {max(p['copy'].values()) / 1e9:.3g} GB/s at best, "
        + (f"read {max(p['read'].values()) / 1e9:.3g} GB/s at best, " if p.get("read") else "")
        + "products "
        + ", ".join(f"float{bits} {rate / 1e9:.4g} GFLOP/s" for bits, rate in p["flops"].items())
        for name, p in peaks.items()
    ]


def _case(rows: Sequence[dict[str, Any]]) -> list[str]:
    device = any("device_warm" in row["times"] for row in rows)
    head = ["contender", "variant", "on", "warm", "p20-p80", "n", "cold"]
    head += ["device warm", "device cold"] if device else []
    rivals = list(dict.fromkeys(name for row in rows for name in row["ratios"]))
    rates = _rates(unit_of(rows[0]))
    head += [name for name, _ in rates] + [f"x {name}" for name in rivals] + ["roofline", "compile"]
    body = [head]
    notes = {}
    for i, row in enumerate(rows):
        if row["status"] != "ok":
            notes[i + 1] = f"  {row['status']}: {row['reason']}"
        body.append(_cells(row, device, [rate for _, rate in rates], rivals))
    widths = [max(len(line[column]) for line in body) for column in range(len(head))]
    lines = []
    for i, line in enumerate(body):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        lines.append("  " + text + notes.get(i, ""))
    return lines


def _cells(
    row: dict[str, Any], device: bool, rates: Sequence[Callable[[dict[str, Any]], str]], rivals: Sequence[str]
) -> list[str]:
    where = f"{row['device']} {row['isa'] or ''}".strip()
    cells = [row["contender"], row["variant"], where]
    if row["status"] != "ok":
        return cells + [""] * (6 + 2 * device + len(rates) + len(rivals))
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
    bound = max(percent, key=lambda name: percent[name], default="")
    cells += [rate(row) for rate in rates] + [ratio(name) for name in rivals]
    cells += [
        f"{share(percent[bound])} {bound}" if bound else "",
        seconds(row["compile_s"]) if row["compile_s"] is not None else "",
    ]
    return cells
