# SPDX-License-Identifier: Apache-2.0
"""DICOM files that tests make. Wants pydicom."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

SHAPE = (48, 37)


def made(bits: int = 12, signed: bool = False, kind: str = "MONOCHROME2", **elements: Any) -> Dataset:
    """A gray image with every part of its range in it."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    kept = np.int16 if signed else np.uint16
    kept = (np.int8 if signed else np.uint8) if bits == 8 else kept
    stored = np.linspace(low, high, SHAPE[0] * SHAPE[1]).round().astype(kept).reshape(SHAPE)
    dataset.Rows, dataset.Columns = SHAPE
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, kind
    dataset.BitsAllocated = 8 if bits == 8 else 16
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, int(signed)
    dataset.PixelData = stored.tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def written(dataset: Dataset) -> bytes:
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def table(bits: int = 10) -> Dataset:
    """A VOI LUT over the 12-bit range."""
    item = Dataset()
    item.LUTDescriptor = [4096, 0, bits]
    item.LUTData = (np.linspace(0, 1, 4096) ** 2 * (2**bits - 1)).round().astype(np.uint16).tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    return item


def stacked(frames: np.ndarray[Any, Any], **elements: Any) -> Dataset:
    """16-bit gray frames [N, H, W]."""
    dataset = made(16, NumberOfFrames=len(frames), **elements)
    dataset.Rows, dataset.Columns = frames.shape[1:]
    dataset.PixelData = frames.astype(np.uint16).tobytes()
    return dataset
