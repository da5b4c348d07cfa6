# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import pytest
import torch
from made import CPU

from scrd_fast.bench import distances
from scrd_fast.bench.cases import find, select
from scrd_fast.bench.harness import Case, Contender, Schedule, quick, worst
from scrd_fast.bench.run import Session, variants
from scrd_fast.ops import contrastive_distance

CASE = find("contrastive_distance", "8 samples, float32, channels-last")


@pytest.fixture(scope="module")
def contrast() -> distances.Contrast:
    return distances.draw(3, 2, torch.float32, "channels-last", CPU)


def contender(name: str, variant: str, case: Case = CASE) -> Contender:
    return next(c for c in case.contenders if c.key == (name, variant))


def test_cases_have_batches_types_and_layouts() -> None:
    names = {case.name for case in select(["contrastive_distance"])}
    samples = ("1 sample", "8 samples", "16 samples")
    parts = itertools.product(samples, ("float32", "bfloat16"), ("NCHW", "channels-last"))
    assert names == {", ".join(part) for part in parts}
    for case in select(["contrastive_distance"]):
        assert variants(case) == ["read", "copy", "forward", "backward", "gradient"]
        assert {"scrd_fast", "scrd_fast triton", "reference", "eager", "torch.compile", "read", "copy"} <= {
            c.name for c in case.contenders
        }
        assert set(case.rivals) <= {c.name for c in case.contenders}


def test_the_right_answer_is_the_operators(contrast: distances.Contrast) -> None:
    clean, noisy, student = ([x.double() for x in maps] for maps in (contrast.clean, contrast.noisy, contrast.student))
    leaves = [s.requires_grad_() for s in student]
    d_clean, d_noisy = contrastive_distance(clean, noisy, leaves, backend="reference")
    assert d_noisy is not None
    right = distances._oracle(contrast, "forward")
    torch.testing.assert_close(torch.cat([d_clean, d_noisy], dim=1).detach(), right, rtol=1e-10, atol=1e-12)
    grads = torch.autograd.grad(distances.PULL * d_clean.sum() + distances.PUSH * d_noisy.sum(), leaves)
    joined = torch.cat([g.flatten(1) for g in grads], dim=1)
    for variant in ("gradient", "backward"):
        torch.testing.assert_close(joined, distances._oracle(contrast, variant), rtol=1e-8, atol=1e-16)


@pytest.mark.parametrize("variant", ["forward", "backward", "gradient"])
@pytest.mark.parametrize("name", ["scrd_fast", "reference", "eager"])
def test_contenders_are_right_and_a_mistake_is_not(contrast: distances.Contrast, name: str, variant: str) -> None:
    one = contender(name, variant)
    tolerance = one.tolerance or CASE.tolerance(variant)
    right = distances._oracle(contrast, variant)
    assert worst(one.build(CASE, CPU)(contrast)(), right, tolerance) <= 1
    swapped = distances.Contrast(contrast.noisy, contrast.clean, contrast.student, contrast.memory)
    assert worst(one.build(CASE, CPU)(swapped)(), right, tolerance) > 1


def test_bfloat16_is_within_its_rounding() -> None:
    case = find("contrastive_distance", "1 sample, bfloat16, NCHW")
    contrast = case.inputs(0, CPU)
    for variant in ("copy", "forward", "backward", "gradient"):
        one = contender("copy" if variant == "copy" else "scrd_fast", variant, case)
        right = case.oracle(contrast, variant)
        assert worst(one.build(case, CPU)(contrast)(), right, case.tolerance(variant)) <= 1
        off = right * (1.01 if variant != "forward" else 1.0003)
        assert worst(off, right, case.tolerance(variant)) > 1


def test_our_rows_have_no_more_room_than_their_rounding() -> None:
    """Only plain PyTorch, which is less exact, is given more."""
    case = find("contrastive_distance", "1 sample, bfloat16, channels-last")
    assert {c.name for c in case.contenders if c.tolerance} == {"eager", "torch.compile", "torch.compile, max-autotune"}
    session = Session(CPU, quick(Schedule()), 0, torch.get_num_threads())
    try:
        for name, right in (("eager", True), ("scrd_fast", False)):
            runner = session.runner(case, contender(name, "forward", case))
            session._right["forward"][0][:] = case.oracle(session._inputs["cpu"][0], "forward") + 5e-5
            runner.open()
            assert (runner.check() <= 1) is right
    finally:
        session.close()


@pytest.mark.parametrize("name", ["read", "copy"])
def test_the_floors_go_through_all_features(contrast: distances.Contrast, name: str) -> None:
    call = contender(name, name).build(CASE, CPU)(contrast)
    right = distances._oracle(contrast, name)
    assert worst(call(), right, CASE.tolerance(name)) <= 1
    numbers = sum(x.numel() for x in contrast.clean + contrast.noisy + contrast.student)
    assert numbers < contrast.memory.numel() < 1.01 * numbers
    assert 0 <= contrast.memory.numel() - 3 * len(contrast.thirds[0]) < 3
    for x in (contrast.clean[0], contrast.noisy[1], contrast.student[2]):
        before = x[-1, -1, -1, -1].item()
        x[-1, -1, -1, -1] = 10
        assert worst(call(), right, CASE.tolerance(name)) > 1
        x[-1, -1, -1, -1] = before


def test_layouts_hold_the_same_features() -> None:
    drawn = [distances.draw(1, 3, torch.bfloat16, layout, CPU) for layout in ("NCHW", "channels-last")]
    for plain, last in zip(*(c.clean + c.noisy + c.student for c in drawn), strict=True):
        assert torch.equal(plain, last)
        assert plain.is_contiguous()
        assert last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("count", [1, 2, 16])
def test_samples_and_teachers_are_told_apart(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "SCALES", ((8, 16, 16), (16, 8, 8)))
    monkeypatch.setattr("scrd_fast.bench.maps.SCALES", distances.SCALES)
    for seed in range(5):
        right = distances._oracle(distances.draw(seed, count, torch.float32, "NCHW", CPU), "forward")
        clean, noisy = right.split(2, dim=1)
        assert (clean - noisy).abs().min() > 1e-3
        assert all((a - b).abs().min() > 1e-3 for a, b in itertools.combinations(right, 2))


def test_bytes_and_products_are_counted() -> None:
    values = 2 * (256 * 64 * 64 + 512 * 32 * 32 + 1024 * 16 * 16)
    works = {variant: distances.work_of(2, 2, variant) for variant in variants(CASE)}
    passes = {"read": 3, "copy": 4, "forward": 3, "backward": 4, "gradient": 7}
    assert {variant: work.bytes for variant, work in works.items()} == {v: n * values * 2 for v, n in passes.items()}
    fused = {"read": 0, "copy": 1, "forward": 5, "backward": 3, "gradient": 8}
    assert {variant: work.fused for variant, work in works.items()} == {v: n * values for v, n in fused.items()}
    assert works["read"].flops32 == works["read"].int_ops == 0  # or a fast read would pass for a wrong count
    assert works["forward"].int_ops > distances.work_of(2, 4, "forward").int_ops == 0
