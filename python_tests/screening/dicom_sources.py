# SPDX-License-Identifier: Apache-2.0
"""DICOM files of several kinds, whole enough to have results in DICOM. Wants pydicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from conftest import texture
from dicom_files import made, stacked, written
from pydicom.dataset import Dataset

PATIENT = {
    "PatientName": "Müller^Jürgen",
    "PatientID": "4711",
    "PatientBirthDate": "19500704",
    "PatientSex": "M",
    "StudyInstanceUID": "1.2.826.0.1.77101",
    "StudyDate": "20240304",
    "StudyTime": "101112",
    "StudyID": "7",
    "AccessionNumber": "A7",
    "ReferringPhysicianName": "Meier^Eva",
    "Manufacturer": "Maker",
    "SpecificCharacterSet": "ISO_IR 100",
}
CLASSES = {  # of the standard
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "enhanced MR": "1.2.840.10008.5.1.4.1.1.4.1",
    "OT": "1.2.840.10008.5.1.4.1.1.7",
}
PLANE = {
    "FrameOfReferenceUID": "1.2.826.0.1.77103",
    "PositionReferenceIndicator": "",
    "ImagePositionPatient": [-10, -20, 30],
    "ImageOrientationPatient": [1, 0, 0, 0, 0, -1],
    "PixelSpacing": [0.5, 0.7],
    "SliceThickness": 3,
}


def image(kind: str, number: int = 1, *, pixels: np.ndarray[Any, Any] | None = None, **elements: Any) -> Dataset:
    """A 16-bit gray picture of a kind in `CLASSES`."""
    drawn = texture(np.random.default_rng(number)) if pixels is None else pixels
    dataset = (stacked if drawn.ndim == 3 else made)(*([drawn] if drawn.ndim == 3 else [16]))
    if drawn.ndim == 2:
        dataset.Rows, dataset.Columns = drawn.shape
        dataset.PixelData = drawn.astype(np.uint16).tobytes()
    series = f"1.2.826.0.1.77102.{len(kind)}"
    unique = {"SeriesInstanceUID": series, "SeriesNumber": 3, "InstanceNumber": number, "Modality": kind[-2:]}
    for name, value in (PATIENT | unique | elements).items():
        setattr(dataset, name, value)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CLASSES[kind]
    if "SOPInstanceUID" not in elements:
        dataset.SOPInstanceUID = f"1.2.826.0.1.77104.{len(kind)}.{number}"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID or "1.2.3"
    return dataset


def enhanced(frames: int = 3) -> Dataset:
    """A multi-frame MR whose frames lie at places of their own."""
    dataset = image("enhanced MR", 9, pixels=np.stack([texture(np.random.default_rng(i)) for i in range(frames)]))
    dataset.FrameOfReferenceUID = PLANE["FrameOfReferenceUID"]
    shared, dataset.PerFrameFunctionalGroupsSequence = Dataset(), []
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [Dataset()], [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = PLANE["ImageOrientationPatient"]
    shared.PixelMeasuresSequence[0].PixelSpacing = PLANE["PixelSpacing"]
    shared.PixelMeasuresSequence[0].SliceThickness = PLANE["SliceThickness"]
    for i in range(frames):
        group = Dataset()
        group.PlanePositionSequence = [Dataset()]
        group.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 10 * i]
        dataset.PerFrameFunctionalGroupsSequence.append(group)
    dataset.SharedFunctionalGroupsSequence = [shared]
    return dataset


def colour() -> Dataset:
    dataset = image("OT", 5)
    dataset.PixelData = np.repeat(texture(np.random.default_rng(5))[:, :, None], 3, 2).tobytes()
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    return dataset


def sources() -> dict[str, Dataset]:
    """Good ones, by name."""
    negative = {"PhotometricInterpretation": "MONOCHROME1", "PatientOrientation": ["L", "F"], "ImageLaterality": "R"}
    return {
        "cr": image("CR", BodyPartExamined="CHEST", BurnedInAnnotation="YES"),
        "dx": image("DX", **negative, BodyPartExamined="HAND"),
        "ct": image("CT", **PLANE),
        "mr": image("MR", **PLANE, Laterality="L", LossyImageCompression="01", LossyImageCompressionRatio=10),
        "enhanced": enhanced(),
        "colour": colour(),
    }


def folder_of(folder: Path, datasets: dict[str, Dataset]) -> Path:
    folder.mkdir()
    for name, dataset in datasets.items():
        (folder / f"{name}.dcm").write_bytes(written(dataset))
    return folder
