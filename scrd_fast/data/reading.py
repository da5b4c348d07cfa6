# SPDX-License-Identifier: Apache-2.0
"""The one reading function: a file becomes the model's input in the same way everywhere."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from scrd_fast.config import Preprocessing
from scrd_fast.data.dicom import decode_dicom, is_dicom
from scrd_fast.data.intensity import percentile_window
from scrd_fast.errors import ImageError

__all__ = ["EXTENSIONS", "decode", "normalise", "read_image", "read_mask", "resize"]

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".dcm", ".dicom")
MAX_PIXELS = 100_000_000  # of one image; checked from the header, before memory is taken
_INTEGER_MODES = {"I;16": 65535.0, "I;16L": 65535.0, "I;16B": 65535.0, "I;16N": 65535.0, "I": 2147483647.0}


def read_image(source: str | Path | bytes, preprocessing: Preprocessing) -> Tensor:
    """An image file of any mode and size as float32 [3, S, S] in [0, 1], S = `preprocessing.size`, not normalised.

    8- and 16-bit gray, 32-bit integer, float, RGB, CMYK, palette, with and without alpha (which is ignored); the EXIF
    orientation is applied. DICOM as `decode_dicom` says. Raises `ImageError` with a short code and the reason, nothing
    else.
    """
    try:
        return resize(torch.from_numpy(decode(source, preprocessing.intensity)), preprocessing)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError("missing", "no such file") from None
    except (Image.DecompressionBombError, MemoryError) as error:
        raise ImageError("too-large", str(error) or "not enough memory") from None
    except UnidentifiedImageError:
        raise ImageError("not-an-image", "no known image format") from None
    except PermissionError:
        raise ImageError("unreadable", "permission denied") from None
    except Exception as error:  # decoders raise anything on hostile bytes: one bad file must not stop a batch
        raise ImageError("unreadable", f"{type(error).__name__}: {error}") from None


def decode(source: str | Path | bytes, intensity: str = "auto") -> npt.NDArray[np.float32]:
    """Pixels of a file as float32 [3, H, W] in [0, 1]."""
    if is_dicom(source):
        return decode_dicom(source, intensity, MAX_PIXELS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit stands below
        opened = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    with opened as image:
        if image.width * image.height > MAX_PIXELS:
            raise ImageError("too-large", f"{image.width} x {image.height} pixels, at most {MAX_PIXELS} are read")
        _refuse_silent_losses(image)
        mode = image.mode
        upright = ImageOps.exif_transpose(image)
        if mode in _INTEGER_MODES or mode == "F":
            gray = _scale_deep(np.asarray(upright), mode, intensity)
            return np.broadcast_to(gray, (3, *gray.shape)).copy()
        rgb = np.asarray(_to_rgb(upright), dtype=np.float32) / np.float32(255)
    if intensity == "percentile":
        rgb = percentile_window(rgb)
    return np.ascontiguousarray(rgb.transpose(2, 0, 1))


def _refuse_silent_losses(image: Image.Image) -> None:
    """What Pillow would read without a word, but not whole."""
    pages = getattr(image, "n_frames", 1)
    if pages > 1:
        raise ImageError("multi-frame", f"holds {pages} images, expected one a file")
    if image.mode not in _INTEGER_MODES and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        raise ImageError("unsupported", "16-bit colour would be cut to 8 bits; convert it to 8 bits or to gray")


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
    if values.min() < 0 or values.max() > 1:
        raise ImageError(
            "out-of-range",
            f"float pixels from {values.min():g} to {values.max():g}; intensity 'range' wants 0 to 1, "
            "use 'percentile' or 'auto'",
        )
    return values.astype(np.float32)


def resize(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """[3, H, W] to [3, S, S]: bilinear with antialias; "pad" keeps the aspect and pads with black, centred."""
    size = preprocessing.size
    _, height, width = pixels.shape
    if preprocessing.fit == "stretch":
        return _interpolate(pixels, size, size)
    longest = max(height, width)
    h, w = max(1, round(height * size / longest)), max(1, round(width * size / longest))
    top, left = (size - h) // 2, (size - w) // 2
    return F.pad(_interpolate(pixels, h, w), (left, size - w - left, top, size - h - top))


def _interpolate(pixels: Tensor, height: int, width: int) -> Tensor:
    if pixels.shape[1:] == (height, width):
        return pixels
    size = (height, width)
    return F.interpolate(pixels[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0].clamp_(0, 1)


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """[N, 3, S, S] in [0, 1] to the teacher's input, on the images' device."""
    mean = torch.tensor(preprocessing.mean, device=images.device)[:, None, None]
    std = torch.tensor(preprocessing.std, device=images.device)[:, None, None]
    return (images - mean) / std


def read_mask(path: Path, preprocessing: Preprocessing) -> npt.NDArray[np.bool_]:
    """A ground-truth mask as bool [S, S]: any non-black pixel counts, resized as its image was."""
    with Image.open(path) as image:
        mask = torch.from_numpy(np.asarray(image.convert("L")) > 0).float().expand(3, -1, -1)
    # A pixel belongs to the mask where at least half of its area does.
    return (resize(mask, preprocessing)[0] >= 0.5).numpy()
