# SPDX-License-Identifier: Apache-2.0
"""What an operator must do at least, as code, and what the device can do, measured in the same run."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from scrd_fast.ops._axis_matrix import axis_matrix

__all__ = [
    "Peaks",
    "Work",
    "best_seconds",
    "map_work",
    "mean_vertices",
    "measure_peaks",
    "percent",
    "read_work",
    "simplex_work",
    "synthesize_work",
]


FIRST_TRIES, FINALISTS = 1, 6  # runs of each reader after one that warms up, and how many of them run on


@dataclass(frozen=True)
class Work:
    """Of one call: the least that it takes. Floating-point operations by their width; loads are those from tables."""

    samples: int  # what a rate counts: octaves x elements of noise, or images
    flops32: float
    flops64: float
    int_ops: float
    loads: float
    bytes: int
    fused: float = 0.0  # multiply-adds among flops32, counted two each there: each is one instruction
    reads: bool = False  # nearly all of the bytes are only read

    @classmethod
    def mean(cls, parts: Sequence[Work]) -> Work:
        def of(name: str) -> float:
            return float(sum(getattr(part, name) for part in parts)) / len(parts)

        counts = of("flops32"), of("flops64"), of("int_ops"), of("loads"), round(of("bytes")), of("fused")
        return cls(round(of("samples")), *counts, parts[0].reads)


# Counted in csrc/simplex_noise/. Additions, multiplications, comparisons and roundings count one each, a fused
# multiply-add two, a choice between two values none. Where a point lies and what its vertices weigh does not depend on
# the seed, so a batch needs that once; a GPU's kernel works it out for every sample all the same.
#
# OpenSimplex noise, once a point:
#   float64: 3 coordinates x frequency, 3 stretch, 3 stretched coordinates, 3 floor, 3 place in the cell; the region: 2
#   sum, 4 bounds and own corner, 7 comparisons of corners, 9 sums of pairs and distances, 5 comparisons of those.
POINT_FLOPS64 = 3 + 3 + 3 + 3 + 3 + 2 + 4 + 7 + 9 + 5
#   float32: 6 displacement from the cell's origin; for a vertex 6 displacement, 6 + 1 + 2 falloff, 1 amplitude, 3
#   products. Fused are 3 of the displacement and 3 of the falloff.
POINT_FLOPS, POINT_VERTEX_FLOPS, POINT_VERTEX_FUSED = 6, 6 + 6 + 1 + 2 + 1 + 3, 3 + 3
#   integers, a vertex: 3 lattice coordinates.
POINT_VERTEX_INTS = 3
# Once a sample, for a vertex: 2 sums of indices; 3 loads of the permutation and 1 of the gradient; 3 multiply-adds.
# Counted as if every vertex were looked up by itself, as GPUs do. The CPU kernel shares sums and loads between vertices
# that are the same lattice point, or lie in one column of them, how many depends on octave and block: less is left than
# is counted here.
VERTEX_FLOPS, VERTEX_FUSED, VERTEX_INTS, VERTEX_LOADS = 6, 3, 2, 4

# The hashed variant, without a table and with four vertices. Once a point:
#   float32: 3 fractions, 3 comparisons, 2 sum; a vertex: 2 + 6 displacement, 6 + 1 + 2 falloff, 1 amplitude, 3
#   products. Fused are 3 of the falloff.
#   integers: 4 sums and 6 products for the lattice coordinates, 6 to part cell and fraction; a vertex: 3 + 2 for its
#   key.
HASHED_VERTICES, HASHED_POINT_FLOPS, HASHED_POINT_VERTEX_FLOPS = 4, 3 + 3 + 2, 2 + 6 + 6 + 1 + 2 + 1 + 3
HASHED_POINT_VERTEX_FUSED = 3
HASHED_POINT_INTS, HASHED_POINT_VERTEX_INTS = 4 + 6 + 6, 3 + 2
# Once a sample, for a vertex: 9 for the hash, 2 signs; 2 sums.
HASHED_VERTEX_FLOPS, HASHED_VERTEX_INTS = 2, 9 + 2


@functools.cache
def mean_vertices(size: tuple[int, int, int], octaves: int, frequency: float) -> float:
    """Vertices that OpenSimplex evaluates for a sample on average, counted on the pixel grid itself: 6 in the two
    tetrahedra of a cell (4 corners and 2 extra vertices), 8 in its octahedron.

    >>> round(mean_vertices((3, 20, 20), 6, 1 / 32), 2)
    7.19
    """
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in size), indexing="ij")
    total = 0.0
    for octave in range(octaves):
        f = frequency * 2**octave
        stretch = (x + y + z) * f * (-1 / 6)
        inside = sum(axis * f + stretch - np.floor(axis * f + stretch) for axis in (x, y, z))
        total += float(np.where((inside <= 1) | (inside >= 2), 6, 8).mean())
    return total / octaves


def simplex_work(
    count: int, size: tuple[int, int, int], octaves: int = 6, frequency: float = 1 / 32, variant: str = "opensimplex"
) -> Work:
    """`count` seeds read once, `count` blocks of float32 written once; the permutations stay in a cache."""
    elements = size[0] * size[1] * size[2]
    points, moved = elements * octaves if count else 0, count * (8 + 4 * elements)
    vertices = mean_vertices(size, octaves, frequency) if points else 0.0
    return _noise(points, count * points, vertices, variant, moved)


def _noise(points: int, samples: int, vertices: float, variant: str, moved: int) -> Work:
    """Of so many points and samples, octaves counted; `vertices` are OpenSimplex noise's for a sample on average."""
    if variant == "hashed":
        v = HASHED_VERTICES
        flops = points * (HASHED_POINT_FLOPS + v * HASHED_POINT_VERTEX_FLOPS) + samples * v * HASHED_VERTEX_FLOPS
        ints = points * (HASHED_POINT_INTS + v * HASHED_POINT_VERTEX_INTS) + samples * v * HASHED_VERTEX_INTS
        return Work(samples, flops, 0.0, ints, 0.0, moved, points * v * HASHED_POINT_VERTEX_FUSED)
    return Work(
        samples,
        points * (POINT_FLOPS + vertices * POINT_VERTEX_FLOPS) + samples * vertices * VERTEX_FLOPS,
        float(points * POINT_FLOPS64),
        points * vertices * POINT_VERTEX_INTS + samples * vertices * VERTEX_INTS,
        samples * vertices * VERTEX_LOADS,
        moved,
        points * vertices * POINT_VERTEX_FUSED + samples * vertices * VERTEX_FUSED,
    )


def synthesize_work(
    shape: tuple[int, int, int, int],  # N, C, H, W
    boxes: Sequence[Sequence[int]],  # top, left, height, width
    itemsize: int = 4,
    variant: str = "opensimplex",
    inplace: bool = False,
    octaves: int = 6,
    frequency: float = 1 / 32,
) -> Work:
    """Every image is read once and written once; in place, only the boxes are. Coordinates count from each box's
    corner, so that boxes share their points: those of the batch are those that lie in any box."""
    channels = shape[1]
    covered = np.zeros((max(h for _, _, h, _ in boxes), max(w for *_, w in boxes)), dtype=bool)
    for _, _, h, w in boxes:
        covered[:h, :w] = True
    points = channels * int(covered.sum()) * octaves
    added = sum(channels * h * w for _, _, h, w in boxes)
    vertices = sum(
        channels * h * w * mean_vertices((channels, h, w), octaves, frequency) for *_, h, w in boxes if h * w
    )
    pixels = added if inplace else shape[0] * shape[1] * shape[2] * shape[3]
    moved = 2 * pixels * itemsize + len(boxes) * (16 + 8)
    noise = _noise(points, added * octaves, vertices / max(added, 1), variant, moved)
    return dataclasses.replace(noise, flops32=noise.flops32 + 2 * added)  # times the strength, plus the pixel


@functools.cache
def _entries(source: int, target: int, sigma: float) -> int:
    """Of the matrix that upsamples and blurs one axis, those that are not zero, counted on the matrix itself."""
    return int(axis_matrix(source, target, sigma, "reflect", torch.float64, torch.device("cpu")).count_nonzero())


def map_work(
    count: int,
    scales: Sequence[tuple[int, int, int]],  # C, H, W of each
    size: tuple[int, int],
    itemsize: int = 4,
    sigma: float = 4.0,
    return_map: bool = True,
    shares: int = 1,  # of the largest pixels, whose means are asked for
) -> Work:
    """Every feature of teacher and student is read once; the map, if any, is written once, and every score."""
    features = sum(c * h * w for c, h, w in scales)
    # Products of teacher and student, of each with itself, summed over channels. From the sums to the distance: 2
    # square roots, 2 comparisons with eps, 1 product, 1 quotient, 1 difference.
    fused, flops = 3 * features, 7 * sum(h * w for _, h, w in scales)
    if return_map:
        for _, h, w in scales:  # along the columns on the small map, then along the rows; zeros are left out
            fused += _entries(h, size[0], sigma) * w + size[0] * _entries(w, size[1], sigma)
        flops += (2 + shares) * size[0] * size[1]  # sum, maximum, and a comparison with the least of the largest
    else:
        fused += sum(h * w for _, h, w in scales)  # the mean is a weighted sum of the small maps
    written = size[0] * size[1] + 2 + shares if return_map else 1
    return Work(
        count,
        float(count * (2 * fused + flops)),
        0.0,
        float(count * (2 * features if itemsize < 4 else 0)),  # half precision to float32
        0.0,
        count * (2 * features * itemsize + 4 * written),
        float(count * fused),
        reads=True,
    )


def read_work(count: int, moved: int) -> Work:
    """Of that many bytes, and nothing done with them."""
    return Work(count, 0.0, 0.0, 0.0, 0.0, moved, reads=True)


@dataclass(frozen=True)
class Peaks:
    """Bytes per second by size of the moved data, and operations per second of a matrix product.

    A product's fused multiply-add counts as two operations and fills one lane of one instruction. From the float32
    rate follow the instruction lanes of 32 bits: on a GPU as many as multiply-adds (an SM issues one warp per
    scheduler and cycle, whatever the instruction), on a CPU twice as many (processors with two multiply-add pipes
    have up to four vector pipes). A 64-bit operation takes two lanes.
    """

    device: str
    copy: dict[int, float]  # bytes moved: rate
    flops: dict[int, float]  # bits: rate
    read: dict[int, float] = field(default_factory=dict)  # bytes read: rate; empty where no work only reads

    def bytes_per_second(self, size: int, reads: bool = False) -> float:
        """The better of the large copy and of a copy as small as the work, which may stay in a cache. Work that only
        reads may be as fast as the fastest reader, too."""

        def best(rates: dict[int, float]) -> float:
            near = min(rates, key=lambda known: abs(known - size))
            return max(rates[max(rates)], rates[near])

        return max(best(rates) for rates in (self.copy, self.read if reads else {}) if rates)

    def better(self, other: Peaks) -> Peaks:
        def merged(mine: dict[int, float], others: dict[int, float]) -> dict[int, float]:
            return {known: max(rate, others.get(known, 0.0)) for known, rate in mine.items()}

        flops, read = merged(self.flops, other.flops), merged(self.read, other.read)
        return Peaks(self.device, merged(self.copy, other.copy), flops, read)

    @property
    def lanes(self) -> float:
        return self.flops[32] * (0.5 if self.device == "cuda" else 1.0)


def percent(work: Work, seconds: float, peaks: Peaks) -> tuple[float, float, float]:
    """Shares of the peak in percent: bytes, floating-point operations, instruction lanes."""
    lanes = work.flops32 - work.fused + 2 * work.flops64 + work.int_ops + work.loads
    return (
        100 * work.bytes / seconds / peaks.bytes_per_second(work.bytes, work.reads),
        100 * (work.flops32 / peaks.flops[32] + work.flops64 / peaks.flops[64]) / seconds,
        100 * lanes / seconds / peaks.lanes,
    )


def measure_peaks(
    device: torch.device, sizes: Sequence[int] = (), reads: Sequence[int] = (), repeats: int = 15
) -> Peaks:
    """Measure on `device`: copies that move each of `sizes` bytes and one far beyond the caches, readers of each of
    `reads` bytes and of as many if there are any, and matrix products in float32 (TF32 off) and float64. The best of
    `repeats` counts, since a peak is a bound."""
    cuda = device.type == "cuda"
    large = 2**31 if cuda else 2**28
    copies = {}
    for size in sorted({max(size, 64) for size in sizes} | {large}):
        source = torch.rand(size // 8, device=device)  # read and written: two times four bytes
        target = torch.empty_like(source)
        inner = max(1, min(200, 2**24 // size))
        run = partial(_repeat, target, source, inner)
        copies[size] = size * inner / best_seconds(run, device, repeats)
    flops = {}
    for bits, dtype in ((32, torch.float32), (64, torch.float64)):
        n = 8192 if cuda else 1024
        a, b = (torch.rand(n, n, device=device, dtype=dtype) for _ in range(2))
        tf32, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, False
        try:
            flops[bits] = 2.0 * n**3 / best_seconds(lambda a=a, b=b: torch.mm(a, b), device, repeats)  # type: ignore[misc]
        finally:
            torch.backends.cuda.matmul.allow_tf32 = tf32
    # What is larger than the largest is as far beyond the caches.
    read = {size: _read_rate(size, device, repeats) for size in sorted({min(r, large) for r in reads})}
    if read and large not in read:
        read[large] = _read_rate(large, device, repeats)
    return Peaks(device.type, copies, flops, read)


def _read_rate(size: int, device: torch.device, repeats: int) -> float:
    """Of the fastest of many readers: none of torch's is the fastest at every size and on every processor. All run
    twice, the best of them then `repeats` times more."""
    width = 2**16 if size >= 2**22 else 2**10  # floats of the longest row
    buffer = torch.rand(max(size // 4 // width, 2) // 2 * 2 * width, device=device)
    inner = max(1, min(200, 2**24 // size))

    def seconds(reader: Callable[[], object], times: int) -> float:
        def run() -> None:
            for _ in range(inner):
                reader()

        return best_seconds(run, device, times)

    tried = [(seconds(reader, min(FIRST_TRIES, repeats)), reader) for reader in _readers(buffer, width)]
    tried.sort(key=lambda pair: pair[0])
    best = min(tried[0][0], *(seconds(reader, repeats) for _, reader in tried[:FINALISTS]))
    return 4 * buffer.numel() * inner / best


def _readers(buffer: torch.Tensor, width: int) -> list[Callable[[], object]]:
    """Each reads every byte once, on all threads: as one stream, as several, in rows of several lengths, as numbers of
    several widths. As float64 or bfloat16 the numbers are nonsense: only the bytes count."""
    first, second = buffer.view(2, -1)
    whole, wide, half = (buffer.view(dtype) for dtype in (torch.int32, torch.float64, torch.int16))
    readers: list[Callable[[], object]] = [
        buffer.sum,
        buffer.amax,
        wide.sum,
        whole.amax,
        half.amax,
        buffer.view(torch.bfloat16).amax,
        lambda: torch.linalg.vector_norm(buffer),
        lambda: torch.dot(first, second),
        lambda: torch.dot(buffer, buffer),
        lambda: first.sum() + second.sum(),
        lambda: torch.aminmax(buffer),
    ]
    for length in {2**8, 2**10, width}:
        rows = buffer.view(-1, length)
        readers += [
            partial(rows.sum, 1),
            partial(rows.amax, 1),
            partial(whole.view(-1, length).amax, 1),
            partial(half.view(-1, 2 * length).amax, 1),
            partial(torch.mm, rows, torch.ones(length, 1, device=buffer.device)),
            partial(torch.mv, rows, torch.ones(length, device=buffer.device)),
        ]
    return readers


def _repeat(target: torch.Tensor, source: torch.Tensor, times: int) -> None:
    for _ in range(times):
        target.copy_(source)


def best_seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats + 1):  # the first warms up; as a maximum it does no harm
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
