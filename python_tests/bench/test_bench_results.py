# SPDX-License-Identifier: Apache-2.0
"""From measured rows to JSON, and from the JSON alone to the rest, through the command line."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made import ENOUGH, GOOD, REFERENCE, case, contender, doubled

from scrd_fast.bench import harness, machine, run
from scrd_fast.bench.comparison import compare
from scrd_fast.bench.plots import plot
from scrd_fast.bench.results import SCHEMA, load, save, to_csv
from scrd_fast.bench.run import Session
from scrd_fast.bench.table import render
from scrd_fast.cli import main
from scrd_fast.console import Console

pytest_plugins = ("made_runs",)


@pytest.mark.usefixtures("_tiny")
def test_the_command_writes_a_result_that_names_its_conditions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "b.json"
    assert main(["bench", "--quick", "--device", "cpu", "--threads", "1", "--seed", "3", "--out", str(out)]) == 0
    stdout, stderr = capsys.readouterr()
    assert stdout == f"{out}\n"
    found = json.loads(out.read_text())
    assert found["schema"] == SCHEMA
    assert (found["seed"], found["threads"], found["quick"]) == (3, 1, True)
    assert found["machine"]["cpu"]
    assert found["machine"]["cores"] >= 1
    assert {"torch", "cuda", "triton", "numba", "opensimplex", "scrd_fast", "python"} <= set(found["versions"])
    assert {"commit", "dirty", "time", "before", "after", "peaks", "build", "schedule"} <= set(found)
    assert [row["status"] for row in found["rows"]] == ["ok", "ok"]
    for text in (found["machine"]["cpu"], found["versions"]["torch"], "scrd_fast", "reference", "x reference"):
        assert text in stderr


def test_a_failing_row_fails_the_command_and_has_no_time(results: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "f.json"
    assert main(["bench", "--device", "cpu", "--quick", "--out", str(out), "-q"]) == 1
    row = next(r for r in json.loads(out.read_text())["rows"] if r["contender"] == "wrong")
    assert row["status"] == "FAIL"
    assert row["times"] == {}
    assert row["rate"] is None
    line = next(line for line in render(results).splitlines() if line.startswith("  wrong"))
    assert "FAIL: wrong before the timing" in line
    assert "s-" not in line.split("FAIL")[0]
    assert render(results).endswith("1 rows FAIL")


@pytest.mark.usefixtures("_tiny")
def test_a_rival_that_fails_is_shown_and_fails_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong = contender("torch.compile", lambda x: 3 * x, ours=False)
    monkeypatch.setattr(run, "select", lambda ops, short: [case(GOOD, wrong)])
    out = tmp_path / "b.json"
    assert main(["bench", "--device", "cpu", "--threads", "1", "--quick", "--out", str(out), "-q"]) == 0
    assert [row["status"] for row in load(out)["rows"]] == ["ok", "FAIL"]
    assert render(load(out)).endswith("1 rows FAIL")


def test_a_busy_machine_is_pointed_out(results: dict[str, Any]) -> None:
    for average, busy in ((0.1, False), (3.0, True), (None, False)):
        results["before"]["load_1min"] = average
        assert ("BUSY" in render(results)) is busy


def test_json_comes_back_as_it_was(results: dict[str, Any], tmp_path: Path) -> None:
    save(tmp_path / "again.json", results)
    assert load(tmp_path / "again.json") == results


@pytest.mark.parametrize("content", ["", "[]", '{"schema": "scrd_fast.bench/0"}', "{}"])
def test_what_is_no_result_is_refused_in_one_line(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    assert main(["bench", "--results", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["bench", "--compare", str(path), str(tmp_path / "absent.json")]) == 2


def test_csv_holds_every_row_exactly(results: dict[str, Any]) -> None:
    lines = list(csv.DictReader(to_csv(results).splitlines()))
    assert [line["contender"] for line in lines] == ["scrd_fast", "reference", "wrong"]
    for line, row in zip(lines, results["rows"], strict=True):
        for column in ("wall_warm", "wall_cold"):
            for name in ("median", "p20", "p80", "n"):
                stored = row["times"].get(column, {}).get(name)
                assert line[f"{column}_{name}"] == ("" if stored is None else repr(stored))
        assert line["device_warm_median"] == ""
        assert line["rate"] == ("" if row["rate"] is None else repr(row["rate"]))
    assert float(lines[0]["reference"]) == results["rows"][0]["ratios"]["reference"]
    assert lines[0]["torch"] == results["versions"]["torch"]


@pytest.mark.usefixtures("_tiny")
def test_the_time_limit_leaves_cases_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run, "select", lambda ops, short: [case(GOOD), case(GOOD)])
    assert main(["bench", "--device", "cpu", "--time-limit", "0", "--out", str(tmp_path / "b.json"), "-q"]) == 0
    found = load(tmp_path / "b.json")
    assert found["left_out"] == ["double: three", "double: three"]
    assert found["rows"] == []


@pytest.mark.parametrize(("flags", "seconds"), [([], run.QUICK_SECONDS), (["--time-limit", "7"], 7.0)])
@pytest.mark.usefixtures("_tiny")
def test_a_quick_run_has_a_time_limit(
    flags: list[str], seconds: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    left: list[float] = []

    def measure(on: Any, runners: Any, schedule: Any, time_left: Callable[[], float]) -> Any:
        left.append(time_left())
        return run_measure(on, runners, schedule, time_left)

    run_measure = run.measure
    monkeypatch.setattr(run, "measure", measure)
    command = ["bench", "--device", "cpu", "--threads", "1", "--out", str(tmp_path / "b.json"), "-q"]
    assert main([*command, "--quick", *flags]) == 0
    assert seconds / 2 < left[0] <= seconds
    assert main(command) == 0
    assert left[1] == float("inf")


class Killed(BaseException):
    """As a signal ends a process: nothing catches it."""


@pytest.mark.usefixtures("_tiny")
def test_a_run_that_is_killed_keeps_its_finished_cases(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, cases = tmp_path / "killed.json", [dataclasses.replace(case(GOOD, REFERENCE), name=n) for n in ("a", "b", "c")]
    monkeypatch.setattr(run, "select", lambda ops, short: cases)
    measured: list[str] = []

    def measure(on: Any, *rest: Any) -> Any:
        if on.name == "c":
            raise Killed
        measured.append(on.name)
        return run_measure(on, *rest)

    run_measure = run.measure
    monkeypatch.setattr(run, "measure", measure)
    with pytest.raises(Killed):
        run.bench(Console(quiet=True), [], True, out, "cpu", 3, 1)
    found = load(out)
    assert [row["case"] for row in found["rows"]] == ["a", "a", "b", "b"]
    assert all(row["status"] == "ok" and row["rate"] and row["percent"] for row in found["rows"])
    assert (found["finished"], found["left_out"]) == (False, ["double: c"])
    assert set(found) == set(load(_finished(monkeypatch, tmp_path)))
    assert render(found).endswith("UNFINISHED, the run ended before: double: c")
    assert "the new run was not finished" in compare(found | {"finished": True}, found, 0.1).notes
    assert main(["bench", "--results", str(out)]) == 0
    assert "UNFINISHED" in capsys.readouterr().out


def _finished(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    monkeypatch.setattr(run, "select", lambda ops, short: [case(GOOD)])
    out = folder / "finished.json"
    monkeypatch.setattr(run, "measure", harness.measure)
    run.bench(Console(quiet=True), [], True, out, "cpu", 3, 1)
    assert load(out)["finished"] is True
    assert "UNFINISHED" not in render(load(out))
    return out


@pytest.mark.usefixtures("_tiny")
def test_a_later_peak_may_save_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was saved after the first case does not decide what the end says of it."""
    low, seen = dataclasses.replace(ENOUGH, copy={64: 1e-9}), []
    monkeypatch.setattr(run, "measure_peaks", lambda device, sizes, reads, repeats: low if not seen else ENOUGH)

    def save_and_look(path: Path, results: dict[str, Any]) -> None:
        seen.append([row["status"] for row in results["rows"]])
        save(path, results)

    monkeypatch.setattr(run, "save", save_and_look)
    assert not run.bench(Console(quiet=True), [], True, tmp_path / "b.json", "cpu", 3, 1)
    assert seen == [["FAIL", "FAIL"], ["ok", "ok"]]


def test_a_case_of_images_has_columns_of_its_own(images: dict[str, Any]) -> None:
    row = images["rows"][0]
    row["times"]["wall_warm"]["median"], row["rate"] = 3e-3, 6 / 3e-3
    maps, noise = render(images).split("\n\n")[1:]
    head, ours = maps.splitlines()[1:3]
    assert [name in head for name in ("per image", "GB/s", "M samples/s")] == [True, True, False]
    assert "x reference" in head
    assert ours.split("500 us")[1].split()[0] == "8e-06"  # six images, 24 bytes in 3 ms
    assert [name in noise for name in ("per image", "GB/s", "M samples/s")] == [False, False, True]


def test_a_rival_elsewhere_is_asked_for_by_its_option(images: dict[str, Any]) -> None:
    row = next(row for row in images["rows"] if row["contender"] == "elsewhere")
    assert row["status"] == "unavailable"
    assert row["reason"] == "needs --elsewhere PYTHON of an environment with elsewhere"
    assert images["environments"] == {}


def test_results_of_before_there_were_units_are_shown(results: dict[str, Any], tmp_path: Path) -> None:
    for row in results["rows"]:
        del row["unit"]
    del results["environments"]
    for peaks in results["peaks"].values():
        del peaks["read"]
    assert "M samples/s" in render(results)
    assert all(line["unit"] == "octave samples" for line in csv.DictReader(to_csv(results).splitlines()))
    plot(results, tmp_path / "p.png")


def test_versions_of_other_environments_are_shown(results: dict[str, Any]) -> None:
    results["environments"] = {"anomalib": {"anomalib": "9.8.7", "torch": "1.2.3"}}
    assert "environment of anomalib: anomalib 9.8.7, torch 1.2.3" in render(results)


def test_mistakes_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["bench", "--op", "simplex"]) == 2
    assert "--op must be one of anomaly_map, contrastive_distance, simplex_noise" in capsys.readouterr().err
    assert main(["bench", "--anomalib", "/no/python"]) == 2
    assert "--anomalib must be the Python of an environment with anomalib, got /no/python" in capsys.readouterr().err
    assert main(["bench", "--out", str(tmp_path / "no" / "b.json")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_what_took_too_long_is_not_tried_again() -> None:
    session = Session(run.torch.device("cpu"), run.Schedule(), 0, run.torch.get_num_threads())
    slow = contender("torch.compile", doubled, compiles=True)
    made = case(slow)
    row = run.Row("double", "three", "torch.compile", "", "", None, "cpu", "float32", (3,))
    row.drop("unavailable", "open took more than 300 s and was given up")
    session.note([row])
    with pytest.raises(run.UnavailableError, match="given up in a case before"):
        session.runners(made, [slow])[0].open()


def test_nvidia_smi_is_read() -> None:
    """Values as an RTX 4090 gave them, then with the power cap at work, then a card that gives little."""
    line = "NVIDIA GeForce RTX 4090, 550.54.14, 2520, 10501, 3105, 61.20, 450.00, 41, {}\n"
    facts = machine._parse(line.format("0x0000000000000001"))
    assert facts["clock_sm_mhz"] == 2520
    assert facts["temperature_c"] == 41
    assert facts["throttled"] is False
    assert machine._parse(line.format("0x0000000000000004"))["throttled"] is True
    assert machine._parse(line.format("0x0000000000000040"))["throttled"] is True
    few = machine._parse("Card, 1.0, [N/A], [N/A], [N/A], [N/A], [N/A], 30, [N/A]")
    assert (few["clock_sm_mhz"], few["throttled"], few["temperature_c"]) == (None, None, 30)
    assert machine._parse("", "No devices were found") == {"error": "nvidia-smi: No devices were found"}
