# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_tree
from experiments import TRAIN, content, read_scores, write
from scipy.stats import t as student_t
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from scrd_fast.cli import main
from scrd_fast.reproduce import sections
from scrd_fast.reproduce.lesions import DIAMETERS
from scrd_fast.reproduce.run import Outcome, plan, reproduce

pytestmark = pytest.mark.xdist_group("reproduce")  # what they share is made once, not once a process
HOSTILE = "<img src=x onerror=alert(1)>|`{{7*7}}`"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods that can be trained and one that cannot, and names that want to be markup."""
    folder = tmp_path_factory.mktemp("reproduce")
    root = make_tree(folder / "data <b>&amp;", test=5)
    shutil.rmtree(root / "ground_truth")  # numbers of pixels take time
    (root / "dataset.json").write_text(json.dumps({"name": "textures", "split": HOSTILE}))
    methods = {
        "plain": {"objective": "rd4ad"},
        "scales": {"objective": "paper", "score": "max"},
        "broken": {"lr": 1e30},
        "rival": {"anomalib": "Cflow"},
        "once": {"baseline": "knn", "seeds": 1},
    }
    studies = {
        "main": {"compare": "scales"},
        "ablation": {"methods": ["plain", "scales"]},
        "distributions": {},
        "selection": {"methods": ["plain", "scales"]},
        "lesions": {"method": "plain"},
        "roc": {},
        "gallery": {"method": "scales", "images": 1},
    }
    changes = {"title": HOSTILE, "methods": methods, "studies": studies}
    return write(folder / "file.yaml", content(root, **changes))


@pytest.fixture(scope="module")
def outcome(config: Path) -> Outcome:
    return reproduce(config, config.parent / "out", jobs=2)


def folders(outcome: Outcome, method: str) -> list[Path]:
    return sorted((outcome.html.parent / "runs").glob(f"textures-{method}-*"))


def record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text()))


def table(outcome: Outcome, caption: str) -> dict[str, list[str]]:
    """Rows of a table of the Markdown report by their first cell."""
    text = outcome.markdown.read_text().split(f"**{caption}")[1].split("\n\n")[1]
    rows = [[cell.strip().replace("\\", "") for cell in line.split(" | ")] for line in text.splitlines()[2:]]
    return {row[0].removeprefix("| "): [cell.removesuffix(" |") for cell in row[1:]] for row in rows}


def numbers(cell: str) -> list[float]:
    return [float(x) for x in re.findall(r"[-+]?\d+\.\d+", cell)]


def test_every_run_says_what_it_took(outcome: Outcome) -> None:
    assert outcome.finished == 5
    for folder in folders(outcome, "plain") + folders(outcome, "scales"):
        found = record(folder)
        assert found["status"] == "finished"
        assert found["seconds"] > 0
        assert found["peak_memory_bytes"] > 50e6
        assert found["predict_peak_memory_bytes"] > 50e6
        assert found["versions"]["scrd_fast"]
        assert not list(folder.rglob("checkpoints"))  # most of the disk
        assert (folder / "train" / "model").is_dir() == (found["seed"] == 0)
        assert (folder / "training.jsonl").is_file() == (found["seed"] != 0)


def test_a_failed_run_is_a_row_and_the_others_go_on(outcome: Outcome) -> None:
    assert sorted(outcome.failed) == ["textures, broken, seed 0", "textures, broken, seed 1"]
    assert all("the loss is not finite" in reason for reason in outcome.failed.values())
    assert table(outcome, "AUC, with")["broken"][0].startswith("failed: the loss is not finite")


def test_a_method_of_one_seed_has_the_intervals_of_its_evaluation(outcome: Outcome) -> None:
    (folder,) = folders(outcome, "once")
    metrics = json.loads((folder / "metrics.json").read_text())["auroc"]
    cell, mean = table(outcome, "AUC, with")["once"]
    assert numbers(cell) == pytest.approx([metrics[name] for name in ("value", "low", "high")], abs=6e-4)
    assert numbers(mean) == pytest.approx([metrics["value"]], abs=6e-4)
    assert "(once has 1)" in outcome.markdown.read_text()


def test_a_rival_that_could_not_be_run_is_named(outcome: Outcome) -> None:
    assert table(outcome, "AUC, with")["rival"] == ["not run: needs --anomalib", "–"]
    assert "> rival: not run: needs --anomalib" in outcome.markdown.read_text()


@pytest.mark.parametrize(("method", "score"), [("plain", "top5"), ("scales", "max")])
def test_numbers_are_those_of_scikit_learn_and_scipy(outcome: Outcome, method: str, score: str) -> None:
    runs = [read_scores(folder, score) for folder in folders(outcome, method)]
    assert len(runs) == 2
    check(table(outcome, "AUC, with")[method][0], [float(roc_auc_score(*run)) for run in runs])
    best = [max((f1_score(labels, scores >= x), x) for x in scores) for labels, scores in runs]
    check(table(outcome, "F1 at")[method][0], [f1 for f1, _ in best])
    found = [accuracy_score(labels, scores >= x) for (labels, scores), (_, x) in zip(runs, best, strict=True)]
    check(table(outcome, "ACC at")[method][0], found)


def check(cell: str, values: list[float]) -> None:
    """Mean over the two seeds and the interval of Student's t, cut at 0 and 1."""
    value, *bounds = numbers(cell)
    assert value == pytest.approx(np.mean(values), abs=6e-4)
    if values[0] != values[1]:
        half = student_t.interval(0.95, 1, loc=np.mean(values), scale=np.std(values, ddof=1) / 2**0.5)
        assert bounds == pytest.approx(np.clip(half, 0, 1), abs=6e-4)
    assert len(bounds) == 2  # where the seeds agree they are the bootstrap's


def test_the_paired_difference_is_that_of_the_mean_aurocs(outcome: Outcome) -> None:
    means = {
        method: np.mean([roc_auc_score(*read_scores(folder, score)) for folder in folders(outcome, method)])
        for method, score in (("plain", "top5"), ("scales", "max"))
    }
    value, low, high = numbers(table(outcome, "AUC of scales less")["plain"][0])
    assert value == pytest.approx(means["scales"] - means["plain"], abs=6e-4)
    assert low <= value <= high


def test_readings_and_thresholds_have_rows(outcome: Outcome) -> None:
    labels, _ = read_scores(folders(outcome, "plain")[0], "mean")
    found = [numbers(cell)[0] for cell in table(outcome, "AUC of every reading")["plain"][2:]]
    for reading, cell in zip(("mean", "max", "top1", "top5", "combined"), found, strict=True):
        aurocs = [roc_auc_score(labels, read_scores(f, reading)[1]) for f in folders(outcome, "plain")]
        assert cell == pytest.approx(np.mean(aurocs), abs=6e-4)
    sensitivity = numbers(table(outcome, "At the threshold from")["plain"][1])[0]
    at = [json.loads((f / "metrics.json").read_text())["at_threshold"] for f in folders(outcome, "plain")]
    assert sensitivity == pytest.approx(np.mean([one["sensitivity"]["value"] for one in at]), abs=6e-4)


def test_the_ablation_says_which_parts_a_method_has(outcome: Outcome) -> None:
    rows = table(outcome, "AUC with and without")
    assert rows["plain"][:2] == ["no", "no"]
    assert rows["scales"][:2] == ["yes", "yes"]


def test_candidates_are_all_readings_of_the_methods(outcome: Outcome) -> None:
    rows = table(outcome, "Candidates")
    readings = ("mean", "max", "top1", "top5", "combined")
    assert rows.keys() == {f"{method}, {reading}" for method in ("plain", "scales") for reading in readings}
    assert sum(int(chosen) for _, chosen in rows.values() if chosen.isdigit()) == 5


def test_weights_by_the_size_of_a_lesion_are_shares(outcome: Outcome) -> None:
    text = outcome.markdown.read_text().split("**Weights**")[1].split("\n\n")[1]
    rows = [line.split("|")[3:6] for line in text.splitlines()[2:]]
    assert len(rows) == len(DIAMETERS)
    for row in rows:
        assert sum(float(cell) for cell in row) == pytest.approx(1, abs=0.02)


def test_a_part_that_fails_does_not_cost_the_report(
    outcome: Outcome, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(outcome.html.parent, tmp_path / "out")

    def fails(*_: Any) -> None:
        raise KeyError("combined")

    monkeypatch.setitem(sections._SECTIONS, "lesions", fails)
    again = reproduce(config, tmp_path / "out", only=["lesions"])
    assert again.failed["lesions"] == "'combined'"
    text = again.markdown.read_text()
    assert "This part could not be made: 'combined'" in text.replace("\\", "")
    assert "**Candidates" in text


class _Tags(HTMLParser):
    """Checks that every element that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.pictures.append(dict(attrs)["src"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_is_well_formed_and_carries_its_pictures(outcome: Outcome) -> None:
    text = outcome.html.read_text()
    page = _Tags()
    page.feed(text)
    page.close()
    assert page.open == []
    assert len(page.pictures) == 3
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in page.pictures)
    assert "http" not in text.replace("https://", "http").split("<body>")[0]


def test_names_that_want_to_be_markup_are_text(outcome: Outcome) -> None:
    page = _Tags()
    page.feed(outcome.html.read_text())
    assert HOSTILE in page.texts  # the title, whole
    assert "<img src=x" not in outcome.html.read_text()
    assert "<b>" not in outcome.html.read_text()
    markdown = outcome.markdown.read_text()
    assert "<img src=x" not in markdown.replace("\\<", "")
    row = next(line for line in markdown.splitlines() if line.startswith("| textures | /"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 8  # the seven cells of the header


def test_what_is_finished_is_not_done_again(outcome: Outcome, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = outcome.html.parent
    before = {path: path.stat().st_mtime_ns for path in out.rglob("scores.csv")}
    shutil.rmtree(out / "figures")
    assert main(["reproduce", str(config), "--out", str(out), "--only", "gallery"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{outcome.html}\n"
    assert "of 2" not in captured.err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("scores.csv")} == before
    assert len(before) == 5
    assert (out / "figures" / "gallery-textures.png").is_file()
    planned = plan(config, out)
    assert [p.finished for p in planned if p.run.method.name in ("plain", "scales")] == [True] * 4
    assert main(["reproduce", str(config), "--out", str(out), "--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["runs"]
    assert sum(shown.values()) == 5
    assert len(shown) == 9


def processes_of(folder: Path) -> list[int]:
    """Those that work in a run's folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"scrd_fast.reproduce.worker" in words and os.fsencode(folder) in words:
            found.append(int(path.parent.name))
    return found


def wait_for(what: str, condition: Any) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.mark.slow
def test_after_an_interruption_and_a_kill_the_same_command_goes_on(tree: Path, tmp_path: Path) -> None:
    train = TRAIN | {"iterations": 30, "checkpoint_every": 4, "keep_checkpoints": 9}
    methods = {"plain": {"objective": "rd4ad"}}
    changes = {"train": train, "methods": methods, "seeds": [0], "studies": {"main": {}}}
    path = write(tmp_path / "file.yaml", content(tree, **changes))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "scrd_fast", "reproduce", str(path), "--out", str(out), "-q"]
    (planned,) = plan(path, out)
    checkpoints = planned.folder / "train" / "checkpoints"

    def stop(number: signal.Signals, least: int) -> int:
        """The exit code of a command that is stopped when there are so many checkpoints."""
        process = subprocess.Popen(command)
        wait_for("a checkpoint", lambda: len(list(checkpoints.glob("iteration-*"))) >= least)
        process.send_signal(number)
        code = process.wait()
        wait_for("the end of its worker", lambda: not processes_of(planned.folder))
        return code

    assert stop(signal.SIGINT, 1) == 130
    newest = max(checkpoints.iterdir()).name
    assert stop(signal.SIGKILL, 2) == -signal.SIGKILL
    assert max(checkpoints.iterdir()).name >= newest
    assert record(planned.folder)["status"] == "running"
    before = record(planned.folder / "train")["started"]
    subprocess.run(command, check=True)
    assert record(planned.folder)["status"] == "finished"
    assert record(planned.folder / "train")["started"] == before
    assert "going on after iteration" in (planned.folder / "log.txt").read_text()
    lines = (planned.folder / "train" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == list(range(1, 31))
    assert (out / "report.html").is_file()
