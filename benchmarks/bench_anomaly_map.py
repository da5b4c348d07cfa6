# SPDX-License-Identifier: Apache-2.0
"""`anomaly_map`:

    pytest benchmarks/bench_anomaly_map.py [-k "8 images"] [--device cuda] [--benchmark-json FILE]

SCRD_FAST_ISA=baseline|avx2|avx512 measures one instruction set of the CPU kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from scrd_fast.bench.cases import select
from scrd_fast.bench.harness import Case, Contender

# One process of one environment, and no compilation: the other contenders are the harness's alone.
HERE = [(case, c) for case in select(["anomaly_map"]) for c in case.contenders if not c.remote]


@pytest.mark.parametrize(
    ("case", "contender"), [pytest.param(case, c, id=f"{case.name}, {' '.join(c.key)}") for case, c in HERE]
)
def test_contender(
    case: Case, contender: Contender, contest: Callable[[Case, Contender], None], benchmark: Any
) -> None:
    benchmark.group = f"{case.op}: {case.name}"
    contest(case, contender)
