# SPDX-License-Identifier: Apache-2.0
"""The instruction sets of the CPU kernels: a row never bears the name of another."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from scrd_fast.errors import UnavailableError

__all__ = ["ISAS", "instruction_set", "missing_flags", "require", "require_native"]

# The processor flags, as Linux names them, that each instruction set of the CPU kernel needs.
ISAS = {
    "baseline": frozenset[str](),
    "avx2": frozenset({"avx2", "fma", "f16c"}),
    "avx512": frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vbmi"}),
}


def missing_flags(isa: str) -> list[str]:
    """Those of the flags of `isa` that this processor lacks."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return sorted(ISAS[isa])
    text = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    return sorted(ISAS[isa] - set(text))


def instruction_set() -> str | None:
    """That of the loaded CPU kernel, or None where there is none."""
    from scrd_fast.ops import _library

    return _library.instruction_set()


def require(isa: str) -> None:
    if missing := missing_flags(isa):
        raise UnavailableError(f"this processor has no {', '.join(missing)}")
    found = instruction_set()
    if found is None:
        raise UnavailableError("there are no CPU kernels")
    if found != isa:
        raise UnavailableError(f"asked for {isa}, the kernel runs {found}")


def require_native(operators: Sequence[str], device: torch.device, isa: str | None = None) -> None:
    """Kernels for all of the operators, and of that instruction set if it is given: `auto` would quietly be the
    reference."""
    from scrd_fast.ops._library import why_not

    for operator in operators:
        if reason := why_not(operator, "native", device):
            raise UnavailableError(reason)
    if isa is not None:
        require(isa)
