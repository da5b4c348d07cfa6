# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench_export.py"


def test_the_script_measures_a_file_against_the_predictor(
    trained: Path, tree: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRD_FAST_DATA", str(tree.parent))
    flags = ["--data", tree.name, "--run", str(trained), "--only", "torch 32", "--turns", "2", "--batch-size", "8"]
    monkeypatch.setattr(
        sys, "argv", [str(SCRIPT), *flags, "--threads", str(torch.get_num_threads()), "--out", "made.json"]
    )
    runpy.run_path(str(SCRIPT), run_name="__main__")
    made = json.loads((here / "made.json").read_text())
    assert made["schema"] == "scrd_fast.export/1"
    assert made["test"] == 12
    predictor, file = made["rows"]
    assert (predictor["contender"], file["contender"]) == ("predictor", "torch 32")
    assert (predictor["auroc_change"], predictor["score_difference"], predictor["decisions_differ"]) == (0, 0, 0)
    assert file["score_difference"] < 1e-4
    assert file["decisions_differ"] == 0
    assert 0 <= file["auroc"] <= 1
    assert len(file["turns"]) == 2
    assert file["bytes"] > 0
