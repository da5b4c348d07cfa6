# SPDX-License-Identifier: Apache-2.0
"""csrc/anomaly_map/anomaly_map_kernels.cuh on the CPU: numbers, memory, races."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from emulation import BUILDS, ORDERS, emulate
from scipy.ndimage import gaussian_filter
from tolerances import TOLERANCES
from torch import Tensor

from scrd_fast.ops.anomaly_map import _reference_backward as reference_backward

DTYPES = [torch.float32, torch.float64]
Size = tuple[int, int]
TOP = (0.02, 0.3, 1.0)


class Case(NamedTuple):
    scales: list[Size]
    size: Size
    sigma: float
    border: str = "reflect"


MODEL = Case([(16, 16), (8, 8), (4, 4)], (64, 64), 4.0)
CASES = [
    MODEL,
    Case([(7, 5), (3, 11)], (29, 71), 1.7),  # primes, several tiles
    Case([(7, 5), (3, 11)], (29, 71), 1.7, "mirror"),
    Case([(37, 2)], (31, 3), 0.0),  # no blur, fewer rows than in the source, several chunks of source rows
    Case([(3, 2)], (5, 1), 4.0, "mirror"),  # smaller than the blur's radius, which folds more than once
    Case([(3, 2)], (5, 2), 4.0),
    Case([(1, 1), (1, 4)], (1, 1), 2.0, "mirror"),
    Case([(2, 3)] * 11, (6, 7), 0.8),  # more scales than a launch takes
    Case([(5, 9)], (34, 40), 28.0),  # 225 taps, one more than a block holds at once, and rows of more than 8 entries
    Case([(5, 9)], (34, 40), 60.0, "mirror"),
]
SANITIZED = [("asan", case) for case in (CASES[1], CASES[3], CASES[5], CASES[7], CASES[9])]
SANITIZED += [("tsan", case) for case in (CASES[2], CASES[7], CASES[8])]


class Result(NamedTuple):
    map: Tensor
    mean: Tensor
    max: Tensor
    top: Tensor


def make(case: Case, dtype: torch.dtype, samples: int = 2, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Distances and weights."""
    generator = torch.Generator().manual_seed(seed)
    distances = [2 * torch.rand(samples, *size, dtype=dtype, generator=generator) for size in case.scales]
    return distances, torch.rand(samples, len(case.scales), dtype=dtype, generator=generator)


def pack(case: Case, distances: list[Tensor], weights: Tensor | None) -> dict[str, Any]:
    """The driver's arguments."""
    arguments = {
        "distances": torch.cat([d.flatten() for d in distances]).numpy(),
        "shapes": np.array([d.shape[1:] for d in distances], dtype=np.int64),
        "samples": distances[0].shape[0],
        "height": case.size[0],
        "width": case.size[1],
        "sigma": case.sigma,
        "border": case.border,
        "dtype": str(distances[0].dtype).removeprefix("torch."),
    }
    return arguments if weights is None else arguments | {"weights": weights.contiguous().numpy()}


def emulated(
    case: Case,
    distances: list[Tensor],
    weights: Tensor | None,
    build: str,
    top: Sequence[float] = TOP,
    **options: Any,
) -> Result:
    arguments = pack(case, distances, weights) | {"shares": np.array(top, dtype=np.float64)}
    flat = emulate("anomaly_map", build, arguments["distances"].dtype, **arguments, **options)
    n, pixels = distances[0].shape[0], math.prod(case.size)
    full, mean, largest, means = torch.from_numpy(flat).split([n * pixels, n, n, n * len(top)])
    return Result(full.view(n, *case.size), mean, largest, means.view(n, len(top)))


def emulated_mean(case: Case, distances: list[Tensor], weights: Tensor | None, build: str, **options: Any) -> Tensor:
    arguments = pack(case, distances, weights)
    return torch.from_numpy(emulate("anomaly_map", build, arguments["distances"].dtype, **arguments, **options))


def emulated_gradients(
    case: Case,
    grad_map: Tensor | None,
    grad_mean: Tensor,
    distances: list[Tensor],
    weights: Tensor | None,
    build: str,
    **options: Any,
) -> list[Tensor]:
    arguments = pack(case, distances, weights) | {"grad_mean": grad_mean.numpy()}
    if grad_map is not None:
        arguments["grad_map"] = grad_map.numpy()
    flat = torch.from_numpy(emulate("anomaly_map", build, arguments["distances"].dtype, **arguments, **options))
    like = distances if weights is None else [*distances, weights]
    return [part.view(x.shape) for part, x in zip(flat.split([x.numel() for x in like]), like, strict=True)]


def same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def near(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(actual.double(), expected, **TOLERANCES["anomaly_map", dtype]._asdict())


def independent(case: Case, distances: list[Tensor], weights: Tensor | None) -> Tensor:
    """torch's interpolation and scipy's blur in float64, [N, H, W]."""
    maps = []
    for k, d in enumerate(distances):
        up = F.interpolate(d.double()[:, None], size=case.size, mode="bilinear", align_corners=True)[:, 0]
        maps.append(up if weights is None else weights[:, k, None, None].double() * up)
    total = torch.stack(maps).sum(0).numpy()
    if case.sigma == 0:
        return torch.from_numpy(total)
    return torch.from_numpy(np.stack([gaussian_filter(m, case.sigma, mode=case.border, truncate=4.0) for m in total]))


def top_means(pixels: Tensor, top: Sequence[float]) -> Tensor:
    ordered = pixels.sort(dim=1, descending=True).values
    return torch.stack([ordered[:, : math.ceil(share * pixels.shape[1])].mean(1) for share in top], dim=1)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_torch_and_scipy(dtype: torch.dtype, case: Case, weighted: bool) -> None:
    distances, weights = make(case, dtype)
    actual = emulated(case, distances, weights if weighted else None, "plain", order="random")
    expected = independent(case, distances, weights if weighted else None)
    pixels = expected.flatten(1)
    near(actual.map, expected, dtype)
    near(actual.mean, pixels.mean(1), dtype)
    assert torch.equal(actual.max, actual.map.flatten(1).amax(1))
    near(actual.top, top_means(actual.map.flatten(1).double(), TOP), dtype)
    alone = emulated_mean(case, distances, weights if weighted else None, "plain")
    assert torch.equal(alone, actual.mean)


@pytest.mark.parametrize(("build", "case"), SANITIZED, ids=str)
def test_sanitizers_find_nothing_and_the_bits_are_the_same(build: str, case: Case) -> None:
    distances, weights = make(case, torch.float32)
    first = emulated(case, distances, weights, "plain", TOP[:1])
    assert same(emulated(case, distances, weights, build, TOP[:1], order="random"), first)
    assert torch.equal(emulated_mean(case, distances, weights, build), first.mean)


@pytest.mark.parametrize("build", BUILDS)
def test_gives_the_same_bits_in_every_order_and_grid(build: str) -> None:
    case = Case([(7, 5), (3, 11)], (35, 66), 1.7, "mirror")
    distances, weights = make(case, torch.float64)
    first = emulated(case, distances, weights, "plain", TOP[:2])
    options: list[dict[str, Any]] = [{"order": order, "random_seed": 3} for order in ORDERS]
    options += [{"max_grid_x": 1, "max_grid_y": 1, "order": "reverse"}, {"max_grid_x": 2, "shift": 1}]
    for option in options[-3:] if build == "tsan" else options:  # which is slow
        assert same(emulated(case, distances, weights, build, TOP[:2], **option), first)


@pytest.mark.parametrize("case", [MODEL, CASES[3]], ids=str)
def test_a_sample_does_not_depend_on_its_batch(case: Case) -> None:
    distances, weights = make(case, torch.float32, samples=5)
    whole = emulated(case, distances, weights, "plain")
    for n in (0, 4):
        one = slice(n, n + 1)
        alone = emulated(case, [d[one] for d in distances], weights[one], "plain")
        assert same(alone, [x[one] for x in whole])


def test_what_is_not_finite_stays_in_its_image() -> None:
    case = CASES[1]
    distances, weights = make(case, torch.float32, samples=4)
    clean = emulated(case, distances, weights, "plain")
    distances[0][1, 2, 3] = float("nan")
    distances[1][2, 1, 4] = float("inf")
    distances[1][3, 1, 4] = -float("inf")
    actual = emulated(case, distances, weights, "plain")
    assert same([x[:1] for x in actual], [x[:1] for x in clean])
    assert actual.mean[1].isnan()
    assert actual.max[1].isnan()
    assert actual.top[1].isnan().all()
    for n in (2, 3):  # infinite, and NaN where an infinite distance has no share
        assert not actual.mean[n].isfinite()
        assert not actual.map[n].isfinite().all()
        assert not actual.max[n].isfinite() or actual.map[n].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_of_pixels_that_are_equal(dtype: torch.dtype) -> None:
    """Maps without upsampling and blur are the distances themselves: constant, of two values, of both signs."""
    case = Case([(9, 14)], (9, 14), 0.0)
    values = torch.tensor([[0.25] * 126, [0.5, 0.125] * 63, [-0.0, 0.0, -2.0] * 42, [-1e30, 1e-30] * 63], dtype=dtype)
    values = torch.cat([values, torch.linspace(-3, 4, 126, dtype=dtype)[None].square()])
    top = [1 / 126, 2 / 126, 0.25, 0.5, 0.51, 0.75, 125 / 126, 1.0, 1e-9, 0.1]  # more than a launch takes
    actual = emulated(case, [values.view(5, 9, 14)], None, "asan", top)
    assert torch.equal(actual.map.flatten(1), values)
    assert torch.equal(actual.max, values.amax(1))
    near(actual.top, top_means(values.double(), top), dtype)
    # One pixel, as a number: not its neighbour.
    assert torch.equal(actual.top[:, 0], values.amax(1))


def test_without_shares_there_is_a_maximum_all_the_same() -> None:
    distances, _ = make(CASES[1], torch.float32)
    actual = emulated(CASES[1], distances, None, "asan", [])
    assert torch.equal(actual.max, actual.map.flatten(1).amax(1))
    assert actual.top.shape == (2, 0)


def gradients(
    case: Case, grad_map: Tensor | None, grad_mean: Tensor, distances: list[Tensor], weights: Tensor | None
) -> list[Tensor]:
    """Those of the reference, in float64."""
    to_distances, to_weights = reference_backward(
        None if grad_map is None else grad_map[:, None].double(), grad_mean.double(), [d.double() for d in distances],
        None if weights is None else weights.double(), list(case.size), case.sigma, case.border,
    )  # fmt: skip
    return list(to_distances) if weights is None else [*to_distances, to_weights]


@pytest.mark.parametrize("with_map", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_equal_the_reference(dtype: torch.dtype, case: Case, with_map: bool) -> None:
    distances, weights = make(case, dtype, seed=1)
    grad_map = torch.randn(2, *case.size, dtype=dtype) if with_map else None
    grad_mean = torch.randn(2, dtype=dtype)
    for scale_weights in (weights, None):
        actual = emulated_gradients(case, grad_map, grad_mean, distances, scale_weights, "plain", order="random")
        expected = gradients(case, grad_map, grad_mean, distances, scale_weights)
        for a, e in zip(actual, expected, strict=True):
            # Of sums over many pixels: relative to the largest.
            near(a / e.abs().max().clamp_min(1), e / e.abs().max().clamp_min(1), dtype)


@pytest.mark.parametrize("build", BUILDS)
def test_gradients_have_the_same_bits_in_every_order_and_grid(build: str) -> None:
    case = CASES[2]
    distances, weights = make(case, torch.float32, samples=3)
    grad_map, grad_mean = torch.randn(3, *case.size), torch.randn(3)
    first = emulated_gradients(case, grad_map, grad_mean, distances, weights, "plain")
    options: list[dict[str, Any]] = [{"order": order} for order in ORDERS]
    options += [{"max_grid_x": 1, "max_grid_y": 1}, {"max_grid_y": 2, "shift": 1}]
    for option in options:
        actual = emulated_gradients(case, grad_map, grad_mean, distances, weights, build, **option)
        assert same(actual, first)
