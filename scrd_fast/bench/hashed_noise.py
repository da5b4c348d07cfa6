# SPDX-License-Identifier: Apache-2.0
"""The right answer of `simplex_noise(variant="hashed")`: its definition once more, in float64, without the operator's
code. The docstring of `scrd_fast.ops.simplex_noise` names the sources."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["hashed_noise"]

LOW = 2**32 - 1
PRIMES = (73856093, 19349663, 83492791)
SIGNS = [(s, t) for t in (1, -1) for s in (1, -1)]
EDGES = [(s, t, 0) for s, t in SIGNS] + [(s, 0, t) for s, t in SIGNS] + [(0, s, t) for s, t in SIGNS]
EDGES += [(1, 1, 0), (0, -1, 1), (-1, 1, 0), (0, -1, -1)]  # of a cube, four of them twice
NORM = 61.5


def _key(seed: int) -> int:
    z = (seed + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def hashed_noise(seeds: Tensor, size: tuple[int, ...], octaves: int, persistence: float, frequency: float) -> Tensor:
    """Float64 [N, D, H, W], on the seeds' device. The simplex of a point is walked from its cell's origin, along the
    largest fraction first."""
    device, keys = seeds.device, [_key(seed) for seed in seeds.tolist()]
    halves = torch.tensor([[key & LOW, key >> 32] for key in keys], dtype=torch.int64, device=device)
    low, high = halves.view(-1, 2, 1, 1, 1).unbind(1)
    axes = (torch.arange(length, device=device) for length in size)
    place = torch.stack(torch.meshgrid(*axes, indexing="ij")).flip(0)  # x, y, z: [3, D, H, W]
    edges = torch.tensor(EDGES, dtype=torch.float64, device=device).T.contiguous()
    total = torch.zeros(len(keys), *size, dtype=torch.float64, device=device)
    for octave in range(octaves):
        step = math.floor(frequency * 2**octave / 6 * 2**32 + 0.5)
        skewed = (3 * place + place.sum(0)) * step
        vertex, fraction = skewed >> 32, (skewed >> 8 & 2**24 - 1).double() * 2.0**-24
        d = fraction - fraction.sum(0) / 6
        for walked in range(4):
            if walked > 0:
                x, y, z = fraction
                first, second = (x >= y) & (x >= z), y >= z
                along = torch.stack([first, ~first & second, ~first & ~second])
                vertex, d, fraction = vertex + along, d - along.double() + 1 / 6, fraction.masked_fill(along, -1)
            x, y, z = ((i & LOW) * prime & LOW for i, prime in zip(vertex, PRIMES, strict=True))
            b = x ^ y ^ z ^ low
            b = (b ^ b >> 16) * 0x85EBCA6B & LOW ^ high
            b = (b ^ b >> 13) * 0xC2B2AE35 & LOW
            falloff = (0.5 - d.square().sum(0)).clamp_min(0).square().square()
            for component, edge in zip(d, edges, strict=True):
                total += persistence**octave * NORM * (falloff * component) * edge[b >> 28]
    return total
