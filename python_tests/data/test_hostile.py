# SPDX-License-Identifier: Apache-2.0
"""Files that were cut, changed or never were images: each is read or has a code, and nothing else happens."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scrd_fast.config import Preprocessing
from scrd_fast.data.archives import list_members
from scrd_fast.data.frames import Source
from scrd_fast.data.reading import count_frames, read_frames
from scrd_fast.errors import ImageError

SMALL = Preprocessing(size=32)
CODES = {
    "duplicate-name", "encrypted", "missing", "multi-frame", "no-pixels", "not-an-archive", "not-an-image",
    "not-finite", "out-of-range", "too-large", "unreadable", "unsafe-name", "unsupported", "not-a-file",
}  # fmt: skip
EACH = 14  # of the three kinds


def picture(kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 33, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def pages() -> bytes:
    out = io.BytesIO()
    first, *rest = (Image.new("L", (40, 33), 60 * i) for i in range(4))
    first.save(out, "TIFF", save_all=True, append_images=rest, compression="tiff_lzw")
    return out.getvalue()


def dicom(syntax: str | None) -> bytes:
    pytest.importorskip("pydicom")
    from dicom_files import stacked, written

    dataset = stacked(np.random.default_rng(0).integers(0, 4096, (3, 40, 33)), WindowCenter=2000, WindowWidth=3000)
    if syntax is not None:
        dataset.compress(syntax)
    return written(dataset)


def dicom_file(name: str) -> bytes:
    data = pytest.importorskip("pydicom.data")
    return Path(data.get_testdata_file(name)).read_bytes()


def nifti() -> bytes:
    nibabel = pytest.importorskip("nibabel")
    return bytes(nibabel.Nifti1Image(np.arange(2000, dtype=np.int16).reshape(10, 20, 10), np.eye(4)).to_bytes())


def zipped(content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", content)
    return out.getvalue()


FORMATS: dict[str, Callable[[], bytes]] = {
    "png": lambda: picture("PNG"),
    "jpeg": lambda: picture("JPEG"),
    "tiff": lambda: picture("TIFF"),
    "pages": pages,
    "bmp": lambda: picture("BMP"),
    "webp": lambda: picture("WEBP"),
    "dicom": lambda: dicom(None),
    "dicom rle": lambda: dicom("1.2.840.10008.1.2.5"),
    "dicom jpeg 2000": lambda: dicom("1.2.840.10008.1.2.4.90"),
    "dicom jpeg-ls": lambda: dicom("1.2.840.10008.1.2.4.80"),
    "dicom jpeg": lambda: dicom_file("SC_rgb_jpeg_dcmtk.dcm"),
    # Not JPEG Lossless: gdcm, its one decoder, ends the process on a few of such files.
    "dicom big endian": lambda: dicom_file("emri_small_big_endian.dcm"),
    "nifti": nifti,
    "nifti gz": lambda: gzip.compress(nifti()),
    "zip": lambda: zipped(picture("PNG")),
}


def spoiled(content: bytes, seed: int, each: int) -> list[bytes]:
    """As many that are cut, that have a few other bits (most near the front, where headers are), and of noise."""
    generator = np.random.default_rng(seed)
    cut = [content[: generator.integers(0, len(content))] for _ in range(each)]
    changed = []
    for i in range(each):
        other = bytearray(content)
        for at in generator.integers(0, min(len(content), 2000) if i % 3 else len(content), 4):
            other[at] ^= 1 << int(generator.integers(8))
        changed.append(bytes(other))
    return cut + changed + [content[:8] + generator.bytes(int(generator.integers(0, 5000))) for _ in range(each)]


def outcome(source: bytes | Source) -> str:
    try:
        for frame in read_frames(source, SMALL):
            assert frame.pixels.shape == (3, 32, 32)
            assert torch.isfinite(frame.pixels).all()
        return "read"
    except ImageError as error:
        return error.code


def outcome_in_zip(path: Path) -> str:
    try:
        codes = [outcome(Source(path, name)) for name, problem in list_members(path) if problem is None]
    except ImageError as error:
        return error.code
    return codes[0] if codes else "missing"


@pytest.mark.parametrize("name", FORMATS)
def test_a_spoiled_file_is_read_or_has_a_code(name: str, tmp_path: Path) -> None:
    content = FORMATS[name]()
    path = tmp_path / "a.zip"
    outcomes = []
    for one in [content, *spoiled(content, seed=7, each=EACH)]:
        if name == "zip":
            path.write_bytes(one)
            outcomes.append(outcome_in_zip(path))
            continue
        outcomes.append(outcome(one))
        try:
            count_frames(one)
        except ImageError as error:
            assert error.code in CODES  # noqa: PT017
    assert outcomes[0] == "read"
    assert set(outcomes) <= CODES | {"read"}
    assert len(set(outcomes)) > 1
