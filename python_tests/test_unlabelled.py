# SPDX-License-Identifier: Apache-2.0
"""`calibrate --unlabelled`: the score is chosen by unlabelled images, and stays with the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from scrd_fast.aucp import pick_reading
from scrd_fast.calibration import Calibration
from scrd_fast.cli import main
from scrd_fast.model.scrd import SCRD
from scrd_fast.screening.screener import Screener


def scores_of(run: Path, folder: Path) -> dict[str, list[float]]:
    screener = Screener(SCRD.from_pretrained(run / "model"))
    rows = [r.scores for r in screener.screen(sorted(folder.rglob("*.png")))]
    return {name: [row[name] for row in rows if row] for name in rows[0] or {}}


@pytest.mark.parametrize("before", ["combined", "mean"])
def test_unlabelled_images_choose_the_score(
    trained: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], before: str
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    model = SCRD.from_pretrained(run / "model")
    model.config = model.config.model_copy(update={"score": before})
    model.save_config(run / "model")
    normals, unlabelled = tree / "train" / "good", tree / "test"
    expected, values = pick_reading(scores_of(run, normals), scores_of(run, unlabelled), before)
    command = ["calibrate", str(run), str(normals), "--unlabelled", str(unlabelled), "--device", "cpu", "--json"]
    assert main(command) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["score"] == expected
    assert printed["aucp"] == pytest.approx(values, abs=1e-3)
    chosen = SCRD.from_pretrained(run / "model")
    calibration = Calibration.load(run / "model" / "calibration.json")
    assert chosen.config.score == calibration.score == expected
    assert calibration.mismatch(chosen.fingerprint()) == []
    assert main(["evaluate", str(run), str(tree), "--out", str(tmp_path / "evaluation"), "--device", "cpu"]) == 0


def test_a_calibration_of_another_score_is_refused_until_it_is_made_anew(
    trained: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an interruption between the two files leaves it."""
    run = shutil.copytree(trained, tmp_path / "run")
    model = SCRD.from_pretrained(run / "model")
    model.config = model.config.model_copy(update={"score": "mean"})
    model.save_config(run / "model")
    command = ["screen", str(run), str(tree / "test"), "--out", str(tmp_path / "out"), "--device", "cpu", "-q"]
    assert main(command) == 2
    assert "the calibration is of the score combined, the model's is mean" in capsys.readouterr().err
    assert main(["calibrate", str(run), str(tree / "train" / "good"), "--device", "cpu", "-q"]) == 0
    assert main(command) == 0


def test_without_unlabelled_images_the_score_stays(trained: Path, tree: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    assert main(["calibrate", str(run), str(tree / "train" / "good"), "--device", "cpu", "-q"]) == 0
    assert SCRD.from_pretrained(run / "model").config == SCRD.from_pretrained(trained / "model").config


def test_unlabelled_images_that_cannot_be_read(
    trained: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    command = ["calibrate", str(run), str(tree / "train" / "good"), "--unlabelled", str(tmp_path / "broken.png")]
    assert main([*command, "--device", "cpu"]) == 2
    assert "broken.png could be read" in capsys.readouterr().err
    assert (run / "model" / "config.json").read_bytes() == (trained / "model" / "config.json").read_bytes()
