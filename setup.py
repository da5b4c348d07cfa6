# SPDX-License-Identifier: Apache-2.0
"""Runs CMake. The native build is described in CMakeLists.txt, everything else in pyproject.toml.

Obeyed here: SCRD_FAST_NATIVE=0 (no native code, no compiler) and MAX_JOBS (compilers at a time).
Obeyed in CMakeLists.txt: SCRD_FAST_CUDA, TORCH_CUDA_ARCH_LIST, NVCC_THREADS, CUDA_HOME.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# Whatever changes what the compilers are or make.
SWITCHES = re.compile("SCRD_FAST_|TORCH_CUDA_ARCH_LIST$|NVCC|CUDA|CXX|LDFLAGS$|CMAKE_|PATH$")
GIB = 2**30
MEMORY_PER_JOB = 4 * GIB  # one nvcc thread on a file with torch's headers, with room to spare


def native() -> bool:
    switch = os.environ.get("SCRD_FAST_NATIVE", "1")
    if switch not in ("0", "1"):
        sys.exit(f'SCRD_FAST_NATIVE must be 0 or 1, got "{switch}"')
    return switch == "1"


def free_memory() -> int:
    """By the package's own module: the package itself is not there yet."""
    spec = importlib.util.spec_from_file_location("memory", ROOT / "scrd_fast" / "memory.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return int(module.free_memory())


def number(switch: str) -> int | None:
    value = os.environ.get(switch, "")
    if value and not (value.isascii() and value.isdigit() and int(value)):
        sys.exit(f'{switch} must be a number above 0, got "{value}"')
    return int(value) if value else None


def jobs() -> int:
    asked, threads = number("MAX_JOBS"), number("NVCC_THREADS") or 1
    if asked is not None:
        return asked
    fitting = int(0.7 * free_memory() / (MEMORY_PER_JOB * threads))
    return max(1, min(os.cpu_count() or 1, fitting))


def build_folder() -> Path:
    """One folder for each set of switches, so that a build never meets the files of another."""
    switches = sorted(item for item in os.environ.items() if SWITCHES.match(item[0]))
    torch = [found.version for found in importlib.metadata.distributions(name="torch")]
    key = [sys.executable, sys.version, sys.path, torch, switches]
    return ROOT / "build" / f"cmake-{hashlib.sha256(repr(key).encode()).hexdigest()[:12]}"


def tool_folders() -> list[str]:
    """Where pip put cmake and ninja: an environment that is not activated does not have them on PATH, and the
    system's cmake is often too old."""
    homes = {"cmake": "CMAKE_BIN_DIR", "ninja": "BIN_DIR"}
    found = {name for name in homes if importlib.util.find_spec(name)}
    return [getattr(importlib.import_module(name), homes[name]) for name in sorted(found)]


def drop_libraries(target: Path) -> None:
    """Those of an earlier build, where this one writes: they would be packed or loaded."""
    for library in (target / "scrd_fast").glob("*.so"):
        library.unlink()


class PythonFiles(build_py):
    def run(self) -> None:
        if not native():
            drop_libraries(ROOT if self.editable_mode else Path(self.build_lib))
        super().run()


class CMakeBuild(build_ext):
    def run(self) -> None:
        target = ROOT if self.inplace or self.editable_mode else Path(self.build_lib).resolve()
        build = build_folder()
        stopped = build / "stopped.txt"
        stopped.unlink(missing_ok=True)
        count = jobs()
        print(f"scrd_fast: {count} compilers at a time (MAX_JOBS), build folder {build}", flush=True)
        options = [f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_INSTALL_PREFIX={target}"]
        try:
            self._cmake("-S", ROOT, "-B", build, "-G", "Ninja", *options)
            self._cmake("--build", build, "--parallel", count)
            drop_libraries(target)  # not before: a build that fails leaves what was there
            self._cmake("--install", build)
        except (OSError, subprocess.CalledProcessError) as error:
            cause = stopped.read_text().strip() if stopped.exists() else f"see above: {error}"
            sys.stdout.flush()
            sys.exit(f"scrd_fast: {cause} (with SCRD_FAST_NATIVE=0 it installs without native code)")
        # At the very end: setuptools lists the files that it packs after this command.
        atexit.register(print, (build / "summary.txt").read_text(), end="", flush=True)

    def _cmake(self, *arguments: object) -> None:
        path = os.pathsep.join([*tool_folders(), os.environ.get("PATH", "")])
        cmake = shutil.which("cmake", path=path)
        if cmake is None:
            raise OSError("cmake not found: pip install cmake ninja")
        subprocess.run([cmake, *map(str, arguments)], check=True, env=os.environ | {"PATH": path})


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("scrd_fast._C", sources=[])] if native() else [],
        cmdclass={"build_ext": CMakeBuild, "build_py": PythonFiles},
    )
