# SPDX-License-Identifier: Apache-2.0
"""The pictures that `scrd-fast bench --plot` makes of a result."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from scrd_fast.bench import run
from scrd_fast.bench.plots import plot
from scrd_fast.bench.results import save, to_csv
from scrd_fast.bench.table import render
from scrd_fast.cli import main

pytest_plugins = ("made_runs",)


def test_csv_and_plot_are_made_from_the_json_alone(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(run, "measure", None)  # nothing is measured
    stored = tmp_path / "stored.json"
    save(stored, results)
    capsys.readouterr()
    flags = ["--results", str(stored), "--csv", str(tmp_path / "t.csv"), "--plot", str(tmp_path / "p.png")]
    assert main(["bench", *flags]) == 0
    assert (tmp_path / "t.csv").read_text() == to_csv(results)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == render(results) + "\n"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures, none of which is written."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    found: list[Any] = []
    monkeypatch.setattr(figure, "savefig", lambda self, path, dpi: found.append(self))
    return found


def test_every_operator_has_a_picture_of_its_own(images: dict[str, Any], drawn: list[Any], tmp_path: Path) -> None:
    images["rows"] += [dict(row, case=case) for row in images["rows"] for case in ("four", "five", "six")]
    written = plot(images, tmp_path / "p.png")
    assert [path.name for path in written] == ["p-map.png", "p-double.png"]
    for figure, unit in zip(drawn, ("images", "octave samples"), strict=True):
        assert [axis.get_title() for axis in figure.axes] == ["three", "four", "five", "six"]
        assert {axis.get_xlabel() for axis in figure.axes} == {f"{unit} a second"}
        assert {axis.get_xscale() for axis in figure.axes} == {"log"}
        assert len({axis.get_xlim() for axis in figure.axes}) == 1
        columns = {round(axis.get_position().x0, 2) for axis in figure.axes}
        assert len(columns) == 2


def test_a_bar_says_its_time_and_its_share_of_the_peak(images: dict[str, Any], drawn: list[Any]) -> None:
    row = next(row for row in images["rows"] if row["op"] == "map")
    row["times"]["wall_warm"]["median"], row["percent"] = 0.0123, {"bytes": 3.0, "flops": 41.2, "instructions": 9.0}
    plot(images, Path("none.png"))
    words = [text.get_text() for text in drawn[0].axes[0].texts]
    assert words[0] == "12.3 ms, 41 %"
    assert words[2] == "unavailable"
    assert drawn[0].axes[0].get_yticklabels()[0].get_text() == "scrd_fast (cpu)"


@pytest.mark.parametrize(
    ("plot_path", "code", "text"),
    [
        ("p.docx", 2, "--plot must end with one of"),
        ("p", 2, "--plot must end with one of"),
        ("p.png", 4, "matplotlib is not installed; install this package with its [model] extra"),
    ],
)
@pytest.mark.usefixtures("_tiny")
def test_a_plot_that_cannot_be_made_is_refused_before_anything_is_measured(
    plot_path: str,
    code: int,
    text: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if code == 4:
        monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    monkeypatch.setattr(run, "measure", None)
    assert main(["bench", "--device", "cpu", "--quick", "--out", "o.json", "--plot", plot_path]) == code
    err = capsys.readouterr().err
    assert text in err
    assert err.count("\n") == 1
    assert not list(here.iterdir())
