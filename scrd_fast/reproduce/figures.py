# SPDX-License-Identifier: Apache-2.0
"""The figures of the report, as PNG files. Lines differ by colour and by dash, points by colour and by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from scrd_fast.metrics import image_metrics, roc_points
from scrd_fast.plots import ABNORMAL_COLOUR, COLOUR_MAP, NORMAL_COLOUR, new_figure, save_figure
from scrd_fast.reproduce.statistics import Estimate

__all__ = ["Cost", "Shown", "draw_costs", "draw_distributions", "draw_roc_curves", "draw_shown", "draw_strength"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Okabe and Ito, "Color Universal Design", 2008, without the yellow, which white paper swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLES = [(colour, dash) for dash, colour in product(DASHES, COLOURS)]  # as many methods stay apart


class Cost(NamedTuple):
    """Of a method: milliseconds an image, mean AUROC, bytes."""

    name: str
    milliseconds: float
    auroc: float
    memory: int


class Shown(NamedTuple):
    """An image of the gallery. Maps and images of one size."""

    title: str
    image: npt.NDArray[np.float32]  # [H, W, 3]
    noisy: npt.NDArray[np.float32]  # [H, W, 3]: with a synthetic anomaly
    map: npt.NDArray[np.float32]  # [H, W], of the image
    noisy_map: npt.NDArray[np.float32]  # [H, W]
    weights: Sequence[float]  # [3], of the scales


def draw_strength(path: Path, values: Sequence[float], curves: Mapping[str, Sequence[Estimate]]) -> None:
    """AUROC over the strength of the synthetic anomalies, a curve for each data set."""
    figure = new_figure(6.4, 4.4)
    axes = figure.add_subplot()
    step = 0.04 * min(np.diff(sorted(values)).tolist(), default=1.0)  # apart, so that no bar hides another
    for i, (name, curve) in enumerate(curves.items()):
        at = np.asarray(values) + step * (i - (len(curves) - 1) / 2)
        middle = np.array([e.value for e in curve])
        low = middle - [e.value if e.low is None else max(e.low, 0.0) for e in curve]
        high = [e.value if e.high is None else min(e.high, 1.0) for e in curve] - middle
        style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        axes.errorbar(
            at, middle, np.maximum([low, high], 0.0), label=name, linewidth=1.8, elinewidth=1.0, capsize=3, **style
        )
    axes.set_xlabel("strength of the synthetic anomalies, λ")
    axes.set_ylabel("AUC")
    axes.set_xticks(list(values))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=4, fontsize=9, frameon=False)
    save_figure(figure, path)


def draw_distributions(path: Path, rows: Mapping[str, Mapping[str, tuple[Ints, Floats]]]) -> None:
    """Histograms of both classes' scores: a row for each method, a column for each data set (labels, scores)."""
    columns = list(next(iter(rows.values())))
    figure = new_figure(0.6 + 3.5 * len(columns), 0.5 + 2.3 * len(rows))
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, (method, row) in zip(grid, rows.items(), strict=True):
        for axes, (data, (labels, scores)) in zip(line, row.items(), strict=True):
            edges = np.histogram_bin_edges(scores, 30).tolist()
            for label, colour, name in ((0, NORMAL_COLOUR, "normal"), (1, ABNORMAL_COLOUR, "abnormal")):
                found = scores[labels == label]
                weights = np.full(found.size, 100.0 / found.size)
                axes.hist(found, edges, weights=weights, color=colour, alpha=0.3)
                style: dict[str, Any] = {"color": colour, "linewidth": 1.6, "linestyle": "-" if label else "--"}
                axes.hist(found, edges, weights=weights, histtype="step", label=name, **style)
            axes.set_title(f"{method}, {data}", fontsize=10)
            axes.tick_params(labelsize=8)
            axes.locator_params(axis="x", nbins=5)
        line[0].set_ylabel("share of the class (%)", fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("score", fontsize=9)
    grid[0][0].legend(fontsize=8)
    save_figure(figure, path)


def draw_costs(path: Path, costs: Sequence[Cost]) -> None:
    """AUROC over time an image; a circle's radius grows with memory. Names stand in the legend, by number."""
    figure = new_figure(8.2, 5.0)
    axes = figure.add_subplot()
    largest = max(cost.memory for cost in costs)
    for i, cost in enumerate(costs):
        colour, label = COLOURS[i % len(COLOURS)], f"{i + 1}  {cost.name}: {cost.memory / 1e9:.2f} GB"
        at = (cost.milliseconds, cost.auroc)
        # `s` is an area in square points, so that its root is a radius.
        axes.scatter(*at, s=(34.0 * cost.memory / largest) ** 2, color=colour, alpha=0.35, edgecolors=colour)
        axes.plot([], [], "o", color=colour, label=label)
    _number(axes, costs)
    _scale_by_tens(axes, [cost.milliseconds for cost in costs])
    axes.margins(y=0.15)
    axes.set_xlabel("time an image (ms)")
    axes.set_ylabel("AUC, mean over data sets")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=9, title="radius: peak memory", title_fontsize=9)
    save_figure(figure, path)


def _scale_by_tens(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers, never so short that there is but one of them."""
    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    axes.set_xscale("log")
    axes.set_xlim(min(values) / 2.5, max(values) * 2.5)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    formatter = ScalarFormatter()
    formatter.set_scientific(False)
    axes.xaxis.set_major_formatter(formatter)


def _number(axes: Any, costs: Sequence[Cost]) -> None:
    """Numbers in the circles' middles; those that would lie on each other are moved apart, with a line."""
    times, values = np.log([c.milliseconds for c in costs]), np.array([c.auroc for c in costs])
    spans = [max(float(np.ptp(x)), 1e-9) for x in (times, values)]
    placed: list[tuple[float, float]] = []
    for i, cost in enumerate(costs):
        x, y = (times[i] - times.min()) / spans[0], (values[i] - values.min()) / spans[1]
        near = sum(abs(x - a) < 0.05 and abs(y - b) < 0.05 for a, b in placed)
        placed.append((x, y))
        arrow = {"arrowstyle": "-", "linewidth": 0.7} if near else None
        place = (16.0 * near, 12.0 * near)
        axes.annotate(
            str(i + 1), (cost.milliseconds, cost.auroc), place, textcoords="offset points", ha="center", va="center",
            fontsize=9, fontweight="bold", arrowprops=arrow,
        )  # fmt: skip


def draw_roc_curves(path: Path, data: Mapping[str, Mapping[str, tuple[Ints, Sequence[Floats]]]]) -> None:
    """A panel for each data set; of each method (labels, scores of each seed) the mean curve over the seeds."""
    figure = new_figure(4.3 * len(data), 4.4 + 0.2 * ((max(map(len, data.values())) + 1) // 2))
    grid = np.linspace(0.0, 1.0, 501)
    for axes, (name, methods) in zip(figure.subplots(1, len(data), squeeze=False)[0], data.items(), strict=True):
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        for (colour, dash), (method, (labels, seeds)) in zip(STYLES, methods.items(), strict=False):
            curves = [roc_points(labels, scores) for scores in seeds]
            # The highest rate of true positives that a rate of false ones allows: a step function.
            heights = [tpr[np.searchsorted(fpr, grid, side="right") - 1] for fpr, tpr in curves]
            area = np.mean([image_metrics(labels, scores)["auroc"] for scores in seeds])
            axes.plot(grid, np.mean(heights, axis=0), dash, color=colour, linewidth=1.6, label=f"{method} {area:.3f}")
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", anchor="N")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("false-positive rate", fontsize=9)
        axes.set_ylabel("true-positive rate", fontsize=9)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=8, ncols=2, frameon=False)
    save_figure(figure, path)


def draw_shown(path: Path, rows: Sequence[Shown]) -> None:
    """Image, image with a synthetic anomaly, the maps of both on one scale of all rows, the scales' weights."""
    maps = [m for row in rows for m in (row.map, row.noisy_map)]
    low, high = float(np.min(maps)), float(np.max(maps))
    figure = new_figure(10.4, 2.25 * len(rows) + 0.3)
    grid = figure.subplots(len(rows), 5, squeeze=False)
    for axes, title in zip(
        grid[0], ("image", "with synthetic anomaly", "map", "map with the anomaly", "scale weights"), strict=True
    ):
        axes.set_title(title, fontsize=10)
    for cells, row in zip(grid, rows, strict=True):
        images = np.clip(row.image, 0.0, 1.0), np.clip(row.noisy, 0.0, 1.0)
        for axes, picture in zip(cells, (*images, row.map, row.noisy_map), strict=False):
            axes.imshow(picture, interpolation="nearest", cmap=COLOUR_MAP, vmin=low, vmax=high)
            axes.set(xticks=[], yticks=[])
        cells[0].set_ylabel(row.title, fontsize=8, parse_math=False)
        names = [f"stride {stride}" for stride in (4, 8, 16)]
        cells[4].barh(names, row.weights, color=NORMAL_COLOUR)
        for i, weight in enumerate(row.weights):
            at, side, colour = (weight - 0.02, "right", "white") if weight > 0.7 else (weight + 0.02, "left", "black")
            cells[4].text(at, i, f"{weight:.2f}", va="center", ha=side, fontsize=8, color=colour)
        cells[4].set(xlim=(0, 1))
        cells[4].invert_yaxis()
        cells[4].tick_params(labelsize=8)
    save_figure(figure, path)
