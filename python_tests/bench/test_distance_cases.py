# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import pytest
import torch

from scrd_fast.bench import distances
from scrd_fast.bench.cases import find, select
from scrd_fast.bench.harness import worst
from scrd_fast.bench.run import variants
from scrd_fast.ops import contrastive_distance

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def contrast() -> distances.Contrast:
    return distances.draw(3, 2, torch.float32, "channels-last", CPU)


def test_cases_have_batches_types_and_layouts() -> None:
    names = {case.name for case in select(["contrastive_distance"])}
    samples = ("1 sample", "8 samples", "16 samples")
    kinds = ("float32, channels-last", "bfloat16, channels-last", "float32, NCHW")
    assert names == {", ".join(part) for part in itertools.product(samples, kinds)}
    case = find("contrastive_distance", "8 samples, float32, NCHW")
    assert variants(case) == ["read", "forward", "gradient"]
    assert {"scrd_fast", "scrd_fast avx2", "eager", "torch.compile", "read"} <= {c.name for c in case.contenders}


def test_the_right_answer_is_the_operators(contrast: distances.Contrast) -> None:
    clean, noisy, student = ([x.double() for x in maps] for maps in (contrast.clean, contrast.noisy, contrast.student))
    leaves = [s.requires_grad_() for s in student]
    d_clean, d_noisy = contrastive_distance(clean, noisy, leaves, backend="reference")
    assert d_noisy is not None
    right = distances._oracle(contrast, "forward")
    torch.testing.assert_close(torch.cat([d_clean, d_noisy], dim=1).detach(), right, rtol=1e-10, atol=1e-12)
    grads = torch.autograd.grad(d_clean.sum() / d_noisy.sum(), leaves)
    joined = torch.cat([g.flatten(1) for g in grads], dim=1)
    torch.testing.assert_close(joined, distances._oracle(contrast, "gradient"), rtol=1e-8, atol=1e-14)


def test_contenders_are_right_and_a_mistake_is_not(contrast: distances.Contrast) -> None:
    case = find("contrastive_distance", "8 samples, float32, channels-last")
    for name, variant in itertools.product(("scrd_fast", "reference", "eager"), ("forward", "gradient")):
        contender = next(c for c in case.contenders if c.key == (name, variant))
        found = contender.build(case, CPU)(contrast)()
        right = distances._oracle(contrast, variant)
        assert worst(found, right, case.tolerance(variant)) <= 1, (name, variant)
        swapped = distances.Contrast(contrast.noisy, contrast.clean, contrast.student, contrast.memory)
        wrong = contender.build(case, CPU)(swapped)()
        assert worst(wrong, right, case.tolerance(variant)) > 1, (name, variant)


def test_a_read_goes_through_all_features(contrast: distances.Contrast) -> None:
    case = find("contrastive_distance", "8 samples, float32, channels-last")
    call = next(c for c in case.contenders if c.name == "read").build(case, CPU)(contrast)
    assert torch.equal(call()().double(), distances._oracle(contrast, "read"))
    numbers = sum(x.numel() for x in contrast.clean + contrast.noisy + contrast.student)
    assert numbers < contrast.memory.numel() < 1.01 * numbers


def test_samples_differ(contrast: distances.Contrast) -> None:
    right = distances._oracle(contrast, "forward")
    assert (right[0] - right[1]).abs().min() > 1e-3
    assert (right[:, :3] - right[:, 3:]).abs().amax(1).min() > 2e-3  # by more than the tolerance, at some scale


def test_bytes_and_products_are_counted() -> None:
    values = 2 * (256 * 64 * 64 + 512 * 32 * 32 + 1024 * 16 * 16)
    forward, gradient = (distances.work_of(2, 2, variant) for variant in ("forward", "gradient"))
    assert (forward.bytes, gradient.bytes) == (3 * values * 2, 7 * values * 2)
    assert (forward.fused, gradient.fused) == (5 * values, 8 * values)
