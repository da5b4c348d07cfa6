# SPDX-License-Identifier: Apache-2.0
"""DICOM files as pixels in [0, 1]: what a viewer would show first, decoded by pydicom.

Nothing of a header but technical facts goes into errors: names, numbers and dates of patients stay in the file.
"""

from __future__ import annotations

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
_WINDOWED = ("MONOCHROME1", "MONOCHROME2")


def is_dicom(source: str | Path | bytes) -> bool:
    """Whether it begins as a DICOM file does: with a preamble, or without one with the elements of group 2 or 8."""
    if isinstance(source, bytes):
        head = source[:132]
    else:
        with Path(source).open("rb") as file:
            head = file.read(132)
    bare = head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00"  # little-endian
    return head[128:] == b"DICM" or bare


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
        center, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    except (TypeError, ValueError):
        return None
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or not np.isfinite([center, width]).all():
        return None
    return Window(center, width, function) if width >= 1 or (width > 0 and function != "LINEAR") else None


def _first(value: Any) -> float:
    return float(value if isinstance(value, (str, int, float)) else value[0])


def decode_dicom(source: str | Path | bytes, intensity: str, most_pixels: int) -> npt.NDArray[np.float32]:
    """Pixels of a DICOM file of one frame as float32 [3, H, W] in [0, 1].

    Gray: modality LUT, the first window, else the VOI LUT, else the 0.5-99.5 percentiles, then MONOCHROME1 inverted.
    `intensity` "percentile" overrules window and LUT, "range" divides by what the stored bits can hold. Colour: divided
    by its range. Raises `ImageError`.
    """
    try:
        import pydicom
    except ImportError:
        raise ImageError("unsupported", _MISSING) from None
    _silence()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they name values of the header
        try:
            dataset = pydicom.dcmread(io.BytesIO(source) if isinstance(source, bytes) else source, force=True)
            _refuse(dataset, most_pixels)
            return _shown(dataset, _pixels(dataset), intensity)
        except (ImageError, MemoryError, FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # its text could hold values of the header
            raise ImageError("unreadable", f"DICOM that pydicom cannot read ({type(error).__name__})") from None


def _silence() -> None:
    """What pydicom logs of a bad file is in the error; its log names values of the header. Who set a level keeps it."""
    log = logging.getLogger("pydicom")
    if log.level == logging.NOTSET:
        log.setLevel(logging.CRITICAL + 1)


def _refuse(dataset: Any, most_pixels: int) -> None:
    """By the header, before memory is taken."""
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ImageError("no-pixels", "DICOM without an image")
    frames, rows, columns = (int(dataset.get(name) or 1) for name in ("NumberOfFrames", "Rows", "Columns"))
    if frames > 1:
        raise ImageError("multi-frame", f"holds {frames} images, expected one a file")
    if rows * columns > most_pixels:
        raise ImageError("too-large", f"{columns} x {rows} pixels, at most {most_pixels} are read")


def _pixels(dataset: Any) -> npt.NDArray[Any]:
    from pydicom.pixels.utils import pixel_array

    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    if syntax is None:  # a file without its meta header: what is not compressed can be read as the standard's default
        from pydicom.uid import ImplicitVRLittleEndian

        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    if syntax is not None and syntax.is_compressed and not _has_decoder(syntax):
        name = syntax if syntax.name == syntax else f"{syntax} ({syntax.name})"
        text = f"no decoder for the transfer syntax {name}: install this package with its [dicom] extra"
        raise ImageError("unsupported", text)
    return pixel_array(dataset)


def _has_decoder(syntax: Any) -> bool:
    from pydicom.pixels.decoders.base import get_decoder

    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:  # of video and the like
        return False


def _shown(dataset: Any, pixels: npt.NDArray[Any], intensity: str) -> npt.NDArray[np.float32]:
    kind = str(dataset.get("PhotometricInterpretation") or "MONOCHROME2")
    if kind in _WINDOWED:
        gray = _gray(dataset, pixels, intensity)
        if kind == "MONOCHROME1":
            gray = 1 - gray
        return np.broadcast_to(gray.astype(np.float32), (3, *gray.shape)).copy()
    if kind == "PALETTE COLOR":
        from pydicom.pixels.processing import apply_color_lut

        pixels = apply_color_lut(pixels, dataset)
        top = 2.0 ** (8 * pixels.dtype.itemsize) - 1
    else:
        top = 2.0 ** int(dataset.BitsStored) - 1
    if pixels.ndim != 3 or pixels.shape[2] < 3:
        raise ImageError("unsupported", f"DICOM of {kind}")
    rgb = (pixels[..., :3].astype(np.float32) / np.float32(top)).clip(0, 1)
    return np.ascontiguousarray((percentile_window(rgb) if intensity == "percentile" else rgb).transpose(2, 0, 1))


def _gray(dataset: Any, pixels: npt.NDArray[Any], intensity: str) -> Gray:
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    if pixels.ndim != 2:
        raise ImageError("unsupported", f"gray DICOM with pixels of {pixels.ndim} dimensions")
    if intensity == "range":
        bits = int(dataset.get("BitsStored") or 0)
        if not bits or pixels.dtype.kind == "f":
            raise ImageError("out-of-range", "float pixels: intensity 'range' wants whole numbers")
        low = -(2.0 ** (bits - 1)) if dataset.get("PixelRepresentation") else 0.0
        return ((pixels.astype(np.float64) - low) / (2.0**bits - 1)).clip(0, 1)
    values = np.asarray(apply_modality_lut(pixels, dataset), dtype=np.float64)
    if not np.isfinite(values).all():
        raise ImageError("not-finite", "holds NaN or infinite pixels")
    if intensity == "auto":
        if (window := voi(dataset)) is not None:
            return window(values)
        if table := dataset.get("VOILUTSequence"):
            whole = values.astype(np.int64)  # a LUT is indexed
            return np.asarray(apply_voi(whole, dataset) / (2.0 ** int(table[0].LUTDescriptor[2]) - 1), dtype=np.float64)
    return percentile_window(values).astype(np.float64)
