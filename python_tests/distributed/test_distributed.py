# SPDX-License-Identifier: Apache-2.0
"""Two processes on one machine, by gloo: what they do together is what one does alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TRAIN_FLAGS

import scrd_fast

HERE = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ALONE = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}


def losses(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["iteration"] for r in records] == list(range(1, len(records) + 1))  # each once, by one writer
    return [r["loss"] for r in records]


STARTS = {
    "alone": [sys.executable, "-m", "scrd_fast"],
    "torchrun": [*TORCHRUN, "-m", "scrd_fast"],
    "fabric": [
        sys.executable,
        "-m",
        "lightning_fabric.cli",
        "--devices=2",
        f"{scrd_fast.__path__[0]}/__main__.py",
    ],
}


def train(start: str, tree: Path, out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [*STARTS[start], "train", str(tree), "--out", str(out), *TRAIN_FLAGS, *flags]
    return subprocess.run(command, env=ALONE, text=True, capture_output=True, check=False)


def test_two_processes_have_the_gradients_and_statistics_of_one(tmp_path: Path) -> None:
    """In float64 nothing but the order of sums differs."""
    script = str(HERE / "two_processes.py")
    subprocess.run([sys.executable, script, str(tmp_path / "one.pt")], env=ALONE, check=True)
    subprocess.run([*TORCHRUN, script, str(tmp_path / "two.pt")], env=ALONE, check=True)
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    assert one.keys() == two.keys() == {"authors", "paper", "scrd"}
    for objective, expected in one.items():
        assert expected.keys() == two[objective].keys()
        assert ("scale_adaptation.linear.weight" in expected) is (objective == "paper")
        for name, value in expected.items():
            scale = float(value.abs().max())
            torch.testing.assert_close(two[objective][name], value, rtol=0, atol=1e-9 * scale + 1e-12, msg=name)


def test_two_processes_have_the_loss_curve_of_one(tree: Path, tmp_path: Path) -> None:
    """Of the noise and the order of the images, too. Rounding grows from step to step: Adam divides by gradients."""
    finished = {start: train(start, tree, tmp_path / start) for start in STARTS}
    one = losses(tmp_path / "alone")
    for start, process in finished.items():
        assert process.returncode == 0, process.stderr
        assert process.stdout.splitlines()[-1] == str(tmp_path / start / "model")
        assert process.stdout.count("model") == 1
        two = losses(tmp_path / start)
        torch.testing.assert_close(torch.tensor(two[:2]), torch.tensor(one[:2]), rtol=1e-5, atol=0)
        torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=5e-3, atol=0)
        record = json.loads((tmp_path / start / "run.json").read_text())
        assert (record["processes"], record["status"]) == (1 if start == "alone" else 2, "finished")


def start_and_wait(tree: Path, out: Path, *flags: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A run of two processes that has saved a checkpoint, and their process numbers, the first one's first."""
    command = ["-m", "scrd_fast", "train", str(tree), "--out", str(out), *TRAIN_FLAGS, *flags]
    process = subprocess.Popen([*TORCHRUN, *command], env=ALONE, text=True, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 240
    while not list((out / "checkpoints").glob("*.pt")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {}
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks.update({int(v[5:]): int(child) for v in variables if v.startswith(b"RANK=")})
    return process, [ranks[0], ranks[1]]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks up processes in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_others_and_another_number_goes_on(rank: int, tree: Path, tmp_path: Path) -> None:
    flags = ["--iterations", "24", "--checkpoint-every", "2"]
    process, numbers = start_and_wait(tree, tmp_path / "cut", *flags)
    os.kill(numbers[rank], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert not Path(f"/proc/{numbers[1 - rank]}").exists()
    assert f"process {1 - rank} of 2 cannot go on, another one has ended" in errors
    assert "the last good checkpoint is" in errors
    assert train("alone", tree, tmp_path / "cut", *flags).returncode == 0
    assert train("alone", tree, tmp_path / "whole", *flags).returncode == 0
    cut, whole = losses(tmp_path / "cut"), losses(tmp_path / "whole")
    assert len(cut) == 24
    torch.testing.assert_close(torch.tensor(cut[:3]), torch.tensor(whole[:3]), rtol=1e-3, atol=0)
    assert sum(cut[-5:]) < sum(cut[:5])


def test_processes_need_equal_shares(tree: Path, tmp_path: Path) -> None:
    result = train("torchrun", tree, tmp_path / "run", "--batch-size", "5")
    assert result.returncode != 0
    assert "--batch-size must be a multiple of 2, and at least 4, for 2 processes" in result.stderr
    assert not (tmp_path / "run").exists()
