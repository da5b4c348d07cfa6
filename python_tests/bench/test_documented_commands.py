# SPDX-License-Identifier: Apache-2.0
"""The pytest commands of docs/benchmarks.md and of the benchmarks' own docstrings select something."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("pytest_benchmark")
ROOT = Path(__file__).parents[2]
OURS = [path for path in sorted(ROOT.glob("benchmarks/bench_*.py")) if "OPERATORS" in path.read_text()]
DOCS = [ROOT / "docs" / "benchmarks.md", *OURS]


def commands() -> list[str]:
    found = []
    for path in DOCS:
        in_text = re.findall(r"(?:^ {4}|`)(pytest benchmarks/bench_.*?)(?:`|$)", path.read_text(), flags=re.M)
        assert in_text, path
        found += [re.sub(r"[\[\]]", "", command).replace(" FILE", " made.json") for command in in_text]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("command", commands())
def test_it_collects_some_of_the_benchmarks(command: str, tmp_path: Path) -> None:
    arguments = shlex.split(command)[1:]
    arguments[0] = str(ROOT / arguments[0])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    selected = re.findall(r"::test_contender\[(.*)\]$", done.stdout, flags=re.M)
    wanted = arguments[arguments.index("-k") + 1]
    assert selected
    assert all(wanted in name for name in selected)
    on_gpu = "cuda" in arguments or torch.cuda.is_available()
    assert any("triton" in name for name in selected) is on_gpu


def test_a_case_for_a_gpu_alone_is_left_out_on_a_cpu(tmp_path: Path) -> None:
    file = ROOT / "benchmarks" / "bench_simplex_noise.py"
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", str(file), "--device"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for device in ("cpu", "cuda"):
        done = subprocess.run(
            [*command, device], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("1-large-field" in done.stdout) is (device == "cuda")
        assert "16-images-in-place" in done.stdout
