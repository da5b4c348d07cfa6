# SPDX-License-Identifier: Apache-2.0
"""What all results in DICOM have in common: their source, where they belong, what made them, their UIDs.

The same picture, model and calibration give the same UIDs and the same bytes: nothing here looks at a clock.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

import scrd_fast
from scrd_fast.calibration import Calibration
from scrd_fast.config import Preprocessing
from scrd_fast.data.frames import Header
from scrd_fast.data.reading import inner_box
from scrd_fast.screening.screener import Screened

__all__ = ["RESEARCH", "SCHEME", "Made", "Maker", "file_of", "stored_map", "uid_of"]

RESEARCH = "RESEARCH USE - NOT FOR DIAGNOSIS"
SCHEME = "99SCRDFAST"  # of our own codes
_NAMESPACE = uuid.UUID("5c3d0f6e-6a0b-5d0e-9d55-0f7a3d3a1b52")
_EMPTY = (  # that must be there, known or not
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName", "Modality"),
)
_NUMBERS = {"sc": 91, "sr": 92, "seg": 93}  # of the series, after that of the source's
_TITLES = {
    "sc": "anomaly map, research use",
    "sr": "anomaly score, research use",
    "seg": "anomaly region, research use",
}
_STAND_IN = "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture
MOST = 2**31 - 1  # of a number in DICOM


def uid_of(*parts: object) -> str:
    """A UID below 2.25 that follows from `parts`.

    >>> uid_of("a", 1) == uid_of("a", 1) != uid_of("a", 2)
    True
    """
    return f"2.25.{uuid.uuid5(_NAMESPACE, chr(0).join(map(str, parts))).int}"


@dataclass(frozen=True)
class Maker:
    """What makes the results of a run."""

    teacher: str
    sha256: str  # of the model
    precision: str
    preprocessing: Preprocessing
    calibration: Calibration
    foreign: bool  # the calibration is another model's or site's
    started: str  # the run, as YYYYMMDDhhmmss: the date of results whose source has none

    @property
    def name(self) -> str:
        return f"scrd_fast {self.teacher}"[:64]

    @property
    def scale(self) -> tuple[float, float]:
        """Of the heat maps."""
        assert self.calibration.map_scale is not None  # for the type checker: without one there are no results
        return self.calibration.map_scale

    def uid(self, *parts: object) -> str:
        """One of this model, calibration and version."""
        known = (self.sha256, self.calibration.id, self.foreign, self.precision, scrd_fast.__version__)
        return uid_of(*parts, *known)


class Made:
    """A picture's result, and its source as highdicom takes it.

    To highdicom every source is a single-frame Secondary Capture, with the patient, study and geometry of the very
    frame: it knows less of other classes, and of some nothing. `file_of` then gives references the true class.
    """

    def __init__(self, maker: Maker, result: Screened) -> None:
        assert result.original is not None  # for the type checker
        assert result.about is not None
        self.maker, self.result, self.about, self.pixels = maker, result, result.about, result.original.pixels
        header = result.original.header
        self.source = _source(header, result.about.height, result.about.width)
        self.sop_class, self.source.SOPClassUID = self.source.SOPClassUID, _STAND_IN
        self.frame = (result.frame or 0) + 1 if header.frames > 1 else None  # as DICOM counts

    @property
    def reference(self) -> Any:
        """The source, as sequences name it."""
        from pydicom.dataset import Dataset

        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = self.sop_class, self.source.SOPInstanceUID
        if self.frame is not None:
            item.ReferencedFrameNumber = self.frame
        return item

    @property
    def dated(self) -> tuple[str, str]:
        """Date and time of the source, the most exact that it has: a UID has one content, whenever it is made."""
        return self._date or (self.maker.started[:8], self.maker.started[8:])

    @property
    def _date(self) -> tuple[str, str] | None:
        for name in ("Content", "Acquisition", "Series", "Study"):
            if date := self.source.get(f"{name}Date"):
                return str(date), str(self.source.get(f"{name}Time") or "000000")
        return None

    @property
    def orientation(self) -> list[str]:
        """Where rows and columns lead in the patient: as the header says, or as cosines do; empty if not known."""
        if said := self.source.get("PatientOrientation"):
            return [str(text) for text in said] if len(said) == 2 else []
        cosines = self.source.get("ImageOrientationPatient")
        return [_letters(cosines[:3]), _letters(cosines[3:])] if cosines else []

    def uid(self, kind: str, what: str = "instance") -> str:
        undated = () if self._date else (self.maker.started,)
        return self.maker.uid(kind, what, self.source.SOPInstanceUID, self.frame, *undated)

    def placed(self, kind: str) -> dict[str, Any]:
        """What every constructor of highdicom is given."""
        date, time = self.dated
        return {
            "series_instance_uid": self.maker.uid(kind, "series", self.source.SeriesInstanceUID),
            "series_number": _number(self.source.get("SeriesNumber"), MOST // 100 - 1, 0) * 100 + _NUMBERS[kind],
            "sop_instance_uid": self.uid(kind),
            "instance_number": self._instance_number(),
            "series_description": f"scrd_fast {_TITLES[kind]}",
            **{"manufacturer": "scrd_fast", "manufacturer_model_name": self.maker.name},
            **{"software_versions": scrd_fast.__version__, "device_serial_number": self.maker.sha256},
            **{"content_date": date, "content_time": time, "content_qualification": "RESEARCH"},
            "contributing_equipment": [self._equipment()],
        }

    def _instance_number(self) -> int:
        if self.frame is None:
            return _number(self.source.get("InstanceNumber"), MOST, 1) or 1
        return _number(self.source.get("InstanceNumber"), MOST // 100_000 - 1, 0) * 100_000 + self.frame

    def _equipment(self) -> Any:
        from highdicom import ContributingEquipment
        from pydicom.sr.codedict import codes

        return ContributingEquipment(
            manufacturer="scrd_fast",
            purpose_of_reference=codes.DCM.ProcessingEquipment,
            manufacturer_model_name=self.maker.name,
            software_versions=scrd_fast.__version__,
            device_serial_number=self.maker.sha256,
            contribution_description=f"anomaly detection, research use; calibration {self.maker.calibration.id}",
        )


def _source(header: Header, rows: int, columns: int) -> Any:
    from pydicom.datadict import dictionary_VR
    from pydicom.dataset import Dataset

    source = Dataset()
    if not all(text.isascii() for texts in header.values.values() for text in texts):
        source.SpecificCharacterSet = "ISO_IR 192"  # UTF-8, whatever the source was in
    for name, texts in header.values.items():
        values = [int(text) for text in texts] if dictionary_VR(name) == "IS" else list(texts)
        setattr(source, name, values[0] if len(values) == 1 else values)
    for name in _EMPTY:
        if name not in source:
            setattr(source, name, "")
    source.Rows, source.Columns = rows, columns
    return source


def _letters(direction: Sequence[float]) -> str:
    """
    >>> _letters([0.9, -0.4, 0.0])
    'LA'
    """
    axes = zip(map(float, direction), ("RL", "AP", "FH"), strict=True)
    found = sorted(((abs(x), ends[x > 0]) for x, ends in axes if abs(x) > 0.05), reverse=True)
    return "".join(letter for _, letter in found)


def _number(value: Any, most: int, otherwise: int) -> int:
    return int(value) if isinstance(value, int) and 0 <= value <= most else otherwise


def file_of(made: Made, instance: Any) -> bytes:
    """The file of an object of highdicom's, without what that took from the clock."""
    for name in ("InstanceCreationDate", "InstanceCreationTime", "DateOfSecondaryCapture", "TimeOfSecondaryCapture"):
        if name in instance:
            del instance[name]
    for item in instance.ContributingEquipmentSequence:
        if "ContributionDateTime" in item:
            del item["ContributionDateTime"]
    if zone := made.source.get("TimezoneOffsetFromUTC"):
        instance.TimezoneOffsetFromUTC = zone

    def mend(place: Any, element: Any) -> None:
        if element.keyword == "ReferencedSOPInstanceUID" and element.value == made.source.SOPInstanceUID:
            place.ReferencedSOPClassUID = made.sop_class

    instance.walk(mend)
    out = io.BytesIO()
    instance.save_as(out, enforce_file_format=True)
    return out.getvalue()


def stored_map(made: Made, height: int, width: int) -> npt.NDArray[np.float32]:
    """The map [height, width] over the stored picture: the inverse of `resize`.

    Between the map's pixels it is bilinear; a pixel that covers several has the largest of them.
    """
    values = made.result.map
    assert values is not None  # for the type checker: the screener keeps maps
    top, left, h, w = inner_box(made.about.height, made.about.width, made.maker.preprocessing)
    inner = values[None, None, top : top + h, left : left + w]
    pooled = F.adaptive_max_pool2d(inner, (min(h, height), min(w, width)))
    with torch.inference_mode():
        grown = F.interpolate(pooled, size=(height, width), mode="bilinear", align_corners=False)
    return np.asarray(grown[0, 0].numpy())
