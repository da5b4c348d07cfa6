# SPDX-License-Identifier: Apache-2.0
"""`scrd-fast bench --compare`."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scrd_fast.bench.comparison import compare
from scrd_fast.bench.results import save
from scrd_fast.cli import main
from scrd_fast.errors import ScrdFastError

pytest_plugins = ("made_runs",)


def changed(results: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    other = copy.deepcopy(results)
    change(next(row for row in other["rows"] if row["contender"] == "scrd_fast"))
    return other


def scaled(column: str, factor: float) -> Callable[[dict[str, Any]], None]:
    def change(row: dict[str, Any]) -> None:
        row["times"][column]["median"] *= factor

    return change


@pytest.mark.parametrize(
    ("change", "tolerance", "code", "text"),
    [
        (lambda row: None, 0.1, 0, "2 rows compared: 0 slower and 0 faster by more than 10%\n"),
        (scaled("wall_warm", 1.05), 0.1, 0, "0 slower"),
        (scaled("wall_warm", 1.05), 0.01, 1, "worse: double, three, scrd_fast, cpu, float32: wall_warm 2 ms -> 2.1 ms"),
        (scaled("wall_cold", 1.3), 0.1, 1, "wall_cold 3 ms -> 3.9 ms, 1.3 times as long"),
        (
            scaled("wall_warm", 0.5),
            0.1,
            0,
            "better: double, three, scrd_fast, cpu, float32: wall_warm 2 ms -> 1 ms",
        ),
        (lambda row: row.update(status="FAIL", reason="wrong", times={}), 9.0, 1, "was ok, is FAIL (wrong)"),
        (lambda row: row.update(contender="other"), 9.0, 1, "was ok, is absent"),
    ],
)
def test_compare_exits_1_beyond_the_tolerance(
    results: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Any]], None],
    tolerance: float,
    code: int,
    text: str,
) -> None:
    before, after = tmp_path / "a.json", tmp_path / "b.json"
    for row in results["rows"]:
        for name, times in row["times"].items():
            times["median"] = {"wall_warm": 2e-3, "wall_cold": 3e-3}[name]
    save(before, results)
    save(after, changed(results, change))
    capsys.readouterr()
    assert main(["bench", "--compare", str(before), str(after), "--tolerance", str(tolerance)]) == code
    assert text in capsys.readouterr().out


def test_a_row_that_was_not_ok_cannot_get_worse(results: dict[str, Any]) -> None:
    bad = changed(results, lambda row: row.update(status="FAIL", times={}))
    assert not compare(bad, bad, 0.0).worse
    assert not compare(bad, results, 1e9).worse


def test_another_machine_is_pointed_out(results: dict[str, Any]) -> None:
    other = copy.deepcopy(results)
    other["machine"] |= {"cpu": "Z80", "flags": ["nmi"], "gpu": {"name": "Voodoo", "sm": "0.1"}}
    other["threads"] = 64
    other["versions"]["torch"] = "9.9"
    other["finished"] = False
    found = compare(results, other, 0.1)
    assert not found.worse
    assert [note.split(":")[0] for note in found.notes] == [
        "the new run was not finished",
        "different processor",
        "different flags of the processor",
        "different GPU",
        "different threads",
        "different versions",
    ]
    assert found.notes[3] == "different GPU: none and Voodoo"
    assert found.notes[-1] == f"different versions: torch {results['versions']['torch']} and 9.9"


def moved(results: dict[str, Any], case: str, **facts: Any) -> dict[str, Any]:
    """The same run of another case."""
    return results | {"rows": [row | {"case": case} for row in results["rows"]]} | facts


def test_cases_that_were_not_measured_are_no_loss(results: dict[str, Any]) -> None:
    both = results | {"rows": results["rows"] + moved(results, "four")["rows"]}
    assert compare(both, results, 0.1).notes == ["only the old run has double: four"]
    assert compare(results, both, 0.1).notes == ["only the new run has double: four"]
    assert not compare(both, results, 0.1).worse
    many = results | {"rows": [row for n in range(12) for row in moved(results, f"{n}")["rows"]] + results["rows"]}
    (note,) = compare(many, results, 0.1).notes
    assert note.endswith("double: 7, 4 more")


def test_results_without_a_case_in_common_are_not_compared(
    results: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for other in (moved(results, "four"), results | {"rows": []}):
        with pytest.raises(ScrdFastError, match="no case in common"):
            compare(results, other, 0.1)
    save(tmp_path / "a.json", results)
    save(tmp_path / "b.json", moved(results, "four"))
    capsys.readouterr()
    assert main(["bench", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_a_quick_run_leaves_out_is_no_loss(results: dict[str, Any]) -> None:
    full = results | {"quick": False}
    quick = results | {"rows": [row for row in results["rows"] if row["contender"] != "reference"]}
    found = compare(full, quick, 0.1)
    assert not found.worse
    assert found.notes == ["different kinds of run: full and quick", "1 rows of the old run are in no quick one"]
    assert compare(results, quick, 0.1).worse


def test_the_comparison_as_json(results: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = changed(results, scaled("wall_warm", 3.0))
    other["rows"][1] |= {"status": "unavailable", "reason": "gone", "times": {}}
    save(tmp_path / "a.json", results)
    save(tmp_path / "b.json", other)
    capsys.readouterr()
    assert main(["bench", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["worse"], found["tolerance"], found["compared"], found["notes"]) == (True, 0.1, 1, [])
    (change,) = found["changes"]
    assert (change["row"]["contender"], change["column"], change["factor"]) == ("scrd_fast", "wall_warm", 3.0)
    assert change["after_s"] == 3 * change["before_s"]
    assert found["lost"] == [{"row": {**change["row"], "contender": "reference"}, "reason": "unavailable (gone)"}]


def test_the_worst_stands_first(results: dict[str, Any]) -> None:
    other = copy.deepcopy(results)
    for row, factor in zip(other["rows"], (0.25, 2.0, 1.0), strict=True):
        for times in row["times"].values():
            times["median"] *= factor
    text = str(compare(results, other, 0.1))
    assert [line.split(":")[0] for line in text.splitlines()] == ["worse"] * 2 + ["better"] * 2 + ["2 rows compared"]
    assert text.endswith("1 slower and 1 faster by more than 10%")
