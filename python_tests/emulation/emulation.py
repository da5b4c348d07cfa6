# SPDX-License-Identifier: Apache-2.0
"""Builds a driver once, runs it in a process of its own, returns what it computed.

A build lies in build/emulation/ under the hash of all that went into it, so the next run finds it again.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray
from toolchain import CXX, ROOT, need_host_compiler

HERE = Path(__file__).parent
CACHE = ROOT / "build" / "emulation"
ORDERS = ("forward", "reverse", "random")
FLAGS = ("-std=c++17", "-g", "-Wall", "-Wextra", "-Werror", "-fno-strict-aliasing", "-ffp-contract=off")
FLAGS += ("-Wno-unknown-pragmas",)  # `#pragma unroll` is nvcc's
RUNTIME = ("fibers.cpp", "runtime.cpp", "driver.cpp")


class Build(NamedTuple):
    kernels: tuple[str, ...]  # flags for the kernels
    runtime: tuple[str, ...]  # flags for the emulation, which is no part of what is tested


BUILDS = {
    "plain": Build(("-O2",), ("-O2",)),
    "asan": Build(
        ("-O1", "-DEMUL_ASAN", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
        ("-O1", "-DEMUL_ASAN", "-fno-omit-frame-pointer"),
    ),
    "tsan": Build(("-O1", "-DEMUL_TSAN", "-fsanitize=thread"), ("-O1", "-DEMUL_TSAN")),
}
SANITIZERS = {"TSAN_OPTIONS": "atexit_sleep_ms=0:halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=1"}


class EmulationError(Exception):
    """What the emulation or a sanitizer said of a kernel."""


def emulate(
    driver: str,
    build: str,
    result: DTypeLike,
    *,
    order: str = "forward",
    random_seed: int = 1,
    **arguments: NDArray[Any] | str | float,
) -> NDArray[Any]:
    """Runs DRIVER_driver.cpp and returns the array that it gives, flat and of type `result`.

    `order` is that of blocks and threads, `random_seed` the seed of "random". The driver gets all other arguments.
    Every driver knows `shift=1`: arrays begin one element behind a 16-byte boundary; and `max_grid_x=`,
    `max_grid_y=`: smaller grids, so that loops over gridDim turn. Raises EmulationError if the emulation or a
    sanitizer finds a mistake.
    """
    program = executable(driver, build)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result"
        words = [f"order={order}", f"random_seed={random_seed}", f"result={out}"]
        for name, value in arguments.items():
            if isinstance(value, np.ndarray):
                value.tofile(Path(folder) / name)
                value = str(Path(folder) / name)
            words.append(f"{name}={value!r}" if isinstance(value, float) else f"{name}={value}")
        done = subprocess.run(
            [program, *words], env=os.environ | SANITIZERS, capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode != 0:
            raise EmulationError(f"{driver} ({build}, {order}) ended with {done.returncode}:\n{done.stderr[:6000]}")
        return np.fromfile(out, dtype=result)


def executable(driver: str, build: str) -> Path:
    """Built if no earlier run did."""
    headers = need_host_compiler()
    flags = [*FLAGS, *headers, f"-I{HERE}", f"-I{ROOT / 'csrc'}"]
    kernels, runtime = BUILDS[build]
    objects = [make(source, [CXX, *flags, *runtime, "-c", str(HERE / source)]) for source in RUNTIME]
    source = HERE / f"{driver}_driver.cpp"
    return make(f"{driver}-{build}", [CXX, *flags, *kernels, str(source), *map(str, objects)])


def make(name: str, command: list[str]) -> Path:
    """The output of the compiler, which runs once however many processes ask for it.

    What the compiler said lies beside it, under the same name and `.log`.
    """
    key = hashlib.sha256(repr((command, _version(command[0]), _sources())).encode()).hexdigest()[:16]
    target = CACHE / f"{name}-{key}"
    with locked(target.with_name(f"{target.name}.lock")):
        if not target.exists():
            unfinished = target.with_name(f"{target.name}.unfinished")
            done = subprocess.run([*command, "-o", unfinished], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise EmulationError(f"{command[0]} cannot build {name}:\n{done.stderr[:6000]}")
            target.with_name(f"{target.name}.log").write_text(done.stdout + done.stderr)
            unfinished.rename(target)
    return target


@contextmanager
def locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@functools.cache
def _sources() -> str:
    """A hash of every file that a driver may include."""
    found = sorted(path for folder in (HERE, ROOT / "csrc") for path in folder.rglob("*"))
    files = [path for path in found if path.suffix in (".h", ".cuh", ".cpp")]
    return hashlib.sha256(b"".join(str(path).encode() + path.read_bytes() for path in files)).hexdigest()


@functools.cache
def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
