# SPDX-License-Identifier: Apache-2.0
"""Some of the ways to install, for real, in fresh environments; `make install-matrix` does all."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from installs import (
    BUILD_TOOLS,
    ROOT,
    SITUATIONS,
    USE,
    WAYS,
    Outcome,
    clean_variables,
    copy_source,
    install,
    installer_variables,
    mistakes,
    need_index,
    new_environment,
    uv,
)

TORCH = str(torch.__version__).split("+")[0]
HAS_NVCC = shutil.which("nvcc") is not None and torch.version.cuda is not None
CHOSEN = [  # each way once, and the situations in which most can go wrong; the slower ones before a release
    ("pip install .", "no nvcc"),
    pytest.param(
        "pip install --no-build-isolation .", "`SCRD_FAST_CUDA=0`, after a build with CUDA", marks=pytest.mark.release
    ),
    ("uv pip install .", "no compiler"),
    ("pip install --no-build-isolation -e .", "no compiler, `SCRD_FAST_NATIVE=0`"),
    pytest.param(
        "python -m build --no-isolation --sdist, pip install --no-build-isolation of it",
        "nvcc of another CUDA",
        marks=pytest.mark.release,
    ),
    ("python -m build --no-isolation --wheel, pip install of it", "nvcc, `SCRD_FAST_CUDA=1`"),
    ("pip install --no-build-isolation .", "no network"),
]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("way", "situation"), CHOSEN)
def test_an_installation_is_what_it_should_be(way: str, situation: str, tmp_path: Path) -> None:
    need_index()
    (found_way,) = (w for w in WAYS if w.name == way)
    (found_situation,) = (s for s in SITUATIONS if s.name == situation)
    wants_cuda = "libscrd_fast_cuda" in found_situation.libraries or found_situation.before is not None
    if wants_cuda and not HAS_NVCC:
        pytest.skip("needs nvcc and a torch with CUDA")
    if not found_situation.network and subprocess.run(["unshare", "--map-root-user", "--net", "true"]).returncode:
        pytest.skip("this machine does not let a process give up the network")
    outcome = install(found_way, found_situation, tmp_path)
    shutil.rmtree(tmp_path / "env")
    assert mistakes(found_way, found_situation, outcome) == [], outcome.output[-5000:]


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["torch", "pybind11"])
def test_an_environment_without_what_the_build_needs_is_told_so(missing: str, tmp_path: Path) -> None:
    need_index()
    tools = [tool for tool in BUILD_TOOLS if tool != missing]
    python = new_environment(tmp_path / "env", *tools, *(["torch==2.13.0"] if missing != "torch" else []))
    source = copy_source(tmp_path / "source")
    command = [str(python), "-m", "pip", "install", "--no-build-isolation", "--no-deps", str(source)]
    done = subprocess.run(command, env=clean_variables(), capture_output=True, text=True, check=False)
    shutil.rmtree(tmp_path / "env")
    assert done.returncode != 0
    said = Outcome(done.stdout + done.stderr, 0, failed=True).said()
    assert f"the build needs torch and pybind11 in {python}: {missing} is not installed there; install them" in said
    assert "No module named" not in said


def test_what_is_wrong_is_found() -> None:
    """The checks of an installation, on outcomes that are made up."""
    way, situation = WAYS[1], SITUATIONS[0]
    good = Outcome("", 1.0, False, ("loaded", "not built (nvcc not found: x)"), situation.libraries)
    assert mistakes(way, situation, good) == []
    assert "failed" in mistakes(way, situation, Outcome("", 1.0, failed=True))[0]
    assert "libraries" in mistakes(way, situation, Outcome("", 1.0, False, good.states, ()))[0]
    assert "say" in mistakes(way, situation, Outcome("", 1.0, False, ("loaded", "not built (?)"), good.libraries))[0]
    assert "states" in mistakes(way, situation, Outcome("", 1.0, False, ("lost", good.states[1]), good.libraries))[-1]
    changed = Outcome("", 1.0, False, good.states, good.libraries, torch_changed=True)
    assert mistakes(way, situation, changed) == ["files of torch changed"]
    assert "No module named" in mistakes(way, situation, Outcome("No module named 'torch'", 1.0, True))[0]


def snippet(tool: str) -> str:
    """The README's commands for another package manager: the shell block that names it first."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (found,) = (block for block in blocks if block.startswith(f"{tool} "))
    return str(found)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("tool", ["uv", pytest.param("poetry", marks=pytest.mark.release)])
def test_a_project_of_another_package_manager_takes_it_in(tool: str, tmp_path: Path) -> None:
    """What the README says, in an empty project beside a clone; the CPU kernels are enough here."""
    need_index()
    copy_source(tmp_path / "scrd_fast")
    variables = installer_variables() | {"SCRD_FAST_CUDA": "0"}
    variables |= {"POETRY_VIRTUALENVS_IN_PROJECT": "true", "POETRY_CACHE_DIR": str(tmp_path / "cache")}
    variables["PATH"] = f"{Path(uv()).parent}:{variables['PATH']}"
    commands = snippet(tool)
    if tool == "poetry":
        # By the simple index, since not every mirror has what poetry asks of PyPI; beside a torch that is there before.
        index = variables.get("UV_INDEX_URL", "https://pypi.org/simple/")
        commands = commands.replace(
            "poetry add",
            f"poetry source add -q --priority=primary index {index}\npoetry add torch=={TORCH}\npoetry add",
        )
        poetry = new_environment(tmp_path / "tool", "poetry").parent
        variables["PATH"] = f"{poetry}:{variables['PATH']}"
    done = subprocess.run(
        ["sh", "-e", "-c", commands], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (python,) = tmp_path.glob("*/.venv/bin/python")
    used = subprocess.run(
        [str(python), "-c", USE], cwd=tmp_path, env=clean_variables(), capture_output=True, text=True, check=False
    )
    assert used.stdout.strip().split("|")[1:] == ["loaded", "not built (SCRD_FAST_CUDA=0)"], used.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_torch_for_cpus_stays_what_it_is(tmp_path: Path) -> None:
    """The core alone, beside a torch without CUDA that no torchvision fits."""
    need_index()
    way, (situation,) = WAYS[1], (s for s in SITUATIONS if s.name == "no nvcc")
    outcome = install(way, situation, tmp_path, torch_version="2.13.0")
    ask = [str(tmp_path / "env" / "bin" / "python"), "-c", "import torch; print(torch.version.cuda)"]
    cuda = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    shutil.rmtree(tmp_path / "env")
    if cuda != "None":
        pytest.skip("the package index has no torch 2.13.0 for CPUs")
    assert mistakes(way, situation, outcome) == ["does not say '^nvcc not found'"]
    assert "which the build uses, has no CUDA" in outcome.said()
