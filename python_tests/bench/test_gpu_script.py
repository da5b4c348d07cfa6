# SPDX-License-Identifier: Apache-2.0
"""benchmarks/gpu.sh without a GPU: how it stops, and, with a stand-in for Python, how it sums up."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
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
echo "arguments of $name: $*"
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
    assert len(lines) == 8


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


# Collects as on a machine with a GPU and with none of the modules named first; says what was selected.
COLLECT = """
import json, sys
import pytest, torch

for name in json.loads(sys.argv[1]):
    sys.modules[name] = None
torch.cuda.is_available = lambda: True

class Selected:
    def pytest_collection_finish(self, session):
        print("selected " + json.dumps([item.nodeid for item in session.items]))

sys.exit(pytest.main([*sys.argv[2:], "--collect-only", "-q"], [Selected()]))
"""
NAMES = {"pillow": "PIL", "scikit-learn": "sklearn", "pyyaml": "yaml"}  # modules not named like their distributions


def absent_modules() -> list[str]:
    """Of every dependency that gpu.sh does not check for, as torch brings its own."""
    wanted = re.search(r"^wanted = (\{.*\})$", SCRIPT.read_text(), flags=re.M)
    assert wanted is not None
    needed = {*re.findall(r'"(\w+)"', wanted[1]), "torch", "triton", "scrd_fast"}
    brought = {_module(r) for r in importlib.metadata.requires("torch") or [] if "extra ==" not in r}
    ours = importlib.metadata.metadata("scrd_fast").get_all("Requires-Dist") or []
    return sorted({_module(r) for r in ours} - needed - brought)


def _module(requirement: str) -> str:
    distribution = re.split(r"[^\w-]", requirement)[0].lower()
    return NAMES.get(distribution, distribution.replace("-", "_"))


@pytest.fixture(scope="module")
def selected(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The tests that gpu.sh's command selects, with nothing there but what gpu.sh checks for."""
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "python").write_text(STAND_IN)
    (folder / "python").chmod(0o755)
    output = run(folder / "out", python=folder / "python", FAILING="").stdout
    command = re.search(r"^arguments of tests: -m pytest (.*)$", output, flags=re.M)
    assert command is not None
    arguments = [sys.executable, "-c", COLLECT, json.dumps(absent_modules()), *shlex.split(command[1])]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[str] = json.loads(done.stdout.split("selected ")[1].splitlines()[0])
    return found


def test_extras_are_absent() -> None:
    assert {"timm", "scipy", "sklearn", "matplotlib", "torchvision", "yaml", "pydantic"} <= set(absent_modules())
    assert not {"numba", "opensimplex", "hypothesis", "numpy", "jinja2"} & set(absent_modules())


def test_every_test_marked_cuda_is_selected_and_needs_no_extra(selected: list[str]) -> None:
    marked = {p for p in ROOT.glob("python_tests/**/test_*.py") if "mark.cuda" in p.read_text() and p != Path(__file__)}
    assert {str(path.relative_to(ROOT)) for path in marked} <= {name.split("::")[0] for name in selected}


def test_the_numbers_of_triton_are_compared_on_a_gpu(selected: list[str]) -> None:
    for name, test in {
        "anomaly_map": "test_equals_torch_and_scipy",
        "contrastive_distance": "test_distances_and_gradients_equal_those_of_torch",
        "cosine_distances": "test_equals_torch",
        "simplex_noise": "test_equals_the_reference",
        "synthesize_anomalies": "test_equals_the_reference_and_touches_nothing_else",
    }.items():
        assert any(test in item for item in selected if f"test_triton_{name}.py" in item)
