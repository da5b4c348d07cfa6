# SPDX-License-Identifier: Apache-2.0
"""What is read: where an image file's bytes are, and the pictures that are found in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["About", "Frame", "Header", "Original", "Picture", "Source"]


@dataclass(frozen=True, order=True)
class Source:
    """A file, or a member of a zip or tar archive.

    >>> str(Source(Path("studies.zip"), "a/b.dcm"))
    'studies.zip!/a/b.dcm'
    """

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}!/{self.member}"


@dataclass(frozen=True)
class About:
    """What is known of a picture beside its pixels. Names nobody, but `study` and `series`, which are to be hashed."""

    height: int  # pixels, of the picture as it was stored, upright
    width: int
    colour: bool  # whether its channels differ
    low: float  # least, largest and mean value of the pixels that the model is given, 0 to 1
    high: float
    mean: float
    flags: tuple[str, ...] = ()  # what makes its quality doubtful, in a fixed word each
    shown: str | None = None  # what made the values 0 to 1: window, lut, percentile or range
    geometry: str | None = None  # axes of a volume, as in "RAS"; None: not known
    burned_in: str | None = None  # DICOM's BurnedInAnnotation: yes, no or unknown; None: no DICOM
    modality: str | None = None  # DICOM's Modality, BodyPartExamined and ViewPosition, in capitals
    body_part: str | None = None
    view: str | None = None
    study: str | None = None  # DICOM's StudyInstanceUID and SeriesInstanceUID: never written as they are
    series: str | None = None
    manufacturer: str | None = None  # DICOM's Manufacturer and ManufacturerModelName, in capitals
    device_model: str | None = None
    std: float | None = None  # of the pixels that the model is given, their channels' mean: deviation and percentiles
    p01: float | None = None
    p50: float | None = None
    p99: float | None = None


@dataclass(frozen=True)
class Header:
    """Values of a DICOM header, of one frame, by keyword: those of the patient too, for results in DICOM alone."""

    values: Mapping[str, tuple[str, ...]]
    frames: int  # of the file
    mended: bool  # something that the standard forbids was left out
    problem: str | None  # a word for what is missing without which there can be no result


@dataclass(frozen=True)
class Original:
    """A DICOM picture as it was, for results in DICOM."""

    header: Header
    pixels: npt.NDArray[np.uint8]  # [H, W] or [H, W, 3]


@dataclass(frozen=True)
class Picture:
    """One picture as a decoder gives it, of its own size."""

    pixels: npt.NDArray[np.float32]  # [3, H, W] in [0, 1]
    flags: tuple[str, ...] = ()
    facts: Mapping[str, str | None] = field(default_factory=dict)  # fields of `About`, from shown on
    header: Header | None = None  # of DICOM, where it was asked for


@dataclass(frozen=True)
class Frame:
    """One picture of a file, ready for a model."""

    index: int  # 0 for a file's first
    pixels: Tensor  # float32 [3, S, S] in [0, 1], on the CPU
    about: About
    original: Original | None = None  # where it was asked for, and is DICOM
