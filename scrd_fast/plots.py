# SPDX-License-Identifier: Apache-2.0
"""The pictures of an evaluation, as PNG files, and the heat-map overlay that screening shares.

Figures are built as objects and drawn by Agg: no display, no pyplot, no state that is shared between threads.
Colours tell the classes apart for colour-blind readers too (Okabe and Ito, "Color Universal Design", 2008),
and heat maps use `viridis`, whose lightness rises evenly and whose hues are not those of skin.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from scrd_fast.errors import MissingExtraError
from scrd_fast.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "ABNORMAL_COLOUR",
    "COLOUR_MAP",
    "NORMAL_COLOUR",
    "Panel",
    "draw_colour_bar",
    "draw_gallery",
    "draw_histogram",
    "draw_roc",
    "draw_shifts",
    "heat_levels",
    "new_figure",
    "overlay",
    "save_figure",
]

NORMAL_COLOUR, ABNORMAL_COLOUR = "#0072B2", "#D55E00"
COLOUR_MAP = "viridis"
OPACITY = 0.6  # of the hottest pixels: the image stays visible below them
DPI = 110


class Panel(NamedTuple):
    """One image of the gallery."""

    title: str
    image: npt.NDArray[np.float32]  # [H, W, 3], 0 ... 1
    map: npt.NDArray[np.float32]  # [H, W]
    mask: npt.NDArray[np.bool_] | None  # [H, W]


def overlay(
    image: npt.NDArray[Any],  # [H, W, 3], 0 ... 1
    heat: npt.NDArray[Any],  # [H, W]
    low: float,
    high: float,
) -> npt.NDArray[np.uint8]:
    """Blend a heat map into its image, uint8 [H, W, 3].

    At `low` and below the image is unchanged; from there to the middle of the scale the colour grows opaque,
    and at `high` and above it is the hottest. The scale is the caller's, so two overlays with one scale can
    be compared. Raises ValueError for other shapes, low >= high, NaN in the map; MissingExtraError without
    matplotlib.

    >>> picture = overlay(np.full((1, 2, 3), 0.5), np.array([[0.0, 2.0]]), low=1.0, high=2.0)
    >>> picture[0, 0].tolist()
    [128, 128, 128]
    >>> picture[0, 1].tolist()  # yellow
    [203, 190, 73]
    """
    if image.ndim != 3 or image.shape[2] != 3 or heat.shape != image.shape[:2]:
        raise ValueError(f"image must be [H, W, 3] and heat [H, W], got {image.shape} and {heat.shape}")
    if not low < high:
        raise ValueError(f"low must be below high, got {low} and {high}")
    if np.isnan(heat).any():
        raise ValueError("heat must not hold NaN")
    level = np.clip((heat.astype(np.float64) - low) / (high - low), 0.0, 1.0)
    colour = _colour_table()[np.rint(level * 255).astype(np.intp)]
    alpha = (OPACITY * np.minimum(2.0 * level, 1.0))[..., None]
    blend = (1.0 - alpha) * np.clip(image, 0.0, 1.0) + alpha * colour
    # Half up, not to even: 0.5 must give the 128 that an image library gives.
    return np.asarray(np.floor(blend * 255.0 + 0.5), dtype=np.uint8)


def heat_levels(
    heat: npt.NDArray[Any],  # [H, W]
    low: float,
    high: float,
    count: int,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """A heat map as a layer of its own: levels [H, W] of 0 ... count - 1 (at most 256), their colours, opacities.

    Colours [count, 3] and opacities [count] are 0 ... 255. At `OPACITY`, laid on the image, it is the `overlay` but
    for the rounding to levels. Raises MissingExtraError without matplotlib.

    >>> levels, colours, opacities = heat_levels(np.array([[0.0, 1.5, 2.0]]), low=1.0, high=2.0, count=5)
    >>> levels.tolist(), opacities.tolist(), colours[4].tolist()
    ([[0, 2, 4]], [0, 128, 255, 255, 255], [253, 231, 37])
    """
    level = np.clip((heat.astype(np.float64) - low) / (high - low), 0.0, 1.0)
    steps = np.linspace(0.0, 1.0, count)
    colours = np.rint(_colour_table()[np.rint(steps * 255).astype(np.intp)] * 255).astype(np.uint8)
    opacities = np.rint(np.minimum(2.0 * steps, 1.0) * 255).astype(np.uint8)
    return np.rint(level * (count - 1)).astype(np.uint8), colours, opacities


def draw_colour_bar(path: str | Path, low: float, high: float) -> None:
    """Write the legend of overlays on the scale from `low` to `high`: their colours on gray, with numbers."""
    figure = new_figure(1.6, 4.2)
    axes = figure.add_subplot()
    levels = np.linspace(low, high, 256)[:, None].repeat(24, axis=1)
    picture = overlay(np.full((256, 24, 3), 0.5), levels, low, high)
    axes.imshow(picture, origin="lower", aspect="auto", extent=(0.0, 1.0, low, high))
    axes.yaxis.tick_right()
    axes.set_xticks([])
    axes.set_ylabel("anomaly map")
    axes.yaxis.set_label_position("right")
    save_figure(figure, path)


@lru_cache(maxsize=1)
def _colour_table() -> npt.NDArray[np.float64]:
    """RGB of the 256 levels, [256, 3]."""
    try:
        from matplotlib import colormaps
    except ImportError as error:
        raise MissingExtraError("matplotlib", "model") from error
    return np.asarray(colormaps[COLOUR_MAP](np.arange(256))[:, :3], dtype=np.float64)


def draw_roc(
    path: str | Path,
    fpr: npt.NDArray[np.float64],  # [J]
    tpr: npt.NDArray[np.float64],  # [J]
    caption: str,
    operating_point: tuple[float, float] | None = None,  # (false-positive rate, true-positive rate)
) -> None:
    """Write the ROC curve, with the point of the calibrated threshold if there is one."""
    figure = new_figure(5.2, 5.2)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":", label="chance")
    axes.plot(fpr, tpr, color=ABNORMAL_COLOUR, linewidth=2, label=caption)
    if operating_point is not None:
        axes.plot(*operating_point, "o", color=NORMAL_COLOUR, markersize=9, label="threshold from normal images")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", title="ROC curve")
    axes.set_xlabel("false-positive rate (1 - specificity)")
    axes.set_ylabel("true-positive rate (sensitivity)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=9)
    save_figure(figure, path)


def draw_histogram(
    path: str | Path,
    normal: npt.NDArray[np.float64],  # [N0]
    abnormal: npt.NDArray[np.float64],  # [N1]
    score: str,
    threshold: float | None = None,
) -> None:
    """Write the histograms of both classes' scores, each as a share of its class, with the threshold."""
    figure = new_figure(6.8, 4.4)
    axes = figure.add_subplot()
    both = np.concatenate([normal, abnormal])
    low, high = float(both.min()), float(both.max())
    if low == high:  # all scores alike: one bar needs some width
        low, high = low - 0.5, high + 0.5
    edges = _edges(low, high, min(80, max(25, both.size // 10)), threshold)
    classes = ((normal, NORMAL_COLOUR, "normal", "//"), (abnormal, ABNORMAL_COLOUR, "abnormal", "\\\\"))
    for values, colour, name, hatch in classes:
        weights = np.full(values.size, 100.0 / values.size)
        axes.hist(values, edges.tolist(), weights=weights, color=colour, alpha=0.3)
        axes.hist(values, edges.tolist(), weights=weights, color="none", edgecolor=colour, linewidth=0, hatch=hatch)
        axes.hist(
            values,
            edges.tolist(),
            weights=weights,
            histtype="step",
            color=colour,
            linewidth=1.8,
            label=f"{name} ({values.size} images)",
        )
    if threshold is not None:
        label = f"threshold from normal images: {threshold:.4g}"
        axes.axvline(threshold, color="black", linewidth=1.5, linestyle="--", label=label)
    axes.set(title="Scores of the test images", xlabel=f"score ({score})")
    axes.set_ylabel("share of the class (%)")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=9)
    save_figure(figure, path)


def _edges(low: float, high: float, bins: int, threshold: float | None) -> npt.NDArray[np.float64]:
    """Edges of equal bins over low ... high, one of them at the threshold: no bar stands on both sides."""
    width = (high - low) / bins
    start = low if threshold is None else low - (low - threshold) % width
    return np.asarray(start + width * np.arange(bins + 3))


def draw_gallery(
    path: str | Path,
    rows: Sequence[tuple[str, Sequence[Panel]]],
    low: float,
    high: float,
    scale_name: str,
) -> None:
    """Write a picture with one row per group: each image beside its overlay, all on one scale."""
    columns = max(len(panels) for _, panels in rows)
    figure = new_figure(3.5 * columns + 1.2, 2.35 * len(rows) + 0.3)
    table, bar = figure.subfigures(1, 2, width_ratios=[3.5 * columns, 1.2], squeeze=False)[0]
    strips = table.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for strip, (name, panels) in zip(strips, rows, strict=True):
        strip.suptitle(name, fontsize=11, fontweight="bold", x=0.01, horizontalalignment="left")
        cells = strip.subplots(1, 2 * columns, squeeze=False)[0]
        for cell in cells:
            cell.set_axis_off()
        for i, panel in enumerate(panels):
            _draw_panel(cells[2 * i], panel, np.clip(panel.image, 0.0, 1.0))
            _draw_panel(cells[2 * i + 1], panel, overlay(panel.image, panel.map, low, high))
            # A file name is text, also where it holds a dollar sign.
            cells[2 * i].set_title(panel.title, fontsize=8, loc="left", parse_math=False)
    _draw_scale(bar.add_axes((0.27, 0.12, 0.15, 0.74)), low, high, scale_name)
    save_figure(figure, path)


def _draw_panel(axes: Axes, panel: Panel, picture: npt.NDArray[Any]) -> None:
    axes.imshow(picture, interpolation="nearest")
    if panel.mask is not None and panel.mask.any() and not panel.mask.all():
        # White on black is seen on every image and on every colour of the map.
        for colour, width in (("black", 2.4), ("white", 1.0)):
            axes.contour(panel.mask.astype(float), levels=[0.5], colors=colour, linewidths=width)


def _draw_scale(axes: Axes, low: float, high: float, name: str) -> None:
    """The colour bar, drawn by `overlay` itself on mid-grey, so that it shows the transparency too."""
    levels = np.linspace(low, high, 256)[:, None]
    bar = overlay(np.full((256, 1, 3), 0.5), levels, low, high)
    axes.imshow(bar, aspect="auto", origin="lower", extent=(0.0, 1.0, low, high))
    ticks = np.linspace(low, high, 5)
    labels = [f"{tick:.3g}" for tick in ticks]
    axes.set_xticks([])
    axes.set_yticks(ticks, [f"≤ {labels[0]}", *labels[1:-1], f"≥ {labels[-1]}"], fontsize=8)
    axes.yaxis.tick_right()
    axes.set_ylabel(name, fontsize=9)


def draw_shifts(path: str | Path, panels: Sequence[tuple[str, Any, Any]]) -> None:
    """Write how quantities of a run are distributed and those of its reference, a panel each: title, run, reference.

    Numbers [N] are drawn as distribution functions, whose largest distance is that of Kolmogorov and Smirnov; words
    with their counts as bars of their shares, the ten that are most frequent.
    """
    columns, rows = min(3, max(len(panels), 1)), max(-(-len(panels) // 3), 1)
    figure = new_figure(4.0 * columns, 2.9 * rows)
    sides = (("reference", NORMAL_COLOUR, "-"), ("run", ABNORMAL_COLOUR, "--"))
    for number, (title, run, reference) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, number)
        axes.set_title(title, fontsize=10, parse_math=False)
        both = [(*side, values) for side, values in zip(sides, (reference, run), strict=True)]
        if isinstance(run, dict):
            total = {word: reference.get(word, 0) + run.get(word, 0) for word in reference | run}
            words = sorted(total, key=lambda word: (-total[word], word))[:10]
            for shift, (name, colour, _, counts) in zip((-0.2, 0.2), both, strict=True):
                shares = [100 * counts.get(word, 0) / max(sum(counts.values()), 1) for word in words]
                axes.barh(np.arange(len(words)) + shift, shares, 0.4, color=colour, label=name)
            axes.set_yticks(range(len(words)), [word[:24] or "(none)" for word in words], fontsize=8, parse_math=False)
            axes.invert_yaxis()
            axes.set_xlabel("share of the pictures (%)")
        else:
            for name, colour, line, values in both:
                axes.ecdf(values, color=colour, linestyle=line, label=f"{name} ({len(values)} pictures)")
            axes.set_ylabel("share at or below")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    save_figure(figure, path)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "model") from error
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """As a PNG file, whole or not at all."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A file name in a script that the font lacks is drawn as boxes; the table beside it has the name.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())
