# SPDX-License-Identifier: Apache-2.0
"""One picture's results in DICOM: where the map's peak lies in them, and what hostile headers do to them."""

from __future__ import annotations

import logging
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

highdicom = pytest.importorskip("highdicom")

import pydicom  # noqa: E402
from dicom_files import written  # noqa: E402
from dicom_sources import image  # noqa: E402
from pydicom.dataelem import DataElement  # noqa: E402

from scrd_fast.calibration import Calibration  # noqa: E402
from scrd_fast.config import Preprocessing  # noqa: E402
from scrd_fast.data.reading import read_frames  # noqa: E402
from scrd_fast.screening.dicom.common import Maker  # noqa: E402
from scrd_fast.screening.dicom.writer import DicomResults  # noqa: E402
from scrd_fast.screening.screener import Screened, stored_pixel  # noqa: E402

CALIBRATION = Calibration.fit([1.0, 2.0, 3.0], "mean", 0.25, map_peaks=[1.0, 2.0, 3.0])  # colours from 2 to 5
KINDS = ("sc", "sr", "seg")
SMALL = Preprocessing(size=64)


def screened(
    content: bytes, preprocessing: Preprocessing, peak: tuple[int, int], flags: tuple[str, ...] = ()
) -> Screened:
    """A result whose map is 0 but for one pixel."""
    (frame,) = read_frames(content, preprocessing, None, originals=True)
    map = torch.zeros(preprocessing.canvas, preprocessing.canvas)  # noqa: A001
    map[peak] = 9.0
    return Screened(
        *(0, None, 0, None, frame.about, flags),
        scores={"mean": 2.5, "max": 9.0},
        scales=(0.1, 0.2, 0.3),
        peak=stored_pixel(peak, frame.about, preprocessing),
        percentile=2 / 3,
        abnormal=False,
        image=frame.pixels,
        map=map,
        original=frame.original,
    )


def write(out: Path, result: Screened, preprocessing: Preprocessing = Preprocessing(size=64), **more: Any) -> list[str]:  # noqa: B008
    known = {
        "teacher": "resnet18",
        "sha256": "ab" * 32,
        "precision": "32",
        "foreign": False,
        "started": "20250102030405",
    }
    maker = Maker(preprocessing=preprocessing, calibration=CALIBRATION, **(known | more))
    return DicomResults(out, KINDS, maker).write("name", result)


def read(out: Path, kind: str) -> Any:
    return pydicom.dcmread(out / "dicom" / kind / "name.dcm")


def black(height: int, width: int) -> bytes:
    return written(image("CR", pixels=np.zeros((height, width)), WindowCenter=100, WindowWidth=200))


@pytest.mark.parametrize(
    ("shape", "preprocessing", "peak"),
    [
        ((64, 64), Preprocessing(size=64), (10, 50)),
        ((200, 90), Preprocessing(size=64), (63, 0)),
        ((200, 90), Preprocessing(size=64, fit="pad"), (40, 25)),
        ((90, 333), Preprocessing(size=64, fit="pad"), (31, 63)),
        ((250, 250), Preprocessing(size=64, tiles=2), (5, 100)),
        ((40, 30), Preprocessing(size=64), (20, 33)),  # smaller than the map
        ((40, 300), Preprocessing(size=64), (7, 33)),  # in one direction
    ],
)
def test_the_peak_lies_on_the_same_pixel_everywhere(
    tmp_path: Path, shape: tuple[int, int], preprocessing: Preprocessing, peak: tuple[int, int]
) -> None:
    result = screened(black(*shape), preprocessing, peak)
    assert write(tmp_path, result, preprocessing) == []
    (column, row), found = _point(read(tmp_path, "sr")), read(tmp_path, "seg")
    assert (row, column) == result.peak
    assert found.pixel_array.shape == shape
    assert found.pixel_array[row, column] == 1
    marked = np.argwhere(found.pixel_array)
    tall, wide = (max(4, 2 + 2 * stored / preprocessing.canvas * _stretch(shape, preprocessing)) for stored in shape)
    assert (np.abs(marked - result.peak) <= [tall, wide]).all()  # the pixel and its neighbours
    captured = read(tmp_path, "sc").pixel_array[: shape[0], : shape[1]]
    light = captured.sum(2, dtype=np.int64)
    assert light[row, column] == light.max() > 0
    assert not light[found.pixel_array == 0].any()  # colour is where the segment is
    assert (light > 0).sum() > 0


def _stretch(shape: tuple[int, int], preprocessing: Preprocessing) -> float:
    return max(shape) / min(shape) if preprocessing.fit == "pad" else 1.0


def _point(document: Any) -> tuple[int, int]:
    ((x, y),) = _all(document, "GraphicData")
    return int(x), int(y)


def _all(document: Any, keyword: str) -> list[Any]:
    found: list[Any] = []
    document.walk(lambda _, element: found.append(element.value) if element.keyword == keyword else None)
    return found


def test_a_large_picture_is_captured_smaller_and_segmented_whole(tmp_path: Path) -> None:
    result = screened(black(2100, 300), SMALL, (63, 10))
    assert write(tmp_path, result) == []
    capture, found = read(tmp_path, "sc"), read(tmp_path, "seg")
    assert (found.Rows, found.Columns) == (2100, 300)
    assert capture.Rows > 2048
    assert not capture.pixel_array[:1900].any()
    assert capture.pixel_array[2000:2048, :293].any()


def test_a_map_below_the_scale_gives_an_empty_segment_and_no_colour(tmp_path: Path) -> None:
    result = screened(black(64, 64), SMALL, (10, 50))
    assert result.map is not None
    result.map[10, 50] = 2.0  # the lower end of the scale
    assert write(tmp_path, result) == []
    assert not read(tmp_path, "seg").pixel_array.any()
    assert not read(tmp_path, "sc").pixel_array[:64, :64].any()


def test_uids_follow_from_picture_model_and_calibration(tmp_path: Path) -> None:
    result = screened(black(64, 64), SMALL, (10, 50))
    folders = {
        "a": {},
        "b": {},
        "model": {"sha256": "cd" * 32},
        "foreign": {"foreign": True},
        "bf16": {"precision": "bf16"},
    }
    uids = {}
    for name, more in folders.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name, result, **more)
        for kind in KINDS:
            found = read(tmp_path / name, kind)
            uids[name, kind] = found.SOPInstanceUID
            assert found.file_meta.MediaStorageSOPInstanceUID == found.SOPInstanceUID
    assert [uids["a", kind] for kind in KINDS] == [uids["b", kind] for kind in KINDS]
    assert len(set(uids.values())) == 4 * len(KINDS)
    contents = [(tmp_path / name / "dicom" / "sr" / "name.dcm").read_bytes() for name in ("a", "b")]
    assert contents[0] == contents[1]


NAMES = {
    "ISO_IR 100": "Æsop^Jürgen",
    "ISO_IR 144": "Люкceмбypг",
    "ISO_IR 192": "王^小東",
    "\\ISO 2022 IR 87": "Yamada^Tarou=山田^太郎=やまだ^たろう",
}


@pytest.mark.parametrize("charset", NAMES)
def test_names_survive_in_whatever_character_set(
    tmp_path: Path, charset: str, recwarn: pytest.WarningsRecorder
) -> None:
    dataset = image("CT", SpecificCharacterSet=charset.split("\\") if "\\" in charset else charset)
    dataset.PatientName = NAMES[charset]
    result = screened(written(dataset), SMALL, (3, 3))
    recwarn.clear()
    assert write(tmp_path, result) == []
    assert not list(recwarn)  # highdicom has something to say of names, and quotes them
    for kind in KINDS:
        assert read(tmp_path, kind).PatientName == NAMES[charset]


def hostile() -> bytes:
    """Values that are too long, of another kind, or no values at all."""
    known = {"PatientBirthDate": "yesterday", "PatientSex": "MALE", "PatientName": "X" * 65, "StudyID": "17" * 9}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = image("CT", PixelSpacing=[0, "nan"], **known)
        dataset.add(DataElement("AccessionNumber", "SQ", []))
        dataset.add(DataElement("ReferringPhysicianName", "UN", b"\x00\x01\xff"))
        dataset.add(DataElement("StudyDescription", "LO", "a\x1b[2Jb"))
        dataset.add(DataElement("SeriesNumber", "IS", "-5"))
        dataset.add(DataElement("LossyImageCompression", "CS", "YES"))
        dataset.ImageOrientationPatient = [1, 1, 1, 1, 1, 1]
        dataset.ImagePositionPatient = [1, 2, 3]
        dataset.FrameOfReferenceUID = "1.2.."
        dataset.PatientOrientation = "L"
        return written(dataset)


def test_what_the_standard_forbids_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    with caplog.at_level(logging.INFO):
        result = screened(hostile(), SMALL, (3, 3))
        recwarn.clear()
        assert write(tmp_path, result) == ["dicom-header-mended"]
    for kind in KINDS:
        found = read(tmp_path, kind)
        for name in ("PatientName", "PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber"):
            assert not found[name].value, name
        assert not found.ReferringPhysicianName
        assert "StudyDescription" not in found
        assert found.PatientID == "4711"
        assert found.SeriesNumber < 100
        if shutil.which("dciodvfy"):
            told = subprocess.run(
                ["dciodvfy", str(tmp_path / "dicom" / kind / "name.dcm")], capture_output=True, text=True
            )
            assert "Error" not in told.stdout + told.stderr
    said = caplog.text + "".join(str(warning.message) for warning in recwarn)
    assert not [word for word in ("XXXX", "MALE", "4711", "yesterday") if word in said]


def test_a_source_without_a_date_has_that_of_the_run(tmp_path: Path) -> None:
    result = screened(written(image("CT", StudyDate="", StudyTime="")), SMALL, (3, 3))
    assert write(tmp_path, result) == []
    assert {(read(tmp_path, k).ContentDate, read(tmp_path, k).ContentTime) for k in KINDS} == {("20250102", "030405")}


def test_flags_of_the_picture_and_a_foreign_calibration_stand_in_the_report(tmp_path: Path) -> None:
    result = screened(black(64, 64), SMALL, (3, 3), flags=("constant", "no-view"))
    write(tmp_path, result, foreign=True)
    assert "Flags: constant, foreign-calibration" in _all(read(tmp_path, "sr"), "TextValue")


def test_a_disk_that_takes_nothing_is_a_flag(tmp_path: Path) -> None:
    result = screened(black(64, 64), SMALL, (3, 3))
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / "sr").write_text("in the way")
    assert write(tmp_path, result) == ["dicom-not-written", "dicom-disk"]
    assert (tmp_path / "dicom" / "seg" / "name.dcm").is_file()  # the others stand


def test_what_highdicom_refuses_is_a_flag_without_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("4711")

    monkeypatch.setattr("highdicom.seg.Segmentation.__init__", refuse)
    result = screened(black(64, 64), SMALL, (3, 3))
    assert write(tmp_path, result) == ["dicom-not-written", "dicom-no-seg"]
