# SPDX-License-Identifier: Apache-2.0
"""`contrastive_distance`:

    pytest benchmarks/bench_contrastive_distance.py [-k 8-samples-bfloat16] [--device cuda] [--benchmark-json FILE]

pytest-benchmark times what runs in its own process. SCRD_FAST_ISA=baseline|avx2|avx512 before the command holds that
process to one instruction set of the CPU kernel; `scrd-fast bench` has rows of all of them beside each other, and of
torch.compile.
"""

from __future__ import annotations

from collections.abc import Callable

from scrd_fast.bench.harness import Case, Contender

OPERATORS = ("contrastive_distance",)


def test_contender(case: Case, contender: Contender, contest: Callable[[Case, Contender], None]) -> None:
    contest(case, contender)
