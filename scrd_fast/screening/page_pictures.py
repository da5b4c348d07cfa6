# SPDX-License-Identifier: Apache-2.0
"""The pictures of a run's page, in one Parquet file: small ones of many rows, picture and heat map of a few.

sample_id   string   of the row
thumbnail   binary   WebP, its longer side 72 pixels; null where it could not be made
picture     binary   WebP, as the model is given it, its longer side 512 pixels at most; null for all but a few
heat        binary   PNG: the anomaly map on the run's scale of colours, transparent where there is nothing
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from torch import Tensor

from scrd_fast.config import Preprocessing
from scrd_fast.data.frames import About
from scrd_fast.data.reading import inner_box
from scrd_fast.files import write_atomically
from scrd_fast.plots import heat_levels

__all__ = ["LAYERS", "THUMBNAILS", "PagePicture", "layers", "thumbnail", "write_pictures"]

THUMBNAILS, LAYERS = 2_000, 200  # rows, at most, that have them
_SMALL, _LARGE = 72, 512  # pixels of the longer side
_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        *(pa.field(name, pa.binary()) for name in ("thumbnail", "picture", "heat")),
    ]
)


class PagePicture(NamedTuple):
    """A row of the file, by its columns."""

    sample_id: str
    thumbnail: bytes | None = None
    picture: bytes | None = None
    heat: bytes | None = None


def thumbnail(pixels: Tensor, about: About, preprocessing: Preprocessing) -> bytes:
    """A model's picture [3, P, P] in [0, 1] as a small WebP of the stored picture's aspect, without padding."""
    return _webp(pixels, about, preprocessing, _SMALL)


def layers(
    pixels: Tensor, heat: Tensor, about: About, preprocessing: Preprocessing, scale: tuple[float, float]
) -> tuple[bytes, bytes]:
    """A model's picture [3, P, P] and its map [P, P] as WebP and PNG, to be laid on each other."""
    return _webp(pixels, about, preprocessing, _LARGE), _heat(_inner(heat.numpy(), about, preprocessing), *scale)


def write_pictures(path: Path, pictures: Iterable[PagePicture], run_id: str, scale: tuple[float, float] | None) -> None:
    """`scale` is that of the heat maps, None without any."""
    facts = {"run_id": run_id} | ({"scale": repr(list(scale))} if scale else {})
    schema = _SCHEMA.with_metadata({f"scrd_fast.{name}": value for name, value in facts.items()})
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([p._asdict() for p in pictures], schema=schema), buffer, compression="zstd")
    write_atomically(path, buffer.getvalue())


def _inner(pixels: npt.NDArray[np.generic], about: About, preprocessing: Preprocessing) -> npt.NDArray[np.generic]:
    """Without the padding of the last two axes."""
    top, left, height, width = inner_box(about.height, about.width, preprocessing)
    return pixels[..., top : top + height, left : left + width]


def _webp(pixels: Tensor, about: About, preprocessing: Preprocessing, longest: int) -> bytes:
    inner = _inner(pixels.numpy(), about, preprocessing)
    image = Image.fromarray(np.rint(inner.transpose(1, 2, 0) * 255).astype(np.uint8))
    side = min(longest, preprocessing.canvas) / max(about.height, about.width)
    size = (max(1, round(about.width * side)), max(1, round(about.height * side)))
    out = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(out, "webp", quality=75, method=4)
    return out.getvalue()


def _heat(values: npt.NDArray[np.generic], low: float, high: float) -> bytes:
    """Of 64 levels: more are not told apart, and a third of the bytes."""
    levels, colours, opacity = heat_levels(values, low, high, 64)
    image = Image.fromarray(levels)
    image.thumbnail((_LARGE, _LARGE), Image.Resampling.BOX)
    image.putpalette(colours.tobytes())
    out = io.BytesIO()
    image.save(out, "png", transparency=opacity.tobytes(), optimize=True)
    return out.getvalue()
