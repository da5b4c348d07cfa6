# SPDX-License-Identifier: Apache-2.0
"""Labels that are given for the inputs of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from page_runs import column, embedded, made_row, write_run
from sklearn.metrics import roc_auc_score

from scrd_fast.calibration import Calibration
from scrd_fast.cli import main

NORMALS = Calibration.fit([float(i) for i in range(1, 40)], "mean")


def report(out: Path, *flags: str) -> int:
    return main(["report", str(out), "-q", *flags])


def labels(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_labels_fit_by_path_and_else_by_a_name_that_is_the_only_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ["x/a.png", "x/b.png", "y/b.png", "z.zip!/c.png", "d.dcm", "failed.png", "b\\udcff.png"]
    made = [made_row(i, path, None if path == "failed.png" else float(i)) for i, path in enumerate(paths)]
    made[4:5] = [made[4], made[4] | {"frame": 1, "score": 77.0, "sample_id": "other"}]
    out = write_run(tmp_path / "out", made, NORMALS)
    file = tmp_path / "labels.csv"
    lines = ["label, Path,more", "0,elsewhere/a.png,", "Normal,x/b.png,", " abnormal ,c.png,", "1,d.dcm,"]
    lines += ["1,failed.png,", "0,b.png,", "0,none.png,", ""]
    file.write_bytes("\ufeff".encode() + "\n".join(lines).encode() + b"\n1,b\xff.png,\n")
    assert report(out, "--labels", str(file)) == 0
    told = embedded(out)["labels"]
    found = dict(zip(column(embedded(out), "path"), embedded(out)["columns"]["label"], strict=True))
    assert found == {
        "x/a.png": 0, "x/b.png": 0, "y/b.png": None, "z.zip!/c.png": 1, "d.dcm": 1, "failed.png": 1, "b\\udcff.png": 1,
    }  # fmt: skip
    assert (told["labels"], told["unmatched"], told["unlabelled"], told["without_score"]) == (8, 2, 1, 1)
    assert told["abnormal"]["exact"] == [3.0, 6.0, 77.0]  # the file of two pictures by its greater score
    assert told["auroc"]["value"] == roc_auc_score([0, 0, 1, 1, 1], [0, 1, 3, 77, 6])
    assert "2 of 8 labels fit no input" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["name,label", "a,0"], "expected the columns path and label, got name, label"),
        (["path,label", "a,2"], "line 2: expected a label 0, 1, normal or abnormal, got '2'"),
        (["path,label", "a,0", "a,1"], "line 3: this path has another label above"),
        (["path,label", "a"], "line 2: has 1 columns, expected 2"),
        (["path,label"], "holds no label"),
        (None, "cannot be read as labels: No such file"),
    ],
)
def test_labels_that_are_none_are_one_line_before_anything_is_done(
    trained: Path, tree: Path, tmp_path: Path, lines: list[str] | None, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "labels.csv"
    if lines:
        labels(file, *lines)
    out = write_run(tmp_path / "out", [made_row(0, "a.png", 1.0)], NORMALS)
    for command in (["report", str(out)], ["screen", str(trained), str(tree), "--out", str(tmp_path / "new")]):
        assert main([*command, "-q", "--labels", str(file)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert str(file) in line
        assert text in line
    assert not (out / "worklist.csv").exists()
    assert not (tmp_path / "new").exists()


def test_labels_of_one_kind_give_no_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = write_run(tmp_path / "out", [made_row(0, "a.png", 1.0)], NORMALS)
    assert report(out, "--labels", str(labels(tmp_path / "l.csv", "path,label", "a.png,1"))) == 0
    assert "auroc" not in embedded(out)["labels"]
    assert "no AUROC" in capsys.readouterr().err
