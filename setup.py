# SPDX-License-Identifier: Apache-2.0
"""Runs CMake for the native code. The build is described in CMakeLists.txt, everything else in pyproject.toml.

Obeyed here: SCRD_FAST_NATIVE=0 (no native code, no compiler), MAX_JOBS (compilers at a time); in CMakeLists.txt:
SCRD_FAST_CUDA, TORCH_CUDA_ARCH_LIST, NVCC_THREADS, CUDA_HOME.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SWITCHES = (
    "SCRD_FAST_CUDA TORCH_CUDA_ARCH_LIST NVCC_THREADS CUDA_HOME CUDA_PATH "
    "CXX CXXFLAGS CUDAHOSTCXX CUDAFLAGS NVCC_PREPEND_FLAGS NVCC_APPEND_FLAGS LDFLAGS PATH"
).split()
GIB = 2**30
MEMORY_PER_JOB = 4 * GIB  # one nvcc thread on a file with torch's headers, with room to spare


def native() -> bool:
    switch = os.environ.get("SCRD_FAST_NATIVE", "1")
    if switch not in ("0", "1"):
        sys.exit(f'SCRD_FAST_NATIVE must be 0 or 1, got "{switch}"')
    return switch == "1"


def available_memory() -> int:
    """Free memory, or what the control group leaves of it where that is less."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):  # no control group, or "max"
        return free
    return min(free, limit - used)


def jobs() -> int:
    if asked := os.environ.get("MAX_JOBS"):
        return max(1, int(asked))
    threads = int(os.environ.get("NVCC_THREADS") or 1)
    try:
        fitting = int(0.7 * available_memory() / (MEMORY_PER_JOB * threads))
    except (OSError, KeyError):  # not Linux
        fitting = 1
    return max(1, min(os.cpu_count() or 1, fitting))


def build_folder() -> Path:
    """One folder for each set of switches, so that a build never meets the files of another."""
    key = [sys.executable, sys.version, *sys.path, *(os.environ.get(name, "") for name in SWITCHES)]
    return ROOT / "build" / f"cmake-{hashlib.sha256(repr(key).encode()).hexdigest()[:12]}"


def tool_folders() -> list[str]:
    """Those of the build requirements, which the system's cmake is often too old for; an environment that is not
    activated does not have them on PATH."""
    folders = []
    for module, name in (("cmake", "CMAKE_BIN_DIR"), ("ninja", "BIN_DIR")):
        try:
            folders.append(getattr(importlib.import_module(module), name))
        except (ImportError, AttributeError):  # a system package: on PATH then
            continue
    return folders


class PythonFiles(build_py):
    """Drops the libraries of an earlier build from where this one writes: they would be packed or loaded."""

    def run(self) -> None:
        package = ROOT / "scrd_fast" if self.editable_mode else Path(self.build_lib) / "scrd_fast"
        for library in package.glob("*.so"):
            library.unlink()
        super().run()


class CMakeBuild(build_ext):
    def run(self) -> None:
        target = ROOT if self.inplace or self.editable_mode else Path(self.build_lib).resolve()
        build = build_folder()
        count = jobs()
        print(f"scrd_fast: {count} compilers at a time (MAX_JOBS), build folder {build}", flush=True)
        options = [f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_INSTALL_PREFIX={target}"]
        try:
            self._cmake("-S", ROOT, "-B", build, "-G", "Ninja", *options)
            self._cmake("--build", build, "--parallel", count)
            self._cmake("--install", build)
        except (OSError, subprocess.CalledProcessError) as error:
            stopped = build / "stopped.txt"
            cause = stopped.read_text() if stopped.exists() else f"the native build failed, see above: {error}"
            sys.stdout.flush()
            sys.exit(f"SCRD_FAST_NATIVE=0 installs without native code.\nscrd_fast: {cause.strip()}")
        print((build / "summary.txt").read_text(), end="", flush=True)

    def _cmake(self, *arguments: object) -> None:
        path = os.pathsep.join([*tool_folders(), os.environ.get("PATH", "")])
        cmake = shutil.which("cmake", path=path)
        if cmake is None:
            raise OSError("cmake not found: pip install cmake ninja")
        subprocess.run([cmake, *map(str, arguments)], check=True, env=os.environ | {"PATH": path})


setup(
    ext_modules=[Extension("scrd_fast._C", sources=[])] if native() else [],
    cmdclass={"build_ext": CMakeBuild, "build_py": PythonFiles},
)
