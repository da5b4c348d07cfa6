# SPDX-License-Identifier: Apache-2.0
"""The CPU kernels of every instruction set that this machine has, each in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tolerances import TOLERANCES

from scrd_fast.ops import _library, simplex_noise

ROOT = Path(__file__).parents[2]
ISAS = ("baseline", "avx2", "avx512")
# The C library's, which every kernel may call.
HARMLESS = {"memset", "memcpy", "memmove", "floor", "floorf", "__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_"}
SIZE = (3, 17, 37)  # 64 points at a time: the last block is ragged
SEEDS = [0, 7, -1, 2**62 + 12345, *range(100, 115)]  # more than share a block's geometry
# Powers of two put many points exactly between two regions; 1/3 and 0.37 do not meet the grid.
FREQUENCIES = [1 / 32, 0.25, 1.0, 1 / 3, 0.37]
NOISE = f"""
import sys, torch
from scrd_fast.ops import _library, simplex_noise
seeds = torch.tensor({SEEDS})
noise = {{}}
for variant in ("opensimplex", "hashed"):
    for frequency in {FREQUENCIES}:
        noise[variant, frequency] = simplex_noise(
            seeds, {SIZE}, frequency=frequency, variant=variant, backend="native"
        )
torch.save((_library.instruction_set(), noise), sys.argv[1])
"""


# Features of every type and layout with ragged vectors, tiles, blocks and chunks; map, scores and gradients.
MAPS = """
import sys, torch
from scrd_fast.ops import _library, anomaly_map
torch.manual_seed(0)
found = {}
for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
    for layout in (torch.contiguous_format, torch.channels_last):
        features = [torch.randn(2, c, h, w) for _ in range(2) for c, h, w in ((37, 35, 33), (70, 9, 5))]
        teacher = [x.to(dtype).contiguous(memory_format=layout).requires_grad_() for x in features[:2]]
        student = [x.to(dtype).contiguous(memory_format=layout).requires_grad_() for x in features[2:]]
        weights = torch.rand(2, 2, requires_grad=True)
        result = anomaly_map(teacher, student, weights, (71, 83), top=(0.01, 0.3), backend=BACKEND)
        grads = torch.autograd.grad(result.map.square().sum() + result.mean.sum(), [*teacher, *student, weights])
        found[str(dtype), str(layout)] = [x.detach() for x in (*result[:4], *grads)]
torch.save((_library.instruction_set(), found), sys.argv[1])
"""


# Ragged chunks, of every type; distances and gradients.
CONTRASTS = """
import sys, torch
from scrd_fast.ops import _library, contrastive_distance
torch.manual_seed(0)
found = {}
for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
    shapes = ((2, 37, 35, 33), (2, 70, 9, 5))
    lists = [[torch.randn(s).to(dtype).requires_grad_() for s in shapes] for _ in "END"]
    distances = contrastive_distance(*lists, backend=BACKEND)
    loss = distances[0].sum() - 0.3 * distances[1].square().sum()
    grads = torch.autograd.grad(loss, [x for some in lists for x in some])
    found[str(dtype), "contiguous"] = [x.detach() for x in (*distances, *grads)]
torch.save((_library.instruction_set(), found), sys.argv[1])
"""


def run(isa: str, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"SCRD_FAST_ISA": isa}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def results_of(isa: str, code: str, folder: Path) -> dict[tuple[str, Any], Any]:
    done = run(isa, code, str(folder / isa))
    if "this CPU or build does not have it" in done.stderr:
        pytest.skip(f"this CPU does not have {isa}")
    assert done.returncode == 0, done.stderr
    name, results = torch.load(folder / isa, weights_only=True)
    assert name == isa
    return dict(results)


def noise_of(isa: str, folder: Path) -> dict[tuple[str, float], torch.Tensor]:
    return results_of(isa, NOISE, folder)


@pytest.mark.parametrize("isa", ISAS[1:])
def test_agrees_with_the_baseline(isa: str, tmp_path: Path) -> None:
    """Were one point put into another simplex, the noise would jump there by up to 2e-4."""
    baseline = noise_of("baseline", tmp_path)
    for key, noise in noise_of(isa, tmp_path).items():
        assert (noise - baseline[key]).abs().max() <= 1e-6, key


@pytest.mark.parametrize("isa", ISAS)
def test_equals_the_reference(isa: str, tmp_path: Path) -> None:
    for (variant, frequency), noise in noise_of(isa, tmp_path).items():
        expected = simplex_noise(torch.tensor(SEEDS), SIZE, frequency=frequency, variant=variant, backend="reference")
        torch.testing.assert_close(noise, expected, **TOLERANCES["simplex_noise", torch.float32]._asdict())


@pytest.mark.parametrize("isa", ISAS)
def test_maps_equal_the_reference(isa: str, tmp_path: Path) -> None:
    found = results_of(isa, MAPS.replace("BACKEND", "'native'"), tmp_path)
    expected = results_of("baseline", MAPS.replace("BACKEND", "'reference'"), tmp_path)
    for key, values in found.items():
        rounding = {"torch.float16": 2**-10, "torch.bfloat16": 2**-7}.get(key[0], 1e-5)
        for i, (value, right) in enumerate(zip(values, expected[key], strict=True)):
            gradient = 4 <= i < 8  # of the features, in their type
            rtol, atol = (rounding, 1e-4) if gradient else (1e-5, 1e-5)
            if i == 8:  # of the weights: a sum over the whole map, of float32 terms
                atol = 1e-5 * right.abs().max().item()
            torch.testing.assert_close(value, right, rtol=rtol, atol=atol)


@pytest.mark.parametrize("isa", ISAS)
def test_contrasts_equal_the_reference(isa: str, tmp_path: Path) -> None:
    found = results_of(isa, CONTRASTS.replace("BACKEND", "'native'"), tmp_path)
    expected = results_of("baseline", CONTRASTS.replace("BACKEND", "'reference'"), tmp_path)
    for key, values in found.items():
        rounding = {"torch.float16": 2**-10, "torch.bfloat16": 2**-7}.get(key[0], 1e-5)
        for i, (value, right) in enumerate(zip(values, expected[key], strict=True)):
            # Gradients in the maps' type; the smallest number of float16 is 6e-8.
            rtol, atol = (rounding, 1e-7) if i >= 2 else (1e-5, 1e-5)
            torch.testing.assert_close(value, right, rtol=rtol, atol=atol)


def test_a_name_that_is_none_is_an_error() -> None:
    message = "SCRD_FAST_ISA must be baseline, avx2 or avx512, got sse9"
    done = run("sse9", "import torch, scrd_fast; scrd_fast.ops.simplex_noise(torch.tensor([1]), (1, 2, 3))")
    assert done.returncode != 0
    assert done.stderr.strip().endswith(f"ValueError: {message}")
    done = run("sse9", "import torch; from scrd_fast.ops import _library as x; print(x.libraries()[0].error)")
    assert done.stdout.strip() == message
    ask = "print(x.why_not('simplex_noise', 'native', torch.device('cpu')))"
    done = run("sse9", f"import torch; from scrd_fast.ops import _library as x; {ask}")
    assert message in done.stdout


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_nothing_of_one_instruction_set_can_stand_in_for_another() -> None:
    """The linker keeps one copy of a weak symbol, and it may be the one for another CPU."""
    objects = list(ROOT.glob("build/cmake-*/CMakeFiles/*_cpu_kernel_*.dir/**/*.o"))
    if not objects:
        pytest.skip("no build folder")
    for path in objects:
        text = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout
        symbols = [
            line.split(maxsplit=2)[-2:] if line[0] != " " else line.split(maxsplit=1) for line in text.splitlines()
        ]
        kinds = {kind for kind, _ in symbols}
        assert not kinds & set("WwVvu"), path
        assert {name.split("@")[0] for kind, name in symbols if kind == "U"} <= HARMLESS, path


def test_the_choice_is_reported() -> None:
    assert _library.instruction_set() == (os.environ.get("SCRD_FAST_ISA") or _newest())


def _newest() -> str:
    flags = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), ""
    ).split()
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vbmi"} <= set(flags):
        return "avx512"
    return "avx2" if {"avx2", "fma", "f16c"} <= set(flags) else "baseline"
