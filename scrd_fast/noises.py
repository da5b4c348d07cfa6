# SPDX-License-Identifier: Apache-2.0
"""What synthetic anomalies can be made of beside simplex noise: Perlin and Gaussian noise, and blobs.

Every value is a hash of an image's seed and of where it stands, counted from the box's corner: none follows from the
rest of the batch, and nothing is copied to the device. Rows and columns are int64 [N, K], of a window of K x K pixels
an image; they may be negative, where the window begins before the box.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from scrd_fast.ops.simplex_noise import LOW, cube_edge, mixed, splitmix64

__all__ = ["BLOB_REACH", "blobs", "gaussian", "perlin", "perlin_octave", "uniform"]

OCTAVES, PERSISTENCE, FREQUENCY = 6, 0.6, 1 / 32  # of the fractal sum, those of the simplex noise
AMPLITUDE = 0.45  # standard deviation of that simplex noise over the boxes of 256-pixel images
PERLIN_SCALE = 1.34  # of the sum of octaves, whose standard deviation is 0.335
HARMONICS = 0.1  # most that each of three waves moves a blob's outline, in its radii
SOFTEST = 0.4  # width of the softest edge, in the blob's radii
BLOB_REACH = 1 + 3 * HARMONICS + SOFTEST / 2  # where every blob has ended, in half-sides of its box


def uniform(seeds: Tensor, number: int) -> Tensor:
    """The random value with a number of its own that a seed stands for, float32 in [0, 1), in the seeds' shape."""
    return _share(_halves(seeds, number)[1])


def gaussian(seeds: Tensor, rows: Tensor, columns: Tensor, channels: int) -> Tensor:
    """White noise, normal with the standard deviation `AMPLITUDE`, [N, C, K, K] (Box and Muller, 1958)."""
    z, y, x = _grid(rows, columns, channels)
    place = ((z << 24) + (y << 12) + x) & LOW
    first, second = (_share(mixed(place, *(k[:, None, None, None] for k in _halves(seeds, n)))) for n in (0, 1))
    value: Tensor = AMPLITUDE * (-2 * (first + 2.0**-25).log()).sqrt() * (2 * torch.pi * second).cos()
    return value


def perlin(seeds: Tensor, rows: Tensor, columns: Tensor, channels: int) -> Tensor:
    """Fractal Perlin noise with the octaves and the standard deviation of the simplex noise, [N, C, K, K].

    Each octave is displaced by a vector of its own: on a lattice's points the noise is 0, and those of the last octaves
    are every other pixel and every pixel.
    """
    grid = _grid(rows, columns, channels)
    value = torch.zeros((), device=seeds.device)
    for octave in range(OCTAVES):
        f = FREQUENCY * 2**octave
        moved = [
            place.float() * f + uniform(seeds, 4 * octave + axis)[:, None, None, None]
            for axis, place in enumerate(reversed(grid))
        ]
        value = value + PERSISTENCE**octave * perlin_octave(_halves(seeds, 4 * octave + 3), moved)
    return PERLIN_SCALE * value


def perlin_octave(keys: tuple[Tensor, Tensor], place: list[Tensor]) -> Tensor:
    """Improved noise (Perlin, SIGGRAPH 2002) at points x, y, z, float32 [N, ...]; the keys are two of 32 bits, [N].

    Perlin's table of permutations is a hash of vertex and keys here.
    """
    low, high = (key.view(-1, *[1] * (place[0].dim() - 1)) for key in keys)
    cell = [p.floor() for p in place]
    part = [p - c for p, c in zip(place, cell, strict=True)]
    fade = [t * t * t * (t * (t * 6 - 15) + 10) for t in part]

    def corner(*ones: int) -> Tensor:
        i, j, k = (c.long() + one for c, one in zip(cell, ones, strict=True))
        vertex = (i * 73856093 ^ j * 19349663 ^ k * 83492791) & LOW
        return cube_edge(mixed(vertex, low, high) >> 28, [t - one for t, one in zip(part, ones, strict=True)])

    def along(axis: int, *ones: int) -> Tensor:
        if axis < 0:
            return corner(*ones)
        near, far = along(axis - 1, 0, *ones), along(axis - 1, 1, *ones)
        return near + fade[axis] * (far - near)

    return along(2)


def blobs(seeds: Tensor, rows: Tensor, columns: Tensor, extent: Tensor) -> Tensor:
    """Lesion-like blobs, [N, 1, K, K], brighter or darker than their surroundings by 1/2 to 1, 0 outside of them.

    A turned ellipse with half the box's height and width as its radii, whose outline three waves bend by up to
    `HARMONICS` each, and whose edge falls off smoothly over 0.1 to `SOFTEST` of the radius. `extent` is the boxes'
    height and width, [N, 2].
    """
    draw = partial(uniform, seeds)
    cosine, sine = (x[:, None, None] for x in _direction(draw(0)))
    height, width = (extent.float() / 2).T[:, :, None, None]
    y, x = (rows.float() + 0.5)[:, :, None] - height, (columns.float() + 0.5)[:, None, :] - width
    x, y = (x * cosine + y * sine) / width, (y * cosine - x * sine) / height
    radius = (x * x + y * y).sqrt()
    x, y = (p / radius.clamp_min(1e-6) for p in (x, y))
    outline, real, imaginary = torch.ones_like(radius), x, y
    for wave in (1, 2, 3):  # of 2, 3 and 4 periods: powers of the direction x + iy
        real, imaginary = real * x - imaginary * y, real * y + imaginary * x
        a, b = (p[:, None, None] for p in _direction(draw(wave)))
        outline = outline + HARMONICS * draw(3 + wave)[:, None, None] * (a * real + b * imaginary)
    softness = (0.1 + (SOFTEST - 0.1) * draw(7))[:, None, None]
    inside: Tensor = ((outline - radius) / softness + 0.5).clamp(0, 1)
    brightness = torch.where(draw(8) < 0.5, -1.0, 1.0) * (0.5 + draw(9) / 2)
    return (brightness[:, None, None] * inside * inside * (3 - 2 * inside))[:, None]


def _direction(turn: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of a share of a whole turn."""
    return (2 * torch.pi * turn).cos(), (2 * torch.pi * turn).sin()


def _grid(rows: Tensor, columns: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Channel, row and column, each int64 and of a shape that the others make [N, C, K, K]."""
    z = torch.arange(channels, device=rows.device)[None, :, None, None]
    return z, rows[:, None, :, None], columns[:, None, None, :]


def _halves(seeds: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Two keys of 32 bits, of a seed and a number."""
    key = splitmix64(splitmix64(seeds) + number)
    return key & LOW, key >> 32 & LOW


def _share(hashed: Tensor) -> Tensor:
    """Of 2^32, from the upper 24 bits: float32 holds no more."""
    return (hashed >> 8).float() * 2.0**-24
