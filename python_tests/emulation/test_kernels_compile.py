# SPDX-License-Identifier: Apache-2.0
"""nvcc compiles every kernel file for every architecture of a release, and no kernel spills registers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from emulation import CACHE, HERE, make
from toolchain import ROOT, need_nvcc, wheel_folders

ARCHS = ("75", "80", "86", "89", "90", "100", "120")
OPERATORS = sorted(file.name.removesuffix("_kernels.cuh") for file in (ROOT / "csrc").glob("*/*_kernels.cuh"))
# As in CMakeLists.txt. One thread: with more, the lines of two architectures could mingle.
FLAGS = ("-std=c++17", "--fmad=false", "--threads=1", "-Xptxas=-v", "-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra")
USED = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for 'sm_(?P<arch>\d+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    flags=re.S,
)
SPILLING = """
extern "C" __global__ void spilling(float* x) {
  float v[64];
  for (int i = 0; i < 64; ++i) v[i] = x[threadIdx.x * 64 + i];
  __syncthreads();
  for (int turn = 0; turn < 9; ++turn)
#pragma unroll
    for (int i = 0; i < 64; ++i) v[i] += v[(i * 7 + 1) % 64] * v[(i + 31) % 64];
  for (int i = 0; i < 64; ++i) x[threadIdx.x * 64 + i] = v[i];
}
"""


class Usage(NamedTuple):
    kernel: str  # as the linker names it
    arch: str
    stores: int  # bytes
    loads: int
    registers: int


def read_usage(log: str) -> list[Usage]:
    """What `ptxas -v` says of each kernel on each architecture."""
    found = [match.groupdict() for match in USED.finditer(log)]
    return [Usage(m["kernel"], m["arch"], int(m["stores"]), int(m["loads"]), int(m["registers"])) for m in found]


def compile_driver(operator: str) -> list[Usage]:
    """Every kernel that the operator's driver instantiates."""
    nvcc = need_nvcc()
    archs = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHS]
    headers = [f"-I{HERE}", f"-I{ROOT / 'csrc'}", *(f"-Xcompiler=-idirafter,{f}" for f in wheel_folders())]
    source = str(HERE / f"{operator}_driver.cpp")
    fatbin = make(f"{operator}-fatbin", [nvcc, "-fatbin", *FLAGS, *archs, *headers, "-x", "cu", source])
    return read_usage(fatbin.with_name(f"{fatbin.name}.log").read_text())


def write_table(operator: str, usages: list[Usage]) -> None:
    """For a reader: build/emulation/registers-OPERATOR.txt."""
    mangled = sorted({usage.kernel for usage in usages})
    plain = subprocess.run(["c++filt", *mangled], capture_output=True, text=True, check=True).stdout.splitlines()
    names = dict(zip(mangled, plain, strict=True))
    lines = [f"{u.registers:4} registers  sm_{u.arch:4} {names[u.kernel]}\n" for u in sorted(usages)]
    (CACHE / f"registers-{operator}.txt").write_text("".join(lines))


def test_every_kernel_file_has_a_driver() -> None:
    drivers = {file.name.removesuffix("_driver.cpp") for file in HERE.glob("*_driver.cpp")}
    assert OPERATORS
    assert drivers == {*OPERATORS, "mistakes"}


@pytest.mark.parametrize("operator", OPERATORS)
def test_no_kernel_spills_on_any_architecture(operator: str) -> None:
    usages = compile_driver(operator)
    kernels = {usage.kernel for usage in usages}
    text = (ROOT / "csrc" / operator / f"{operator}_kernels.cuh").read_text()
    named = re.findall(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(", text)
    assert named
    assert [name for name in named if not any(f"{len(name)}{name}" in kernel for kernel in kernels)] == []
    assert {(usage.kernel, usage.arch) for usage in usages} == {(kernel, arch) for kernel in kernels for arch in ARCHS}
    write_table(operator, usages)
    assert [usage for usage in usages if usage.stores or usage.loads] == []


def test_a_spill_would_be_seen(tmp_path: Path) -> None:
    """64 numbers that all stay alive do not fit into 32 registers."""
    source = tmp_path / "spilling.cu"
    source.write_text(SPILLING)
    options = ["-arch=sm_90", "-Xptxas=-v", "-maxrregcount=32", "-cubin", "-o", str(tmp_path / "cubin")]
    done = subprocess.run([need_nvcc(), *options, str(source)], capture_output=True, text=True, check=True)
    (usage,) = read_usage(done.stdout + done.stderr)
    assert usage.kernel == "spilling"
    assert usage.stores > 0 < usage.loads
