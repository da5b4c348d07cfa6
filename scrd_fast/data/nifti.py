# SPDX-License-Identifier: Apache-2.0
"""NIfTI volumes as pictures: the slices along one axis of the array as it is stored."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scrd_fast.data.frames import Picture
from scrd_fast.data.intensity import bounds, windowed
from scrd_fast.data.limits import check_pixels, check_volume
from scrd_fast.data.pictures import scale_float
from scrd_fast.errors import ImageError

__all__ = ["count_slices", "is_nifti", "read_marks", "read_slices"]

_MISSING = "NIfTI files need nibabel: install this package with its [dicom] extra"
_GZIP = b"\x1f\x8b"


def is_nifti(source: Path | bytes) -> bool:
    """Whether it begins as NIfTI does, gzipped or not. A broken gzip file is none."""
    try:
        with _opened(source) as file:
            return _version(file.read(540)) is not None
    except (OSError, EOFError, zlib.error):
        return False


def _version(head: bytes) -> int | None:
    if head[344:348] in (b"n+1\0", b"ni1\0"):
        return 1
    return 2 if head[4:8] in (b"n+2\0", b"ni2\0") else None


@contextmanager
def _opened(source: Path | bytes) -> Iterator[io.IOBase]:
    """What is stored, unfolded where it is gzipped."""
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        packed = file.read(2) == _GZIP
        file.seek(0)
        if not packed:
            yield file
            return
        with gzip.GzipFile(fileobj=file) as unfolded:
            yield unfolded


def count_slices(source: Path | bytes, axis: int) -> int:
    """By the header. Raises `ImageError`, also for what `read_slices` would refuse by the header."""
    with _opened(source) as file:
        return _shape(_header(file))[axis]


def read_slices(
    source: Path | bytes, intensity: str, axis: int, wanted: Container[int]
) -> Iterator[tuple[int, Picture]]:
    """Number and picture of each slice along `axis` that is wanted; nothing is turned or mirrored.

    A picture's rows follow the first of the other two axes. `intensity` "auto" and "percentile": the 0.5-99.5
    percentiles of the whole volume, since those of an empty slice would show noise. "range" divides whole numbers as
    they are stored by their type's range. Raises `ImageError`, and what nibabel does.
    """
    with _opened(source) as file:
        header = _header(file)
        stored = _values(file, header)
    low, high, scale = _window(stored, header, intensity)
    facts = {"geometry": _geometry(header), "shown": "range" if intensity == "range" else "percentile"}
    for index in range(stored.shape[axis]):
        if index in wanted:
            raw = np.take(stored, index, axis)
            gray = windowed(scale(raw), low, high)
            flags = () if raw.any() else ("all-zero",)
            yield index, Picture(np.broadcast_to(gray, (3, *gray.shape)).copy(), flags, facts)


def read_marks(source: Path | bytes, axis: int, index: int) -> npt.NDArray[np.bool_]:
    """Where slice `index` of a mask is not 0."""
    with _opened(source) as file:
        stored = _values(file, _header(file))
    if index >= stored.shape[axis]:
        raise ImageError("no-frame", f"holds {stored.shape[axis]} slices, asked for number {index} from 0")
    return np.asarray(np.take(stored, index, axis) != 0)


def _header(file: io.IOBase) -> Any:
    """nibabel's, without the extensions that may follow it, and refused where it asks for too much."""
    try:
        from nibabel import Nifti1Header, Nifti2Header
    except ImportError:
        raise ImageError("unsupported", _MISSING) from None
    head = file.read(540)
    version = _version(head)
    kind: Any = Nifti1Header if version == 1 else Nifti2Header
    block = head[: kind.template_dtype.itemsize]
    header = kind(block, check=False)  # what it would mend with a line of log is checked here
    if header["magic"].item().startswith(b"ni"):
        raise ImageError("unsupported", "NIfTI whose voxels lie in another file (.hdr and .img)")
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ImageError("unsupported", "NIfTI of colours, complex numbers or more than 64 bits")
    shape = _shape(header)
    voxels = int(np.prod(shape, dtype=object))
    check_volume(voxels if min(shape) > 0 else 0, voxels * dtype.itemsize + max(int(header.get_data_offset()), 0))
    return header


def _shape(header: Any) -> tuple[int, int, int]:
    """Of the one volume; a single slice is a volume too."""
    shape = [int(n) for n in header.get_data_shape()]
    if len(shape) < 2:
        raise ImageError("unsupported", f"NIfTI of {len(shape)} dimensions")
    volumes = int(np.prod(shape[3:], dtype=object)) if len(shape) > 3 else 1
    if volumes > 1:
        raise ImageError("unsupported", f"NIfTI of {volumes} volumes, expected one")
    x, y, z = (*shape, 1)[:3]
    return x, y, z


def _values(file: io.IOBase, header: Any) -> npt.NDArray[Any]:
    """[X, Y, Z] as stored, not yet scaled."""
    from nibabel.volumeutils import array_from_file

    shape = _shape(header)
    for axis in range(3):
        check_pixels(*(n for i, n in enumerate(shape) if i != axis))
    offset = int(header.get_data_offset())
    if offset < 0:
        raise ImageError("unreadable", "NIfTI whose voxels begin before the file")
    try:
        stored = array_from_file(shape, header.get_data_dtype(), file, offset, mmap=False)
    except OSError as error:
        if error.errno is not None or isinstance(error, gzip.BadGzipFile):
            raise
        raise ImageError("unreadable", "ends before its last voxel") from None  # nibabel's text names the path
    file.read(1)  # at the end of a gzip file its checksum is compared
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        raise ImageError("not-finite", "holds NaN or infinite voxels")
    return np.asarray(stored)


def _window(
    stored: npt.NDArray[Any], header: Any, intensity: str
) -> tuple[float, float, Callable[[npt.NDArray[Any]], npt.NDArray[np.float64]]]:
    """Least and largest value shown, and what makes values of what is stored."""
    slope, intercept = header.get_slope_inter()
    if slope is None:
        slope, intercept = 1.0, 0.0

    def scale(raw: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        return np.asarray(raw.astype(np.float64) * slope + intercept)

    if intensity != "range":
        # Of what is stored, since scaling changes no order: a volume is never held as float64.
        low, high = sorted(float(scale(np.asarray(value))) for value in bounds(stored))
        if not np.isfinite([low, high]).all():
            raise ImageError("not-finite", "voxels become infinite by their scaling")
        return low, high, scale
    if stored.dtype.kind == "f":
        scale_float(scale(np.asarray([stored.min(), stored.max()])))
        return 0.0, 1.0, scale
    limits = np.iinfo(stored.dtype)
    return float(limits.min), float(limits.max), lambda raw: raw.astype(np.float64)


def _geometry(header: Any) -> str | None:
    """Where the axes point to, as in "RAS", if the header knows it."""
    from nibabel import aff2axcodes

    if int(header["sform_code"]) <= 0 and int(header["qform_code"]) <= 0:
        return None
    try:
        axes = aff2axcodes(header.get_best_affine())  # type: ignore[no-untyped-call]
    except (ValueError, np.linalg.LinAlgError):  # a rotation that is none
        return None
    return None if None in axes else "".join(axes)
