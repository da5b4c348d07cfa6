# SPDX-License-Identifier: Apache-2.0
"""What is given out: the wheel and the source archive, and the configuration that makes the wheels of a release."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from installs import ROOT, clean_variables, copy_source, need_index

pytestmark = pytest.mark.xdist_group("release")  # what they share is built once, not once a process
HERE = Path(__file__).parent
OTHERS = ("2.13.0", "2.15.0")  # releases of torch; the first may be one without CUDA


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by the script of `make wheel`, for one architecture."""
    folder = tmp_path_factory.mktemp("release")
    source = copy_source(folder / "source")
    for stale in (
        "scrd_fast/libscrd_fast_stale.so",
        "csrc/stale.pyc",
        "build/stale.o",
        "dist/stale.whl",
        "python_tests/stale.py",
    ):
        (source / stale).parent.mkdir(exist_ok=True)
        (source / stale).touch()
    command = [sys.executable, str(HERE / "build_wheel.py"), str(folder / "dist"), "--source", str(source)]
    variables = clean_variables() | {"TORCH_CUDA_ARCH_LIST": "9.0"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


@pytest.mark.slow
def test_the_wheel_names_its_systems_and_brings_nothing_of_torch(release: Path, tmp_path: Path) -> None:
    (wheel,) = release.glob("*.whl")
    assert re.search(rf"-cp3{sys.version_info[1]}-cp3{sys.version_info[1]}-manylinux_2_\d+_x86_64\.whl$", wheel.name)
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if re.search(r"torch|c10|cudart|libcuda\.|stale", name)] == []
    assert {name.split("/")[0] for name in names} == {"scrd_fast", "scrd_fast-0.1.0.dist-info"}
    zipfile.ZipFile(wheel).extractall(tmp_path)
    audit = [str(Path(sys.executable).with_name("torch-abi-audit")), "--check", "torch", str(tmp_path / "scrd_fast")]
    done = subprocess.run(audit, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_source_archive_can_build_and_holds_no_builds(release: Path) -> None:
    (archive,) = release.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    needed = {str(file.relative_to(ROOT)) for file in (ROOT / "csrc").rglob("*") if file.is_file()}
    assert needed | {"CMakeLists.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE"} <= names
    assert [
        name for name in names if re.search(r"\.(so|pyc|o)$|^(build|dist|python_tests|benchmarks)|stale", name)
    ] == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("version", OTHERS)
def test_one_wheel_serves_another_torch(version: str, release: Path) -> None:
    """`make test-wheel` runs all the operators' tests there, and for any torch."""
    need_index()
    some = ["--", "-q", "-k", "opcheck or gradcheck", "--deselect", "python_tests/ops/test_isa.py"]
    command = [sys.executable, str(HERE / "use_wheel.py"), str(release), version, *some]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert f"run with torch {version}" in done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 20


def test_the_wheels_of_a_release_are_for_every_python() -> None:
    """As far as it can be told without a container engine: cibuildwheel reads its configuration."""
    command = [sys.executable, "-m", "cibuildwheel", "--platform", "linux", "--print-build-identifiers", str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"cp3{minor}-manylinux_x86_64" for minor in range(10, 15)]
