# SPDX-License-Identifier: Apache-2.0
"""DICOM files as pixels in [0, 1]: what a viewer would show first, decoded by pydicom.

Nothing of a patient goes into errors or logs: they name sizes, counts, kinds of pixels and transfer syntaxes alone.
"""

from __future__ import annotations

import functools
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scrd_fast.data.intensity import percentile_window
from scrd_fast.errors import ImageError

__all__ = ["Window", "decode_dicom", "is_dicom", "voi"]

Gray = npt.NDArray[np.float64]
_MISSING = "DICOM files need pydicom: install this package with its [dicom] extra"
_GRAY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", "PALETTE COLOR")  # pydicom makes RGB of them
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_OTHERS = (b"\x89PNG", b"\xff\xd8", b"BM", b"RIFF", b"GIF8")  # so do other images begin; TIFF may be DICOM too


def is_dicom(source: str | Path | bytes) -> bool:
    """Whether it begins as a DICOM file does: with a preamble, or without one with the elements of group 2 or 8."""
    head = _head(source, 132)
    if head.startswith(_OTHERS):
        return False
    bare = head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00"  # little-endian
    return head[128:] == b"DICM" or bare


def _head(source: str | Path | bytes, count: int) -> bytes:
    if isinstance(source, bytes):
        return source[:count]
    with Path(source).open("rb") as file:
        return file.read(count)


class Window:
    """A VOI window of DICOM PS3.3 C.11.2.1: modality values to [0, 1]."""

    def __init__(self, center: float, width: float, function: str = "LINEAR") -> None:
        self.center, self.width, self.function = center, width, function

    def __call__(self, values: Gray) -> Gray:
        """
        >>> Window(50, 101)(np.array([-1.0, 49.5, 200.0]))
        array([0. , 0.5, 1. ])
        """
        if self.function == "SIGMOID":
            return np.asarray(1 / (1 + np.exp(-4 * (values - self.center) / self.width)))
        if self.function == "LINEAR_EXACT":
            return ((values - self.center) / self.width + 0.5).clip(0, 1)
        if self.width == 1:  # a threshold
            return (values > self.center - 0.5).astype(np.float64)
        return ((values - (self.center - 0.5)) / (self.width - 1) + 0.5).clip(0, 1)


def voi(dataset: Any) -> Window | None:
    """The first window, where it is one: empty values and widths that the standard forbids count as none."""
    try:
        center, width = (_number(dataset, "FrameVOILUTSequence", name) for name in ("WindowCenter", "WindowWidth"))
    except (TypeError, ValueError):
        return None
    function = str(_value(dataset, "FrameVOILUTSequence", "VOILUTFunction") or "LINEAR")
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or center is None or width is None:
        return None
    if not np.isfinite([center, width]).all():
        return None
    return Window(center, width, function) if width >= 1 or (width > 0 and function != "LINEAR") else None


def _value(dataset: Any, group: str, name: str) -> Any:
    """Of the dataset, or of that functional group of its one frame; None where it is absent or empty."""
    places = [dataset]
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for frame in (dataset.get(groups) or [])[:1]:
            places += (frame.get(group) or [])[:1]
    values = [place.get(name) for place in places]
    return next((value for value in values if value is not None and value != ""), None)


def _number(dataset: Any, group: str, name: str) -> float | None:
    """The first where there are several."""
    value = _value(dataset, group, name)
    if value is None or isinstance(value, (str, int, float)):
        return None if value is None else float(value)
    return float(value[0]) if len(value) else None


def decode_dicom(source: str | Path | bytes, intensity: str, most_pixels: int) -> npt.NDArray[np.float32]:
    """Pixels of a DICOM file of one frame as float32 [3, H, W] in [0, 1].

    Gray: modality LUT or rescaling, the first window where it is valid, else the VOI LUT, else the 0.5-99.5 percentiles
    of what is no padding, then MONOCHROME1 inverted. `intensity` "percentile" overrules window and LUT, "range" divides
    by what the stored bits can hold. Colour: divided by its range. Raises `ImageError`.
    """
    try:
        pydicom = _quiet_pydicom()
    except ImportError:
        raise ImageError("unsupported", _MISSING) from None
    if _DEFLATED in _head(source, 1024):
        raise ImageError("unsupported", "deflated DICOM: how large it grows is not known before")
    try:
        opened = io.BytesIO(source) if isinstance(source, bytes) else source
        _refuse(pydicom.dcmread(opened, force=True, stop_before_pixels=True), most_pixels)
        if isinstance(opened, io.BytesIO):
            opened.seek(0)
        dataset = pydicom.dcmread(opened, force=True)
        return _shown(dataset, _pixels(dataset), intensity)
    except (ImageError, MemoryError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # its text could hold values of the header
        raise ImageError("unreadable", f"DICOM that pydicom cannot read ({type(error).__name__})") from None


@functools.cache
def _quiet_pydicom() -> Any:
    """pydicom, without the warnings and lines of log that name values of a header; who set another level keeps it.

    Once for the process: files are read by several threads, and the filters of warnings belong to all.
    """
    import pydicom

    warnings.filterwarnings("ignore", module=r"pydicom\b")
    log = logging.getLogger("pydicom")
    if log.level in (logging.NOTSET, logging.WARNING):  # as pydicom leaves it
        log.setLevel(logging.CRITICAL + 1)
    return pydicom


def _refuse(dataset: Any, most_pixels: int) -> None:
    """By the header, before pixels are read."""
    frames, rows, columns = (int(dataset.get(name) or 1) for name in ("NumberOfFrames", "Rows", "Columns"))
    if frames > 1:
        raise ImageError("multi-frame", f"holds {frames} images, expected one a file")
    if rows * columns > most_pixels:
        raise ImageError("too-large", f"{columns} x {rows} pixels, at most {most_pixels} are read")
    bits = dataset.get("BitsStored")
    if bits and int(dataset.get("HighBit", bits - 1)) != bits - 1:
        raise ImageError("unsupported", "DICOM whose high bit is not the last of the stored bits")
    if any(str(element.keyword).startswith("Segmented") for element in dataset if element.tag.group == 0x28):
        raise ImageError("unsupported", "DICOM with a segmented palette")


def _pixels(dataset: Any) -> npt.NDArray[Any]:
    from pydicom import uid
    from pydicom.encaps import parse_basic_offsets
    from pydicom.pixels.utils import pixel_array

    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ImageError("no-pixels", "DICOM without an image")
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:  # a file without its meta header, so not a compressed one
        little = dataset.original_encoding[1] is not False
        syntax = uid.ImplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    if syntax.is_compressed:
        if not _has_decoder(syntax):
            name = syntax if syntax.name == syntax else f"{syntax} ({syntax.name})"
            text = f"no decoder for the transfer syntax {name}: install this package with its [dicom] extra"
            raise ImageError("unsupported", text)
        frames = len(parse_basic_offsets(dataset.PixelData))
    else:
        names = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")
        expected = int(np.prod([int(dataset.get(name) or 1) for name in names], dtype=object)) / 8
        frames = int(len(dataset.get("PixelData") or b"") // max(expected, 1))
    if frames > 1:
        raise ImageError("multi-frame", f"holds {frames} images, expected one a file")
    return pixel_array(dataset, index=0)


def _has_decoder(syntax: Any) -> bool:
    from pydicom.pixels.decoders.base import get_decoder

    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:  # of video and the like
        return False


def _shown(dataset: Any, pixels: npt.NDArray[Any], intensity: str) -> npt.NDArray[np.float32]:
    kind = str(dataset.PhotometricInterpretation)
    if kind in _GRAY:
        gray = _gray(dataset, pixels, intensity)
        if kind == "MONOCHROME1":
            gray = 1 - gray
        return np.broadcast_to(gray.astype(np.float32), (3, *gray.shape)).copy()
    if kind not in _COLOUR or (kind in _COLOUR[3:5] and "JPEG 2000" not in dataset.file_meta.TransferSyntaxUID.name):
        raise ImageError("unsupported", "DICOM of a colour space that is not known here")
    top = 2.0 ** int(dataset.BitsStored) - 1
    if kind == "PALETTE COLOR":
        from pydicom.pixels.processing import apply_color_lut

        pixels = apply_color_lut(pixels, dataset)
        top = 2.0 ** (8 * pixels.dtype.itemsize) - 1
    if pixels.ndim != 3 or pixels.shape[2] < 3:
        raise ImageError("unsupported", f"colour DICOM with pixels of {pixels.ndim} dimensions")
    rgb = (pixels[..., :3].astype(np.float32) / np.float32(top)).clip(0, 1)
    return np.ascontiguousarray((percentile_window(rgb) if intensity == "percentile" else rgb).transpose(2, 0, 1))


def _gray(dataset: Any, pixels: npt.NDArray[Any], intensity: str) -> Gray:
    if pixels.ndim != 2:
        raise ImageError("unsupported", f"gray DICOM with pixels of {pixels.ndim} dimensions")
    if intensity == "range":
        bits = int(dataset.get("BitsStored") or 0)
        if not bits or pixels.dtype.kind == "f":
            raise ImageError("out-of-range", "float pixels: intensity 'range' wants whole numbers")
        low = -(2.0 ** (bits - 1)) if dataset.get("PixelRepresentation") else 0.0
        return ((pixels.astype(np.float64) - low) / (2.0**bits - 1)).clip(0, 1)
    values = _of_modality(dataset, pixels)
    if not np.isfinite(values).all():
        raise ImageError("not-finite", "holds NaN or infinite pixels")
    if intensity == "auto":
        if (window := voi(dataset)) is not None:
            return window(values)
        if table := dataset.get("VOILUTSequence"):
            from pydicom.pixels.processing import apply_voi

            shown = apply_voi(np.rint(values).astype(np.int64), dataset)  # a LUT is indexed
            return np.asarray(shown / (2.0 ** int(table[0].LUTDescriptor[2]) - 1), dtype=np.float64).clip(0, 1)
    return percentile_window(values, ~_padding(dataset, pixels)).astype(np.float64)


def _of_modality(dataset: Any, pixels: npt.NDArray[Any]) -> Gray:
    """What was measured: by the modality LUT, or slope and intercept, of which an absent one is 1 or 0."""
    if dataset.get("ModalityLUTSequence"):
        from pydicom.pixels.processing import apply_modality_lut

        return np.asarray(apply_modality_lut(pixels, dataset), dtype=np.float64)
    names = ("RescaleSlope", "RescaleIntercept")
    slope, intercept = (_number(dataset, "PixelValueTransformationSequence", name) for name in names)
    if slope == 0:
        raise ImageError("unreadable", "DICOM with a rescale slope of 0")
    return pixels.astype(np.float64) * (1.0 if slope is None else slope) + (intercept or 0.0)


def _padding(dataset: Any, pixels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where stored values say that there is no picture."""
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int):
        return np.zeros(pixels.shape, dtype=bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((value, limit if isinstance(limit, int) else value))
    return (pixels >= low) & (pixels <= high)
