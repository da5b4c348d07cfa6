# SPDX-License-Identifier: Apache-2.0
"""Gives pytest-benchmark the harness's cases, contenders, synchronisation and checks: a test with the arguments `case`
and `contender` gets those of its module's OPERATORS that run on the device, and `contest` runs one of them.

pytest-benchmark measures one contender after the other and knows warm wall time only. `scrd-fast bench` lets the
contenders of a case take turns, adds cold and device time and the share of the peak.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from scrd_fast.bench.cases import select
from scrd_fast.bench.harness import Case, Contender, Schedule, quick
from scrd_fast.bench.run import Session, chosen
from scrd_fast.bench.timing import cores
from scrd_fast.device import pick_device
from scrd_fast.errors import UnavailableError

TARGET_SECONDS, MOST_ROUNDS = 1.0, 200
Contest = Callable[[Case, Contender], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where the operators run")
    parser.addoption("--threads", type=int, default=len(cores()), help="CPU threads; default: all cores")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if not {"case", "contender"} <= set(metafunc.fixturenames):
        return
    name = metafunc.config.getoption("--device")
    device = torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")
    # One process of one environment, and no compilation of minutes: the other contenders are the harness's alone.
    here = [
        pytest.param(case, c, id=name_of(case.op, case.name, *c.key))
        for case in select(metafunc.module.OPERATORS)
        for c in chosen(case, device, short=False)
        if not c.remote
    ]
    metafunc.parametrize(("case", "contender"), here)


def name_of(*parts: str) -> str:
    """What `-k` takes: no spaces and no commas."""
    return "-".join(re.sub(r"[^\w.+]+", "-", part).strip("-") for part in parts if part)


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
        benchmark.group = f"{case.op}: {case.name}"
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
