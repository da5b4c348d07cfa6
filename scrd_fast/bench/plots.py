# SPDX-License-Identifier: Apache-2.0
"""A run's JSON as pictures: how fast every contender is, and how near to what the machine can do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scrd_fast.bench.results import Results, seconds, share, unit_of
from scrd_fast.errors import MissingExtraError, ScrdFastError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["check_plot", "plot"]

OURS, HELD, OTHERS = "#1f5fa8", "#9dbfe3", "#b0b0b0"  # scrd_fast, the same on one instruction set, all others
ROW, PANEL = 0.2, 0.9  # inches: of a bar; of a panel's title and axis
MOST_IN_A_COLUMN = 3  # panels; more of them stand in two columns


def check_plot(path: Path) -> None:
    """MissingExtraError without matplotlib, ScrdFastError for a kind of picture that it does not write. To be asked
    before anything is measured."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise MissingExtraError("matplotlib", "model") from None
    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise ScrdFastError(f"--plot must end with one of {', '.join(f'.{kind}' for kind in known)}, got {path}")


def plot(results: Results, path: Path) -> list[Path]:
    """A picture of each operator, as NAME-OPERATOR.SUFFIX where there are several; returns what was written. Panels are
    cases, bars the rates, and beside each stand its time and its share of the peak; a row without a time has a word."""
    check_plot(path)
    ops = list(dict.fromkeys(row["op"] for row in results["rows"]))
    written = []
    for op in ops:
        target = path if len(ops) == 1 else path.with_stem(f"{path.stem}-{op}")
        _draw(results, op, target)
        written.append(target)
    return written


def _draw(results: Results, op: str, path: Path) -> None:
    from matplotlib.figure import Figure

    rows = [row for row in results["rows"] if row["op"] == op]
    panels = [[r for r in rows if r["case"] == case] for case in dict.fromkeys(r["case"] for r in rows)]
    columns = 1 if len(panels) <= MOST_IN_A_COLUMN else 2
    lines = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    heights = [PANEL + ROW * max(len(panel) for panel in line) for line in lines]
    figure = Figure(figsize=(8.5 * columns, sum(heights) + 0.5), layout="constrained")
    grid = figure.subplots(len(lines), columns, squeeze=False, height_ratios=heights, sharex=True)
    for axis, panel in zip(grid.flat, panels, strict=False):
        _bars(axis, panel)
    for axis in list(grid.flat)[len(panels) :]:
        axis.remove()
    best = [row["rate"] for row in rows if row["rate"]]
    if best:
        first = grid.flat[0]  # it shares its axis with all
        first.set_xscale("log")
        first.set_xlim(min(best) / 2, max(best) * (max(best) / min(best)) ** 0.35)  # room for the words
    machine = (results["machine"]["gpu"] or {}).get("name") or results["machine"]["cpu"]
    title = f"{op} on {machine}, {results['threads']} threads, torch {results['versions']['torch']}"
    figure.suptitle(f"{title}: warm wall time, share of the machine's peak", fontsize=10)
    figure.savefig(path, dpi=100)


def _bars(axis: Axes, rows: list[dict[str, Any]]) -> None:
    axis.barh(range(len(rows)), [row["rate"] or 0 for row in rows], color=[_colour(row) for row in rows])
    axis.set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=7)
    axis.invert_yaxis()
    axis.tick_params(axis="x", labelsize=7, labelbottom=True)
    for i, row in enumerate(rows):
        if row["status"] == "ok":
            axis.annotate(_words(row), (row["rate"], i), (3, 0), textcoords="offset points", va="center", fontsize=7)
        else:
            axis.text(0.01, i, row["status"], transform=axis.get_yaxis_transform(), va="center", fontsize=7)
    axis.set_title(rows[0]["case"], fontsize=9)
    axis.set_xlabel(f"{unit_of(rows[0])} a second", fontsize=7)


def _label(row: dict[str, Any]) -> str:
    return ", ".join(part for part in (row["contender"], row["variant"]) if part) + f" ({row['device']})"


def _words(row: dict[str, Any]) -> str:
    time, percent = seconds(row["times"]["wall_warm"]["median"]), row["percent"] or {}
    return time + (f", {share(max(percent.values()))}" if percent else "")


def _colour(row: dict[str, Any]) -> str:
    if row["contender"] in ("scrd_fast", "scrd_fast triton"):
        return OURS
    return HELD if row["contender"].startswith("scrd_fast ") else OTHERS
