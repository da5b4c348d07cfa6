# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scrd_fast.choices import Fit
from scrd_fast.config import Preprocessing
from scrd_fast.data.reading import inner_box, resize
from scrd_fast.export.resizing import resize_batch, resize_matrix

PAIRS = [(1, 1), (1, 64), (64, 1), (5, 64), (7, 64), (63, 64), (64, 64), (65, 64), (211, 64), (300, 128), (1999, 64)]
SIZES = [(1, 1), (1, 9), (7, 5), (64, 64), (300, 211), (32, 1000), (128, 64), (95, 96)]


def matrix(source: int, target: int, canvas: int | None = None) -> torch.Tensor:
    return resize_matrix(source, torch.tensor(source), torch.tensor(target), canvas or target)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_matrix_is_what_torch_interpolates_by(source: int, target: int) -> None:
    """In float64; ours is then rounded to float32: half a unit for each of two roundings, and a sum's."""
    eye = torch.eye(source, dtype=torch.float64)[None, None]
    expected = F.interpolate(eye, size=(target, source), mode="bilinear", antialias=True, align_corners=False)[0, 0]
    torch.testing.assert_close(matrix(source, target).double(), expected, rtol=2.0**-22, atol=1e-15)


def test_a_picture_of_the_right_size_stays_as_it_is() -> None:
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resize_batch(pixels, Preprocessing(size=64)), pixels)


def test_padding_has_rows_of_zeros() -> None:
    padded = matrix(10, 5, 9)
    assert torch.equal(padded[2:7], matrix(10, 5))
    assert not padded[:2].any()
    assert not padded[7:].any()


@pytest.mark.parametrize("fit", ["stretch", "pad"])
@pytest.mark.parametrize("size", SIZES)
def test_a_batch_is_resized_as_each_picture_is_read(size: tuple[int, int], fit: Fit) -> None:
    preprocessing = Preprocessing(size=64, fit=fit)
    pixels = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([resize(p, preprocessing) for p in pixels])
    # torch makes its weights in float32, from positions of up to 1000 pixels; seen: 4e-6.
    torch.testing.assert_close(resize_batch(pixels, preprocessing), expected, rtol=0, atol=1e-5)


def test_sides_are_rounded_as_python_does() -> None:
    """Halves to even: 5 of 128 pixels are 2.5 of 64, so 2; 7 are 3.5, so 4."""
    preprocessing = Preprocessing(size=64, fit="pad")
    halves = 0
    for length in (96, 128, 256, 384):
        for width in range(1, length + 1):
            halves += (2 * width * 64) % (2 * length) == length
            box = inner_box(length, width, preprocessing)
            filled = resize_batch(torch.ones(1, 3, length, width), preprocessing)[0, 0, 32] > 0
            columns = filled.nonzero()[:, 0]
            assert (int(columns[0]), len(columns)) == (box[1], box[3])
    assert halves > 50
