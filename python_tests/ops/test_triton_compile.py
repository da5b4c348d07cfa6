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
# Prints, for each kernel x variant x dtype, the size of its machine code and how its float64 is multiplied and added.
COMPILE = """
import importlib, json, re, sys
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

noise = importlib.import_module("scrd_fast.ops.triton.simplex_noise")
synthesis = importlib.import_module("scrd_fast.ops.triton.synthesize_anomalies")
assert not noise.INTERPRETED
POINTERS = {"seeds": "*i64", "tables": "*u8", "out": "*fp32", "boxes": "*i32", "std": "*fp32"}

def measured(kernel, options={}, images="*fp32", **constants):
    signature = {p.name: p.annotation_type or "i32" for p in kernel.params} | POINTERS | {"images": images}
    signature = {p.name: "constexpr" if p.is_constexpr else signature[p.name] for p in kernel.params}
    source, target = ASTSource(kernel, signature, constexprs=constants), GPUTarget("cuda", 90, 32)
    code = triton.compile(source, target=target, options=noise.OPTIONS | options).asm
    fused, products = (len(re.findall(name + r"\\S*f64", code["ptx"])) for name in ("fma", "mul"))
    return len(code["cubin"]), fused, products

sizes = {"INDEX": tl.int32, "BLOCK": noise.BLOCK}
result = {"shuffle": measured(noise._shuffle_kernel, {"num_warps": 8}, CHUNK=noise.CHUNK)}
result["fused"] = measured(noise._noise_kernel, {"enable_fp_fusion": True}, HASHED=False, **sizes)
for hashed in (False, True):
    result[f"noise {hashed}"] = measured(noise._noise_kernel, HASHED=hashed, **sizes)
    result[f"wide noise {hashed}"] = measured(noise._noise_kernel, HASHED=hashed, **sizes | {"INDEX": tl.int64})
    for images in ("*fp32", "*fp16", "*bf16", "*fp64"):
        constants = {"HASHED": hashed, "HAS_STD": images != "*fp64"} | sizes
        result[f"add {images} {hashed}"] = measured(synthesis._add_kernel, images=images, **constants)
print(json.dumps(result))
"""


@pytest.mark.slow
def test_every_kernel_compiles_without_fused_float64(tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result) == 14
    assert all(size > 1000 for size, _, _ in result.values())
    _, fused, _ = result.pop("fused")
    assert fused > 0  # what the compiler does when it is let, so that the next line can fail
    assert {name: fma for name, (_, fma, _) in result.items() if fma} == {}
    assert all(products > 0 for name, (_, _, products) in result.items() if name != "shuffle")
