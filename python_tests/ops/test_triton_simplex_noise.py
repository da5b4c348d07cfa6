# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels: on a GPU where there is one, else on the CPU in Triton's interpreter (see conftest.py)."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import opensimplex
import pytest
import torch
from torch import Tensor
from triton_device import DEVICE, MARKS

from scrd_fast.ops import simplex_noise
from scrd_fast.ops.simplex_noise import HASHED_NORM, HASHED_SCALE

pytest.importorskip("triton")
kernels = importlib.import_module("scrd_fast.ops.triton.simplex_noise")  # the name in the package is the function

WARNING = "ignore:Conversion of an array:DeprecationWarning"  # of the interpreter
pytestmark = [*MARKS, pytest.mark.filterwarnings(WARNING)]
# Vertices in float32: ten contributions of at most 0.2, each off by some 2^-22, and 2.5 octaves' worth of them.
# Measured: 4e-7 (opensimplex), 6e-7 (hashed). A vertex too many or too few is 1e-3 and more.
ATOL = 2e-6
SEEDS = [0, 7, -1, 2**63 - 1, -(2**63)]
# Powers of two put many points exactly between two regions; 1/3 and 0.37 do not meet the grid.
FREQUENCIES = [1 / 32, 0.25, 1.0, 1 / 3, 0.37, 1000.1]


def noise(seeds: list[int], size: tuple[int, int, int], variant: str = "opensimplex", **options: Any) -> Tensor:
    """The operator itself, without the checks of the public function."""
    arguments = {"octaves": 2, "persistence": 0.6, "frequency": 1 / 32} | options
    place = torch.tensor(seeds, dtype=torch.int64, device=DEVICE)
    result: Tensor = torch.ops.scrd_fast_triton.simplex_noise(place, size, *arguments.values(), variant)
    return result.cpu()


def hashed(
    seed: int,
    size: tuple[int, int, int],
    octaves: int,
    persistence: float,
    frequency: float,
    corner: tuple[int, int, int] = (0, 0, 0),
) -> Tensor:
    """The hashed variant in float64, point by point after its definition."""
    mask = 2**64 - 1
    key = (seed + 0x9E3779B97F4A7C15) & mask
    key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 & mask
    key = (key ^ key >> 27) * 0x94D049BB133111EB & mask
    key ^= key >> 31
    place = np.stack([np.indices(size)[i] + corner[i] for i in (2, 1, 0)]).astype(np.int64)  # x, y, z
    total = np.zeros(size)
    for octave in range(octaves):
        step = np.int64(np.floor(frequency * 2**octave * HASHED_SCALE / 3 * 2.0**32 + 0.5))
        skewed = (3 * place + place.sum(0)) * step
        cell, u = (skewed >> 32).astype(np.uint32), (skewed >> 8 & 0xFFFFFF) / 2.0**24
        order = np.argsort(-u, axis=0, kind="stable")  # the largest fraction first
        offset = np.zeros_like(place)
        for m in range(4):
            if m > 0:
                np.put_along_axis(offset, order[m - 1][None], 1, axis=0)
            d = u - u.sum(0) / 6 - offset + m / 6
            b = (cell + offset.astype(np.uint32)) * np.array([73856093, 19349663, 83492791], np.uint32)[
                :, None, None, None
            ]
            b = b[0] ^ b[1] ^ b[2] ^ np.uint32(key & 0xFFFFFFFF)
            b = (b ^ b >> 16) * np.uint32(0x85EBCA6B) ^ np.uint32(key >> 32)
            g = ((b ^ b >> 13) * np.uint32(0xC2B2AE35)) >> 28
            first = np.where(g < 8, d[0], d[1])
            second = np.where(g < 4, d[1], np.where((g == 12) | (g == 14), d[0], d[2]))
            dot = np.where(g & 1, -first, first) + np.where(g & 2, -second, second)
            total += persistence**octave * HASHED_NORM * np.maximum(0.5 - (d**2).sum(0), 0) ** 4 * dot
    return torch.from_numpy(total)


def test_shuffles_are_those_of_the_published_package() -> None:
    generator = np.random.default_rng(0)
    seeds = SEEDS + generator.integers(-(2**63), 2**63 - 1, 27).tolist()
    table = torch.tensor([seeds, seeds], device=DEVICE).T  # a row is two apart
    actual = kernels.shuffles(table[:, 1], False).cpu()
    for seed, permutation in zip(seeds, actual, strict=True):
        np.testing.assert_array_equal(permutation, opensimplex.OpenSimplex(seed)._perm)


CASES = [((3, 31, 29), frequency) for frequency in FREQUENCIES] + [
    ((1, 1, 1), 0.25),
    ((3, 1, 17), 0.25),
    ((2, 7, 13), 0.37),
]


@pytest.mark.parametrize(("size", "frequency"), CASES, ids=str)
def test_equals_the_reference(size: tuple[int, int, int], frequency: float) -> None:
    seeds = SEEDS if frequency == 1 / 3 else SEEDS[2:4]
    options = {"octaves": 2, "persistence": 0.9, "frequency": frequency}
    expected = simplex_noise(torch.tensor(seeds), size, backend="reference", **options)
    torch.testing.assert_close(noise(seeds, size, **options), expected, rtol=0, atol=ATOL)


def test_six_octaves_by_name() -> None:
    seeds = torch.tensor([5, -6])
    actual = simplex_noise(seeds.to(DEVICE), (3, 15, 16), backend="triton")
    assert actual.device.type == DEVICE
    torch.testing.assert_close(actual.cpu(), simplex_noise(seeds, (3, 15, 16), backend="reference"), rtol=0, atol=ATOL)


@pytest.mark.parametrize("frequency", [*FREQUENCIES, 2.0**14.5])
def test_hashed_equals_its_definition(frequency: float) -> None:
    options = {"octaves": 3, "persistence": 0.9, "frequency": frequency}
    expected = torch.stack([hashed(seed, (3, 31, 29), **options) for seed in SEEDS])
    actual = noise(SEEDS, (3, 31, 29), "hashed", **options)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=ATOL)
    assert actual.std() > 0.1


@pytest.mark.parametrize("frequency", [1 / 3, 10.3])
def test_hashed_is_exact_far_away(frequency: float) -> None:
    """2^31 pixels from the origin an error of 2^-32 of a cell per pixel is half a cell; at 10.3 the lattice wraps."""
    images = torch.zeros(1, 2, 5, 6, dtype=torch.float64, device=DEVICE)
    boxes = torch.tensor([[30 - 2**31, 40 - 2**31, 2**31 - 1, 2**31 - 1]], dtype=torch.int32, device=DEVICE)
    seeds, rest = torch.tensor([5], device=DEVICE), (2, 0.9, frequency)
    torch.ops.scrd_fast_triton.synthesize_anomalies_(images, boxes, seeds, 1.0, None, *rest, "hashed")
    expected = hashed(5, (2, 5, 6), *rest, corner=(0, 2**31 - 30, 2**31 - 40))
    torch.testing.assert_close(images[0].cpu(), expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("variant", ["opensimplex", "hashed"])
def test_bits_do_not_depend_on_programs_nor_on_the_batch(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (2, 5, 7)
    expected = noise(SEEDS, size, variant)
    for n, seed in enumerate(SEEDS[:2]):
        assert torch.equal(noise([seed], size, variant)[0], expected[n])
    monkeypatch.setattr(kernels, "BLOCK", 32)
    monkeypatch.setattr(kernels, "index_type", lambda elements: kernels.tl.int64)  # as if there were 2^30 elements
    assert torch.equal(noise(SEEDS[:3], size, variant), expected[:3])


@pytest.mark.parametrize("variant", ["opensimplex", "hashed"])
def test_writes_nothing_beyond_its_result(variant: str) -> None:
    buffer = torch.full((100,), torch.nan, device=DEVICE)
    out = buffer[10:80].view(2, 1, 5, 7)
    kernels._fill(out, torch.tensor([1, 2], device=DEVICE), 2, 0.6, 1 / 32, variant)
    assert not buffer[10:80].isnan().any()
    assert buffer[:10].isnan().all()
    assert buffer[80:].isnan().all()


def test_empty_batch() -> None:
    assert noise([], (3, 4, 5)).shape == (0, 3, 4, 5)


def test_an_unknown_variant_is_named() -> None:
    with pytest.raises(ValueError, match="variant must be one of opensimplex, hashed, got 'perlin'"):
        noise([1], (1, 2, 3), "perlin")


@pytest.mark.parametrize("n", [0, 2])
def test_opcheck(n: int) -> None:
    arguments = (torch.arange(n, device=DEVICE), (2, 3, 5), 1, 0.6, 1 / 32, "opensimplex")
    torch.library.opcheck(torch.ops.scrd_fast_triton.simplex_noise.default, arguments)


def test_compiles_into_one_graph() -> None:
    def scaled(seeds: Tensor) -> Tensor:
        return simplex_noise(seeds, (1, 4, 6), octaves=1, backend="triton") * 0.2

    seeds = torch.arange(2, device=DEVICE)
    assert torch.equal(torch.compile(scaled, fullgraph=True, backend="aot_eager")(seeds), scaled(seeds))


@pytest.mark.cuda
def test_cuda_takes_more_samples_than_a_grid_has_rows() -> None:
    seeds = torch.arange(70_000, device="cuda")
    actual = simplex_noise(seeds, (1, 2, 3), octaves=1, backend="triton").cpu()
    torch.testing.assert_close(actual, simplex_noise(seeds.cpu(), (1, 2, 3), octaves=1), rtol=0, atol=ATOL)


@pytest.mark.cuda
def test_cuda_runs_on_the_current_stream_inside_a_graph() -> None:
    seeds = torch.tensor([1, 2], device="cuda")
    simplex_noise(seeds, (3, 8, 8), backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = simplex_noise(seeds, (3, 8, 8), backend="triton")
    seeds.copy_(torch.tensor([3, 4]))
    graph.replay()
    assert torch.equal(captured, simplex_noise(torch.tensor([3, 4], device="cuda"), (3, 8, 8), backend="triton"))
