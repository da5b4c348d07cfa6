# SPDX-License-Identifier: Apache-2.0
"""Finds the compilers and NVIDIA's headers as the project's build does, and skips a test that lacks them.

With SCRD_FAST_CUDA=1, as in the build, whatever is missing is a failure.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[2]
CXX = os.environ.get("CXX", "g++")
HEADERS = ("cuda_bf16.h", "cuda_fp16.h", "cuda_runtime_api.h", "vector_functions.h")


def _missing(reason: str) -> NoReturn:
    if os.environ.get("SCRD_FAST_CUDA") == "1":
        pytest.fail(f"SCRD_FAST_CUDA=1, but {reason}")
    pytest.skip(reason)


@functools.cache
def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        return shutil.which("nvcc", path=f"{home}/bin")
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def need_nvcc() -> str:
    return find_nvcc() or _missing("nvcc not found in CUDA_HOME, CUDA_PATH, PATH and /usr/local/cuda/bin")


@functools.cache
def wheel_folders() -> tuple[str, ...]:
    """Headers that NVIDIA's wheels bring: CUDA 13 has one folder, CUDA 12 one a part."""
    nvidia = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    folders = [*nvidia.glob("cu[0-9]*/include"), *nvidia.glob("cuda_*/include")]
    return tuple(sorted(map(str, folders)))


@functools.cache
def toolkit_folders() -> tuple[str, ...]:
    """What nvcc itself includes from: it may be a script or a link, and then no folder beside it says where."""
    nvcc = find_nvcc()
    if nvcc is None:
        return ()
    told = subprocess.run([nvcc, "--dryrun", "-x", "cu", "/dev/null"], capture_output=True, text=True, check=False)
    lines = re.findall(r"^#\$ (?:SYSTEM_)?INCLUDES=(.*)$", told.stderr, flags=re.M)
    words = re.findall(r'"(?:-I)?(/[^"]+)"', " ".join(lines))
    return tuple(word for word in words if Path(word).is_dir())


def _compiles(flags: list[str]) -> bool:
    text = "".join(f"#include <{header}>\n" for header in HEADERS)
    command = [CXX, "-std=c++17", "-fsyntax-only", *flags, "-x", "c++", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False).returncode == 0


@functools.cache
def header_flags() -> list[str] | None:
    """How the host compiler finds a set of NVIDIA's headers that is whole: the toolkit's first."""
    toolkit = [f"-isystem{folder}" for folder in toolkit_folders()]
    wheels = [f"-isystem{folder}" for folder in wheel_folders()]
    return next((flags for flags in (toolkit, [*toolkit, *wheels], wheels) if flags and _compiles(flags)), None)


def need_host_compiler() -> list[str]:
    """The flags for NVIDIA's headers."""
    if platform.machine() != "x86_64":
        pytest.skip(f"the emulation is for x86_64, this is {platform.machine()}")
    if shutil.which(CXX) is None:
        _missing(f"the compiler {CXX} is not installed")
    flags = header_flags()
    if flags is None:
        folders = [*toolkit_folders(), *wheel_folders()]
        _missing(
            f"{CXX} cannot compile {', '.join(HEADERS)} from {folders}; install the CUDA toolkit, or pip install "
            "nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl, all of one version"
        )
    return flags
