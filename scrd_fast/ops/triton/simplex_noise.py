# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-untyped-decorators=False
"""`simplex_noise` in Triton.

OpenSimplex decides in float64, in the published order of operations and without fused multiply-add, which
vertices contribute: points exactly between two regions are common on a pixel grid. What a vertex contributes is
float32, about 1e-6 from the reference. The hashed variant decides with integers.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from scrd_fast.ops._checks import check_choice
from scrd_fast.ops.simplex_noise import HASHED_NORM, HASHED_SCALE

__all__ = ["INTERPRETED", "OPTIONS", "fractal", "index_type", "is_hashed", "pixel_step", "shuffles", "simplex_noise"]

# Fixed when the functions below are decorated.
INTERPRETED: bool = triton.knobs.runtime.interpret
# Without fusion x * f + y rounds twice, as everywhere else.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
# A program of the interpreter takes milliseconds whatever its size.
BLOCK = 1024 if INTERPRETED else 128
CHUNK = 256 if INTERPRETED else 8

STRETCH = tl.constexpr(-1 / 6)
SQUISH = tl.constexpr(1 / 3)
NORM = tl.constexpr(1 / 103)
A = tl.constexpr(HASHED_NORM)
MULTIPLIER = tl.constexpr(6364136223846793005)
INCREMENT = tl.constexpr(1442695040888963407)
FRACTION = tl.constexpr(2.0**-24)


@triton.jit
def _draw(seed: tl.tensor, n: tl.tensor) -> tl.tensor:
    """The position that step n = 256 .. 1 of the shuffle reads: the generator jumps 260 - n steps ahead."""
    state, steps = seed, 260 - n
    a, c = tl.full((), MULTIPLIER, tl.int64), tl.full((), INCREMENT, tl.int64)
    for _ in tl.static_range(9):  # x -> a x + c, applied 1, 2, 4 ... 256 times
        state = tl.where((steps & 1) != 0, state * a + c, state)
        steps = steps >> 1
        c = c * (a + 1)
        a = a * a
    n = n.to(tl.int32)
    return ((state % n).to(tl.int32) + n + 31) % n  # whichever sign % gives to a negative state


@triton.jit(do_not_specialize=["seed_stride"])
def _shuffle_kernel(
    seeds: tl.tensor,  # int64 [N]
    tables: tl.tensor,  # uint8 [N, 256]
    seed_stride: tl.int64,
    CHUNK: tl.constexpr,
) -> None:
    """The serial shuffle, for p = 255 .. 0: `table[p] = source[draw[p]]; source[draw[p]] = source[p]`, at once.

    `source[q]` at step p was written by the last step before p that drew q (the smallest p' > p with draw[p'] == q);
    that step wrote what place p' held then. So each value is at the end of a chain of steps, or is q itself.
    """
    sample = tl.program_id(0).to(tl.int64)
    seed = tl.load(seeds + sample * seed_stride)
    place = tl.arange(0, 256)
    draw = _draw(seed, place.to(tl.int64) + 1)
    first = tl.full((256,), 256, tl.int32)  # the step that wrote what step `place` reads; 256: none
    link = tl.full((256,), 256, tl.int32)  # the step that wrote what place `place` holds at its own step
    for start in range(0, 256, CHUNK):
        step = start + tl.arange(0, CHUNK)
        drawn = tl.gather(draw, step, 0)[None, :]
        earlier = tl.where(step[None, :] > place[:, None], step[None, :], 256)
        first = tl.minimum(first, tl.min(tl.where(drawn == draw[:, None], earlier, 256), axis=1))
        link = tl.minimum(link, tl.min(tl.where(drawn == place[:, None], earlier, 256), axis=1))
    end = tl.where(link < 256, link, place)
    for _ in tl.static_range(8):  # chains ascend, so none has more than 2^8 links
        end = tl.gather(end, end, 0)
    value = tl.where(first < 256, tl.gather(end, tl.minimum(first, 255), 0), draw)
    tl.store(tables + sample * 256 + place, value.to(tl.uint8))


@triton.jit
def _tetrahedron(x: tl.tensor, y: tl.tensor, z: tl.tensor, origin: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """At corner 000: the axes where both extra vertices lie at 1, and the axis, if any, where the first lies at -1.

    The second lies at -1 on the axes that remain. The larger of two scores is the closer.
    """
    z_for_y = (x >= y) & (z > y)
    z_for_x = (x < y) & (z > x)
    a = tl.where(z_for_x, 4, 1)
    b = tl.where(z_for_y, 4, 2)
    x = tl.where(z_for_x, z, x)
    y = tl.where(z_for_y, z, y)
    closest = tl.where(y > x, b, a)
    at_origin = (origin > x) | (origin > y)
    ones = tl.where(at_origin, closest, a | b)
    return ones, tl.where(at_origin, tl.where(closest == 1, 2, 1), 0)


@triton.jit
def _octahedron(x: tl.tensor, y: tl.tensor, z: tl.tensor) -> tuple[tl.tensor, ...]:
    """Between the tetrahedra: the axes where the extras lie at 1, and where they are shifted (the first by -1)."""
    a_score, b_score, c_score = tl.abs(x + y - 1), tl.abs(x + z - 1), tl.abs(y + z - 1)
    a_far, b_far, c_far = x + y > 1, x + z > 1, y + z > 1
    c_for_a = (a_score <= b_score) & (a_score < c_score)
    c_for_b = (a_score > b_score) & (b_score < c_score)
    a = tl.where(c_for_a, 1, 4)
    b = tl.where(c_for_b, 1, 2)
    a_far = tl.where(c_for_a, c_far, a_far)
    b_far = tl.where(c_for_b, c_far, b_far)
    far = tl.where(a_far, a, b)
    near = tl.where(a_far, b, a)
    third = 7 - a - b
    mixed = a_far != b_far
    first_ones = tl.where(mixed, 7 - far, tl.where(a_far, 7, 0))
    first_shift = tl.where(mixed, far, 0)
    second_shift = tl.where(mixed, near, third)
    back = (a_far == b_far) & (a_far == 0)  # both pairs are closer at 000
    second_ones = tl.where(back, 7 - third, second_shift)
    return first_ones, first_shift, second_ones, second_shift, tl.where(back, -1, 1)


@triton.jit
def _contribution(
    entry: tl.tensor,
    x: tl.tensor,
    y: tl.tensor,
    z: tl.tensor,
    i: tl.tensor,
    j: tl.tensor,
    k: tl.tensor,
) -> tl.tensor:
    """What the vertex at (i, j, k) with that entry of the permutation adds; float32."""
    squish = (i + j + k) * SQUISH
    x, y, z = x - i - squish, y - j - squish, z - k - squish
    attenuation = tl.maximum(2 - tl.fma(x, x, tl.fma(y, y, z * z)), 0)
    attenuation *= attenuation
    # The 24 gradients: 11 along one axis, 4 along the others, and every combination of signs.
    longest, signs = entry % 3, entry // 3
    x = tl.where((signs & 1) != 0, x, -x)
    y = tl.where((signs & 2) != 0, -y, y)
    z = tl.where((signs & 4) != 0, -z, z)
    along = tl.where(longest == 0, x, tl.where(longest == 1, y, z))
    return attenuation * attenuation * tl.fma(x + y + z, 4.0, along * 7)


@triton.jit
def _look_up(table: tl.tensor, entry: tl.tensor) -> tl.tensor:
    return tl.load(table + (entry & 255)).to(tl.int32)


@triton.jit
def _opensimplex(table: tl.tensor, x: tl.tensor, y: tl.tensor, z: tl.tensor) -> tl.tensor:
    """One octave at the float64 points (x, y, z)."""
    stretch = (x + y + z) * STRETCH
    xs, ys, zs = x + stretch, y + stretch, z + stretch
    xb, yb, zb = tl.floor(xs), tl.floor(ys), tl.floor(zs)
    x, y, z = xs - xb, ys - yb, zs - zb
    cx, cy, cz = xb.to(tl.int64).to(tl.int32), yb.to(tl.int64).to(tl.int32), zb.to(tl.int64).to(tl.int32)

    total = x + y + z
    low, high = total <= 1, total >= 2
    corners = tl.where(low, 0b00010111, tl.where(high, 0b11101000, 0b01111110))
    # Corner 111 is seen as corner 000 of the mirrored cell.
    ones, shift = _tetrahedron(
        tl.where(high, -x, x), tl.where(high, -y, y), tl.where(high, -z, z), tl.where(high, total - 3, 1 - total)
    )
    last = 7 - ones - shift
    ones = tl.where(high, 7 - ones, ones)
    first_ones, first_shift, second_ones, second_shift, second_sign = _octahedron(x, y, z)
    at_corner = low | high
    sign = tl.where(high, 1, -1)
    first_ones = tl.where(at_corner, ones, first_ones)
    first_shift = tl.where(at_corner, shift, first_shift)
    second_ones = tl.where(at_corner, ones, second_ones)
    second_shift = tl.where(at_corner, last, second_shift)
    second_sign = tl.where(at_corner, sign, second_sign)

    squish = total * SQUISH
    x, y, z = (x + squish).to(tl.float32), (y + squish).to(tl.float32), (z + squish).to(tl.float32)
    value = tl.zeros_like(x)
    for i in tl.static_range(2):
        by_x = _look_up(table, cx + i) + cy
        for j in tl.static_range(2):
            by_y = _look_up(table, by_x + j) + cz
            for k in tl.static_range(2):
                added = _contribution(_look_up(table, by_y + k), x, y, z, i, j, k)
                value += tl.where(((corners >> (i + 2 * j + 4 * k)) & 1) != 0, added, 0.0)
    value += _extra(table, cx, cy, cz, x, y, z, first_ones, first_shift, sign)
    value += _extra(table, cx, cy, cz, x, y, z, second_ones, second_shift, second_sign)
    return value * NORM


@triton.jit
def _extra(
    table: tl.tensor,
    cx: tl.tensor,
    cy: tl.tensor,
    cz: tl.tensor,
    x: tl.tensor,
    y: tl.tensor,
    z: tl.tensor,
    ones: tl.tensor,
    shift: tl.tensor,
    sign: tl.tensor,
) -> tl.tensor:
    """What a vertex outside the region adds: it lies at 1 on the axes in `ones`, and `sign` further on `shift`'s."""
    i = (ones & 1) + sign * (shift & 1)
    j = ((ones >> 1) & 1) + sign * ((shift >> 1) & 1)
    k = ((ones >> 2) & 1) + sign * ((shift >> 2) & 1)
    entry = _look_up(table, _look_up(table, _look_up(table, cx + i) + cy + j) + cz + k)
    return _contribution(entry, x, y, z, i, j, k)


@triton.jit
def _keys(seed: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The halves of splitmix64(seed)."""
    z = seed.to(tl.uint64) + 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    z = z ^ (z >> 31)
    return z.to(tl.uint32), (z >> 32).to(tl.uint32)


@triton.jit
def _hashed(seed: tl.tensor, x: tl.tensor, y: tl.tensor, z: tl.tensor, step: tl.tensor) -> tl.tensor:
    """One octave at the pixels (x, y, z), which lie `step` apart in units of 2^-32 of a skewed cell; int64."""
    key_0, key_1 = _keys(seed)
    total = x + y + z
    x, y, z = (3 * x + total) * step, (3 * y + total) * step, (3 * z + total) * step
    cx, cy, cz = (x >> 32).to(tl.uint32), (y >> 32).to(tl.uint32), (z >> 32).to(tl.uint32)
    u = ((x >> 8) & 0xFFFFFF).to(tl.float32) * FRACTION
    v = ((y >> 8) & 0xFFFFFF).to(tl.float32) * FRACTION
    q = ((z >> 8) & 0xFFFFFF).to(tl.float32) * FRACTION
    rank_x = (u >= v).to(tl.int32) + (u >= q).to(tl.int32)
    rank_y = (v > u).to(tl.int32) + (v >= q).to(tl.int32)
    rank_z = (q > u).to(tl.int32) + (q > v).to(tl.int32)
    squish = (u + v + q) * (1 / 6)
    u, v, q = u - squish, v - squish, q - squish
    value = tl.zeros_like(u)
    for m in tl.static_range(4):
        i, j, k = rank_x >= 3 - m, rank_y >= 3 - m, rank_z >= 3 - m
        b = (cx + i.to(tl.uint32)) * 73856093
        b ^= (cy + j.to(tl.uint32)) * 19349663
        b ^= (cz + k.to(tl.uint32)) * 83492791
        b ^= key_0
        b = (b ^ (b >> 16)) * 0x85EBCA6B
        b ^= key_1
        b = (b ^ (b >> 13)) * 0xC2B2AE35
        g = b >> 28
        dx = u - i.to(tl.float32) + m / 6
        dy = v - j.to(tl.float32) + m / 6
        dz = q - k.to(tl.float32) + m / 6
        falloff = tl.maximum(0.5 - tl.fma(dx, dx, tl.fma(dy, dy, dz * dz)), 0)
        falloff *= falloff
        # Perlin's 12 edges of a cube, and 4 of them again.
        first = tl.where(g < 8, dx, dy)
        second = tl.where(g < 4, dy, tl.where((g == 12) | (g == 14), dx, dz))
        dot = tl.where((g & 1) != 0, -first, first) + tl.where((g & 2) != 0, -second, second)
        value = tl.fma(falloff * falloff, dot, value)
    return value * A


@triton.jit
def fractal(
    seed: tl.tensor,
    table: tl.tensor,
    x: tl.tensor,
    y: tl.tensor,
    z: tl.tensor,
    octaves: tl.tensor,
    persistence: tl.tensor,
    step: tl.tensor,
    HASHED: tl.constexpr,
) -> tl.tensor:
    """The sum of all octaves at the pixels (x, y, z), float32. `step` is what `pixel_step` returns."""
    value = tl.zeros(x.shape, tl.float32)
    amplitude, f = tl.full((), 1, tl.float64), tl.full((), step, tl.float64)
    for _ in range(octaves):
        if HASHED:
            noise = _hashed(seed, x.to(tl.int64), y.to(tl.int64), z.to(tl.int64), tl.floor(f + 0.5).to(tl.int64))
        else:
            noise = _opensimplex(table, x.to(tl.float64) * f, y.to(tl.float64) * f, z.to(tl.float64) * f)
        value += noise * amplitude.to(tl.float32)
        amplitude = amplitude * persistence
        f = f * 2
    return value


@triton.jit(do_not_specialize=["elements", "height", "width", "blocks", "seed_stride", "octaves"])
def _noise_kernel(
    seeds: tl.tensor,  # int64 [N]
    tables: tl.tensor,  # uint8 [N, 256]; not read if HASHED
    out: tl.tensor,  # float32 [N, D, H, W]
    elements: tl.int64,
    height: tl.tensor,
    width: tl.tensor,
    blocks: tl.tensor,
    seed_stride: tl.int64,
    octaves: tl.tensor,
    persistence: tl.float64,
    step: tl.float64,
    HASHED: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """`blocks` programs a sample."""
    program = tl.program_id(0)
    sample = (program // blocks).to(tl.int64)
    element = (program % blocks).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    row = element // width
    seed = tl.load(seeds + sample * seed_stride)
    noise = fractal(
        seed, tables + sample * 256, element % width, row % height, row // height, octaves, persistence, step, HASHED
    )
    tl.store(out + sample * elements + element, noise, mask=element < elements)


def is_hashed(variant: str) -> bool:
    check_choice("variant", variant, ("opensimplex", "hashed"))
    return variant == "hashed"


def pixel_step(frequency: float, hashed: bool) -> float:
    """The first octave's distance between pixels, as `fractal` wants it."""
    return frequency * HASHED_SCALE / 3 * 2**32 if hashed else frequency


def index_type(elements: int) -> tl.dtype:
    """The integers that count a sample's elements: 64-bit division is slow."""
    return tl.int32 if elements < 2**30 else tl.int64


def shuffles(seeds: Tensor, hashed: bool) -> Tensor:
    """The permutation of each seed, uint8 [N, 256]; if hashed, any pointer."""
    if hashed:
        return seeds
    tables = seeds.new_empty((seeds.shape[0], 256), dtype=torch.uint8)
    _shuffle_kernel[(seeds.shape[0],)](seeds, tables, seeds.stride(0), CHUNK=CHUNK, **(OPTIONS | {"num_warps": 8}))
    return tables


def _fill(out: Tensor, seeds: Tensor, octaves: int, persistence: float, frequency: float, variant: str) -> None:
    hashed = is_hashed(variant)
    n, d, h, w = out.shape
    elements = d * h * w
    blocks = triton.cdiv(elements, BLOCK)
    with torch.cuda.device_of(seeds):  # type: ignore[no-untyped-call]
        _noise_kernel[(n * blocks,)](
            seeds,
            shuffles(seeds, hashed),
            out,
            elements,
            h,
            w,
            blocks,
            seeds.stride(0),
            octaves,
            persistence,
            pixel_step(frequency, hashed),
            HASHED=hashed,
            INDEX=index_type(elements),
            BLOCK=BLOCK,
            **OPTIONS,
        )


def simplex_noise(
    seeds: Tensor,
    size: list[int],
    octaves: int,
    persistence: float,
    frequency: float,
    variant: str,
) -> Tensor:
    out = seeds.new_empty((seeds.shape[0], *size), dtype=torch.float32)
    if out.numel() > 0:
        _fill(out, seeds, octaves, persistence, frequency, variant)
    return out
