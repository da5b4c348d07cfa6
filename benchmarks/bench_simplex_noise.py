# SPDX-License-Identifier: Apache-2.0
"""`simplex_noise` and `synthesize_anomalies`:

    pytest benchmarks/bench_simplex_noise.py [-k "16 patches"] [--device cuda] [--benchmark-json FILE]

SCRD_FAST_ISA=baseline|avx2|avx512 measures one instruction set of the CPU kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from scrd_fast.bench.cases import select
from scrd_fast.bench.harness import Case, Contender

CASES = select(["simplex_noise", "synthesize_anomalies"])
# One process, and no compilation of minutes: those contenders are the harness's alone.
HERE = [(case, c) for case in CASES for c in case.contenders if not c.remote]


@pytest.mark.parametrize(
    ("case", "contender"),
    [pytest.param(case, c, id=f"{case.op}, {case.name}, {' '.join(c.key)}") for case, c in HERE],
)
def test_contender(
    case: Case, contender: Contender, contest: Callable[[Case, Contender], None], benchmark: Any
) -> None:
    benchmark.group = f"{case.op}: {case.name}"
    contest(case, contender)
