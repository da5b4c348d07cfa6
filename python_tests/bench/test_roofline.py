# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from made import CPU

from scrd_fast.bench import roofline
from scrd_fast.bench.roofline import (
    Peaks,
    Work,
    _readers,
    map_work,
    mean_vertices,
    measure_peaks,
    percent,
    simplex_work,
    synthesize_work,
)

# By hand, of one sample of OpenSimplex noise. Its point: 42 operations in float64, 6 in float32, and 19 with 3 integer
# ones for each vertex. Its seed: 6, 2 integer ones and 4 loads for each vertex. Of the 25, 9 are multiply-adds.
SIX = {"flops32": 6 + 6 * (19 + 6), "flops64": 42, "int_ops": 6 * (3 + 2), "loads": 6 * 4, "fused": 6 * 9}
EIGHT = {"flops32": 6 + 8 * (19 + 6), "flops64": 42, "int_ops": 8 * (3 + 2), "loads": 8 * 4, "fused": 8 * 9}
# Vertices: six in a tetrahedron, eight in the octahedron.


def test_one_sample_in_a_tetrahedron() -> None:
    """The origin of the pixel grid is the corner of a cell."""
    assert simplex_work(1, (1, 1, 1), 1, 1.0) == Work(1, bytes=8 + 4, **SIX)


def test_one_sample_in_the_octahedron() -> None:
    """The point (0.8, 0, 0) stretches to (0.667, -0.133, -0.133), in its cell (0.667, 0.867, 0.867): their sum 2.4 lies
    in the far tetrahedron. (1.5, 0, 0) lies at (0.25, 0.75, 0.75) of its cell: 1.75 is in the octahedron."""
    assert mean_vertices((1, 1, 2), 1, 0.8) == 6
    assert mean_vertices((1, 1, 2), 1, 1.5) == (6 + 8) / 2
    both = simplex_work(1, (1, 1, 2), 1, 1.5)
    assert both == Work(2, bytes=8 + 8, **{name: SIX[name] + EIGHT[name] for name in SIX})


def test_a_batch_shares_what_depends_on_the_points_alone() -> None:
    one, many = simplex_work(1, (3, 20, 20)), simplex_work(16, (3, 20, 20))
    assert one.samples == 3 * 20 * 20 * 6
    assert one.bytes == 8 + 4 * 3 * 20 * 20
    assert (many.samples, many.bytes, many.loads) == (16 * one.samples, 16 * one.bytes, 16 * one.loads)
    assert many.flops64 == one.flops64 == 42 * one.samples
    vertices = one.loads / 4 / one.samples
    assert vertices == pytest.approx(7.19, abs=0.01)
    assert many.flops32 - one.flops32 == pytest.approx(15 * one.samples * vertices * 6)
    assert many.int_ops - one.int_ops == pytest.approx(15 * one.samples * vertices * 2)
    assert many.fused - one.fused == pytest.approx(15 * one.samples * vertices * 3)
    assert simplex_work(0, (3, 20, 20)) == Work(0, 0.0, 0.0, 0.0, 0.0, 0)


def test_hashed_has_four_vertices_and_no_table() -> None:
    assert simplex_work(1, (1, 1, 1), 1, 1.0, "hashed") == Work(
        1, 8 + 4 * (21 + 2), 0.0, 16 + 4 * (5 + 11), 0.0, 12, 4 * 3
    )


@pytest.mark.parametrize("inplace", [False, True])
def test_synthesis_moves_pixels_and_makes_noise_in_the_boxes(inplace: bool) -> None:
    boxes = [[0, 0, 10, 12], [5, 7, 3, 1]]
    work = synthesize_work((2, 3, 64, 48), boxes, inplace=inplace)
    assert work.bytes == 2 * (3 * 123 * 4 if inplace else 2 * 3 * 64 * 48 * 4) + 2 * (16 + 8)
    assert work.samples == 6 * 3 * (10 * 12 + 3 * 1)
    noise = [simplex_work(1, (3, h, w)) for _, _, h, w in boxes]
    assert work.loads == pytest.approx(sum(n.loads for n in noise))
    assert work.flops64 == noise[0].flops64  # the second box lies in the first one, from corner to corner
    assert synthesize_work((2, 3, 64, 48), [[0, 0, 0, 0]] * 2).samples == 0


def test_patches_share_the_points_that_lie_in_several_boxes() -> None:
    tall, wide = [0, 0, 12, 4], [9, 9, 5, 10]
    together = synthesize_work((2, 3, 64, 48), [tall, wide])
    assert together.flops64 == 42 * 6 * 3 * (12 * 4 + 5 * 10 - 5 * 4)
    one, many = synthesize_work((1, 3, 64, 48), [tall]), synthesize_work((4, 3, 64, 48), [tall] * 4)
    same = simplex_work(4, (3, 12, 4))
    assert (many.flops64, many.int_ops) == (one.flops64, pytest.approx(same.int_ops))
    assert many.flops32 == pytest.approx(same.flops32 + 4 * 2 * 3 * 12 * 4)
    assert many.fused == pytest.approx(same.fused)


def test_a_mean_reads_the_features_and_writes_a_number() -> None:
    """Two scales of 5 x 2 x 3 and 7 x 1 x 2 features: 30 + 14 products three times over, 6 + 2 pixels with 7 operations
    for a distance and a multiply-add for its share of the mean."""
    work = map_work(3, [(5, 2, 3), (7, 1, 2)], (8, 9), return_map=False)
    fused = 3 * (3 * 44 + 8)
    assert work == Work(3, 2.0 * fused + 3 * 7 * 8, 0.0, 0.0, 0.0, 3 * (2 * 44 * 4 + 4), fused, reads=True)
    half = map_work(3, [(5, 2, 3), (7, 1, 2)], (8, 9), 2, return_map=False)
    assert half.bytes == 3 * (2 * 44 * 2 + 4)
    assert (half.flops32, half.int_ops) == (work.flops32, 3 * 2 * 44)


def test_a_map_takes_what_is_not_zero_of_the_matrices() -> None:
    """Without a blur, 2 pixels become 3 by the rows (1, 0), (1/2, 1/2), (0, 1): 4 numbers. And 4 stay as they are."""
    work = map_work(1, [(5, 2, 4)], (3, 4), sigma=0.0, shares=2)
    fused = 3 * 40 + 4 * 4 + 3 * 4
    assert work.fused == fused
    assert work.flops32 == 2 * fused + 7 * 8 + (2 + 2) * 12
    assert work.bytes == 2 * 40 * 4 + 4 * (12 + 2 + 2)
    blurred = map_work(1, [(1, 64, 64)], (256, 256))
    assert blurred.fused == pytest.approx(3 * 64**2 + 9.58 * 256 * (64 + 256), rel=1e-3)  # 10 in a row, fewer outside


def test_the_share_of_reading() -> None:
    """What only reads is measured by the better of reader and copy."""
    peaks = Peaks("cpu", {64: 200.0, 4096: 100.0}, {32: 1000.0, 64: 1.0}, {64: 400.0, 4096: 50.0})
    assert [peaks.bytes_per_second(size, reads=True) for size in (64, 4096)] == [400.0, 100.0]
    assert peaks.bytes_per_second(64) == 200.0
    assert Peaks("cpu", peaks.copy, peaks.flops).bytes_per_second(64, reads=True) == 200.0
    work = Work(1, 100.0, 0.0, 0.0, 0.0, 64, fused=40.0, reads=True)
    assert percent(work, 1.0, peaks) == pytest.approx((16.0, 10.0, 6.0))  # a multiply-add is one instruction
    assert Work.mean([work, work]) == work


def test_the_share_of_each_peak() -> None:
    work = Work(samples=1, flops32=50.0, flops64=100.0, int_ops=30.0, loads=20.0, bytes=50)
    peaks = Peaks("cpu", {64: 200.0, 4096: 100.0}, {32: 1000.0, 64: 400.0})
    # 50 bytes of 200, 50 operations of 1000 and 100 of 400, 50 + 100 x 2 + 30 + 20 lanes of 1000; half on a GPU.
    assert percent(work, 1.0, peaks) == pytest.approx((25.0, 30.0, 30.0))
    assert percent(work, 0.5, peaks) == pytest.approx((50.0, 60.0, 60.0))
    assert percent(work, 1.0, Peaks("cuda", peaks.copy, peaks.flops)) == pytest.approx((25.0, 30.0, 60.0))


def test_the_large_copy_bounds_small_work_from_below() -> None:
    """A small copy is mostly the cost of its call; work as small may still not be allowed less than the memory."""
    peaks = Peaks("cpu", {64: 1.0, 2**20: 500.0, 2**28: 100.0}, {32: 1.0, 64: 1.0})
    assert peaks.bytes_per_second(100) == 100.0
    assert peaks.bytes_per_second(2**20) == 500.0
    assert peaks.bytes_per_second(2**28) == 100.0


def test_the_better_of_two_measurements_is_the_peak() -> None:
    a = Peaks("cpu", {64: 1.0}, {32: 5.0, 64: 1.0}, {64: 7.0})
    b = Peaks("cpu", {64: 2.0}, {32: 4.0, 64: 3.0}, {64: 8.0})
    assert a.better(b) == b.better(a) == Peaks("cpu", {64: 2.0}, {32: 5.0, 64: 3.0}, {64: 8.0})


def test_peaks_are_measured() -> None:
    peaks = measure_peaks(torch.device("cpu"), [4096], repeats=1)
    assert set(peaks.copy) == {4096, 2**28}
    assert set(peaks.flops) == {32, 64}
    assert min(*peaks.copy.values(), *peaks.flops.values()) > 1e6
    assert peaks.read == {}


@pytest.mark.parametrize("place", [0, 2**16 + 5, 2**17, -1])
@pytest.mark.parametrize("width", [2**10, 2**16])
def test_readers_read_everything(width: int, place: int) -> None:
    """Ones, and a two somewhere: it is in every sum, in the product of the halves, and the largest."""
    plain, other = torch.ones(2**18), torch.ones(2**18)
    other[place] = 2
    for one, two in zip(_readers(plain, width), _readers(other, width), strict=True):
        found = [torch.cat([torch.as_tensor(x).reshape(-1).double() for x in _tuple(r())]) for r in (one, two)]
        assert not torch.equal(*found)


def _tuple(x: object) -> tuple[object, ...]:
    return x if isinstance(x, tuple) else (x,)


def test_the_best_reader_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of readers whose times are made up; the best of the first tries runs on, and may get better."""
    times = {"slow": [4.0] * 9, "good": [2.0, 2.0, 2.0, 2.0, 1.0], "other": [3.0] * 9}
    runs: list[str] = []
    readers = [lambda name=name: runs.append(name) for name in times]  # type: ignore[misc]
    monkeypatch.setattr(roofline, "_readers", lambda buffer, width: readers)
    monkeypatch.setattr(roofline, "FINALISTS", 1)

    def best(run: Callable[[], object], _: torch.device, repeats: int) -> float:
        run()
        left = times[runs[-1]]
        return min(left.pop(0) for _ in range(min(repeats, len(left))))

    monkeypatch.setattr(roofline, "best_seconds", best)
    assert roofline._read_rate(2**24, CPU, 5) == pytest.approx(2**24 / 1.0)
    assert runs == ["slow", "good", "other", "good"]


def test_reads_are_measured_up_to_the_size_beyond_the_caches() -> None:
    peaks = measure_peaks(CPU, repeats=1, reads=[100_000, 2**40])
    assert set(peaks.read) == {100_000, 2**28}
    assert min(peaks.read.values()) > 1e7
    assert set(peaks.copy) == {2**28}
