# SPDX-License-Identifier: Apache-2.0
"""The build itself: what a wheel holds, what each switch does, and that a failure ends with its cause."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from installs import clean_variables, copy_source

from scrd_fast.memory import free_memory

ROOT = Path(__file__).parents[2]
HAS_NVCC = shutil.which("nvcc") is not None and torch.version.cuda is not None
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
ARCHS = "9.0"  # one architecture: seven take a minute
pytestmark = pytest.mark.xdist_group("build")  # the wheel that they share is built once, not once a process


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packed, without anything that was built."""
    return copy_source(tmp_path_factory.mktemp("build") / "source")


def build(source: Path, out: Path, **switches: str) -> subprocess.CompletedProcess[str]:
    """Build a wheel as pip does without isolation; stderr is joined to stdout, as pip shows it."""
    out.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", BUILD, str(out)],
        cwd=source,
        env=clean_variables() | {"TORCH_CUDA_ARCH_LIST": ARCHS} | switches,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def wheel_in(out: Path, done: subprocess.CompletedProcess[str]) -> Path:
    assert done.returncode == 0, done.stdout
    (wheel,) = out.glob("*.whl")
    return wheel


def shared_objects(wheel: Path) -> set[str]:
    names = zipfile.ZipFile(wheel).namelist()
    return {name.split(".")[0] for name in names if name.endswith(".so")}


@pytest.fixture(scope="module")
def native_wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("native")
    done = build(source, out, SCRD_FAST_CUDA="auto")
    if HAS_NVCC:
        assert f"for {ARCHS}" in "\n".join(done.stdout.splitlines()[-3:])
    return wheel_in(out, done)


@pytest.fixture(scope="module")
def unpacked(native_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(native_wheel).extractall(folder)
    return folder


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(native_wheel: Path) -> None:
    names = set(zipfile.ZipFile(native_wheel).namelist())
    expected = {
        str(file.relative_to(ROOT)) for file in (ROOT / "scrd_fast").rglob("*.py") if "__pycache__" not in file.parts
    }
    assert expected <= names
    assert "scrd_fast/py.typed" in names
    strangers = [name for name in names if not name.startswith(("scrd_fast/", "scrd_fast-0"))]
    assert strangers == []
    assert [name for name in names if re.search(r"\.(cpp|cu|cuh|h|o|ninja|pyc)$|test", name)] == []
    assert native_wheel.stat().st_size < 100e6


@pytest.mark.slow
def test_wheel_has_a_cuda_library_where_nvcc_is(native_wheel: Path) -> None:
    libraries = {"scrd_fast/_C", "scrd_fast/libscrd_fast_cpu"}
    assert shared_objects(native_wheel) == libraries | ({"scrd_fast/libscrd_fast_cuda"} if HAS_NVCC else set())
    assert "linux_" in native_wheel.name


@pytest.mark.slow
def test_libraries_keep_to_the_stable_abi(unpacked: Path) -> None:
    """No C++ symbol of torch is wanted, none of ours is offered; so any torch from the target on will do."""
    for library in (unpacked / "scrd_fast").glob("libscrd_fast_*.so"):
        wanted = symbols(library, "--undefined-only")
        assert "torch_library_impl" in wanted  # it does use torch
        assert [name for name in wanted.splitlines() if re.search(r"\b(at|c10|torch)::", name)] == []
        assert "scrd::" not in symbols(library, "--defined-only")


def symbols(library: Path, which: str) -> str:
    command = ["nm", "--dynamic", "--demangle", which, str(library)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_an_unpacked_wheel_runs_its_native_kernel(unpacked: Path) -> None:
    assert "loaded torch.Size([1, 1, 2, 3]) 0.1.0" in use(unpacked)


@pytest.mark.slow
def test_without_native_code_no_compiler_is_needed_and_none_is_left(
    native_wheel: Path, source: Path, tmp_path: Path
) -> None:
    assert native_wheel.exists()  # its libraries lie in the folder of this build
    done = build(source, tmp_path / "out", SCRD_FAST_NATIVE="0", PATH="/nonexistent")
    wheel = wheel_in(tmp_path / "out", done)
    assert wheel.name.endswith("py3-none-any.whl")
    assert shared_objects(wheel) == set()
    zipfile.ZipFile(wheel).extractall(tmp_path / "unpacked")
    assert "not built (installed without native code) torch.Size([1, 1, 2, 3])" in use(tmp_path / "unpacked")


def use(folder: Path) -> str:
    program = """
import torch, scrd_fast
noise = scrd_fast.ops.simplex_noise(torch.tensor([1]), (1, 2, 3))
from scrd_fast.ops import _library
print(_library.libraries()[0].state, noise.shape, (_library.build_info() or {}).get("package_version"))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def old_toolkit(tmp_path: Path) -> Path:
    nvcc = tmp_path / "toolkit" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 10.2, V10.2.89'\n")
    nvcc.chmod(0o755)
    return nvcc.parents[1]


@pytest.mark.slow
def test_auto_builds_without_cuda_and_says_so_last(
    native_wheel: Path, source: Path, tmp_path: Path, old_toolkit: Path
) -> None:
    assert native_wheel.exists()  # its CUDA library must not come along
    done = build(source, tmp_path / "out", SCRD_FAST_CUDA="auto", CUDA_HOME=str(old_toolkit))
    assert shared_objects(wheel_in(tmp_path / "out", done)) == {"scrd_fast/_C", "scrd_fast/libscrd_fast_cpu"}
    assert "no CUDA library: " in "\n".join(done.stdout.splitlines()[-3:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("switches", "cause"),
    [
        ({"SCRD_FAST_CUDA": "yes"}, 'SCRD_FAST_CUDA must be 0, 1 or auto, got "yes"'),
        ({"SCRD_FAST_NATIVE": "no"}, 'SCRD_FAST_NATIVE must be 0 or 1, got "no"'),
        (
            {"SCRD_FAST_CUDA": "1", "CUDA_HOME": "/nonexistent"},
            'nvcc not found: looked in CUDA_HOME="/nonexistent"',
        ),
        (
            {"SCRD_FAST_CUDA": "1", "CUDA_HOME": "OLD"},
            f"is CUDA 10.2, torch {torch.__version__} was built with",
        ),
        ({"SCRD_FAST_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "8.0;sm_90"}, 'got "sm_90"'),
    ],
    ids=["cuda", "native", "no nvcc", "old nvcc", "archs"],
)
def test_a_failed_build_ends_with_its_cause(
    switches: dict[str, str], cause: str, source: Path, tmp_path: Path, old_toolkit: Path
) -> None:
    if torch.version.cuda is None and "1" in switches.values():
        cause = "has no CUDA"
    elif not HAS_NVCC and "TORCH_CUDA_ARCH_LIST" in switches:
        cause = "nvcc not found"
    switches = {name: str(old_toolkit) if value == "OLD" else value for name, value in switches.items()}
    done = build(source, tmp_path / "out", **switches)
    assert done.returncode != 0
    assert cause in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_compiler_that_was_missing_is_found_once_it_is_there(source: Path, tmp_path: Path) -> None:
    """The same switches, so the same build folder."""
    compiler = tmp_path / "c++"
    done = build(source, tmp_path / "out", SCRD_FAST_CUDA="0", CXX=str(compiler))
    assert f'no C++ compiler that works: looked at CXX="{compiler}" and PATH' in done.stdout.splitlines()[-1]
    compiler.symlink_to(shutil.which("c++") or "c++")
    wheel_in(tmp_path / "out", build(source, tmp_path / "out", SCRD_FAST_CUDA="0", CXX=str(compiler)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("known", "archs"),
    [
        ((75, 80, 86, 87, 89, 90, 100, 103, 120, 121), "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"),
        ((50, 75, 80, 86, 89, 90), "7.5;8.0;8.6;8.9;9.0+PTX"),  # CUDA 12.6
    ],
)
def test_without_a_gpu_code_is_for_all_that_nvcc_knows(
    known: tuple[int, ...], archs: str, source: Path, tmp_path: Path
) -> None:
    """An nvcc that is made up: it answers the questions before the first compilation."""
    if torch.version.cuda is None or torch.cuda.is_available():
        pytest.skip("needs a torch with CUDA, and no GPU")
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    codes = "\\n".join(f"sm_{number}" for number in known)
    release = f"release {torch.version.cuda.split('.')[0]}.0"
    nvcc.write_text(
        f"#!/bin/sh\ncase $1 in --list-gpu-code) printf '{codes}\\n';; *) echo '{release}'; exit 0;; esac\n"
    )
    nvcc.chmod(0o755)
    done = build(source, tmp_path / "out", SCRD_FAST_CUDA="1", TORCH_CUDA_ARCH_LIST="", CUDA_HOME=str(tmp_path))
    assert f"GPU architectures: {archs}\n" in done.stdout
    assert "cannot compile and link a trial program" in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_build_that_fails_leaves_the_libraries_that_were_there(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "clone")
    library = tmp_path / "clone" / "scrd_fast" / "libscrd_fast_cpu.so"
    library.write_text("of an earlier build")
    editable = BUILD.replace("build_wheel", "build_editable")
    done = subprocess.run(
        [sys.executable, "-c", editable, str(tmp_path)],
        cwd=tmp_path / "clone",
        env=os.environ | {"CXX": "/nonexistent/c++"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert library.exists()


def test_extras_beside_a_matching_torchvision_bring_no_other_torch() -> None:
    """Of this environment: what pip would install for all extras."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-build-isolation", "--report", "-"]
    env = os.environ | {"SCRD_FAST_NATIVE": "0"}
    done = subprocess.run([*command, f"{ROOT}[all]"], env=env, capture_output=True, text=True, check=True)
    names = {item["metadata"]["name"] for item in json.loads(done.stdout)["install"]}
    assert "scrd_fast" in names
    assert names & {"torch", "torchvision", "triton"} == set()


@pytest.mark.slow
def test_a_torch_that_is_too_old_is_refused(source: Path, tmp_path: Path) -> None:
    """One that is made up: enough for the questions that the build asks."""
    old = tmp_path / "old" / "torch"
    (old / "utils").mkdir(parents=True)
    (old / "__init__.py").write_text(
        "import types\n__version__ = '2.10.1+cpu'\nversion = types.SimpleNamespace(cuda=None)\n"
    )
    (old / "utils" / "__init__.py").touch()
    (old / "utils" / "cpp_extension.py").write_text("include_paths = library_paths = lambda device: []\n")
    done = build(source, tmp_path / "out", PYTHONPATH=str(old.parent))
    assert done.returncode != 0
    assert re.search(r"torch 2\.10\.1\+cpu in \S+ is too old: 2\.11 or newer is needed", done.stdout.splitlines()[-1])


@pytest.fixture
def setup_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_compilers_at_a_time_fit_into_memory(setup_script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_JOBS", "NVCC_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(setup_script, "free_memory", lambda: 40 * 2**30)
    assert setup_script.jobs() == 7  # 0.7 * 40 GiB / 4 GiB
    monkeypatch.setenv("NVCC_THREADS", "4")
    assert setup_script.jobs() == 1
    monkeypatch.setenv("MAX_JOBS", "11")
    assert setup_script.jobs() == 11


def test_the_build_knows_what_memory_is_free(setup_script: ModuleType) -> None:
    assert setup_script.free_memory() == pytest.approx(free_memory(), rel=0.2)


@pytest.mark.parametrize("value", ["two", "0", "-1", "1.5"])
@pytest.mark.parametrize("switch", ["MAX_JOBS", "NVCC_THREADS"])
def test_a_number_of_compilers_that_is_none_is_refused(
    switch: str, value: str, setup_script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_JOBS", "2")
    monkeypatch.setenv(switch, value)
    with pytest.raises(SystemExit, match=f'{switch} must be a number above 0, got "{value}"'):
        setup_script.jobs()


def test_each_set_of_switches_has_its_own_build_folder(
    setup_script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []
    for name, value in (
        ("TERM", "dumb"),
        ("SCRD_FAST_CUDA", "0"),
        ("TORCH_CUDA_ARCH_LIST", "8.0"),
        ("CXX", "clang++"),
    ):
        monkeypatch.setenv(name, value)
        folders.append(setup_script.build_folder())
    assert len(set(folders)) == 4
    monkeypatch.setenv("TERM", "xterm")  # no compiler looks at it
    assert setup_script.build_folder() == folders[-1]


def test_metadata_is_static_and_leaves_torch_alone() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert "dynamic" not in text
    (requirement,) = re.findall(r'^  "(torch\W.*)",$', text.split("[project.optional-dependencies]")[0], re.MULTILINE)
    assert requirement == "torch>=2.11"
