# SPDX-License-Identifier: Apache-2.0
"""The CPU kernels of every instruction set that this machine has, each in a process of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tolerances import TOLERANCES

from scrd_fast.ops import _library, simplex_noise

ISAS = ("baseline", "avx2", "avx512")
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
            seeds, {SIZE}, frequency=frequency, octaves=3, variant=variant, backend="native"
        )
torch.save((_library.instruction_set(), noise), sys.argv[1])
"""


def run(isa: str, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"SCRD_FAST_ISA": isa}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def noise_of(isa: str, folder: Path) -> dict[tuple[str, float], torch.Tensor]:
    done = run(isa, NOISE, str(folder / isa))
    if "this CPU or build does not have it" in done.stderr:
        pytest.skip(f"this CPU does not have {isa}")
    assert done.returncode == 0, done.stderr
    name, noise = torch.load(folder / isa, weights_only=True)
    assert name == isa
    return dict(noise)


@pytest.mark.parametrize("isa", ISAS[1:])
def test_agrees_with_the_baseline(isa: str, tmp_path: Path) -> None:
    """Were one point put into another simplex, the noise would jump there by up to 2e-4."""
    baseline = noise_of("baseline", tmp_path)
    for key, noise in noise_of(isa, tmp_path).items():
        assert (noise - baseline[key]).abs().max() <= 1e-6, key


@pytest.mark.parametrize("isa", ISAS)
def test_equals_the_reference(isa: str, tmp_path: Path) -> None:
    for (variant, frequency), noise in noise_of(isa, tmp_path).items():
        expected = simplex_noise(
            torch.tensor(SEEDS), SIZE, frequency=frequency, octaves=3, variant=variant, backend="reference"
        )
        torch.testing.assert_close(noise, expected, **TOLERANCES["simplex_noise", torch.float32]._asdict())


@pytest.mark.parametrize(
    ("isa", "message"),
    [
        ("sse9", "ValueError: SCRD_FAST_ISA must be baseline, avx2 or avx512, got sse9"),
        pytest.param(
            "avx2",
            "ValueError: SCRD_FAST_ISA=avx2: this CPU or build does not have it",
            marks=pytest.mark.skipif(platform.machine() == "x86_64", reason="this CPU may have it"),
        ),
    ],
)
def test_what_is_not_there_is_an_error(isa: str, message: str) -> None:
    done = run(isa, "import torch, scrd_fast; scrd_fast.ops.simplex_noise(torch.tensor([1]), (1, 2, 3))")
    assert done.returncode != 0
    assert done.stderr.strip().endswith(message)


def test_the_choice_is_reported() -> None:
    assert _library.instruction_set() == (os.environ.get("SCRD_FAST_ISA") or _newest())


def _newest() -> str:
    flags = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), ""
    ).split()
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vbmi"} <= set(flags):
        return "avx512"
    return "avx2" if {"avx2", "fma"} <= set(flags) else "baseline"
