# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from scrd_fast.bench.roofline import Peaks, Work, mean_vertices, measure_peaks, percent, simplex_work, synthesize_work

# By hand, of one sample of OpenSimplex noise. Its point: 42 operations in float64, 6 in float32, and 19 with 3 integer
# ones for each vertex. Its seed: 6, 2 integer ones and 4 loads for each vertex.
SIX = {"flops32": 6 + 6 * (19 + 6), "flops64": 42, "int_ops": 6 * (3 + 2), "loads": 6 * 4}  # in a tetrahedron
EIGHT = {"flops32": 6 + 8 * (19 + 6), "flops64": 42, "int_ops": 8 * (3 + 2), "loads": 8 * 4}  # in the octahedron


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
    assert simplex_work(0, (3, 20, 20)) == Work(0, 0.0, 0.0, 0.0, 0.0, 0)


def test_hashed_has_four_vertices_and_no_table() -> None:
    assert simplex_work(1, (1, 1, 1), 1, 1.0, "hashed") == Work(1, 8 + 4 * (21 + 2), 0.0, 16 + 4 * (5 + 11), 0.0, 12)


@pytest.mark.parametrize("inplace", [False, True])
def test_synthesis_moves_pixels_and_makes_noise_in_the_boxes(inplace: bool) -> None:
    boxes = [[0, 0, 10, 12], [5, 7, 3, 1]]
    work = synthesize_work((2, 3, 64, 48), boxes, inplace=inplace)
    assert work.bytes == 2 * (3 * 123 * 4 if inplace else 2 * 3 * 64 * 48 * 4) + 2 * (16 + 8)
    assert work.samples == 6 * 3 * (10 * 12 + 3 * 1)
    noise = [simplex_work(1, (3, h, w)) for _, _, h, w in boxes]
    assert work.flops32 == pytest.approx(sum(n.flops32 for n in noise) + 2 * 3 * 123)
    assert work.flops64 == sum(n.flops64 for n in noise)
    assert synthesize_work((2, 3, 64, 48), [[0, 0, 0, 0]] * 2).samples == 0


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
    a, b = Peaks("cpu", {64: 1.0}, {32: 5.0, 64: 1.0}), Peaks("cpu", {64: 2.0}, {32: 4.0, 64: 3.0})
    assert a.better(b) == Peaks("cpu", {64: 2.0}, {32: 5.0, 64: 3.0})


def test_peaks_are_measured() -> None:
    peaks = measure_peaks(torch.device("cpu"), [4096], repeats=1)
    assert set(peaks.copy) == {4096, 2**28}
    assert set(peaks.flops) == {32, 64}
    assert min(*peaks.copy.values(), *peaks.flops.values()) > 1e6
