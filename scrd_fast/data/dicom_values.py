# SPDX-License-Identifier: Apache-2.0
"""From stored DICOM values to what a viewer would show first, in [0, 1]."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from scrd_fast.data.intensity import percentile_window
from scrd_fast.errors import ImageError

__all__ = ["Window", "shown", "voi"]

Gray = npt.NDArray[np.float64]
_GRAY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", "PALETTE COLOR")  # pydicom makes RGB of them


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


def voi(dataset: Any, index: int = 0) -> Window | None:
    """A frame's first window, where it is one: empty values and widths that the standard forbids count as none."""
    windows = (_window(place) for place in _places(dataset, "FrameVOILUTSequence", index))
    return next((window for window in windows if window is not None), None)


def _window(place: Any) -> Window | None:
    try:
        center, width = _number(place, "WindowCenter"), _number(place, "WindowWidth")
    except (TypeError, ValueError):
        return None
    function = str(place.get("VOILUTFunction") or "LINEAR")
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or center is None or width is None:
        return None
    if not np.isfinite([center, width]).all():
        return None
    return Window(center, width, function) if width >= 1 or (width > 0 and function != "LINEAR") else None


def _places(dataset: Any, group: str, index: int) -> list[Any]:
    """Where a value of a frame can stand: in its own functional group, in that of all frames, in the data set."""
    own, shared = (dataset.get(f"{name}FunctionalGroupsSequence") or [] for name in ("PerFrame", "Shared"))
    return [item for frame in (*own[index : index + 1], *shared[:1]) for item in (frame.get(group) or [])[:1]] + [
        dataset
    ]


def _number(place: Any, name: str) -> float | None:
    """The first where there are several; None where it is absent or empty."""
    value = place.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, (str, int, float)):
        return float(value)
    return float(value[0]) if len(value) else None


def shown(
    dataset: Any, pixels: npt.NDArray[Any], intensity: str, index: int = 0
) -> tuple[npt.NDArray[np.float32], str]:
    """The pixels of frame `index`, as pydicom decodes them, as [3, H, W], and by what: `About.shown`.

    Raises `ImageError` and what pydicom does.
    """
    kind = str(dataset.PhotometricInterpretation)
    if kind in _GRAY:
        gray, rule = _gray(dataset, pixels, intensity, index)
        if kind == "MONOCHROME1":
            gray = 1 - gray
        return np.broadcast_to(gray.astype(np.float32), (3, *gray.shape)).copy(), rule
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
    rule = "percentile" if intensity == "percentile" else "range"
    return np.ascontiguousarray((percentile_window(rgb) if rule == "percentile" else rgb).transpose(2, 0, 1)), rule


def _gray(dataset: Any, pixels: npt.NDArray[Any], intensity: str, index: int) -> tuple[Gray, str]:
    if pixels.ndim != 2:
        raise ImageError("unsupported", f"gray DICOM with pixels of {pixels.ndim} dimensions")
    if intensity == "range":
        bits = int(dataset.get("BitsStored") or 0)
        if not bits or pixels.dtype.kind == "f":
            raise ImageError("out-of-range", "float pixels: intensity 'range' wants whole numbers")
        low = -(2.0 ** (bits - 1)) if dataset.get("PixelRepresentation") else 0.0
        return ((pixels.astype(np.float64) - low) / (2.0**bits - 1)).clip(0, 1), "range"
    values = _of_modality(dataset, pixels, index)
    if not np.isfinite(values).all():
        raise ImageError("not-finite", "holds NaN or infinite pixels")
    if intensity == "auto":
        if (window := voi(dataset, index)) is not None:
            return window(values), "window"
        if table := dataset.get("VOILUTSequence"):
            from pydicom.pixels.processing import apply_voi

            shown = apply_voi(np.rint(values).astype(np.int64), dataset)  # a LUT is indexed
            return np.asarray(shown / (2.0 ** int(table[0].LUTDescriptor[2]) - 1), dtype=np.float64).clip(0, 1), "lut"
    return percentile_window(values, ~_padding(dataset, pixels)).astype(np.float64), "percentile"


def _of_modality(dataset: Any, pixels: npt.NDArray[Any], index: int) -> Gray:
    """What was measured: by the modality LUT, or slope and intercept, of which an absent one is 1 or 0."""
    if dataset.get("ModalityLUTSequence"):
        from pydicom.pixels.processing import apply_modality_lut

        return np.asarray(apply_modality_lut(pixels, dataset), dtype=np.float64)
    places = _places(dataset, "PixelValueTransformationSequence", index)
    pairs = [(_number(place, "RescaleSlope"), _number(place, "RescaleIntercept")) for place in places]
    slope, intercept = next((pair for pair in pairs if pair != (None, None)), (None, None))
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
