# SPDX-License-Identifier: Apache-2.0
"""PNG, JPEG, BMP, TIFF and WebP as pixels in [0, 1], page by page, decoded by Pillow; 16-bit colour by torchvision.

Pillow has no 16-bit colour, torchvision no TIFF. tifffile was tried for TIFF: what is deflated it unpacks without a
limit, and LZW only with another package.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Container, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, ImageOps

from scrd_fast.data.frames import Picture
from scrd_fast.data.intensity import percentile_window
from scrd_fast.data.limits import check_frames, check_pixels
from scrd_fast.errors import ImageError

__all__ = ["count_pages", "read_pages", "scale_float"]

# Others are not opened: some run programs, as EPS does.
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
# Our own limit is stricter. Once for the process: who puts filters back, in one of several threads, would also undo
# those that keep pydicom quiet.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
_INTEGER_MODES = {"I;16": 65535.0, "I;16L": 65535.0, "I;16B": 65535.0, "I;16N": 65535.0, "I": 2147483647.0}


def count_pages(source: Path | bytes) -> int:
    """From the headers of the pages."""
    with _opened(source) as image:
        return _count(image)


def read_pages(source: Path | bytes, intensity: str, wanted: Container[int]) -> Iterator[tuple[int, Picture]]:
    """Number and picture of each page that is wanted, decoded one by one. Raises what Pillow does, and `ImageError`."""
    with _opened(source) as image:
        for index in range(_count(image)):
            if index in wanted:
                if index:
                    image.seek(index)
                yield index, _decode(image, intensity, source)


def _opened(source: Path | bytes) -> Image.Image:
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS)
    check_pixels(image.width, image.height)
    return image


def _count(image: Image.Image) -> int:
    count = int(getattr(image, "n_frames", 1))
    check_frames(count)
    return count


def _decode(image: Image.Image, intensity: str, source: Path | bytes) -> Picture:
    check_pixels(image.width, image.height)  # pages may differ
    mode = image.mode
    # Pillow would cut these to 8 bits without a word.
    if mode not in _INTEGER_MODES and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        return _decode_deep_colour(image, intensity, source)
    upright = ImageOps.exif_transpose(image)
    if mode in _INTEGER_MODES or mode == "F":
        stored = np.asarray(upright)
        gray = _scale_deep(stored, mode, intensity)
        facts = {"shown": "range" if intensity == "range" else "percentile"}
        return Picture(np.broadcast_to(gray, (3, *gray.shape)).copy(), _zero(stored), facts)
    stored = np.asarray(_to_rgb(upright))
    rgb = stored.astype(np.float32) / np.float32(255)
    if intensity == "percentile":
        rgb = percentile_window(rgb)
    facts = {"shown": "percentile" if intensity == "percentile" else "range"}
    return Picture(np.ascontiguousarray(rgb.transpose(2, 0, 1)), _zero(stored), facts)


def _decode_deep_colour(image: Image.Image, intensity: str, source: Path | bytes) -> Picture:
    """16-bit RGB, and gray with alpha. One window for all channels keeps the hue."""
    if image.format != "PNG" or _count(image) > 1:
        raise ImageError("unsupported", "16-bit colour is read from PNG of one image alone; convert it to that")
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    planes = _decode_png(source)
    stored = np.stack([_turned(plane, orientation) for plane in (planes[:1] if len(planes) < 3 else planes[:3])])
    values = stored.astype(np.float32)  # exact
    pixels = values / np.float32(65535) if intensity == "range" else percentile_window(values)
    facts = {"shown": "range" if intensity == "range" else "percentile"}
    return Picture(np.broadcast_to(pixels, (3, *pixels.shape[1:])).copy(), _zero(stored), facts)


def _decode_png(source: Path | bytes) -> npt.NDArray[np.uint16]:
    """[C, H, W]: 1 gray, 2 gray and alpha, 3 RGB, 4 RGBA."""
    try:
        from torchvision.io import ImageReadMode, decode_png  # type: ignore[import-untyped]
    except ImportError:
        raise ImageError(
            "unsupported", "16-bit colour needs torchvision: install this package with its [model] extra"
        ) from None
    content = bytearray(source if isinstance(source, bytes) else source.read_bytes())
    planes: npt.NDArray[np.uint16] = decode_png(
        torch.frombuffer(content, dtype=torch.uint8), mode=ImageReadMode.UNCHANGED
    ).numpy()
    return planes


def _turned(plane: npt.NDArray[np.uint16], orientation: int) -> npt.NDArray[np.uint16]:
    """Upright."""
    gray = Image.fromarray(plane)
    gray.getexif()[ExifTags.Base.Orientation] = orientation
    return np.asarray(ImageOps.exif_transpose(gray))


def _zero(stored: npt.NDArray[np.generic]) -> tuple[str, ...]:
    return () if stored.any() else ("all-zero",)


def _to_rgb(image: Image.Image) -> Image.Image:
    # By way of RGBA a palette's transparency does not shift colours; alpha is then dropped, since the values
    # behind it are the measured ones.
    if image.mode in ("P", "PA", "LA", "La", "RGBa"):
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _scale_deep(pixels: npt.NDArray[np.generic], mode: str, intensity: str) -> npt.NDArray[np.float32]:
    """16-bit, 32-bit and float gray to [0, 1], without clipping to 8 bit."""
    values = pixels.astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageError("not-finite", "holds NaN or infinite pixels")
    if intensity != "range":
        return percentile_window(values)
    if mode != "F":
        return (values / _INTEGER_MODES[mode]).clip(0, 1).astype(np.float32)
    return scale_float(values)


def scale_float(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """For intensity "range": float pixels must be in [0, 1] already."""
    if values.min() < 0 or values.max() > 1:
        raise ImageError(
            "out-of-range",
            f"float pixels from {values.min():g} to {values.max():g}; intensity 'range' wants 0 to 1, "
            "use 'percentile' or 'auto'",
        )
    return values.astype(np.float32)
