# SPDX-License-Identifier: Apache-2.0
"""`train --unlabelled`: of the checkpoints kept, unlabelled images choose the one that becomes the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score

from scrd_fast.calibration import Calibration
from scrd_fast.cli import main
from scrd_fast.data.datasets import open_dataset
from scrd_fast.data.images import content_hashes, split_calibration
from scrd_fast.model.scrd import SCRD
from scrd_fast.runs import Checkpoints
from scrd_fast.screening.screener import Screener

FLAGS = [
    *("--teacher", "resnet18", "--teacher-weights", "random", "--size", "32", "--batch-size", "4", "--device", "cpu"),
    *("--iterations", "6", "--checkpoint-every", "2", "--calibration-fraction", "0.4", "-q"),
]


def trained(tree: Path, out: Path, *flags: str) -> dict[str, object]:
    assert main(["train", str(tree), "--out", str(out), *FLAGS, *flags]) == 0
    return dict(json.loads((out / "run.json").read_text()))


def scores(model: SCRD, paths: list[Path], name: str) -> list[float]:
    return [r.scores[name] for r in Screener(model).screen(sorted(paths)) if r.scores]


@pytest.mark.parametrize("score", ["mean", "combined"])
def test_the_checkpoint_of_the_largest_aucp_becomes_the_model(tree: Path, tmp_path: Path, score: str) -> None:
    flags = ("--unlabelled", str(tree / "test"), "--score", score, "--keep-checkpoints", "3")
    record = trained(tree, tmp_path / "run", *flags)
    values = {int(k): v for k, v in dict(record["aucp_by_iteration"]).items()}  # type: ignore[call-overload]
    assert list(values) == [2, 4, 6]
    best = max(values, key=lambda k: (values[k], k))
    assert record["checkpoint"] == f"iteration {best}, by AUCp"
    states = {
        s["iteration"]: s["model"] for s in Checkpoints(tmp_path / "run/checkpoints", 3).states(torch.device("cpu"))
    }
    model = SCRD.from_pretrained(tmp_path / "run/model")
    stored = model.state_dict()
    assert all(torch.equal(stored[name], value) for name, value in states[best].items())
    assert model.config.score == score
    assert Calibration.load(tmp_path / "run/model/calibration.json").mismatch(model.fingerprint()) == []
    if score == "mean":  # the number itself, by another library and the screener's way to a score
        items = open_dataset(tree).train
        _, held_out = split_calibration(content_hashes([i.path for i in items]), 0.4)
        normal = scores(model, [items[i].path for i in held_out], "mean")
        other = scores(model, list((tree / "test").rglob("*.png")), "mean")
        labels = [0] * len(normal) + [1] * len(other)
        assert values[best] == pytest.approx(roc_auc_score(labels, normal + other), abs=1e-9)


def test_without_unlabelled_images_it_is_the_last(tree: Path, tmp_path: Path) -> None:
    record = trained(tree, tmp_path / "run", "--score", "mean")
    assert record["checkpoint"] == "last"
    assert "aucp_by_iteration" not in record


def test_what_cannot_choose_is_told_before_training(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, bad = tmp_path / "empty", tmp_path / "bad"
    empty.mkdir()
    bad.mkdir()
    (bad / "broken.png").write_bytes(b"no picture")
    command = ["train", str(tree), "--out", str(tmp_path / "run"), *FLAGS, "--unlabelled"]
    for given, said in ((empty, "no images there"), (tmp_path / "gone", "no such folder"), (bad, "broken.png")):
        assert main([*command, str(given)]) == 2
        assert said in capsys.readouterr().err
    assert main([*command, str(tree / "test"), "--calibration-fraction", "0", "--score", "mean"]) == 2
    assert "--calibration-fraction must be above 0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
