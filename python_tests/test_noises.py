# SPDX-License-Identifier: Apache-2.0
"""What anomalies are made of, each against its definition or somebody else's code."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch import Tensor

from scrd_fast.noises import AMPLITUDE, BLOB_REACH, blobs, gaussian, perlin, perlin_octave, uniform
from scrd_fast.ops import simplex_noise
from scrd_fast.ops.simplex_noise import LOW

SEEDS = torch.arange(256) * 7919 + 1


def window(count: int, size: int, first: int = 0) -> Tensor:
    return torch.arange(first, first + size).expand(count, size)


def keys(seeds: Tensor) -> tuple[Tensor, Tensor]:
    return seeds & LOW, seeds * 3 & LOW


def octave(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Of one seed, at points [n]."""
    return perlin_octave(keys(SEEDS[:1]), [p[None].float() for p in (x, y, z)])[0]


def test_perlin_noise_is_zero_on_the_lattice_and_not_beside_it() -> None:
    x, y, z = torch.meshgrid(*[torch.arange(-4, 5)] * 3, indexing="ij")
    assert not octave(x, y, z).any()
    assert octave(x + 0.5, y, z).abs().max() > 0.3


EDGES = [p for p in itertools.product((-1, 0, 1), repeat=3) if sum(map(abs, p)) == 2]


def test_perlin_noise_is_the_interpolation_of_gradients_at_eight_vertices() -> None:
    """By numpy in float64: the gradients are read from the slopes at the vertices, which they must equal."""
    step = 1e-3

    def gradient(vertex: tuple[int, ...]) -> tuple[int, ...]:
        slopes = []
        for axis in range(3):
            ends = [
                torch.tensor([float(v + (s * step if a == axis else 0))]) for s in (-1, 1) for a, v in enumerate(vertex)
            ]
            slopes.append(round(float(octave(*ends[3:]) - octave(*ends[:3])) / (2 * step), 1))
        return tuple(int(s) for s in slopes)

    generator = np.random.default_rng(0)
    for _ in range(20):
        cell = tuple(int(c) for c in generator.integers(-3, 3, 3))
        part = generator.random(3)
        fade = 6 * part**5 - 15 * part**4 + 10 * part**3
        total = 0.0
        for ones in itertools.product((0, 1), repeat=3):
            slope = gradient(tuple(c + o for c, o in zip(cell, ones, strict=True)))
            assert slope in EDGES
            weight = np.prod([f if o else 1 - f for f, o in zip(fade, ones, strict=True)])
            total += weight * np.dot(slope, part - np.array(ones))
        point = [torch.tensor([c + p]) for c, p in zip(cell, part, strict=True)]
        assert float(octave(*point)) == pytest.approx(total, abs=1e-5)


def spectrum(fields: Tensor) -> Tensor:
    """Mean power in rings of an octave each, as shares."""
    power = torch.fft.fft2(fields.double()).abs().square().mean((0, 1))
    waves = torch.fft.fftfreq(fields.shape[-1]).mul(fields.shape[-1])
    radius = (waves[:, None] ** 2 + waves**2).sqrt()
    rings = [power[(radius >= r) & (radius < 2 * r)].sum() for r in (2, 4, 8, 16, 32)]
    return torch.stack(rings) / sum(rings)


def test_perlin_noise_is_as_strong_and_as_rough_as_simplex_noise() -> None:
    ours = perlin(SEEDS, window(256, 96), window(256, 96), 3)
    theirs = simplex_noise(SEEDS, (3, 96, 96))
    assert ours.std() == pytest.approx(AMPLITUDE, rel=0.05)
    assert abs(ours.mean()) < 0.02
    assert (spectrum(ours) / spectrum(theirs) - 1).abs().max() < 0.5
    patch = simplex_noise(SEEDS, (3, 20, 20))
    assert patch.std() == pytest.approx(AMPLITUDE, rel=0.05)
    rest = perlin(SEEDS, window(256, 20), window(256, 20), 3)
    assert rest.abs().mean() == pytest.approx(patch.abs().mean().item(), rel=0.1)


def test_gaussian_noise_is_white_and_normal() -> None:
    noise = gaussian(SEEDS, window(256, 20), window(256, 20), 3).double()
    values = noise.flatten().numpy() / AMPLITUDE
    assert stats.kstest(values, "norm").pvalue > 1e-3
    n = len(values)
    for value, expected, variance in (
        (values.mean(), 0, 1), ((values**2).mean(), 1, 2), (stats.skew(values), 0, 6), (stats.kurtosis(values), 0, 24),
    ):  # fmt: skip
        assert abs(value - expected) < 4 * math.sqrt(variance / n)
    assert np.isfinite(values).all()
    for shifted in (noise.roll(1, 0), noise.roll(1, 1), noise.roll(1, 2), noise.roll(1, 3)):
        assert abs(stats.pearsonr(noise.flatten(), shifted.flatten()).statistic) < 4 / math.sqrt(n)


def test_uniform_values_are_uniform_and_their_numbers_do_not_depend_on_each_other() -> None:
    seeds = torch.arange(20000) - 2**62
    first, second = uniform(seeds, 0).numpy(), uniform(seeds, 1).numpy()
    assert stats.kstest(first, "uniform").pvalue > 1e-3
    assert first.max() < 1
    assert abs(stats.pearsonr(first, second).statistic) < 4 / math.sqrt(len(seeds))


@pytest.mark.parametrize(("height", "width"), [(10, 10), (10, 31), (31, 12), (3, 3)])
def test_blobs_are_one_piece_each_of_the_boxs_size_in_both_signs(height: int, width: int) -> None:
    places = window(256, 80, first=-30)
    found = blobs(SEEDS, places, places, torch.tensor([[height, width]]).expand(256, 2))[:, 0]
    assert found.shape == (256, 80, 80)
    rows, columns = (30 + (side - 1) / 2 for side in (height, width))
    area = math.pi / 4 * height * width
    for blob in found.numpy():
        sign = np.sign(blob[blob != 0])
        assert abs(sign.sum()) == len(sign)
        assert 0.5 <= abs(blob).max() <= 1
        assert ndimage.label(blob != 0, np.ones((3, 3)))[1] == 1
        y, x = np.nonzero(blob)
        assert np.hypot(y - rows, x - columns).max() <= BLOB_REACH * max(height, width) / 2
        assert 0.6 * area < (abs(blob) > abs(blob).max() / 2).sum() < 1.6 * area
    assert 0.35 < (found.sum((1, 2)) > 0).float().mean() < 0.65
    if height > 3:
        assert len({blob.tobytes() for blob in found.numpy() != 0}) > 200


def test_a_blobs_edge_is_soft() -> None:
    places = window(256, 80, first=-25)
    found = blobs(SEEDS, places, places, torch.tensor([[30, 30]]).expand(256, 2))
    step = (found.diff(dim=2).abs().amax((1, 2, 3)) / found.abs().amax((1, 2, 3))).numpy()
    assert step.max() < 1
    assert step.min() < 0.35
