# SPDX-License-Identifier: Apache-2.0
"""Results in DICOM, as dciodvfy, highdicom and pydicom see them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import texture
from PIL import Image
from run_folders import rows

import scrd_fast
from scrd_fast.calibration import Calibration
from scrd_fast.cli import main
from scrd_fast.model.scrd import SCRD

highdicom = pytest.importorskip("highdicom")

import pydicom  # noqa: E402
from dicom_sources import PATIENT, PLANE, folder_of, image, sources  # noqa: E402
from pydicom.data import get_testdata_file  # noqa: E402

KINDS = ("sc", "sr", "seg")
OTHERS = (
    "SC_rgb_jpeg_dcmtk.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_bigendian.dcm",
    "JPGLosslessP14SV1_1s_1f_8b.dcm",
)
FLAGS = ("--dicom", "seg,sr,sc", "--shard-size", "5", "--batch-size", "4", "--overlays", "0", "--workers", "1")
POOR = {
    "no-study-uid": {"StudyInstanceUID": ""},
    "no-instance-uid": {"SOPInstanceUID": "1.2.x"},
    "no-series-uid": {"SeriesInstanceUID": "1" * 65},
}


def screen(run: Path, inputs: Path, out: Path, *flags: str) -> int:
    return main(["screen", str(run), str(inputs), "--out", str(out), "-q", "--device", "cpu", *flags])


def files(out: Path) -> dict[str, bytes]:
    """All that is in OUT/dicom, hidden files too."""
    folder = out / "dicom"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good sources, poor ones, some of pydicom's, and a PNG."""
    found = folder_of(tmp_path_factory.mktemp("in") / "in", sources())
    for number, (name, elements) in enumerate(POOR.items(), start=20):
        (found / f"{name}.dcm").write_bytes(_bytes(image("CT", number, **elements)))
    for name in OTHERS:
        shutil.copy(get_testdata_file(name), found / name)  # type: ignore[arg-type]
    Image.fromarray(texture(np.random.default_rng(0))).save(found / "plain.png")
    return found


def _bytes(dataset: Any) -> bytes:
    from io import BytesIO

    out = BytesIO()
    pydicom.dcmwrite(out, dataset)
    return out.getvalue()


@pytest.fixture(scope="module")
def out(trained: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    done = tmp_path_factory.mktemp("out") / "out"
    assert screen(trained, folder, done, *FLAGS) == 0
    return done


def results(out: Path, name: str, frame: int = 0) -> dict[str, Any]:
    """Row and results of a picture."""
    row = next(r for r in rows(out) if Path(r["path"]).stem == name and r["frame"] == frame)
    files = {kind: out / "dicom" / kind / f"{row['sample_id']}.dcm" for kind in KINDS}
    return {
        "row": row,
        "sc": pydicom.dcmread(files["sc"]),
        "sr": highdicom.sr.srread(files["sr"]),
        "seg": highdicom.seg.segread(files["seg"]),
    }


def test_every_scored_dicom_picture_has_its_results_and_no_other_has(out: Path) -> None:
    good = {row["sample_id"] for row in rows(out) if row["burned_in"] and not {"dicom-not-written"} & set(row["flags"])}
    assert len(good) == len(sources()) + 2 + len(OTHERS)  # the enhanced one has three frames
    assert files(out).keys() == {f"{kind}/{name}.dcm" for kind in KINDS for name in good}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["dicom"] == {"written": len(good), "not_written": len(POOR), "no_dicom": 1}


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (of dicom3tools) is not installed")
def test_dciodvfy_finds_no_error(out: Path) -> None:
    paths = sorted((out / "dicom").glob("*/*.dcm"))
    assert len(paths) > 30
    for path in paths:
        told = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True)
        lines = (told.stdout + told.stderr).splitlines()
        assert {"SCImage", "ComprehensiveSR", "Segmentation"} & set(lines)  # it knows what it looks at
        assert not [line for line in lines if line.startswith("Error")], path


@pytest.mark.parametrize("name", ["cr", "dx", "ct", "mr", "enhanced", "colour"])
def test_results_belong_to_the_study_in_series_of_their_own(trained: Path, folder: Path, out: Path, name: str) -> None:
    model = SCRD.from_pretrained(trained / "model")
    source, found = pydicom.dcmread(folder / f"{name}.dcm"), results(out, name)
    series = {source.SeriesInstanceUID} | {found[kind].SeriesInstanceUID for kind in KINDS}
    assert len(series) == 4
    for kind in KINDS:
        result = found[kind]
        for keyword in PATIENT.keys() - {"SpecificCharacterSet", "Manufacturer"}:
            assert result[keyword].value == source[keyword].value, keyword
        assert result.PatientName == "Müller^Jürgen"
        assert (result.ContentDate, result.ContentTime) == (source.StudyDate, source.StudyTime)
        equipment = [item for item in result.ContributingEquipmentSequence if item.Manufacturer == "scrd_fast"]
        assert equipment[0].DeviceSerialNumber == model.fingerprint()
        assert equipment[0].ManufacturerModelName == f"scrd_fast {model.config.teacher.name}"
        assert scrd_fast.__version__ in equipment[0].SoftwareVersions
        assert result.SeriesNumber // 100 == source.SeriesNumber
        assert result.ContentQualification == "RESEARCH"
        references = {
            (place.ReferencedSOPClassUID, place.ReferencedSOPInstanceUID)
            for place in _all(result, "ReferencedSOPInstanceUID")
        }
        assert references == {(source.SOPClassUID, source.SOPInstanceUID)}


def _all(dataset: Any, keyword: str) -> list[Any]:
    """All datasets in it that have this element."""
    found: list[Any] = []
    dataset.walk(lambda place, element: found.append(place) if element.keyword == keyword else None)
    return found


def test_the_report_says_what_the_table_says(trained: Path, out: Path) -> None:
    calibration = Calibration.load(trained / "model" / "calibration.json")
    for name in ("cr", "mr", "enhanced"):
        found = results(out, name)
        row, document = found["row"], found["sr"]
        assert (document.CompletionFlag, document.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
        assert document.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99SCRDFAST"
        (group,) = document.content.get_image_measurement_groups()
        values = {m.name.value: m.value for m in group.get_measurements()}
        expected = {
            "score": row["score"],
            "121415": 100 * row["percentile"],
            "122411": calibration.threshold,
            "expected-fpr": 100 * calibration.decision.expected_fpr,  # type: ignore[operator]
            "map-maximum": row["score_max"],
            **{f"scale-{k}": row[f"scale_{k}"] for k in (1, 2, 3)},
        }
        assert values == pytest.approx(expected, rel=1e-5)
        (decision,) = group.get_qualitative_evaluations()
        assert decision.value.meaning.lower() == row["decision"]
        texts = [place.TextValue for place in _all(document, "TextValue")]
        assert "RESEARCH USE - NOT FOR DIAGNOSIS" in texts
        assert any(calibration.id in text for text in texts)
        point = _all(document, "GraphicData")[0]
        assert point.GraphicType == "POINT"
        assert point.GraphicData == [row["peak_column"] + 0.5, row["peak_row"] + 0.5]


def test_frames_are_referred_to_and_lie_where_they_are(out: Path) -> None:
    uids = set()
    for frame in range(3):
        found = results(out, "enhanced", frame)
        for kind in KINDS:
            assert {place.ReferencedFrameNumber for place in _all(found[kind], "ReferencedFrameNumber")} == {frame + 1}
            assert found[kind].InstanceNumber == 900_000 + frame + 1
        group = found["seg"].PerFrameFunctionalGroupsSequence[0]
        assert list(group.PlanePositionSequence[0].ImagePositionPatient) == [0, 0, 10 * frame]
        uids |= {found[kind].SOPInstanceUID for kind in KINDS}
    assert len(uids) == 9


def test_a_segmentation_has_the_frame_of_reference_and_grid_of_its_source(out: Path) -> None:
    segmentation = results(out, "ct")["seg"]
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    assert segmentation.FrameOfReferenceUID == PLANE["FrameOfReferenceUID"]
    assert list(shared.PlaneOrientationSequence[0].ImageOrientationPatient) == PLANE["ImageOrientationPatient"]
    assert list(shared.PixelMeasuresSequence[0].PixelSpacing) == PLANE["PixelSpacing"]
    assert (segmentation.Rows, segmentation.Columns) == texture(np.random.default_rng(1)).shape
    description = segmentation.get_segment_description(1)
    assert description.algorithm_type.value == "AUTOMATIC"
    assert "model_sha256" in description.algorithm_identification.parameters


def test_a_capture_keeps_what_is_known_of_its_picture(folder: Path, out: Path) -> None:
    captures = {name: results(out, name)["sc"] for name in ("cr", "dx", "ct", "mr")}
    assert captures["cr"].BurnedInAnnotation == "YES"
    assert "BurnedInAnnotation" not in captures["dx"]  # not known, and research is no patient's name
    assert (captures["dx"].ImageLaterality, list(captures["dx"].PatientOrientation)) == ("R", ["L", "F"])
    assert list(captures["ct"].PatientOrientation) == ["L", "F"]  # by its cosines
    assert (captures["mr"].Laterality, captures["mr"].LossyImageCompression) == ("L", "01")
    source = pydicom.dcmread(folder / "ct.dcm")
    height, width = source.pixel_array.shape
    shown = captures["ct"].pixel_array
    assert shown.shape[0] > height  # a band of text is below it
    assert shown[height:].any()
    light = shown[:height, :width].astype(float).mean(2)
    assert np.corrcoef(light.ravel(), source.pixel_array.ravel())[0, 1] > 0.5
    negative = pydicom.dcmread(folder / "dx.dcm").pixel_array
    light = captures["dx"].pixel_array[:height, :width].astype(float).mean(2)
    assert np.corrcoef(light.ravel(), negative.ravel())[0, 1] < -0.5


def test_a_poor_header_is_told_and_stops_nothing(out: Path) -> None:
    for row in rows(out):
        name = Path(row["path"]).stem
        reasons = [flag for flag in row["flags"] if flag.startswith("dicom-no-")]
        assert row["status"] == "ok"
        assert reasons == ([f"dicom-{name}"] if name in POOR else [])
    flags = json.loads((out / "summary.json").read_text())["flags"]
    assert flags["dicom-not-written"] == len(POOR)
    assert flags["dicom-no-study-uid"] == 1


def test_a_run_that_goes_on_writes_the_same_bytes(trained: Path, folder: Path, out: Path, tmp_path: Path) -> None:
    """As a killed process leaves it: a shard is not committed, of its files one is there, one is half written."""
    whole, cut = files(out), shutil.copytree(out, tmp_path / "cut")
    names = [f"{kind}/{row['sample_id']}.dcm" for kind in KINDS for row in rows(cut)[5:9]]
    (cut / "results" / "part-000001.parquet").unlink()
    for name in [name for name in names if name in whole][1:]:
        (cut / "dicom" / name).unlink()
    (cut / "dicom" / "sc" / ".x.dcm.1-0a.tmp").write_bytes(b"half")
    assert screen(trained, folder, cut, *FLAGS) == 0
    assert files(cut) == whole
    assert rows(cut) == rows(out)


def test_other_devices_and_shards_give_the_same_uids(trained: Path, folder: Path, out: Path, tmp_path: Path) -> None:
    some = tmp_path / "list.txt"
    some.write_text(f"{folder / 'ct.dcm'}\n{folder / 'mr.dcm'}\n")
    flags = ("--dicom", "sc,sr,seg", "--shard-size", "1", "--devices", "2", "--overlays", "0", "--workers", "2")
    assert screen(trained, some, tmp_path / "out", *flags) == 0
    for name in ("ct", "mr"):
        a, b = results(out, name), results(tmp_path / "out", name)
        for kind in KINDS:
            assert a[kind].SOPInstanceUID == b[kind].SOPInstanceUID
            assert a[kind].SeriesInstanceUID == b[kind].SeriesInstanceUID


def test_what_cannot_be_asked_for_is_one_line(
    trained: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(run: Path, *flags: str) -> tuple[int, str]:
        code = screen(run, folder, tmp_path / "out", *flags)
        assert not (tmp_path / "out").exists()
        text = capsys.readouterr().err
        assert len(text.strip().splitlines()) == 1
        return code, text

    code, text = refused(trained, "--dicom", "sc", "--hash-paths", str(tmp_path / "key"))
    assert (code, "--hash-paths" in text, (tmp_path / "key").exists()) == (2, True, False)
    assert refused(trained, "--dicom", "sc,rt")[0] == 2
    bare = shutil.copytree(trained, tmp_path / "run")
    (bare / "model" / "calibration.json").unlink()
    assert "no calibration" in refused(bare, "--dicom", "sr")[1].splitlines()[-1]
    monkeypatch.setitem(sys.modules, "highdicom", None)
    code, text = refused(trained, "--dicom", "sr")
    assert (code, "highdicom is not installed; install this package with its [dicom] extra" in text) == (4, True)


def test_without_the_flag_its_package_is_not_needed(
    trained: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    assert screen(trained, folder / "ct.dcm", tmp_path / "out", "--workers", "1") == 0
    assert not (tmp_path / "out" / "dicom").exists()
    assert "dicom" not in json.loads((tmp_path / "out" / "summary.json").read_text())


def test_a_dry_run_counts_the_disk(
    trained: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = []
    for flags in ((), ("--dicom", "sc")):
        assert screen(trained, folder, tmp_path / "out", "--dry-run", "--json", *flags) == 0
        sizes.append(json.loads(capsys.readouterr().out)["estimated_disk_bytes"])
    assert sizes[1] > sizes[0]
