# SPDX-License-Identifier: Apache-2.0
"""csrc/contrastive_distance/contrastive_distance_kernels.cuh on the CPU: numbers, memory, races."""

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

from scrd_fast.ops.contrastive_distance import _reference, _reference_backward

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
# The sanitizers see memory, not numbers: one type a width of the packs will do.
CASES = [(d, b) for b in BUILDS for d in DTYPES if b == "plain" or d in (torch.bfloat16, torch.float64)]
EPS = 1e-8
# Samples and values of a map. More scales than a launch takes; one value, primes, whole packs, a chunk of 16,384 values
# and what lies around it, more chunks than a warp has lanes.
SHAPES = [(2, 1), (2, 7), (2, 8), (2, 1031), (2, 16384), (2, 16383), (2, 16385), (2, 40000), (2, 550001), (2, 4096)]
FEW = [(2, 7), (2, 4104), (2, 16385)]
Lists = tuple[list[Tensor], list[Tensor] | None, list[Tensor]]


def make(shapes: Sequence[tuple[int, int]], dtype: torch.dtype, apart: int, noisy: bool = True) -> Lists:
    """Samples lie `apart` values farther from each other than they must."""
    generator = torch.Generator().manual_seed(len(shapes))

    def one(n: int, values: int) -> Tensor:
        return torch.randn(n, values + apart, generator=generator).to(dtype)[:, :values]

    clean, other, student = ([one(*shape) for shape in shapes] for _ in range(3))
    return clean, other if noisy else None, student


def gather(maps: list[Tensor]) -> tuple[Tensor, list[int]]:
    """One memory that holds all, each from a 16-byte boundary up to its last value, and where each begins there."""
    parts: list[Tensor] = []
    begins, end = [], 0
    for x in maps:
        gap = -end % 16
        last = (x.shape[0] - 1) * x.stride(0) + x.shape[1]
        begins.append(end + gap)
        parts += [x.new_zeros(gap), torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())[:last]]
        end += gap + last
    return torch.cat(parts), begins


def bits(x: Tensor) -> Any:
    return (x.view(torch.int16) if x.element_size() == 2 else x).numpy()


def pack(lists: Lists) -> dict[str, Any]:
    """The driver's arguments."""
    clean, noisy, student = lists
    gathered = [gather(maps) for maps in (clean, noisy or clean, student)]
    shape = [
        [*c.shape, c.stride(0), n.stride(0), s.stride(0), *(begins[k] for _, begins in gathered)]
        for k, (c, n, s) in enumerate(zip(clean, noisy or clean, student, strict=True))
    ]
    names = ("clean", "noisy", "student") if noisy else ("clean", "", "student")
    arrays = {name: bits(memory) for name, (memory, _) in zip(names, gathered, strict=True) if name}
    dtype = str(student[0].dtype).removeprefix("torch.")
    return arrays | {"shape": np.array(shape, dtype=np.int64), "dtype": dtype, "eps": EPS}


def emulated(lists: Lists, build: str, **options: Any) -> list[Tensor]:
    """Clean distances [N, K], noisy ones if there are any, dots [N, K, 5]."""
    n, count = lists[2][0].shape[0], len(lists[2])
    result = np.float64 if lists[2][0].dtype == torch.float64 else np.float32
    flat = torch.from_numpy(emulate("contrastive_distance", build, result, **pack(lists), **options))
    sizes = [n * count, n * count if lists[1] else 0, 5 * n * count]
    clean, noisy, dots = flat.split(sizes)
    found = [clean.view(n, count), dots.view(n, count, 5)]
    return [found[0], noisy.view(n, count), found[1]] if lists[1] else found


def emulated_gradients(
    grads: list[Tensor], dots: Tensor, lists: Lists, build: str, of: str, **options: Any
) -> list[Tensor]:
    arguments = pack(lists) | {"grad_clean": grads[0].numpy(), "dots": dots.numpy(), "of": of}
    if lists[1]:
        arguments["grad_noisy"] = grads[1].numpy()
    flat = emulate("contrastive_distance", build, arguments["student"].dtype, **arguments, **options)
    memory = torch.from_numpy(flat).view(lists[2][0].dtype)
    return [x.view(s.shape) for x, s in zip(memory.split([s.numel() for s in lists[2]]), lists[2], strict=True)]


def exact(lists: Lists) -> Lists:
    clean, noisy, student = ([x.double() for x in maps] if maps else None for maps in lists)
    assert clean is not None
    assert student is not None
    return clean, noisy, student


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def as_maps(maps: list[Tensor] | None) -> list[Tensor]:
    return [x[:, :, None, None] for x in maps or []]


@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize("apart", [0, 8, 3])
@pytest.mark.parametrize(("dtype", "build"), CASES, ids=str)
def test_equals_torch(dtype: torch.dtype, apart: int, noisy: bool, build: str) -> None:
    lists = make(SHAPES if build == "plain" else FEW, dtype, apart, noisy)
    found = emulated(lists, build, order="random")
    clean, other, student = exact(lists)
    tolerance = TOLERANCES["contrastive_distance", dtype]._asdict()
    for actual, teacher in zip(found, (clean, other) if noisy else (clean,), strict=False):
        columns = [1 - F.cosine_similarity(t, s, dim=1, eps=EPS) for t, s in zip(teacher, student, strict=True)]  # type: ignore[arg-type]
        torch.testing.assert_close(actual.double(), torch.stack(columns, 1), **tolerance)
    expected = _reference(as_maps(clean), as_maps(other), as_maps(student), EPS)[2]
    scale = expected.abs().amax(2, keepdim=True)
    assert ((found[-1].double() - expected).abs() <= 1e-5 * scale).all()


@pytest.mark.parametrize("build", BUILDS)
def test_neither_order_nor_alignment_nor_grid_nor_batch_changes_a_bit(build: str) -> None:
    lists = make(FEW if build != "plain" else SHAPES, torch.float32, 8)
    expected = emulated(lists, build)
    for order in ORDERS[1:]:
        assert same(emulated(lists, build, order=order), expected)
    assert same(emulated(lists, build, shift=1), expected)
    assert same(emulated(lists, build, max_grid_x=3), expected)
    clean, noisy, student = lists
    assert noisy is not None
    second = ([x[1:] for x in maps] for maps in (clean, noisy, student))
    alone = emulated(tuple([y.clone() for y in x] for x in second), build)  # type: ignore[arg-type]
    assert same(alone, [x[1:] for x in expected])


@pytest.mark.parametrize(("of", "noisy"), [("student", True), ("student", False), ("clean", True), ("noisy", True)])
@pytest.mark.parametrize(("dtype", "build"), CASES, ids=str)
@pytest.mark.parametrize("apart", [0, 3])
def test_gradients_equal_the_formula(dtype: torch.dtype, build: str, of: str, noisy: bool, apart: int) -> None:
    lists = make(FEW, dtype, apart, noisy)
    clean, other, student = exact(lists)
    dots = _reference(as_maps(clean), as_maps(other), as_maps(student), EPS)[2]
    grads = [torch.randn(dots.shape[:2], dtype=torch.float64, generator=torch.Generator().manual_seed(5)) for _ in "CN"]
    right = _reference_backward(*grads, dots, as_maps(clean), as_maps(other), as_maps(student), EPS, True)
    expected = dict(zip(("clean", "noisy", "student"), right, strict=True))[of]
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    narrow = [g.to(kind) for g in grads], dots.to(kind)
    found = emulated_gradients(*narrow, lists, build, of, order="random", max_grid_x=2)
    rounding = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}.get(dtype, 1e-5)
    for actual, ideal in zip(found, expected, strict=True):
        ideal = ideal[:, :, 0, 0]
        atol = 1e-5 * float(ideal.abs().max()) + (1e-7 if dtype == torch.float16 else 0)
        torch.testing.assert_close(actual.double(), ideal, rtol=rounding, atol=atol)


def test_gradients_are_the_same_from_anywhere() -> None:
    lists = make(FEW, torch.bfloat16, 3)
    dots = emulated(lists, "plain")[-1]
    grads = [torch.rand(dots.shape[:2]) for _ in "CN"]
    expected = emulated_gradients(grads, dots, lists, "plain", "student")
    assert same(emulated_gradients(grads, dots, lists, "plain", "student", shift=1, order="reverse"), expected)


def test_zero_maps_are_at_distance_one() -> None:
    lists = make(FEW, torch.float32, 0)
    lists[2][1].zero_()
    clean, noisy, dots = emulated(lists, "plain")
    assert clean[:, 1].tolist() == noisy[:, 1].tolist() == [1, 1]
    grads = [torch.ones(dots.shape[:2]) for _ in "CN"]
    for of in ("student", "clean", "noisy"):
        assert all(g.isfinite().all() for g in emulated_gradients(grads, dots, lists, "plain", of))
