# SPDX-License-Identifier: Apache-2.0
"""Made-up cases for the harness's tests: they double a vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scrd_fast.bench.harness import Case, Contender, LocalRunner, Row, Schedule, Tolerance, measure
from scrd_fast.bench.roofline import Peaks, Work
from scrd_fast.bench.timing import CpuClock

CPU = torch.device("cpu")
SCHEDULE = Schedule(rounds=3, slot=1e-4, rotations=2)
WORK = Work(samples=6, flops32=0.0, flops64=6.0, int_ops=2.0, loads=1.0, bytes=24)
ENOUGH = Peaks("cpu", {64: 1e15}, {32: 1e15, 64: 1e15})


def contender(name: str, compute: Callable[[Tensor], Any], **options: Any) -> Contender:
    return Contender(name, lambda case, device: lambda inputs: lambda: compute(inputs), **options)


def doubled(x: Tensor) -> Tensor:
    return 2 * x


GOOD = contender("scrd_fast", doubled)
REFERENCE = contender("reference", lambda x: x + x, on_cpu=True)


def case(*contenders: Contender) -> Case:
    return Case(
        "double",
        "three",
        (3,),
        lambda seed, device: torch.arange(3.0).to(device) + seed,
        lambda inputs, variant: 2 * inputs.double(),
        lambda seed, variant: WORK,
        lambda variant: Tolerance(1e-6, 1e-6),
        contenders,
        quick=True,
        unit="octave samples",
        rivals=("opensimplex+numba", "reference"),
    )


def rows_of(*contenders: Contender) -> list[Row]:
    made, clock = case(*contenders), CpuClock(torch.get_num_threads())
    inputs = [made.inputs(seed, CPU) for seed in (0, 5)]
    expected = [made.oracle(x, "") for x in inputs]
    return measure(made, [LocalRunner(made, c, CPU, inputs, expected, clock) for c in contenders], SCHEDULE)
