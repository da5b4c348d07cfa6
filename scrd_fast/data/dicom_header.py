# SPDX-License-Identifier: Apache-2.0
"""What a DICOM result needs of its source's header: values that the standard allows, as text, of one frame.

What is read here is anything: what does not belong where it stands is left out, never cut or guessed, since half a
patient's number is another patient's. The dictionary of pydicom says what a value may be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from scrd_fast.data.frames import Header

__all__ = ["Headers"]

_UIDS = {
    "StudyInstanceUID": "no-study-uid",
    "SeriesInstanceUID": "no-series-uid",
    "SOPInstanceUID": "no-instance-uid",
    "SOPClassUID": "no-class-uid",
}
_PATIENT = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientBirthTime", "PatientSex"),
    *("OtherPatientNames", "EthnicGroup", "PatientComments", "PatientSpeciesDescription", "PatientBreedDescription"),
    *("ResponsiblePerson", "ResponsiblePersonRole", "ResponsibleOrganization", "QualityControlSubject"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "PatientAge", "PatientSize", "PatientWeight"),
    *("ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName", "ClinicalTrialSiteID"),
    *("ClinicalTrialSiteName", "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID"),
    *("ClinicalTrialTimePointID", "ClinicalTrialTimePointDescription", "PatientSexNeutered"),
)
_STUDY = ("StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber", "ReferringPhysicianName")
_TIMES = (
    *("ContentDate", "ContentTime", "AcquisitionDate", "AcquisitionTime", "SeriesDate", "SeriesTime"),
    "TimezoneOffsetFromUTC",
)
_IMAGE = (
    *("Modality", "SeriesNumber", "InstanceNumber", "Laterality", "ImageLaterality", "PatientOrientation"),
    *("BodyPartExamined", "FrameOfReferenceUID", "PositionReferenceIndicator", "BurnedInAnnotation"),
    *("RecognizableVisualFeatures", "LossyImageCompression", "LossyImageCompressionRatio"),
    *("LossyImageCompressionMethod", "Manufacturer", "ManufacturerModelName", "SoftwareVersions"),
)
_GEOMETRY = {  # where it stands in a frame of a multi-frame object
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
}
_ALLOWED = {
    "PatientSex": ("M", "F", "O"),
    "PatientIdentityRemoved": ("YES", "NO"),
    "QualityControlSubject": ("YES", "NO"),
    "PatientSexNeutered": ("ALTERED", "UNALTERED"),
    "Laterality": ("R", "L"),
    "ImageLaterality": ("R", "L", "U", "B"),
    "BurnedInAnnotation": ("YES", "NO"),
    "RecognizableVisualFeatures": ("YES", "NO"),
    "LossyImageCompression": ("00", "01"),
}
_ONE_FRAME = {  # classes that can have but one
    f"1.2.840.10008.5.1.4.1.1.{end}"
    for end in ("1", "1.1", "1.1.1", "1.2", "1.2.1", "1.3", "1.3.1", "2", "4", "6.1", "7", "128")
}
_NUMBERS = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2, "SliceThickness": 1}


class Headers:
    """The headers of a file's frames."""

    def __init__(self, dataset: Any, count: int) -> None:
        self._dataset, self._count = dataset, count
        self._mended = False
        self._shared = {
            name: texts for name in (*_UIDS, *_PATIENT, *_STUDY, *_TIMES, *_IMAGE) if (texts := self._of(name))
        }
        if self._shared.get("PatientIdentityRemoved") == ("YES",) and "DeidentificationMethod" not in self._shared:
            self._shared["DeidentificationMethod"] = tuple(self._methods()) or ("not stated",)
        self._problem = next((word for name, word in _UIDS.items() if name not in self._shared), None)
        if self._problem is None and count > 1 and self._shared["SOPClassUID"][0] in _ONE_FRAME:
            self._problem = "frames-of-one"  # a frame of it cannot be referred to

    def of(self, index: int) -> Header:
        """That of frame `index`."""
        values, places = dict(self._shared), self._places(index)
        geometry = {}
        for name, group in _GEOMETRY.items():
            texts = next((texts for place in places.get(group, ()) if (texts := self._of(name, place))), ())
            if _is_geometry(name, texts):
                geometry[name] = texts
        if len(geometry) == len(_GEOMETRY):  # no segmentation can have some of it
            values |= geometry
        return Header(values, self._count, self._mended, self._problem)

    def _places(self, index: int) -> dict[str, list[Any]]:
        """Where a frame's geometry may stand, the nearest first."""
        found: dict[str, list[Any]] = {}
        for group in set(_GEOMETRY.values()):
            frames = _items(self._dataset, "PerFrameFunctionalGroupsSequence")[index : index + 1]
            shared = _items(self._dataset, "SharedFunctionalGroupsSequence")[:1]
            found[group] = [item for place in (*frames, *shared) for item in _items(place, group)[:1]]
            if self._count == 1:  # elsewhere it would be the first frame's alone
                found[group].append(self._dataset)
        return found

    def _of(self, name: str, place: Any = None) -> tuple[str, ...]:
        """An element's values as text; none where it is absent, empty or not allowed."""
        try:
            texts = _texts(self._dataset if place is None else place, name)
        except Exception:  # pydicom converts a value when it is asked for it, and raises anything
            texts = None
        if texts is None:
            self._mended = True
        return texts or ()

    def _methods(self) -> Iterator[str]:
        for item in _items(self._dataset, "DeidentificationMethodCodeSequence"):
            yield from self._of("CodeMeaning", item)


def _items(place: Any, name: str) -> Sequence[Any]:
    try:
        found = place.get(name)
        return found if place.get_item(name) is not None and place[name].VR == "SQ" and found else ()
    except Exception:
        return ()


def _texts(place: Any, name: str) -> tuple[str, ...] | None:
    """None for values that the standard forbids there."""
    from pydicom.config import RAISE
    from pydicom.datadict import dictionary_VM, dictionary_VR
    from pydicom.multival import MultiValue
    from pydicom.valuerep import PersonName, validate_value

    value = place.get(name)
    if value is None or value == "" or value == []:
        return ()
    values = list(value) if isinstance(value, (MultiValue, list, tuple)) else [value]
    if not all(isinstance(item, (str, int, float, PersonName)) for item in values):
        return None
    texts = tuple(str(item).strip(" \0") for item in values)
    kind, many = dictionary_VR(name), dictionary_VM(name)
    if many == "1" and len(texts) > 1:
        return None
    for text in texts:
        text.encode()  # raises for half of a pair
        if not all(letter.isprintable() or (kind in ("LT", "ST") and letter in "\r\n\t") for letter in text):
            return None
        validate_value(kind, text, RAISE)
    if any(text not in _ALLOWED.get(name, texts) for text in texts):
        return None
    if name == "PatientOrientation" and (len(texts) != 2 or any(set(text) - set("APRLHF") for text in texts)):
        return None
    return texts if any(texts) else ()


def _is_geometry(name: str, texts: tuple[str, ...]) -> bool:
    if len(texts) != _NUMBERS[name]:
        return False
    values = [float(text) for text in texts]
    if not all(map(math.isfinite, values)):
        return False
    if name == "ImageOrientationPatient":
        row, column = values[:3], values[3:]
        across = sum(a * b for a, b in zip(row, column, strict=True))
        lengths = [math.hypot(*row), math.hypot(*column)]
        return abs(across) < 1e-3 and all(abs(length - 1) < 1e-3 for length in lengths)
    return name == "ImagePositionPatient" or min(values) > 0
