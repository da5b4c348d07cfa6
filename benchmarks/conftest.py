# SPDX-License-Identifier: Apache-2.0
"""Gives pytest-benchmark the harness's cases, contenders, synchronisation and checks: `contest` runs one of them.

pytest-benchmark measures one contender after the other and knows warm wall time only. `scrd-fast bench` lets the
contenders of a case take turns, adds cold and device time and the share of the peak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from scrd_fast.bench.harness import Case, Contender, Schedule, quick
from scrd_fast.bench.run import Session
from scrd_fast.bench.timing import cores
from scrd_fast.device import pick_device
from scrd_fast.errors import UnavailableError

TARGET_SECONDS, MOST_ROUNDS = 1.0, 200
Contest = Callable[[Case, Contender], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where the operators run")
    parser.addoption("--threads", type=int, default=len(cores()), help="CPU threads; default: all cores")


@pytest.fixture(scope="session")
def session(pytestconfig: pytest.Config) -> Iterator[Session]:
    before = torch.get_num_threads()
    device = pick_device(pytestconfig.getoption("--device"))
    made = Session(device, quick(Schedule()), seed=0, threads=pytestconfig.getoption("--threads"))
    yield made
    made.close()
    torch.set_num_threads(before)


@pytest.fixture
def contest(session: Session, benchmark: Any) -> Contest:
    """Check, measure, check. A contender that cannot run here is skipped, a wrong one fails and leaves no time."""

    def run(case: Case, contender: Contender) -> None:
        runner = session.runner(case, contender)
        try:
            facts = runner.open()
        except (UnavailableError, ImportError) as error:
            pytest.skip(str(error))
        if (error := runner.check()) > 1:
            pytest.fail(f"wrong before the timing: error {error:.3g} times the tolerance")
        rounds = max(3, min(MOST_ROUNDS, int(TARGET_SECONDS / runner.seconds())))
        benchmark.pedantic(runner.run, rounds=rounds, warmup_rounds=1)
        if (error := runner.check()) > 1:
            benchmark.has_error = True
            if benchmark.stats is not None:
                benchmark.stats.stats.data.clear()
            pytest.fail(f"wrong after the timing: error {error:.3g} times the tolerance")
        work = session.work(case)[contender.variant]
        benchmark.extra_info.update(facts, device=runner.device, shape=case.shape, samples=work.samples, unit=case.unit)
        if benchmark.stats is not None:
            benchmark.extra_info["rate"] = work.samples / benchmark.stats.stats.median

    return run
