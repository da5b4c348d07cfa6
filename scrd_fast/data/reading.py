# SPDX-License-Identifier: Apache-2.0
"""The one reading function: a file's pictures become the model's input in the same way everywhere."""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from scrd_fast.config import Preprocessing
from scrd_fast.data import nifti
from scrd_fast.data.archives import read_member
from scrd_fast.data.dicom import count_dicom, is_dicom, read_dicom
from scrd_fast.data.facts import pixel_statistics
from scrd_fast.data.frames import About, Frame, Original, Picture, Source
from scrd_fast.data.limits import check_size
from scrd_fast.data.pictures import count_pages, read_pages
from scrd_fast.errors import ImageError, reason_of

__all__ = [
    "EXTENSIONS",
    "count_frames",
    "frame_of",
    "inner_box",
    "is_image_name",
    "normalise",
    "read_frame",
    "read_frames",
    "read_image",
    "read_mask",
    "resize",
]

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".dcm", ".dicom", ".nii", ".nii.gz")
LARGEST = 2048  # pixels a side of an original that is kept
_ONE_LEVEL = 1 / 255 + 1e-6  # of 8 bits: channels that differ by no more are gray


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image where a folder is listed.

    >>> is_image_name("T1.NII.GZ"), is_image_name("T1.gz"), is_image_name(".hidden.png")
    (True, False, False)
    """
    last = name.rsplit("/", 1)[-1]
    return last.lower().endswith(EXTENSIONS) and not last.startswith(".")


def read_frames(
    source: Source | str | Path | bytes,
    preprocessing: Preprocessing,
    only: int | Container[int] | None = None,
    originals: bool = False,
) -> Iterator[Frame]:
    """Every picture of a file in its order, each decoded when it is asked for; `only`: that one, or those.

    A file: an image of any mode and size, of one or several pages, DICOM of one or several frames, a NIfTI volume's
    slices along `preprocessing.slice_axis`; also a member of an archive, or the bytes themselves. Each picture becomes
    float32 [3, P, P] in [0, 1], P = `preprocessing.canvas`, not normalised.

    8- and 16-bit gray, 32-bit integer, float, RGB (of 16 bits from PNG alone), CMYK, palette, with and without alpha
    (which is ignored); the EXIF orientation is applied. DICOM as `read_dicom` says, NIfTI as `nifti.read_slices` says.
    With `originals` a frame of DICOM also has its header and, in 8 bits and at most 2048 pixels a side, its picture.

    Raises `ImageError` with a short code and the reason, nothing else. Where a later picture cannot be decoded it is
    raised in that one's place: what came before holds, what would come after is not read.
    """
    wanted: Container[int] = _Every() if only is None else {only} if isinstance(only, int) else only
    found = False
    with _Failures():
        for index, picture in _pictures(source, preprocessing, wanted, originals):
            found = True
            yield frame_of(picture, preprocessing, index)
    if isinstance(only, int) and not found:
        raise ImageError("no-frame", f"holds no image number {only}, counted from 0")


def count_frames(source: Source | str | Path | bytes, slice_axis: int = 2) -> int:
    """How many pictures a file announces: nothing is decoded. Raises `ImageError` alone."""
    with _Failures():
        content = _content(source)
        if is_dicom(content):
            return count_dicom(content)
        if nifti.is_nifti(content):
            return nifti.count_slices(content, slice_axis)
        return count_pages(content)


def read_image(source: Source | str | Path | bytes, preprocessing: Preprocessing, frame: int | None = None) -> Tensor:
    """A file's one picture, or that `frame` of several: float32 [3, P, P] in [0, 1]. Raises `ImageError` alone."""
    return read_frame(source, preprocessing, frame).pixels


def read_frame(source: Source | str | Path | bytes, preprocessing: Preprocessing, frame: int | None = None) -> Frame:
    """`read_image` with what is known of the picture."""
    if frame is None and (count := count_frames(source, preprocessing.slice_axis)) > 1:
        raise ImageError("multi-frame", f"holds {count} images, expected one a file")
    return next(read_frames(source, preprocessing, frame or 0))


class _Every:
    def __contains__(self, index: object) -> bool:
        return True


class _Failures:
    """Whatever goes wrong inside becomes an `ImageError`, without the path, which has a column of its own."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, ImageError):
            return
        if isinstance(error, FileNotFoundError):
            raise ImageError("missing", "no such file") from None
        if isinstance(error, Image.DecompressionBombError):
            raise ImageError("too-large", str(error), refused=True) from None
        if isinstance(error, MemoryError):
            raise ImageError("too-large", "not enough memory") from None
        if isinstance(error, UnidentifiedImageError):
            raise ImageError("not-an-image", "no known image format") from None
        if isinstance(error, PermissionError):
            raise ImageError("unreadable", "permission denied") from None
        # Decoders raise anything on hostile bytes: one bad file must not stop a batch.
        text = " ".join(reason_of(error).split())
        raise ImageError("unreadable", f"{type(error).__name__}: {text[:200]}") from None


def _content(source: Source | str | Path | bytes) -> Path | bytes:
    if isinstance(source, Source):
        source = source.path if source.member is None else read_member(source)
    content = source if isinstance(source, bytes) else Path(source)
    check_size(content)
    return content


def _pictures(
    source: Source | str | Path | bytes, preprocessing: Preprocessing, wanted: Container[int], originals: bool
) -> Iterator[tuple[int, Picture]]:
    content = _content(source)
    if is_dicom(content):
        return read_dicom(content, preprocessing.intensity, wanted, originals)
    if nifti.is_nifti(content):
        return nifti.read_slices(content, preprocessing.intensity, preprocessing.slice_axis, wanted)
    return read_pages(content, preprocessing.intensity, wanted)


def frame_of(picture: Picture, preprocessing: Preprocessing, index: int = 0) -> Frame:
    """A decoded picture as the model's input, and what is known of it."""
    stored = picture.pixels
    _, height, width = stored.shape
    pixels = resize(torch.from_numpy(stored), preprocessing)
    mean, std, p01, p50, p99 = pixel_statistics(pixels.numpy())
    about = About(
        height,
        width,
        colour=bool((pixels.amax(0) - pixels.amin(0)).max() > _ONE_LEVEL),
        low=float(pixels.min()),
        high=float(pixels.max()),
        mean=mean,
        std=std,
        p01=p01,
        p50=p50,
        p99=p99,
        # Of the picture as it was: padding and resizing blur what is constant.
        flags=picture.flags + (("constant",) if stored.min() == stored.max() else ()),
        **picture.facts,
    )
    original = None if picture.header is None else Original(picture.header, _original(stored))
    return Frame(index, pixels, about, original)


def _original(stored: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """[3, H, W] in [0, 1] as 8 bits: [H, W], or [H, W, 3] where it has colours. No side is longer than `LARGEST`."""
    gray = bool((stored[0] == stored[1]).all() and (stored[0] == stored[2]).all())
    pixels = torch.from_numpy(stored[:1] if gray else stored)
    _, height, width = pixels.shape
    if (longest := max(height, width)) > LARGEST:
        pixels = _interpolate(pixels, *(max(1, round(side * LARGEST / longest)) for side in (height, width)))
    shown = np.floor(pixels.numpy() * 255.0 + 0.5).astype(np.uint8)  # half up, as overlays do
    return np.ascontiguousarray(shown[0] if gray else shown.transpose(1, 2, 0))


def resize(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """[3, H, W] to [3, P, P]: bilinear with antialias; "pad" keeps the aspect and pads with black, centred."""
    size = preprocessing.canvas
    _, height, width = pixels.shape
    top, left, h, w = inner_box(height, width, preprocessing)
    return F.pad(_interpolate(pixels, h, w), (left, size - w - left, top, size - h - top))


def inner_box(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """Where a picture of this size lies in the model's input, in the middle of it: top, left, height and width."""
    size, longest = preprocessing.canvas, max(height, width)
    h = w = size
    if preprocessing.fit != "stretch":
        h, w = max(1, round(height * size / longest)), max(1, round(width * size / longest))
    return (size - h) // 2, (size - w) // 2, h, w


def _interpolate(pixels: Tensor, height: int, width: int) -> Tensor:
    if pixels.shape[1:] == (height, width):
        return pixels
    size = (height, width)
    return F.interpolate(pixels[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0].clamp_(0, 1)


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """[N, 3, H, W] in [0, 1] to the teacher's input, on the images' device."""
    mean = torch.tensor(preprocessing.mean, device=images.device)[:, None, None]
    std = torch.tensor(preprocessing.std, device=images.device)[:, None, None]
    return (images - mean) / std


def read_mask(path: Path, preprocessing: Preprocessing, frame: int | None = None) -> npt.NDArray[np.bool_]:
    """A ground-truth mask as bool [P, P]: any non-black pixel counts, resized as its image was.

    `frame`: of a NIfTI volume the slice, of several pages the page. Raises `ImageError`.
    """
    with _Failures():
        content = _content(path)
        if nifti.is_nifti(content):
            marked = nifti.read_marks(content, preprocessing.slice_axis, frame or 0)
        else:
            with Image.open(path) as image:
                image.seek(frame or 0)
                marked = np.asarray(image.convert("L")) > 0
    mask = torch.from_numpy(marked).float().expand(3, -1, -1)
    # A pixel belongs to the mask where at least half of its area does.
    return np.asarray((resize(mask, preprocessing)[0] >= 0.5).numpy())
