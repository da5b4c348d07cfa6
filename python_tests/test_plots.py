# SPDX-License-Identifier: Apache-2.0
"""Pictures: the overlay's pixels by hand, and that every figure shows what it was given."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from scrd_fast import plots
from scrd_fast.errors import MissingExtraError
from scrd_fast.plots import Panel, draw_gallery, draw_histogram, draw_roc, overlay


def grey(height: int = 3, width: int = 4, value: float = 0.5) -> npt.NDArray[np.float32]:
    return np.full((height, width, 3), value, dtype=np.float32)


def pixels(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def count(picture: npt.NDArray[np.uint8], colour: str) -> int:
    """Pixels of exactly one colour, given as #RRGGBB."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((picture == rgb).all(axis=2).sum())


# Overlay


def test_cold_pixels_are_the_image() -> None:
    image = np.random.default_rng(0).uniform(size=(5, 6, 3)).astype(np.float32)
    picture = overlay(image, np.full((5, 6), 1.0), 1.0, 2.0)
    assert picture.dtype == np.uint8
    assert (picture == np.floor(image.astype(np.float64) * 255 + 0.5)).all()


def test_hot_pixels_are_the_blend() -> None:
    """viridis ends in (253, 231, 37); 60 % of it over 40 % of mid-grey, at the top and above."""
    picture = overlay(grey(1, 2), np.array([[2.0, 1e9]]), 1.0, 2.0)
    expected = np.rint(0.4 * 127.5 + 0.6 * np.array([253, 231, 37]))
    assert np.abs(picture.astype(int) - expected).max() <= 1


def test_scale_is_absolute() -> None:
    """The colour of a pixel depends on its own value alone, never on the rest of its map."""
    alone = overlay(grey(1, 1), np.array([[1.5]]), 1.0, 2.0)[0, 0]
    beside_hotter = overlay(grey(1, 2), np.array([[1.5, 50.0]]), 1.0, 2.0)[0, 0]
    assert (alone == beside_hotter).all()


def test_effect_grows_with_the_value() -> None:
    picture = overlay(grey(1, 256), np.linspace(0.0, 1.0, 256)[None], 0.0, 1.0).astype(float)
    assert (picture[0, 0] == 128).all()
    distance = np.abs(picture - 128).sum(axis=2)[0]
    assert distance[:20].max() < 0.15 * distance.max()
    # Even for a reader who sees lightness alone: over black it never falls as the value rises.
    over_black = overlay(grey(1, 256, 0.0), np.linspace(0.0, 1.0, 256)[None], 0.0, 1.0).astype(float)
    lightness = over_black[0] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) >= -1.0).all()  # rounding to whole levels
    assert lightness[-1] > 100


def test_images_outside_the_range_are_clipped() -> None:
    image = np.array([[[-1.0, 0.5, 7.0]]])
    assert overlay(image, np.zeros((1, 1)), 0.0, 1.0).tolist() == [[[0, 128, 255]]]


@pytest.mark.parametrize(
    ("image", "heat", "scale", "text"),
    [
        (np.zeros((2, 2)), np.zeros((2, 2)), (0.0, 1.0), r"image must be \[H, W, 3\]"),
        (np.zeros((3, 2, 2)), np.zeros((2, 2)), (0.0, 1.0), r"image must be \[H, W, 3\]"),
        (np.zeros((2, 2, 3)), np.zeros((2, 3)), (0.0, 1.0), r"heat \[H, W\], got \(2, 2, 3\) and \(2, 3\)"),
        (np.zeros((2, 2, 3)), np.zeros((2, 2)), (1.0, 1.0), "low must be below high"),
        (np.zeros((2, 2, 3)), np.zeros((2, 2)), (0.0, float("nan")), "low must be below high"),
        (np.zeros((2, 2, 3)), np.full((2, 2), np.nan), (0.0, 1.0), "NaN"),
    ],
)
def test_wrong_overlays(image: npt.NDArray[Any], heat: npt.NDArray[Any], scale: tuple[float, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        overlay(image, heat, *scale)


# Figures


def test_roc(tmp_path: Path) -> None:
    curve = np.array([0.0, 0.0, 1.0]), np.array([0.0, 0.8, 1.0])
    draw_roc(tmp_path / "plain.png", *curve, "AUROC 0.9")
    draw_roc(tmp_path / "point.png", *curve, "AUROC 0.9", operating_point=(0.2, 0.7))
    plain, point = pixels(tmp_path / "plain.png"), pixels(tmp_path / "point.png")
    assert plain.shape == point.shape
    assert count(plain, plots.ABNORMAL_COLOUR) > 300
    assert count(plain, plots.NORMAL_COLOUR) == 0
    assert count(point, plots.NORMAL_COLOUR) > 30


def test_histogram(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    normal, abnormal = random.normal(size=300), random.normal(2.0, size=200)
    draw_histogram(tmp_path / "without.png", normal, abnormal, "top1")
    draw_histogram(tmp_path / "with.png", normal, abnormal, "top1", threshold=1.2)
    without, with_line = pixels(tmp_path / "without.png"), pixels(tmp_path / "with.png")
    for colour in (plots.NORMAL_COLOUR, plots.ABNORMAL_COLOUR):
        assert count(without, colour) > 100
    dark_columns = [(picture.max(axis=2) < 60).sum(axis=0).max() for picture in (without, with_line)]
    # The dashed line is dark over more than half of the height; without it the frame is the darkest column.
    inner = slice(100, -30)
    line = (with_line[:, inner].max(axis=2) < 60).sum(axis=0).max()
    assert line > 100
    assert (without[:, inner].max(axis=2) < 60).sum(axis=0).max() < line / 2
    assert min(dark_columns) > 0


@pytest.mark.parametrize("threshold", [None, 1.0, 5.0])
def test_histogram_of_equal_scores(tmp_path: Path, threshold: float | None) -> None:
    draw_histogram(tmp_path / "a.png", np.ones(3), np.ones(1), "mean", threshold)
    assert pixels(tmp_path / "a.png").std() > 0


@pytest.mark.parametrize("threshold", [None, -3.0, 0.0, 0.37, 1.0, 8.5])
def test_histogram_edges_hold_all_scores_and_the_threshold(threshold: float | None) -> None:
    edges = plots._edges(0.0, 1.0, 30, threshold)
    assert edges[0] <= 0.0
    assert edges[-1] >= 1.0
    np.testing.assert_allclose(np.diff(edges), 1 / 30, rtol=1e-9)
    if threshold is not None and 0.0 <= threshold <= 1.0:
        assert np.abs(edges - threshold).min() < 1e-12


def gallery_panels() -> list[tuple[str, list[Panel]]]:
    heat = np.zeros((32, 32), np.float32)
    mask = np.zeros((32, 32), bool)
    mask[8:20, 8:20] = True
    hot = heat.copy()
    hot[10:18, 10:18] = 9.0
    return [
        (
            "Abnormal",
            [Panel("a $x_1$ costs $5.png", grey(32, 32), hot, mask), Panel("b", grey(32, 32), hot, None)],
        ),
        ("Normal", [Panel("c", grey(32, 32), heat, np.zeros((32, 32), bool))]),
    ]


def test_gallery_shows_heat_where_it_is(tmp_path: Path) -> None:
    draw_gallery(tmp_path / "a.png", gallery_panels(), 0.0, 1.0, "map value")
    picture = pixels(tmp_path / "a.png")
    hottest = overlay(grey(1, 1), np.ones((1, 1)), 0.0, 1.0)[0, 0]
    colour = "#" + "".join(f"{int(value):02x}" for value in hottest)
    hot_rows = np.flatnonzero((picture[:, : int(picture.shape[1] * 0.84)] == hottest).all(axis=2).any(axis=1))
    assert count(picture, colour) > 500
    # Only in the upper row: the normal image below stays cold on the common scale.
    assert hot_rows.max() < picture.shape[0] / 2


def test_gallery_is_one_scale(tmp_path: Path) -> None:
    """A wider scale makes the same maps colder."""
    hottest = overlay(grey(1, 1), np.ones((1, 1)), 0.0, 1.0)[0, 0]
    counts = []
    for high in (9.0, 900.0):
        draw_gallery(tmp_path / "a.png", gallery_panels(), 0.0, high, "map value")
        counts.append(int((pixels(tmp_path / "a.png") == hottest).all(axis=2).sum()))
    assert counts[0] > 10 * counts[1]


def test_gallery_with_an_empty_row(tmp_path: Path) -> None:
    draw_gallery(tmp_path / "a.png", [*gallery_panels(), ("None", [])], 0.0, 1.0, "map value")
    assert pixels(tmp_path / "a.png").std() > 0


def test_same_picture_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw_gallery(tmp_path / name, gallery_panels(), 0.0, 1.0, "map value")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_no_pyplot_and_no_display(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np\nfrom scrd_fast.plots import draw_roc\n"
        f"draw_roc({str(tmp_path / 'a.png')!r}, np.array([0., 1.]), np.array([0., 1.]), 'x')\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plots._colour_table.cache_clear()
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"matplotlib is not installed.*\[model\] extra"):
        overlay(grey(), np.zeros((3, 4)), 0.0, 1.0)
    with pytest.raises(MissingExtraError, match="matplotlib is not installed"):
        draw_roc(tmp_path / "a.png", np.zeros(2), np.zeros(2), "x")


# Legend of overlays


def test_the_legend_shows_the_colours_of_overlays_without_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.draw_colour_bar(tmp_path / "scale.png", 1.9, 2.6)
    hottest = overlay(grey(1, 1), np.full((1, 1), 9.0), 1.9, 2.6)[0, 0]
    coldest = overlay(grey(1, 1), np.zeros((1, 1)), 1.9, 2.6)[0, 0]
    column = pixels(tmp_path / "scale.png")[:, 40].astype(int)
    top, bottom = (np.flatnonzero(np.abs(column - colour).max(axis=1) <= 4) for colour in (hottest, coldest))
    assert top.size
    assert bottom.size
    assert top.max() < bottom.min()
