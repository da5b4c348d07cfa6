# SPDX-License-Identifier: Apache-2.0
"""`simplex_noise(variant="hashed")`: the definition, and how much it is like OpenSimplex noise."""

from __future__ import annotations

import math
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor

from scrd_fast.ops import simplex_noise
from scrd_fast.ops.simplex_noise import HASHED_NORM, HASHED_SCALE, cube_edge, mixed
from scrd_fast.ops.simplex_noise import splitmix64 as our_splitmix64

HERE = ["reference", "native"]
SEEDS = [0, 1, -1, 123456789012345, 2**63 - 1, -(2**63)]
MASK = 2**32 - 1


def hashed(seeds: Tensor, size: tuple[int, int, int], backend: str = "reference", **options: Any) -> Tensor:
    return simplex_noise(seeds, size, variant="hashed", backend=backend, **options)


def splitmix64(seed: int) -> int:
    """The first output of the published generator in the state `seed`."""
    z = (seed + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def gradient_of(vertex: list[int], key: int) -> tuple[int, ...]:
    b = vertex[0] * 73856093 & MASK ^ vertex[1] * 19349663 & MASK ^ vertex[2] * 83492791 & MASK
    b ^= key & MASK
    b = (b ^ b >> 16) * 0x85EBCA6B & MASK
    b ^= key >> 32
    b = (b ^ b >> 13) * 0xC2B2AE35 & MASK
    edges = [(s, t, 0) for t in (1, -1) for s in (1, -1)]
    edges += [(s, 0, t) for t in (1, -1) for s in (1, -1)]
    edges += [(0, s, t) for t in (1, -1) for s in (1, -1)]
    edges += [(1, 1, 0), (0, -1, 1), (-1, 1, 0), (0, -1, -1)]
    return edges[b >> 28]


def one_octave(seed: int, place: tuple[int, int, int], f: float) -> float:
    """Pixel (w, h, d), by walking the simplex from the cell's origin, one axis after the other."""
    step = math.floor(f * HASHED_SCALE / 3 * 2**32 + 0.5)
    skewed = [(3 * p + sum(place)) * step % 2**64 for p in place]
    vertex = [s >> 32 for s in skewed]
    fraction = [(s >> 8) % 2**24 / 2**24 for s in skewed]
    d = [u - sum(fraction) / 6 for u in fraction]
    order = sorted(range(3), key=lambda axis: -fraction[axis])
    total = 0.0
    for axis in (*order, None):
        falloff = max(0.0, 0.5 - math.fsum(x * x for x in d)) ** 4
        total += falloff * math.fsum(g * x for g, x in zip(gradient_of(vertex, splitmix64(seed)), d, strict=True))
        if axis is not None:
            vertex[axis] = vertex[axis] + 1 & MASK
            d[axis] -= 1
            d = [x + 1 / 6 for x in d]
    return HASHED_NORM * total


def by_hand(seed: int, size: tuple[int, int, int], octaves: int, persistence: float, frequency: float) -> Tensor:
    values = [
        math.fsum(persistence**o * one_octave(seed, (w, h, d), frequency * 2**o) for o in range(octaves))
        for d, h, w in product(*map(range, size))
    ]
    return torch.tensor(values, dtype=torch.float64).reshape(size)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize(
    ("size", "octaves", "frequency"),
    [((1, 1, 1), 6, 1 / 32), ((3, 13, 17), 6, 1 / 32), ((2, 9, 11), 2, 0.37), ((2, 5, 7), 1, 30_011.7)],
    ids=str,
)
def test_equals_the_definition(size: tuple[int, int, int], octaves: int, frequency: float, backend: str) -> None:
    actual = hashed(torch.tensor(SEEDS), size, backend, octaves=octaves, persistence=0.7, frequency=frequency)
    assert actual.dtype == torch.float32
    expected = torch.stack([by_hand(seed, size, octaves, 0.7, frequency) for seed in SEEDS])
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=1e-6)


def test_the_finaliser_is_murmurhash3s() -> None:
    """MurmurHash3_x86_32 of the empty string is the finaliser of its seed; the values are its test vectors."""
    b = mixed(torch.tensor([0, 1, 0xFFFFFFFF]), 0, 0)
    assert (b ^ b >> 16).tolist() == [0, 0x514E28B7, 0x81F16F39]


def test_the_keys_are_splitmix64s() -> None:
    """The published generator's first outputs for the seeds 0 and 1234567, and the definition for every bit."""
    published = [0xE220A8397B1DCDAF, 6457827717110365317]
    assert [key % 2**64 for key in our_splitmix64(torch.tensor([0, 1234567])).tolist()] == published
    seeds = [-(2**63), *(1 << bit for bit in range(63))]
    assert [key % 2**64 for key in our_splitmix64(torch.tensor(seeds)).tolist()] == [splitmix64(s) for s in seeds]


def test_gradients_are_the_edges_of_a_cube_and_cancel() -> None:
    axes = torch.eye(3, dtype=torch.float64)
    edges = torch.stack([cube_edge(torch.arange(16), list(axis[:, None])) for axis in axes], dim=1)
    assert (edges.abs().sum(1) == 2).all()
    assert (edges.square().sum(1) == 2).all()
    assert len({tuple(edge) for edge in edges.tolist()}) == 12
    assert not edges.sum(0).any()


def bands(fields: Tensor, edges: list[float]) -> Tensor:
    """Mean power in rings of the spectrum (Hann window); `edges` in waves per field."""
    n = fields.shape[-1]
    window = torch.hann_window(n, periodic=False, dtype=torch.float64)
    power = torch.fft.fft2(fields * window * window[:, None]).abs().square().mean((0, 1))
    k = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
    k = torch.hypot(k[:, None], k)
    return torch.stack([power[(k >= low) & (k < high)].mean() for low, high in pairwise(edges)])


def character(fields: Tensor, edges: list[float]) -> Tensor:
    """Variance, mean range of a field, range of them all, and the bands of the spectrum."""
    flat = fields.flatten(1)
    ranges = (flat.amax(1) - flat.amin(1)).mean(), flat.max() - flat.min()
    return torch.cat([torch.stack([flat.var(), *ranges]), bands(fields, edges)])


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize(
    ("size", "edges", "tolerance"),
    [
        # From half the first octave's frequency (three waves) to the Nyquist frequency, by octaves.
        ((1, 96, 96), [1.5, 3, 6, 12, 24, 48], 0.1),
        # A patch of the synthesis. It holds one wave of the first octave, at the origin of either lattice, where
        # the noise vanishes: 256 of them scatter by 5 % and the rings by up to 10 %.
        ((3, 32, 32), [1, 2, 4, 8, 16], 0.15),
    ],
    ids=["field", "patch"],
)
def test_is_like_opensimplex(size: tuple[int, int, int], edges: list[float], tolerance: float, backend: str) -> None:
    seeds = torch.arange(256)
    expected = character(simplex_noise(seeds, size).double(), edges)
    torch.testing.assert_close(
        character(hashed(seeds, size, backend).double(), edges) / expected,
        torch.ones_like(expected),
        rtol=0,
        atol=tolerance,
    )


@pytest.mark.parametrize("backend", HERE)
def test_the_mean_is_zero(backend: str) -> None:
    means = hashed(torch.arange(256), (1, 48, 48), backend, octaves=3, frequency=1 / 8).double().mean((1, 2, 3))
    assert abs(means.mean()) < 3 * means.std() / 16
    assert means.std() < 0.08  # so the line above bounds the mean by 0.015; the noise's own deviation is 0.39


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_is_smooth_across_cells_and_simplices(axis: int, backend: str) -> None:
    """A jump would appear at its full height in the second difference.

    One vertex adds less than 1.3 * 61.5 to the second derivative, four of them touch a point, and the 1,200 pixels
    along the axis pass more than one cell.
    """
    size = [9, 20, 20]
    size[axis - 1] = 1200
    frequency = 2.0**-9
    noise = hashed(torch.arange(2), (size[0], size[1], size[2]), backend, octaves=1, frequency=frequency).double()
    second = noise.diff(dim=axis).diff(dim=axis).abs()
    bound = 4 * 1.3 * HASHED_NORM * (HASHED_SCALE * frequency) ** 2
    assert bound < 4e-4
    assert second.max() < bound + 4 * 2.0**-24
    assert noise.abs().max() > 0.2


@pytest.mark.parametrize("backend", HERE)
def test_every_bit_of_the_seed_counts(backend: str) -> None:
    """A flipped bit gives an unrelated field: correlations scatter by 0.023, as the waves in a field are counted."""
    seed = 0x0123456789ABCDEF
    seeds = torch.tensor([seed, *(seed ^ 1 << bit for bit in range(63)), seed - 2**63])
    fields = hashed(seeds, (1, 160, 160), backend, octaves=1, frequency=0.3).double().flatten(1)
    assert (torch.corrcoef(fields) - torch.eye(65)).abs().max() < 0.13


@pytest.mark.parametrize("backend", HERE)
def test_a_sample_does_not_depend_on_its_batch(backend: str) -> None:
    seeds = torch.tensor([11, -4, 99, 11])
    batch = hashed(seeds, (3, 13, 17), backend)
    assert torch.equal(batch[0], batch[3])
    assert torch.equal(batch, hashed(seeds, (3, 13, 17), backend))
    for n in range(4):
        assert torch.equal(batch[n : n + 1], hashed(seeds[n : n + 1], (3, 13, 17), backend))


@pytest.mark.parametrize("backend", HERE)
def test_a_block_is_the_corner_of_a_larger_one(backend: str) -> None:
    small, large = hashed(torch.tensor([8]), (2, 11, 12), backend), hashed(torch.tensor([8]), (3, 20, 30), backend)
    assert torch.equal(small, large[:, :2, :11, :12])


@pytest.mark.parametrize("backend", HERE)
def test_an_empty_batch(backend: str) -> None:
    assert hashed(torch.empty(0, dtype=torch.int64), (3, 4, 5), backend).shape == (0, 3, 4, 5)


@pytest.mark.parametrize("n", [0, 3])
def test_opcheck(n: int) -> None:
    torch.library.opcheck(
        torch.ops.scrd_fast.simplex_noise.default, (torch.arange(n), (2, 3, 5), 2, 0.6, 1 / 32, "hashed")
    )
