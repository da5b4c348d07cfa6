# SPDX-License-Identifier: Apache-2.0
"""Installations as users do them: each way in each situation, in a fresh environment with a torch of its own.

`test_installs.py` runs some of them, `install_matrix.py` all.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

__all__ = [
    "BUILD_TOOLS",
    "SITUATIONS",
    "WAYS",
    "Outcome",
    "Situation",
    "Way",
    "clean_variables",
    "copy_source",
    "install",
    "installer_variables",
    "mistakes",
    "need_index",
    "new_environment",
    "uv",
]  # fmt: skip

ROOT = Path(__file__).parents[2]
PACKED = ("CMakeLists.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "csrc", "scrd_fast")
BUILD_TOOLS = ("pip", "build", "setuptools<82", "wheel", "cmake", "ninja", "pybind11")
DEPENDENCIES = ("numpy", "pillow", "safetensors", "pydantic", "pyyaml", "typer", "rich", "pyarrow")
SWITCHES = re.compile("SCRD_FAST|CUDA_|MAX_JOBS|NVCC|CXX|TORCH_|PYTHONPATH|VIRTUAL_ENV")
NOWHERE = "/nonexistent"
INSTALLERS = ("ERROR", "error", "×", "hint", "note", "[end", "╰")  # so begins what pip and uv say themselves

USE = """
import torch, scrd_fast.ops
from scrd_fast.ops import _library
noise = scrd_fast.ops.simplex_noise(torch.tensor([1]), (1, 2, 3))
assert noise.shape == (1, 1, 2, 3)
print(torch.__version__, *[state.error or state.state for state in _library.libraries()], sep="|")
"""


@dataclass(frozen=True)
class Way:
    """`commands` run one after the other in the source; {python} and {dist} are filled in."""

    name: str
    commands: tuple[str, ...]
    isolated: bool = False  # whether the build has a torch of its own, fetched for it


@dataclass(frozen=True)
class Situation:
    """What there is beside a torch with CUDA, and what must come of it: libraries, and why some are lacking."""

    name: str
    switches: Mapping[str, str] = field(default_factory=dict)
    libraries: tuple[str, ...] = ()
    cause: str | None = None  # a pattern, of the last words of a failure or of what `scrd-fast info` has as the reason
    fails: bool = False
    network: bool = True
    before: Mapping[str, str] | None = None  # switches of a build in the same folder, before


@dataclass(frozen=True)
class Outcome:
    output: str
    seconds: float
    failed: bool
    states: tuple[str, ...] = ()  # of the CPU and the CUDA library, as `scrd-fast info` has them
    libraries: tuple[str, ...] = ()  # as files
    torch_changed: bool = False
    wheel_bytes: int | None = None

    def said(self) -> str:
        """Why not everything was built: pip shows what a build prints only where that fails."""
        if not self.failed:
            return next((state.removeprefix("not built (")[:-1] for state in self.states if state != "loaded"), "")
        lines = [re.sub(r"\x1b\[[\d;]*m", "", line).strip() for line in self.output.splitlines()]
        starts = [i for i, line in enumerate(lines) if line.startswith("scrd_fast: ") and "at a time" not in line]
        if starts:  # uv breaks lines
            rest = itertools.takewhile(lambda line: line and not line.startswith(INSTALLERS), lines[starts[-1] :])
            return " ".join(rest).removeprefix("scrd_fast: ")
        return ([line for line in lines if line.startswith(INSTALLERS)] or lines or [""])[-1]


WAYS = (
    Way("pip install .", ("{python} -m pip install .",), isolated=True),
    Way("pip install --no-build-isolation .", ("{python} -m pip install --no-build-isolation .",)),
    Way("uv pip install .", ("{uv} pip install --python {python} .",), isolated=True),
    Way("pip install --no-build-isolation -e .", ("{python} -m pip install --no-build-isolation -e .",)),
    Way(
        "python -m build --no-isolation --sdist, pip install --no-build-isolation of it",
        (
            "{python} -m build --no-isolation --sdist -o {dist} .",
            "{python} -m pip install --no-build-isolation {dist}/scrd_fast-*.tar.gz",
        ),
    ),
    Way(
        "python -m build --no-isolation --wheel, pip install of it",
        ("{python} -m build --no-isolation --wheel -o {dist} .", "{python} -m pip install {dist}/scrd_fast-*.whl"),
    ),
)

CPU, CUDA = ("_C", "libscrd_fast_cpu"), ("_C", "libscrd_fast_cpu", "libscrd_fast_cuda")
NO_NVCC = {"CUDA_HOME": NOWHERE, "CUDA_PATH": NOWHERE}
NO_COMPILER = {"CXX": f"{NOWHERE}/c++", "CC": f"{NOWHERE}/cc", **NO_NVCC}
OLD_NVCC = {"CUDA_HOME": "OLD"}  # a folder whose nvcc says that it is CUDA 12.4; made by `install`

SITUATIONS = (
    Situation("no nvcc", NO_NVCC, CPU, "^nvcc not found"),
    Situation("no nvcc, `SCRD_FAST_CUDA=1`", {**NO_NVCC, "SCRD_FAST_CUDA": "1"}, (), "nvcc not found", fails=True),
    Situation("nvcc", {}, CUDA),
    Situation("nvcc, `SCRD_FAST_CUDA=1`", {"SCRD_FAST_CUDA": "1"}, CUDA),
    Situation("no compiler, `SCRD_FAST_NATIVE=0`", {**NO_COMPILER, "SCRD_FAST_NATIVE": "0"}),
    Situation("no compiler", NO_COMPILER, (), "no C.. compiler that works.*SCRD_FAST_NATIVE=0", fails=True),
    Situation("nvcc of another CUDA", OLD_NVCC, CPU, " is CUDA 12.4, torch"),
    Situation(
        "nvcc of another CUDA, `SCRD_FAST_CUDA=1`",
        {**OLD_NVCC, "SCRD_FAST_CUDA": "1"},
        (),
        "is CUDA 12.4, torch .* was built with CUDA 13",
        fails=True,
    ),
    Situation("no network", NO_NVCC, CPU, "^nvcc not found", network=False),
    Situation(
        "`SCRD_FAST_CUDA=0`, after a build with CUDA", {"SCRD_FAST_CUDA": "0"}, CPU, "^SCRD_FAST_CUDA=0$",
        before={"SCRD_FAST_CUDA": "1"},
    ),
)  # fmt: skip


def copy_source(to: Path) -> Path:
    """What is packed, without anything that was built."""
    to.mkdir(parents=True)
    for name in PACKED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info"))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, to)
    return to


def clean_variables() -> dict[str, str]:
    """The variables of this process, without switches of the build and without an environment."""
    return {name: value for name, value in os.environ.items() if not SWITCHES.match(name)}


def uv() -> str:
    found = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    assert found is not None, "uv is not installed"
    return found


def installer_variables() -> dict[str, str]:
    """`clean_variables`, and for uv what it does not know of: the mirrors in the configuration of pip."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    found = clean_variables() | {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for option in ("index-url", "extra-index-url", "find-links"):
        for value in re.findall(rf"^[\w:.]*{option}='(.*)'$", listed.stdout, re.MULTILINE):
            found[f"UV_{option.upper().replace('-', '_')}"] = value.replace("\\n", " ").strip()
    return found


def new_environment(folder: Path, *packages: str) -> Path:
    """The Python of a fresh environment with these packages; uv links what it has fetched once."""
    environment, python = installer_variables(), folder / "bin" / "python"
    for command in (
        [uv(), "venv", "-q", "--python", sys.executable, str(folder)],
        [uv(), "pip", "install", "-q", "--python", str(python), *packages],
    ):
        subprocess.run(command, env=environment, check=True)
    return python


@functools.cache
def _index_reached() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            new_environment(Path(folder) / "env", "wheel")
        except subprocess.CalledProcessError:
            return False
    return True


def need_index() -> None:
    """Skip the test where nothing can be fetched."""
    if not _index_reached():
        pytest.skip("uv reaches no package index")


def install(way: Way, situation: Situation, folder: Path, *, torch_version: str | None = None) -> Outcome:
    """Install in a new environment in `folder`, use it there, and say what came of it."""
    version = torch_version or str(torch.__version__).split("+")[0]
    python = new_environment(folder / "env", f"torch=={version}", *DEPENDENCIES, *BUILD_TOOLS)
    source = copy_source(folder / "source")
    variables = installer_variables() | {"TORCH_CUDA_ARCH_LIST": "9.0"}  # one architecture: seven take minutes
    if situation.before is not None:
        again = (*way.commands, "{python} -m pip uninstall -q -y scrd_fast")
        earlier = _run(again, python, source, folder, variables | situation.before)
        assert earlier.returncode == 0, earlier.stdout
    before = _files_of_torch(python)
    start = time.perf_counter()
    switches = {k: str(_old_toolkit(folder)) if v == "OLD" else v for k, v in situation.switches.items()}
    done = _run(way.commands, python, source, folder, variables | switches, situation.network)
    seconds = time.perf_counter() - start
    changed = _files_of_torch(python) != before
    if done.returncode != 0:
        return Outcome(done.stdout, seconds, True, torch_changed=changed)
    package = source / "scrd_fast" if "-e" in way.commands[0].split() else _site(python) / "scrd_fast"
    libraries = tuple(sorted(file.name.split(".")[0] for file in package.glob("*.so")))
    used = subprocess.run(
        [str(python), "-W", "error", "-c", USE],
        cwd=folder,
        env=clean_variables(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert used.returncode == 0, used.stderr
    used_version, *states = used.stdout.strip().split("|")
    assert used_version.split("+")[0] == version
    return Outcome(done.stdout, seconds, False, tuple(states), libraries, changed, _wheel_bytes(done.stdout, folder))


def mistakes(way: Way, situation: Situation, outcome: Outcome) -> list[str]:
    """What is not as it should be; whether there is a network is the installer's affair where it must fetch a torch."""
    found = []
    if "No module named 'torch'" in outcome.output:
        found.append("No module named 'torch'")
    if outcome.torch_changed:
        found.append("files of torch changed")
    if way.isolated and not situation.network:
        kept = way.name.startswith("uv")  # what uv has fetched before it has still
        return found if outcome.failed or kept else [*found, "did not fail, though nothing could be fetched"]
    if outcome.failed != situation.fails:
        return [*found, f"{'failed' if outcome.failed else 'did not fail'}: {outcome.said()}"]
    if not re.search(situation.cause or "", outcome.said()):
        found.append(f"does not say {situation.cause!r}")
    if not outcome.failed and outcome.libraries != situation.libraries:
        found.append(f"libraries {outcome.libraries}, not {situation.libraries}")
    if not outcome.failed:
        wanted = [f"libscrd_fast_{name}" in situation.libraries for name in ("cpu", "cuda")]
        found += [f"states {outcome.states}"] if [s == "loaded" for s in outcome.states] != wanted else []
    return found


def _wheel_bytes(output: str, folder: Path) -> int | None:
    """Of the wheel that was built; uv keeps it to itself, and one that is installed in place holds no files."""
    if made := list((folder / "dist").glob("*.whl")):
        return made[0].stat().st_size
    said = re.search(r"Created wheel for scrd_fast: filename=\S+ size=(\d+)", output)
    return int(said[1]) if said else None


def _run(
    commands: tuple[str, ...],
    python: Path,
    source: Path,
    folder: Path,
    variables: Mapping[str, str],
    network: bool = True,
) -> subprocess.CompletedProcess[str]:
    line = " && ".join(commands).format(python=python, uv=uv(), dist=folder / "dist")
    command = ["sh", "-c", line]
    if not network:  # a network of its own, in which there is nobody
        command = ["unshare", "--map-root-user", "--net", *command]
        variables = {**variables, "PIP_NO_INDEX": "1", "UV_OFFLINE": "1"}
    return subprocess.run(
        command,
        cwd=source,
        env=dict(variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def _site(python: Path) -> Path:
    (found,) = python.parents[1].glob("lib/python3*/site-packages")
    return found


def _files_of_torch(python: Path) -> list[tuple[str, int, int, int]]:
    """Every file of the torch that the user had and of what came with it: path, size, time of change, and inode."""
    folders = [folder for name in ("torch*", "nvidia*", "triton*") for folder in _site(python).glob(name)]
    files = sorted(file for folder in folders for file in folder.rglob("*") if file.suffix != ".pyc" and file.is_file())
    stats = [(str(file), file.stat()) for file in files]
    return [(name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats]


def _old_toolkit(folder: Path) -> Path:
    nvcc = folder / "toolkit" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True, exist_ok=True)
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.99'\n")
    nvcc.chmod(0o755)
    return nvcc.parents[1]
