# SPDX-License-Identifier: Apache-2.0
"""Every Triton kernel compiles for a GPU, without one, and keeps its decisions exact."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
# The launchers run as on a GPU up to the launch itself. Prints, for each operator x variant x dtype, its kernels:
# name, size of the machine code, and how often float64 is fused and multiplied.
COMPILE = r"""
import importlib, json, re
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
import scrd_fast.ops

noise = importlib.import_module("scrd_fast.ops.triton.simplex_noise")

class Driver:
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
    def get_current_target(self): return GPUTarget("cuda", 90, 32)

def compile_only(function, *arguments, grid, warmup, **options):
    kernel = run(function, *arguments, grid=grid, warmup=True, **(options | change))
    fused, products = (len(re.findall(word + r"\S*f64", kernel.asm["ptx"])) for word in ("fma", "mul"))
    kernels.append((function.__name__, kernel.hash, len(kernel.asm["cubin"]), fused, products))

triton.runtime.driver.set_active(Driver())
run, JITFunction.run = JITFunction.run, compile_only
operators, result, change = torch.ops.scrd_fast_triton, {}, {}

def record(name, operator, *arguments):
    global kernels
    kernels = result.setdefault(name, [])
    operator(*arguments)

rest = (6, 0.6, 1 / 32)
for variant in ("opensimplex", "hashed"):
    for size, index in (((1, 1, 1), "int32"), ((3, 16, 32), "int32"), ((1, 1, 1), "int64")):
        noise.index_type = lambda elements: getattr(triton.language, index)
        seeds = torch.arange(6)[:: len(result) + 1][:1]  # another stride each time
        record(f"noise {variant}", operators.simplex_noise, seeds, size, *rest, variant)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        for channels in (1, 3):
            images = torch.zeros(1, channels, 16, 16 + channels, dtype=dtype)
            images = images.contiguous(memory_format=torch.channels_last) if channels == 3 else images
            boxes, std = torch.zeros(1, 4, dtype=torch.int32), None if dtype == torch.float16 else torch.ones(channels)
            arguments = (images, boxes, seeds, 0.2, std, *rest, variant)
            record(f"synthesis {variant} {dtype}", operators.synthesize_anomalies_, *arguments)
change["enable_fp_fusion"] = True
record("fused", operators.simplex_noise, seeds, (1, 1, 1), *rest, "opensimplex")
print(json.dumps(result))
"""


@pytest.mark.slow
def test_every_kernel_compiles_once_and_without_fused_float64(tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    *_, (_, _, _, fused, _) = result.pop("fused")
    assert fused > 0  # what the compiler does if it may, so that what follows can fail
    assert len(result) == 10
    for name, kernels in result.items():
        assert {kernel for kernel, *_ in kernels if "shuffle" in kernel} == (
            set() if "hashed" in name else {"_shuffle_kernel"}
        )
        noise = [tuple(facts) for kernel, *facts in kernels if "shuffle" not in kernel]
        wide = name.startswith("noise")  # one of them with the index of 2^30 elements
        assert len(noise) == (3 if wide else 2)
        assert len(set(noise)) == (2 if wide else 1)  # sizes and strides are no reason to compile again
        for _, size, fused, products in noise:
            assert size > 1000
            assert products > 0
            assert fused == 0
