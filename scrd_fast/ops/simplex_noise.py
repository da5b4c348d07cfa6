# SPDX-License-Identifier: Apache-2.0
r"""Fractal simplex noise.

    out[n, d, h, w] = sum over octaves o of  persistence^o * noise3(x = w f_o, y = h f_o, z = d f_o)
    f_o = frequency * 2^o

For the variant "opensimplex", `noise3` is OpenSimplex noise (Kurt Spencer, 2014) of the permutation that `seeds[n]`
stands for, seed for seed that of the package `opensimplex`. Every vertex that contributes to a point lies at a small
integer offset from the origin of the point's lattice cell; the displacement from it is
d = d0 - offset - sum(offset) / 3, and it adds max(0, 2 - |d|^2)^4 * (gradient . d) / 103.

For "hashed" it is simplex noise (Perlin, 2001) of the point (x, y, z) / 2. Four vertices contribute to a point, each
61.5 * max(0, 1/2 - |d|^2)^4 * (gradient . d); a hash of vertex and seed picks the gradient among the edges of a cube
(Perlin, 2002), so there is no table. The hash is that of Teschner et al. (2003), then the finaliser of MurmurHash3
(Appleby), keyed by splitmix64 (Steele et al., 2014) of the seed. The half gives the falloff OpenSimplex's radius,
sqrt(2), and so its spectrum; 61.5 is what the two gradients' lengths and densities of vertices ask for to give its
variance. Lattice coordinates are fixed-point integers: every backend finds the same cells, simplices and gradients.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scrd_fast.ops._checks import check_choice
from scrd_fast.ops._library import choose, define, define_triton

__all__ = ["LOW", "check_noise", "cube_edge", "mixed", "simplex_noise", "splitmix64"]

VARIANTS = ("opensimplex", "hashed")
SCHEMA = (
    "simplex_noise(Tensor seeds, SymInt[] size, int octaves, float persistence, float frequency, str variant) -> Tensor"
)


def simplex_noise(
    seeds: Tensor,  # int64 [N]
    size: tuple[int, int, int],
    *,
    octaves: int = 6,
    persistence: float = 0.6,
    frequency: float = 1 / 32,
    variant: str = "opensimplex",
    backend: str = "auto",
) -> Tensor:  # float32 [N, D, H, W]
    """A block of fractal noise of size (D, H, W) for each seed, on the seeds' device. No gradient.

    `frequency` is the first octave's, in cycles per pixel; each octave doubles it and weighs `persistence`
    times the one before. A seed gives the same bits in any batch and on any number of threads; backends and
    instruction sets differ by at most 3e-6 for the default octaves and persistence.

    `variant="opensimplex"` is the published noise, seed for seed that of the package `opensimplex`. Which vertices
    contribute to a point is decided in float64 exactly as the package decides it, also where a pixel lies on the
    border of two regions; what they add is float32. `variant="hashed"` is another noise of the same character, with
    four vertices a point where that has up to eight, and no table of permutations. With the defaults and the seeds 0
    to 255, range, variance and spectrum lie within 10 % of the other's for a field of 96 x 96 pixels, within 15 % for
    a patch of 3 x 32 x 32; other groups of 256 seeds may fall a little outside (docs/method.md has the figures).

    Raises ValueError (shapes and values) or TypeError (types).

    >>> import torch
    >>> from scrd_fast.ops import simplex_noise
    >>> noise = simplex_noise(torch.tensor([7, -1]), (3, 16, 24))
    >>> noise.shape, bool((noise[0] != noise[1]).any())
    (torch.Size([2, 3, 16, 24]), True)
    """
    _check(seeds, size, octaves, persistence, frequency, variant)
    run = choose("simplex_noise", backend, seeds.device, _reference)
    result: Tensor = run(seeds, size, octaves, persistence, frequency, variant)
    return result


def _check(
    seeds: Tensor,
    size: tuple[int, int, int],
    octaves: int,
    persistence: float,
    frequency: float,
    variant: str,
) -> None:
    if not isinstance(seeds, Tensor):
        raise TypeError(f"seeds must be a tensor, got {type(seeds).__name__}")
    if seeds.dtype != torch.int64:
        raise TypeError(f"seeds must be int64, got {seeds.dtype}")
    if seeds.dim() != 1:
        raise ValueError(f"seeds must be [N], got {list(seeds.shape)}")
    if not all(isinstance(length, int | torch.SymInt) for length in size):
        raise TypeError(f"size must be three integers (D, H, W), got {size!r}")
    if len(size) != 3 or min(size) < 1:
        raise ValueError(f"size must be three positive integers (D, H, W), got {size!r}")
    if size[0] * size[1] * size[2] >= 2**31:
        raise ValueError(f"size must have fewer than 2^31 elements, got {size!r}")
    check_noise(octaves, persistence, frequency, variant)


def check_noise(octaves: int, persistence: float, frequency: float, variant: str) -> None:
    """The options that every operator with this noise has."""
    if not isinstance(octaves, int):
        raise TypeError(f"octaves must be an integer, got {octaves!r}")
    if not 1 <= octaves <= 32:
        raise ValueError(f"octaves must be 1 to 32, got {octaves}")
    if not -math.inf < persistence < math.inf:  # Dynamo cannot trace math.isfinite
        raise ValueError(f"persistence must be finite, got {persistence}")
    # Beyond 2^40 a float64 coordinate has too few bits left to tell where in its cell a point lies.
    if not 0 < frequency * 2**octaves < 2.0**16:
        raise ValueError(f"frequency must be positive and frequency * 2^octaves below 2^16, got {frequency}")
    check_choice("variant", variant, VARIANTS)


STRETCH, SQUISH, NORM = -1 / 6, 1 / 3, 103
AXES = (1, 2, 4)  # x, y, z as bits: a corner of a cell is the set of the axes along which it lies at 1


class _Vertices(NamedTuple):
    """One vertex a point: 1 on the axes in `ones`, and `sign` more on the axes in `shift`."""

    ones: Tensor
    shift: Tensor
    sign: Tensor

    def along(self, axis: int) -> Tensor:
        return (self.ones & axis).ne(0).long() + self.sign * (self.shift & axis).ne(0)

    def mirrored(self) -> _Vertices:  # offset -> 1 - offset
        return _Vertices(7 - self.ones, self.shift, -self.sign)


def _where(condition: Tensor, a: _Vertices, b: _Vertices) -> _Vertices:
    return _Vertices(*(torch.where(condition, x, y) for x, y in zip(a, b, strict=True)))


def _tetrahedron(x: Tensor, y: Tensor, z: Tensor, origin: Tensor) -> tuple[_Vertices, _Vertices]:
    """The extra vertices near corner 000; the larger of two scores is the closer."""
    z_for_y, z_for_x = (x >= y) & (z > y), (x < y) & (z > x)
    none = torch.zeros_like(x, dtype=torch.int64)
    a, b = torch.where(z_for_x, 4, none + 1), torch.where(z_for_y, 4, none + 2)  # the two closest neighbours
    x, y = torch.where(z_for_x, z, x), torch.where(z_for_y, z, y)
    closest = torch.where(y > x, b, a)
    other = torch.where(closest == 1, 2, none + 1)
    both, down = a | b, none - 1
    at_origin = (origin > x) | (origin > y)
    first = _where(at_origin, _Vertices(closest, other, down), _Vertices(both, none, none))
    second = _where(at_origin, _Vertices(closest, 7 - closest - other, down), _Vertices(both, 7 - both, down))
    return first, second


def _octahedron(x: Tensor, y: Tensor, z: Tensor) -> tuple[_Vertices, _Vertices]:
    """The extra vertices between the tetrahedra, from the closest of the three pairs of opposite corners."""
    sums = (x + y, x + z, y + z)  # an axis against the other two: z, y, x
    a_far, b_far, c_far = (total > 1 for total in sums)
    a_score, b_score, c_score = ((total - 1).abs() for total in sums)
    c_for_a = (a_score <= b_score) & (a_score < c_score)
    c_for_b = (a_score > b_score) & (b_score < c_score)
    none = torch.zeros_like(x, dtype=torch.int64)
    a, b = torch.where(c_for_a, 1, none + 4), torch.where(c_for_b, 1, none + 2)
    a_far, b_far = torch.where(c_for_a, c_far, a_far), torch.where(c_for_b, c_far, b_far)
    far, near, third = torch.where(a_far, a, b), torch.where(a_far, b, a), 7 - a - b
    corner, beyond = _Vertices(none + 7, none, none), _Vertices(third, third, none + 1)
    first = _where(a_far, corner, corner.mirrored())
    second = _where(a_far, beyond, beyond.mirrored())
    mixed = a_far != b_far
    first = _where(mixed, _Vertices(7 - far, far, none - 1), first)
    second = _where(mixed, _Vertices(near, near, none + 1), second)
    return first, second


def _regions(x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, tuple[_Vertices, _Vertices]]:
    """For points of a stretched cell: the corners that contribute (bit m is corner m), the extra vertices."""
    total = x + y + z
    low, high = total <= 1, total >= 2
    corners = torch.where(low, 0b00010111, torch.where(high, 0b11101000, 0b01111110))
    at_low = _tetrahedron(x, y, z, 1 - total)
    at_high = _tetrahedron(-x, -y, -z, total - 3)  # corner 111, seen as corner 000 of the mirrored cell
    between = _octahedron(x, y, z)
    first, second = (
        _where(low, a, _where(high, b.mirrored(), c)) for a, b, c in zip(at_low, at_high, between, strict=True)
    )
    return corners, (first, second)


def _contribution(
    permutations: Tensor,  # [N, 256]
    cell: list[Tensor],
    displacement: list[Tensor],
    offset: list[Tensor],
    counts: Tensor,
) -> Tensor:
    """What the vertices at `offset` add; everything but the permutations is [D, H, W]."""
    squish = (offset[0] + offset[1] + offset[2]).double() * SQUISH
    d = [place - step - squish for place, step in zip(displacement, offset, strict=True)]
    attenuation = ((2 - d[0] * d[0] - d[1] * d[1] - d[2] * d[2]) * counts).clamp_min(0) ** 2
    entry = torch.zeros_like(cell[0])
    rows = torch.arange(permutations.shape[0], device=entry.device)[:, None, None, None]
    for origin, step in zip(cell, offset, strict=True):
        entry = permutations[rows, (entry + origin + step) & 255]
    # The 24 gradients: 11 along one axis, 4 along the others, and every combination of signs.
    longest, signs = entry % 24 % 3, entry % 24 // 3
    dot = torch.zeros((), dtype=d[0].dtype, device=d[0].device)
    for axis, positive in enumerate(((signs & 1) != 0, (signs & 2) == 0, (signs & 4) == 0)):
        length = torch.where(longest == axis, 11.0, 4.0)
        dot = dot + torch.where(positive, length, -length) * d[axis]
    return attenuation * attenuation * dot


def _noise(permutations: Tensor, grid: list[Tensor], f: float) -> Tensor:
    """One octave, [N, D, H, W]; `grid` is w, h and d, float64 [D, H, W]."""
    x, y, z = (place * f for place in grid)
    stretch = (x + y + z) * STRETCH
    stretched = [place + stretch for place in (x, y, z)]
    base = [place.floor() for place in stretched]
    squish = (base[0] + base[1] + base[2]) * SQUISH
    displacement = [place - (origin + squish) for place, origin in zip((x, y, z), base, strict=True)]
    corners, extras = _regions(*(place - origin for place, origin in zip(stretched, base, strict=True)))
    cell = [origin.long() for origin in base]
    value = torch.zeros((), dtype=torch.float64, device=x.device)
    for corner in range(8):
        offset = [torch.full_like(cell[0], int(corner & axis > 0)) for axis in AXES]
        value = value + _contribution(permutations, cell, displacement, offset, corners >> corner & 1)
    for extra in extras:
        offset = [extra.along(axis) for axis in AXES]
        value = value + _contribution(permutations, cell, displacement, offset, torch.ones_like(corners))
    return value / NORM


def _permutations(seeds: Tensor) -> Tensor:
    """The shuffles of 0..255 that the seeds stand for, [N, 256]. int64 products wrap, as they have to."""
    multiplier, increment = 6364136223846793005, 1442695040888963407
    state = seeds
    for _ in range(3):
        state = state * multiplier + increment
    source = torch.arange(256, device=seeds.device).repeat(seeds.shape[0], 1)
    result = torch.empty_like(source)
    rows = torch.arange(seeds.shape[0], device=seeds.device)
    for n in range(256, 0, -1):
        state = state * multiplier + increment
        draw = (state % n + 31) % n  # not (state + 31) % n, which could overflow
        result[:, n - 1] = source[rows, draw]
        source[rows, draw] = source[:, n - 1].clone()
    return result


HASHED_SCALE, HASHED_NORM = 0.5, 61.5
LOW = 0xFFFFFFFF  # of an int64: what a uint32 keeps of it


def _shifted(z: Tensor, bits: int) -> Tensor:
    """z >> bits of a uint64; the shift of int64 would repeat the sign."""
    return z >> bits & (1 << 64 - bits) - 1


def splitmix64(seeds: Tensor) -> Tensor:
    z = seeds + (0x9E3779B97F4A7C15 - 2**64)  # the constants as int64
    z = (z ^ _shifted(z, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    z = (z ^ _shifted(z, 27)) * (0x94D049BB133111EB - 2**64)
    return z ^ _shifted(z, 31)


def mixed(b: Tensor, low: Tensor | int, high: Tensor | int) -> Tensor:
    """MurmurHash3's finaliser up to its last shift, which only changes low bits, with a key before each half."""
    b = b ^ low
    b = (b ^ b >> 16) * 0x85EBCA6B & LOW ^ high
    return (b ^ b >> 13) * 0xC2B2AE35 & LOW


def cube_edge(gradient: Tensor, d: list[Tensor]) -> Tensor:
    """The dot product of d with one of the 12 edges of a cube, four of which count twice to make 16."""
    x, y, z = d
    first = torch.where(gradient < 8, x, y)
    second = torch.where(gradient < 4, y, torch.where((gradient == 12) | (gradient == 14), x, z))
    return torch.where((gradient & 1) > 0, -first, first) + torch.where((gradient & 2) > 0, -second, second)


def _hashed(keys: tuple[Tensor, Tensor], grid: list[Tensor], f: float) -> Tensor:
    """One octave, [N, D, H, W]; `grid` is w, h and d, int64 [D, H, W]; the keys are [N, 1, 1, 1]."""
    step = math.floor(f * HASHED_SCALE / 3 * 2**32 + 0.5)
    total = grid[0] + grid[1] + grid[2]
    skewed = [(3 * place + total) * step for place in grid]  # 32 bits of cell, 24 of fraction, 8 unused
    cell = [_shifted(place, 32) for place in skewed]
    u, v, q = part = [(place >> 8 & 0xFFFFFF).double() * 2.0**-24 for place in skewed]
    ranks = ((u >= v).long() + (u >= q), (v > u).long() + (v >= q), (q > u).long() + (q > v))
    unskew = (u + v + q) / 6
    value = torch.zeros((), dtype=torch.float64, device=u.device)
    for m in range(4):  # from the cell's origin to its opposite corner, along the largest fraction first
        offset = [(rank >= 3 - m).long() for rank in ranks]
        d = [place - unskew - ones + m / 6 for place, ones in zip(part, offset, strict=True)]
        falloff = (0.5 - d[0] * d[0] - d[1] * d[1] - d[2] * d[2]).clamp_min(0) ** 4
        i, j, k = (origin + ones for origin, ones in zip(cell, offset, strict=True))
        vertex = (i * 73856093 ^ j * 19349663 ^ k * 83492791) & LOW
        value = value + falloff * cube_edge(mixed(vertex, *keys) >> 28, d)
    return HASHED_NORM * value


def _reference(
    seeds: Tensor,
    size: tuple[int, int, int],
    octaves: int,
    persistence: float,
    frequency: float,
    variant: str,
) -> Tensor:
    check_choice("variant", variant, VARIANTS)
    axes = (torch.arange(length, device=seeds.device) for length in size)
    grid = list(reversed(torch.meshgrid(*axes, indexing="ij")))  # x, y, z
    if variant == "hashed":
        key = splitmix64(seeds)[:, None, None, None]
        octave_of = partial(_hashed, (key & LOW, _shifted(key, 32)), grid)
    else:
        octave_of = partial(_noise, _permutations(seeds), [place.double() for place in grid])
    value = torch.zeros((seeds.shape[0], *size), dtype=torch.float64, device=seeds.device)
    for octave in range(octaves):
        value += persistence**octave * octave_of(frequency * 2**octave)
    return value.float()


def _fake(seeds: Tensor, size: tuple[int, int, int], *_: Any) -> Tensor:
    return seeds.new_empty((seeds.shape[0], *size), dtype=torch.float32)


define(SCHEMA, _reference)
torch.library.register_fake("scrd_fast::simplex_noise", _fake)
define_triton(SCHEMA, _fake)
