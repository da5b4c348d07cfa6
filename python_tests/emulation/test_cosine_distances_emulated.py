# SPDX-License-Identifier: Apache-2.0
"""csrc/cosine_distances/cosine_distances_kernels.cuh on the CPU: numbers, memory, races."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from emulation import BUILDS, ORDERS, emulate
from tolerances import TOLERANCES
from torch import Tensor

from scrd_fast.ops import cosine_distances

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
# The sanitizers see memory, not numbers: one type a width of the packs will do.
CASES = [(d, b) for b in BUILDS for d in DTYPES if b == "plain" or d in (torch.bfloat16, torch.float64)]
LAYOUTS = ["contiguous", "channels_last", "part", "part_channels_last", "padded", "padded_channels_last"]
EPS = 1e-8
# More scales than a launch takes. One pixel, primes, whole packs; one channel, no multiple of a pack, enough for each
# of the ways to split them and for the unrolled loop.
SHAPES = [
    (2, 3, 7, 5), (2, 130, 4, 8), (2, 1, 1, 1), (2, 300, 3, 3), (2, 521, 2, 2),
    (2, 8, 16, 9), (2, 17, 1, 13), (2, 40, 2, 4), (2, 16, 8, 8), (2, 64, 5, 1),
]  # fmt: skip
FEW = SHAPES[:2] + SHAPES[3:5]


def make(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, layout: str, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def one(n: int, c: int, h: int, w: int) -> Tensor:
        def random(*shape: int) -> Tensor:
            x = torch.randn(shape, generator=generator).to(dtype)
            return x.contiguous(memory_format=torch.channels_last) if "channels_last" in layout else x

        if layout == "part":  # of the channels: pixel still lies beside pixel
            return random(n, c + 3, h, w)[:, 2 : c + 2]
        if layout == "part_channels_last":
            return random(n, c + 3, h + 2, w + 1)[:, 2 : c + 2, 1 : h + 1, 1:]
        # Whole packs can be read, but for those at the end.
        if layout == "padded":
            return random(n, c, h + -h % 8, w)[:, :, :h]
        if layout == "padded_channels_last":
            return random(n, c + -c % 8, h, w)[:, :c]
        return random(n, c, h, w)

    return [one(*shape) for shape in shapes]


def is_planes(x: Tensor) -> bool:
    return x.size(3) in (1, x.size(3) * x.stride(3)) and (x.size(2) == 1 or x.stride(2) == x.size(3))


def gather(features: list[Tensor]) -> tuple[Tensor, list[int]]:
    """One memory that holds all, each from a 16-byte boundary up to its last element, and where each begins there."""
    parts: list[Tensor] = []
    begins, end = [], 0
    for x in features:
        last = x.storage_offset() + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
        gap = -end % 16  # to the next boundary
        begins.append(end + gap + x.storage_offset())
        parts += [x.new_zeros(gap), torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())[: last + 1]]
        end += gap + last + 1
    return torch.cat(parts), begins


def bits(x: Tensor) -> Any:
    return (x.view(torch.int16) if x.element_size() == 2 else x).numpy()


def pack(teacher: list[Tensor], student: list[Tensor]) -> dict[str, Any]:
    """The driver's arguments."""
    (teachers, teacher_begins), (students, student_begins) = gather(teacher), gather(student)
    shape = [
        [*t.shape, *t.stride(), *s.stride(), not (is_planes(t) and is_planes(s)), t_begin, s_begin]
        for t, s, t_begin, s_begin in zip(teacher, student, teacher_begins, student_begins, strict=True)
    ]
    return {
        "teacher": bits(teachers),
        "student": bits(students),
        "shape": np.array(shape, dtype=np.int64),
        "dtype": str(teacher[0].dtype).removeprefix("torch."),
        "eps": EPS,
    }


def emulated(teacher: list[Tensor], student: list[Tensor], build: str, **options: Any) -> list[Tensor]:
    result = np.float64 if teacher[0].dtype == torch.float64 else np.float32
    flat = torch.from_numpy(emulate("cosine_distances", build, result, **pack(teacher, student), **options))
    sizes = [(t.shape[0], *t.shape[2:]) for t in teacher]
    parts = flat.split([int(np.prod(size)) for size in sizes])
    return [part.view(size) for part, size in zip(parts, sizes, strict=True)]


def emulated_gradients(
    grads: list[Tensor], teacher: list[Tensor], student: list[Tensor], build: str, of: str, **options: Any
) -> list[Tensor]:
    like = teacher if of == "teacher" else student
    arguments = pack(teacher, student) | {"grads": torch.cat([g.flatten() for g in grads]).numpy(), "of": of}
    flat = emulate("cosine_distances", build, arguments[of].dtype, **arguments, **options)
    memory = torch.from_numpy(flat).view(like[0].dtype)
    _, begins = gather(like)
    return [memory.as_strided(x.shape, x.stride(), begin) for x, begin in zip(like, begins, strict=True)]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def near(actual: list[Tensor], expected: list[Tensor], dtype: torch.dtype, rtol: float = 0.0) -> None:
    tolerance = TOLERANCES["anomaly_map", dtype]
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=max(rtol, tolerance.rtol), atol=tolerance.atol)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "build"), CASES, ids=str)
def test_equals_torch(dtype: torch.dtype, layout: str, build: str) -> None:
    shapes = SHAPES if build == "plain" else FEW
    teacher, student = make(shapes, dtype, layout, 0), make(shapes, dtype, layout, 1)
    actual = emulated(teacher, student, build, order="random")
    expected = [
        1 - F.cosine_similarity(t.double(), s.double(), dim=1, eps=EPS) for t, s in zip(teacher, student, strict=True)
    ]
    near(actual, expected, dtype)
    reference = cosine_distances(teacher, student, eps=EPS, backend="reference")
    near(actual, [r.double() for r in reference], dtype)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gives_the_same_bits_in_every_order_and_grid(layout: str, build: str) -> None:
    teacher, student = make(FEW, torch.bfloat16, layout, 2), make(FEW, torch.bfloat16, layout, 3)
    first = emulated(teacher, student, "plain")
    for order in ORDERS:
        assert same(emulated(teacher, student, build, order=order, random_seed=5), first)
    assert same(emulated(teacher, student, build, max_grid_x=2, order="random"), first)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_alignment_does_not_change_the_bits(dtype: torch.dtype, layout: str) -> None:
    """Whole packs where memory begins at a boundary, single elements where it begins behind one."""
    shapes = [*FEW, (2, 160, 8, 8)]
    teacher, student = make(shapes, dtype, layout, 4), make(shapes, dtype, layout, 5)
    grads = [torch.randn(t.shape[0], *t.shape[2:]).to(torch.promote_types(dtype, torch.float32)) for t in teacher]
    assert same(emulated(teacher, student, "asan", shift=1), emulated(teacher, student, "asan"))
    shifted, aligned = (emulated_gradients(grads, teacher, student, "asan", "student", shift=s) for s in (1, 0))
    assert same(shifted, aligned)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_sample_does_not_depend_on_its_batch(layout: str) -> None:
    shapes = [(5, *shape[1:]) for shape in FEW]
    teacher, student = make(shapes, torch.float32, layout, 6), make(shapes, torch.float32, layout, 7)
    whole = emulated(teacher, student, "plain")
    for n in (0, 4):
        alone = emulated([t[n : n + 1] for t in teacher], [s[n : n + 1] for s in student], "plain")
        assert same(alone, [d[n : n + 1] for d in whole])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_what_is_not_finite_stays_in_its_pixel_and_zero_vectors_are_at_distance_one(layout: str) -> None:
    teacher, student = make([(3, 12, 3, 5)], torch.float16, layout, 8), make([(3, 12, 3, 5)], torch.float16, layout, 9)
    clean = emulated(teacher, student, "plain")[0]
    teacher[0][0, 3, 1, 2] = float("nan")
    student[0][1, 0, 0, 0] = float("inf")
    teacher[0][2, :, 2, 4] = 0
    student[0][2, :, 1, 1] = 0
    actual = emulated(teacher, student, "plain")[0]
    assert actual[0, 1, 2].isnan()
    assert actual[1, 0, 0].isnan()
    assert actual[2, 2, 4] == actual[2, 1, 1] == 1
    for place in ((0, 1, 2), (1, 0, 0), (2, 2, 4), (2, 1, 1)):
        actual[place] = clean[place]
    assert torch.equal(actual, clean)


@pytest.mark.parametrize("of", ["teacher", "student"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("dtype", "build"), CASES, ids=str)
def test_gradients_equal_autograd(dtype: torch.dtype, layout: str, of: str, build: str) -> None:
    shapes = SHAPES if build == "plain" else FEW
    teacher, student = make(shapes, dtype, layout, 10), make(shapes, dtype, layout, 11)
    student[0][0, :, 3, 3] = 0  # a norm below eps has no slope of its own
    doubles = [[x.double().requires_grad_() for x in features] for features in (teacher, student)]
    distances = [1 - F.cosine_similarity(t, s, dim=1, eps=EPS) for t, s in zip(*doubles, strict=True)]
    grads = [torch.randn_like(d).float() for d in distances]
    expected = torch.autograd.grad(distances, doubles[of == "student"], [g.double() for g in grads])
    if dtype == torch.float64:
        grads = [g.double() for g in grads]
    actual = emulated_gradients(grads, teacher, student, build, of, order="random", max_grid_x=2)
    # One rounding to the features' type, in whose range the slope at a zero vector, about 1 / eps, need not be.
    rounding = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}.get(dtype, 0.0)
    limit = torch.finfo(dtype).max
    near(actual, [e.where(e.abs() < limit, e.sign() * torch.inf) for e in expected], dtype, rtol=rounding)
