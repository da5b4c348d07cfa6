# SPDX-License-Identifier: Apache-2.0
"""benchmarks/gpu.sh without a GPU: how it stops, and, with a stand-in for Python, how it sums up."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"
# Stands for Python: its checks pass, and of its steps the one that FAILING names fails.
STAND_IN = """#!/bin/sh
case "$*" in
  *setup.py*) name=build ;;
  "-m pytest"*) name=tests ;;
  *sanitize.py*) name=sanitize ;;
  *measure.py*) name=measure ;;
  -c*) echo one two; exit 0 ;;
  *) cat > /dev/null; exit 0 ;;
esac
echo "ran $name $TORCH_CUDA_ARCH_LIST"
[ "$name" != "$FAILING" ]
"""
SANITIZER = """#!/bin/sh
while [ "$1" != --error-exitcode ]; do shift; done
shift 2
exec "$@"
"""


def run(*arguments: object, python: object = sys.executable, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPT), *map(str, arguments)]
    environment = os.environ | {"PYTHON": str(python)} | environment
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("python", STAND_IN), ("compute-sanitizer", SANITIZER)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    return tools


def summary(stand_in: Path, *arguments: str, failing: str = "", sanitizer: bool = True) -> tuple[int, list[str], str]:
    if not sanitizer:
        (stand_in / "compute-sanitizer").unlink()
    path = os.pathsep.join([str(stand_in), os.environ["PATH"]]) if sanitizer else "/usr/bin:/bin"
    fixed = {"PATH": path, "FAILING": failing, "CUDA_HOME": "/nowhere"}
    done = run(*arguments, stand_in.parent / "out", python=stand_in / "python", **fixed)
    lines = done.stdout.split("== summary\n")[1].splitlines()
    return done.returncode, [" ".join(line.split()[:3]) for line in lines], done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_it_stops_without_a_gpu(tmp_path: Path) -> None:
    done = run(tmp_path / "out")
    assert done.returncode == 4
    assert "finds no NVIDIA GPU" in done.stderr
    assert not (tmp_path / "out").exists()


def test_usage() -> None:
    assert run("--help").returncode == 2
    assert run("a", "b").returncode == 2


def test_all_steps_pass(stand_in: Path) -> None:
    code, lines, output = summary(stand_in)
    assert code == 0
    assert lines[:6] == [
        "passed build in",
        "passed tests marked",
        "passed compute-sanitizer memcheck",
        "passed compute-sanitizer racecheck",
        "passed benchmark one",
        "passed benchmark two",
    ]
    assert "ran build 9.0" in output


@pytest.mark.parametrize(
    ("failing", "failed"),
    [
        ("tests", "FAILED tests marked"),
        ("measure", "FAILED benchmark one:"),
        ("sanitize", "FAILED compute-sanitizer memcheck:"),
    ],
)
def test_a_failed_step_fails_the_script_and_the_others_run(stand_in: Path, failing: str, failed: str) -> None:
    code, lines, _ = summary(stand_in, failing=failing)
    assert code == 1
    assert failed in lines
    assert len(lines) == 7


def test_all_limits_together_are_ten_minutes(stand_in: Path) -> None:
    _, lines, output = summary(stand_in)
    limits = [int(number) for number in re.findall(r"^== .* \(at most (\d+) s\)$", output, flags=re.M)]
    assert len(limits) == len(lines) - 1  # the last line has the folder
    assert 300 < sum(limits) < 600


def test_nothing_runs_on_a_failed_build(stand_in: Path) -> None:
    code, lines, output = summary(stand_in, failing="build")
    assert code == 1
    assert lines[:2] == ["FAILED build in", "skipped everything else:"]
    assert "ran tests" not in output


def test_what_is_skipped_is_said(stand_in: Path) -> None:
    code, lines, output = summary(stand_in, "--no-build", sanitizer=False)
    assert code == 0
    assert lines[0] == "skipped build in"
    assert lines[2] == "skipped compute-sanitizer: not"
    assert "ran build" not in output
