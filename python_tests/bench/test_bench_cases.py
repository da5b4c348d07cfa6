# SPDX-License-Identifier: Apache-2.0
"""The real cases: their contenders compute the same numbers, here and in a process of their own."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Iterator

import pytest
import torch
from made import CPU

from scrd_fast.bench import isa as isas
from scrd_fast.bench.cases import CASES, find, operators, select
from scrd_fast.bench.harness import Case, Contender, Schedule, quick, worst
from scrd_fast.bench.hashed_noise import hashed_noise
from scrd_fast.bench.remote import RemoteRunner, Worker
from scrd_fast.bench.run import Session, chosen, variants
from scrd_fast.bench.simplex import Batch, _InPlace
from scrd_fast.bench.timing import Rotation
from scrd_fast.errors import UnavailableError
from scrd_fast.ops import _library, simplex_noise
from scrd_fast.ops._library import instruction_set

PATCH = find("simplex_noise", "1 small patch")


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    made = Session(CPU, quick(Schedule()), 0, torch.get_num_threads())
    yield made
    made.close()


# Triton's kernels would take minutes in its interpreter, and have tests of their own.
HERE = [
    (case, c)
    for case in (
        PATCH,
        find("synthesize_anomalies", "16 images"),
        find("synthesize_anomalies", "16 images in place"),
        find("synthesize_anomalies", "odd images"),
        find("anomaly_map", "1 image, bfloat16, channels-last"),
        find("contrastive_distance", "1 sample, bfloat16, channels-last"),
    )
    for c in case.contenders
    if not c.remote and c.backend != "triton"
]


@pytest.mark.parametrize(
    ("case", "contender"), HERE, ids=lambda value: " ".join(getattr(value, "key", [getattr(value, "op", "")]))
)
def test_contenders_agree_with_the_oracle(session: Session, case: Case, contender: Contender) -> None:
    runner = session.runner(case, contender)
    try:
        runner.open()
    except UnavailableError as error:
        pytest.skip(str(error))
    assert runner.check() <= 1


def test_the_oracle_tells_seeds_apart() -> None:
    """A check that every noise passes would be none: other seeds are wrong by far."""
    mine, other = (PATCH.oracle(PATCH.inputs(seed, CPU), "opensimplex") for seed in (0, 1))
    assert (mine - other).abs().max() > 1e-2
    assert mine.dtype == torch.float64


def test_the_hashed_oracle_is_not_the_contenders_own(monkeypatch: pytest.MonkeyPatch, session: Session) -> None:
    """It is the definition in float64: a mistake in the reference fails the reference's row."""
    seeds, size = torch.tensor([0, -1, 2**63 - 1, -(2**63)]), (3, 31, 29)
    found = hashed_noise(seeds, size, 6, 0.6, 1 / 32)
    reference = simplex_noise(seeds, size, variant="hashed", backend="reference")
    assert (found - reference.double()).abs().max() < 1e-7
    assert (found != reference.double()).double().mean() > 0.9  # not rounded
    assert hashed_noise(seeds[:0], size, 6, 0.6, 1 / 32).shape == (0, *size)
    module = importlib.import_module("scrd_fast.ops.simplex_noise")
    right = module._hashed
    monkeypatch.setattr(module, "_hashed", lambda *arguments: right(*arguments) + 1e-5)
    row = next(c for c in PATCH.contenders if c.key == ("reference", "hashed"))
    runner = session.runner(dataclasses.replace(PATCH), row)  # a copy, whose oracle is computed anew
    runner.open()
    assert runner.check() > 1


def test_cases_are_named_once_and_fit_the_command() -> None:
    names = [(case.op, case.name) for case in select()]
    assert len(set(names)) == len(names)
    assert {case.op for case in select(quick=True)} == set(operators())
    assert len(select(["simplex_noise"])) < len(names)
    assert variants(PATCH) == ["opensimplex", "hashed"]
    keys = [c.key for c in PATCH.contenders]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("short", [True, False])
def test_every_operator_has_a_case_before_any_has_a_second_one(short: bool) -> None:
    """A run that is short of time leaves no operator out."""
    for ops in ([], ["simplex_noise", "anomaly_map"]):
        cases = select(ops, short)
        known = ops or operators()
        assert sorted(case.op for case in cases[: len(known)]) == sorted(known)
        assert {case.op for case in cases} == set(known)
        for op in known:
            own = [case for case in CASES if case.op == op and (case.quick or not short)]
            assert [case for case in cases if case.op == op] == own


def test_each_device_has_its_contenders() -> None:
    large = find("simplex_noise", "1 large field")
    assert chosen(large, CPU, short=False) == []
    assert len(chosen(large, torch.device("cuda"), short=False)) > 5
    cpu = {c.name for c in chosen(PATCH, CPU, short=False)}
    gpu = {c.name for c in chosen(PATCH, torch.device("cuda"), short=False)}
    assert cpu - gpu == {f"scrd_fast {isa}" for isa in isas.ISAS}
    assert gpu - cpu == {"scrd_fast triton"}
    assert cpu - {c.name for c in chosen(PATCH, CPU, short=True)} == {"torch.compile"}


def test_flags_of_an_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isas.missing_flags("baseline") == []
    monkeypatch.setitem(isas.ISAS, "avx9", frozenset({"avx9f"}))
    assert isas.missing_flags("avx9") == ["avx9f"]
    assert Session._no_isa(PATCH, "avx9") == "this processor has no avx9f"


def test_every_operators_own_kernels_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that lacks one kernel must not lend its name to the reference."""
    monkeypatch.setattr(_library, "why_not", lambda op, backend, device: f"no {op}" if op in absent else None)
    monkeypatch.setattr(isas, "instruction_set", lambda: None)
    batch = Batch(torch.rand(1, 3, 64, 64), torch.tensor([[1, 2, 7, 7]], dtype=torch.int32), torch.tensor([1]), False)
    for op, name, kernels in (
        ("simplex_noise", "1 small patch", ["simplex_noise"]),
        ("synthesize_anomalies", "16 images", ["synthesize_anomalies"]),
        ("synthesize_anomalies", "16 images in place", ["synthesize_anomalies_"]),
        ("anomaly_map", "1 image, float32, NCHW", ["cosine_distances", "anomaly_map"]),
        (
            "contrastive_distance",
            "1 sample, float32, NCHW",
            ["contrastive_distance", "contrastive_distance_backward"],
        ),
    ):
        made = find(op, name)
        for kernel in kernels:
            absent = {kernel}
            with pytest.raises(UnavailableError, match=f"^no {kernel}$"):
                next(c for c in made.contenders if c.name == "scrd_fast").build(made, CPU)
            assert Session._no_isa(made, "baseline") == f"no {kernel}"
        absent = {"simplex_noise", "synthesize_anomalies", "synthesize_anomalies_", "anomaly_map"} - set(kernels)
        if op != "anomaly_map":
            bind = next(c for c in made.contenders if c.name == "scrd_fast").build(made, CPU)
            bind(batch if op == "synthesize_anomalies" else made.inputs(0, CPU))()


@pytest.mark.parametrize(
    ("found", "message"),
    [(None, "there are no CPU kernels"), ("avx2", "asked for baseline, the kernel runs avx2"), ("baseline", None)],
)
def test_a_row_never_bears_another_instruction_sets_name(
    found: str | None, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isas, "instruction_set", lambda: found)
    if message is None:
        isas.require("baseline")
    else:
        with pytest.raises(UnavailableError, match=message):
            isas.require("baseline")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    made = Worker({}, 1)
    yield made
    made.stop()


def remote(worker: Worker, name: str, wrong: float = 0.0, variant: str = "opensimplex") -> RemoteRunner:
    contender = next(c for c in PATCH.contenders if c.key == (name, variant))
    seeds = [0, 1]
    expected = [PATCH.oracle(PATCH.inputs(seed, CPU), variant) + wrong for seed in seeds]
    return RemoteRunner(lambda: worker, PATCH, contender, CPU, seeds, expected, lambda: 60.0)


def test_a_process_of_its_own_measures_and_checks(worker: Worker) -> None:
    runner = remote(worker, "reference")
    assert runner.open()["how"] == "wall"
    assert runner.check() <= 1
    assert {name: len(times) > 0 for name, times in runner.sample(1e-4).items()} == {
        "wall_warm": True,
        "wall_cold": True,
    }
    assert runner.check() <= 1
    runner.close()
    runner = remote(worker, "reference", wrong=1e-3)
    runner.open()
    assert runner.check() > 1
    runner.close()


def test_two_variants_in_one_process_stay_apart(worker: Worker) -> None:
    """An instruction set's variants share its process: each is timed and checked under its own name."""
    right, wrong = remote(worker, "reference"), remote(worker, "reference", wrong=1e-3, variant="hashed")
    right.open()
    wrong.open()
    assert right.check() <= 1
    assert wrong.check() > 1
    right.close()
    assert wrong.check() > 1
    with pytest.raises(RuntimeError, match="it is not open"):
        right.check()
    wrong.close()


def test_its_absences_and_errors_come_back(worker: Worker) -> None:
    other = "avx2" if instruction_set() == "baseline" else "baseline"  # the worker took what this CPU has
    with pytest.raises(UnavailableError, match=rf"asked for {other}|this processor has no"):
        remote(worker, f"scrd_fast {other}").open()
    with pytest.raises(RuntimeError, match="it is not open"):
        worker.ask(60, step="check", contender=["reference", "opensimplex"])
    assert worker.ask(60, step="versions", packages=["torch", "nobody"]) == {
        "torch": importlib.metadata.version("torch"),
        "nobody": None,
    }
    with pytest.raises(RuntimeError, match="StopIteration"):
        worker.ask(60, step="open", op="none", case="none", device="cpu")


def test_nothing_is_compiled_when_no_time_is_left(worker: Worker) -> None:
    compiled = next(c for c in PATCH.contenders if c.compiles)
    runner = RemoteRunner(lambda: worker, PATCH, compiled, CPU, [0], [], lambda: -1.0)
    with pytest.raises(UnavailableError, match="no time is left to compile it"):
        runner.open()
    assert worker.alive
    assert Session(CPU, Schedule(compile_limit=7.0), 0, 1)._compile_limit() == 7
    assert 0 < Session(CPU, Schedule(), 0, 1, seconds=3.0)._compile_limit() <= 3


def test_a_process_that_takes_too_long_is_given_up() -> None:
    slow = Worker({}, 1)
    with pytest.raises(UnavailableError, match="check took more than 0 s and was given up"):
        slow.ask(0.0, step="check")
    assert not slow.alive
    with pytest.raises(RuntimeError, match="ended"):
        slow.ask(1.0, step="check")


def test_a_process_that_was_given_up_has_a_successor(worker: Worker) -> None:
    """The next variant of a contender is not charged with the one before it."""
    ended = Worker({}, 1)
    ended.stop()
    workers = iter([ended, worker])
    contender = next(c for c in PATCH.contenders if c.key == ("reference", "opensimplex"))
    expected = [PATCH.oracle(PATCH.inputs(0, CPU), "opensimplex")]
    runner = RemoteRunner(lambda: next(workers), PATCH, contender, CPU, [0], expected, lambda: 60.0)
    with pytest.raises(RuntimeError, match="ended"):
        runner.open()
    runner.open()
    assert runner.check() <= 1
    runner.close()
    made = Session(CPU, quick(Schedule()), 0, 1)
    compiled = [c for c in PATCH.contenders if c.compiles]
    first, second = made.runners(PATCH, compiled)
    assert isinstance(first, RemoteRunner)
    assert isinstance(second, RemoteRunner)
    before = first._find_worker()
    assert second._find_worker() is before
    before.stop()
    assert second._find_worker() is not before
    assert second._find_worker().alive
    made.close()


def test_calls_in_place_are_averaged_and_start_anew() -> None:
    """5,000 calls between two turns would drown a fault; a turn begins with images that nothing was added to."""
    case = find("synthesize_anomalies", "16 images in place")
    images = torch.rand(2, 3, 64, 64)
    batch = Batch(images, torch.tensor([[1, 2, 7, 7], [9, 9, 7, 7]], dtype=torch.int32), torch.tensor([1, 2]), True)
    expected = case.oracle(batch, "opensimplex")
    call = next(c for c in case.contenders if c.name == "scrd_fast").build(case, CPU)(batch)
    for _ in range(300):
        result = call()
    assert worst(result, expected, case.tolerance("opensimplex")) <= 1
    rotation = Rotation([call])
    rotation.restart()
    rotation()
    assert worst(rotation.last[0], expected, case.tolerance("opensimplex")) <= 1
    assert (rotation.last[0]() - images).abs().max() > 0.01


def test_a_slow_call_in_place_has_no_result_of_before_its_restart() -> None:
    """In a short turn not every set of inputs is computed again: what was there before must not be judged."""
    calls = [_InPlace(torch.full((2,), float(n)), lambda work: work.add_(1.0)) for n in range(3)]
    rotation = Rotation(calls)
    for _ in calls:
        rotation()
    rotation.restart()
    assert rotation.last == [None, None, None]
    rotation()
    assert [last is None for last in rotation.last].count(False) == 1
    assert next(last for last in rotation.last if last is not None)().tolist() == [1.0, 1.0]
