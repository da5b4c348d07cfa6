# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from scrd_fast.bench import train
from scrd_fast.bench.train import AUTHORS, CONTENDERS, Setup

pytestmark = pytest.mark.xdist_group("train_bench")  # what they share is measured once, not once a process
TINY = Setup("resnet18", 64, 4, "cpu", steps=1, rounds=1, threads=1)


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, Any]]:
    before = torch.get_num_threads()
    found = {name: train.run(name, TINY) for name in CONTENDERS}
    torch.set_num_threads(before)
    return found


def test_the_same_distances_come_first(results: dict[str, dict[str, Any]]) -> None:
    """Same weights, images and noise: what is timed is the same step. After it the batch-norms differ.

    An untrained student is about as far from noisy features as from clean ones, so their ratio, the loss, says little.
    """
    expected = results[AUTHORS]["first_distances"]
    clean, noisy = expected
    assert abs(clean - noisy) > 1.5e-4 * clean
    assert results["scrd_fast, float32"]["first_distances"] == pytest.approx(expected, rel=2e-6)
    for name in CONTENDERS[2:]:
        assert results[name]["first_distances"] == pytest.approx(expected, rel=1.5e-4)  # 1.1e-4 where imitated


def test_our_steps_say_where_the_time_goes(results: dict[str, dict[str, Any]]) -> None:
    assert results[AUTHORS]["budget"] is None
    for name in CONTENDERS[1:]:
        (seconds,), budget = results[name]["times"], results[name]["budget"]
        assert 0 < sum(budget.values()) <= seconds
        assert budget["teacher"] > 0 < budget["backward"]


def test_operations_are_counted_from_the_layers(results: dict[str, dict[str, Any]]) -> None:
    counts = {name: results[name]["flops"] for name in CONTENDERS}
    assert counts[CONTENDERS[0]] == counts[CONTENDERS[1]] == counts[CONTENDERS[2]] > counts[CONTENDERS[3]]
    # A resnet18 up to its third stage takes 1.25 billion multiply-adds at 224 pixels, all convolutions.
    teacher = counts[CONTENDERS[2]] - counts[CONTENDERS[3]]
    assert teacher == pytest.approx(4 * 2 * 1.25e9 * (64 / 224) ** 2, rel=0.15)
    assert train.count_flops(dataclasses.replace(TINY, batch_size=8)) == 2 * counts[AUTHORS]


def test_the_script_prints_and_writes_both_sides(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "bench_train.py"
    tiny = {"teacher": "resnet18", "size": 64, "batch-size": 2, "steps": 1, "rounds": 1, "device": "cpu", "threads": 1}
    flags = [f"--{name}={value}" for name, value in tiny.items()]
    command = [sys.executable, str(script), *flags, "--out", str(tmp_path / "t.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    lines = done.stdout.splitlines()
    assert "resnet18, 64 px, batch 2" in lines[1]
    assert [line.split("  ")[0] for line in lines[2:] if not line.startswith(" ")] == list(CONTENDERS)
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    for row in rows:
        assert row["matmul_side"] in (256, 512, 1024, 2048)
        assert f"GFLOP/s, {row['matmul_side']} rows)" in done.stdout
