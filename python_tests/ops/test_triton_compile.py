# SPDX-License-Identifier: Apache-2.0
"""Every Triton kernel compiles for a GPU, without one, and keeps its decisions exact."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
# The launchers run as on a GPU up to the launch itself. `result` gets the kernels of each operator x variant x dtype:
# name, hash, size of the machine code, and how often their text has each of the words.
PRELUDE = r"""
import importlib, json, re
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
import scrd_fast.ops

class Driver:
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
    def get_current_target(self): return GPUTarget("cuda", 90, 32)

def compile_only(function, *arguments, grid, warmup, **options):
    kernel = run(function, *arguments, grid=grid, warmup=True, **(options | change))
    counts = (len(re.findall(word, kernel.asm["ptx"])) for word in words)
    kernels.append((function.__name__, kernel.hash, len(kernel.asm["cubin"]), *counts))

triton.runtime.driver.set_active(Driver())
run, JITFunction.run = JITFunction.run, compile_only
operators, result, change = torch.ops.scrd_fast_triton, {}, {}

def record(name, operator, *arguments):
    global kernels
    kernels = result.setdefault(name, [])
    operator(*arguments)
"""
NOISE = r"""
noise = importlib.import_module("scrd_fast.ops.triton.simplex_noise")
words = (r"fma\S*f64", r"mul\S*f64")
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
"""
MAPS = r"""
words = (r"ld\.global\S*v4\.b32|ld\.global\S*v2\.b64", "tf32", "shfl|redux")
for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
    for layout in ("contiguous_format", "channels_last"):
        for shape in ((2, 64, 16, 16), (1, 128, 32, 16), (1, 5, 7, 3)):
            features = torch.zeros(shape, dtype=dtype).contiguous(memory_format=getattr(torch, layout))
            name = f"distances {dtype} {layout} " + ("even" if shape[1] > 5 else "odd")
            record(name, operators.cosine_distances, [features], [features], 1e-8)
            for noisy in ([features], []):
                dots = torch.ones(shape[0], 1, 5, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
                name = f"contrast {dtype} {layout} {len(noisy)} " + ("even" if shape[1] > 5 else "odd")
                record(name, operators.contrastive_distance, [features], noisy, [features], 1e-8)
                name = name.replace("contrast", "gradient")
                arguments = (dots[..., 0], dots[..., 0], dots, [features], noisy, [features], 1e-8, True)
                record(name, operators.contrastive_distance_backward, *arguments)
for dtype in (torch.float32, torch.float64):
    for weighted in (False, True):
        for n, size, shift in ((1, (16, 16), 0), (3, (1, 5), 0), (2, (33, 4), 1)):
            buffers = [torch.zeros(2 * n * side[0] * side[1], dtype=dtype)[shift:] for side in (size, (4, 4))]
            distances = [b[:n * s[0] * s[1]].view(n, *s) for b, s in zip(buffers, (size, (4, 4)))]
            weights = torch.ones(n, 2, dtype=dtype) if weighted else None
            for top in ([], [0.01, 0.05]):
                arguments = (distances, weights, [40, 16 * n], 4.0, "reflect", top, True)
                record(f"map {dtype} {weighted}", operators.anomaly_map, *arguments)
"""


def compiled(script: str, cache: Path) -> dict[str, list[list[Any]]]:
    environment = os.environ | {"TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-c", PRELUDE + script + "print(json.dumps(result))"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, list[list[Any]]] = json.loads(done.stdout)
    return result


@pytest.mark.slow
def test_every_noise_kernel_compiles_once_and_without_fused_float64(tmp_path: Path) -> None:
    result = compiled(NOISE, tmp_path)
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


@pytest.mark.slow
def test_every_map_kernel_compiles(tmp_path: Path) -> None:
    result = compiled(MAPS, tmp_path)
    assert len(result) == 16 + 2 * 32 + 4
    for name, kernels in result.items():
        for _, _, size, _, tf32, _ in kernels:
            assert size > 1000
            assert tf32 == 0  # which would lose half of the digits
        if name.startswith(("contrast", "gradient")):
            assert {kernel for kernel, *_ in kernels} == (
                {"_sums_kernel", "_join_kernel"} if name.startswith("contrast") else {"_combine_kernel"}
            )
            for kernel, _, _, wide, _, shuffles in kernels:
                if kernel != "_join_kernel":
                    assert (wide > 0) is name.endswith("even")
                    assert shuffles == 0
            continue
        if name.startswith("distances"):
            # Sizes of 16 are loaded 16 bytes at a time, in either layout, and are no reason to compile again.
            assert len({(kernel, key) for kernel, key, *_ in kernels}) == 1
            assert all((wide > 0) is name.endswith("even") for *_, wide, _, _ in kernels)
            # The order of a sum over lanes that a compiler chooses may change with the alignment.
            assert all(shuffles == 0 for *_, shuffles in kernels)
            continue
        # For each kernel as many compilations as it has forms, whatever the sizes and alignments.
        keys = {(kernel, key) for kernel, key, *_ in kernels}
        forms = {"_map_kernel": 2, "_mean_kernel": 2, "_largest_kernel": 2}
        assert {kernel: sum(k == kernel for k, _ in keys) for kernel, _ in keys} == forms
