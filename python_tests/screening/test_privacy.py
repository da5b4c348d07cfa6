# SPDX-License-Identifier: Apache-2.0
"""What a run may tell of a patient: nothing but the path, and with a key not even that."""

from __future__ import annotations

import gzip
import hashlib
import json
import stat
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import texture
from PIL import Image
from run_folders import rows

from scrd_fast.cli import main
from scrd_fast.screening.inputs import list_inputs
from scrd_fast.screening.manifest import Manifest

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")

from dicom_files import made, stacked, written  # noqa: E402
from pydicom.dataset import Dataset  # noqa: E402

CANARIES = {
    "PatientName": "KANARIE^VOGEL",
    "PatientID": "KANARIE4711",
    "PatientBirthDate": "19230405",
    "StudyDate": "19870611",
    "AccessionNumber": "KANARIE0815",
    "InstitutionName": "KANARIE CLINIC",
    "StudyInstanceUID": "1.2.826.0.1.77001",
    "SeriesInstanceUID": "1.2.826.0.1.77002",
}
WORDS = ("KANARIE", "VOGEL", "19230405", "19870611", "1.2.826.0.1.7700")
FLAGS = ["--device", "cpu", "--workers", "2", "--max-failures", "1", "-v"]


def screen(run: Path, inputs: Path, out: Path, *flags: str) -> int:
    return main(["screen", str(run), str(inputs), "--out", str(out), *FLAGS, *flags])


def texts(out: Path) -> dict[Path, str]:
    """What stands in each file below a folder; tables as text, too."""
    found = {}
    for path in (p for p in out.rglob("*") if p.is_file()):
        found[path] = path.read_bytes().decode("latin-1")
        if path.suffix == ".parquet":
            found[path] += f"{pq.read_table(path).to_pylist()} {pq.read_schema(path)}"
        if path.suffix == ".png":
            with Image.open(path) as image:
                found[path] += str(image.info)
    return found


def file(number: int, **elements: Any) -> Dataset:
    uid = f"1.2.826.0.1.77003.{number}"
    dataset = made(8, **CANARIES | {"SOPInstanceUID": uid, "Modality": "DX", **elements})
    dataset.file_meta.MediaStorageSOPInstanceUID = uid
    return dataset


def patients(folder: Path) -> Path:
    """DICOM files of one patient: good ones, of several frames, refused, and broken in ways that decoders quote."""
    folder.mkdir()
    frames = np.stack([texture(np.random.default_rng(i)) for i in range(3)])
    several = stacked(frames, **CANARIES, Modality="DX")
    other = "1.2.826.0.1.77009"  # a study
    contents = {
        "yes.dcm": written(file(1, BurnedInAnnotation="YES")),
        "no.dcm": written(file(2, BurnedInAnnotation="NO", StudyInstanceUID=other)),
        "unknown.dcm": written(file(3)),
        "several.dcm": written(several),
        "refused.dcm": written(file(4, Modality="CT")),
        "named.dcm": written(file(5, Modality="KANARIE VOGEL")),
        "colour.dcm": written(file(6, PhotometricInterpretation="KANARIE")),
        "rows.dcm": written(file(7)).replace(b"\x10\x00US\x02\x00\x30\x00", b"\x10\x00US\x02\x00\xff\x30"),
        "cut.dcm": written(file(8))[:-100],
        "uid.dcm": written(file(9)).replace(b"1.2.826.0.1.77001", b"1.2.826.KANARIE.1"),
        "date.dcm": written(file(10)).replace(b"19870611", b"KANARIE!"),
        "header.dcm": written(file(11))[:700],
    }  # fmt: skip
    assert b"\xff\x30" in contents["rows.dcm"]
    for name, content in contents.items():
        assert b"KANARIE" in content
        (folder / name).write_bytes(content)
    return folder


class Run(NamedTuple):
    out: Path
    told: str  # stdout and stderr, those of the reading processes too


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return patients(tmp_path_factory.mktemp("in") / "in")


GUARDED = ("--modality", "DX", "--maps", "png", "--overlays", "3")


@pytest.fixture
def run(trained: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    capfd.readouterr()
    assert screen(trained, folder, tmp_path / "out", *GUARDED) == 0
    return Run(tmp_path / "out", "".join(capfd.readouterr()))


def test_nothing_of_a_header_that_names_a_patient_is_written_or_told(run: Run) -> None:
    found = {Path(row["path"]).name: row for row in rows(run.out) if not row["frame"]}
    assert {name for name, row in found.items() if row["status"] == "refused"} == {"refused.dcm", "named.dcm"}
    assert {"rows.dcm", "cut.dcm", "colour.dcm"} <= {n for n, row in found.items() if row["status"] == "failed"}
    assert [row["frame"] for row in rows(run.out) if row["path"].endswith("several.dcm")] == [0, 1, 2]
    everything = texts(run.out)
    assert {path.name for path in everything} >= {"manifest.parquet", "worklist.csv", "summary.json", "run.json"}
    assert len(everything) > 12
    leaks = [(path, word) for path, text in everything.items() for word in WORDS if word in text]
    assert leaks == []
    assert "shards" in run.told  # it does tell something
    assert [word for word in WORDS if word in run.told] == []
    told_paths = [path for path in everything if "refused.dcm" in everything[path]]
    assert {path.name for path in told_paths} == {
        "manifest.parquet", "part-000000.parquet", "worklist.csv", "report.html",
    }  # fmt: skip


def test_burned_in_is_what_the_header_says_or_unknown(run: Run) -> None:
    found = {Path(row["path"]).stem: row["burned_in"] for row in rows(run.out)}
    assert {name: found[name] for name in ("yes", "no", "unknown", "several")} == {
        "yes": "yes", "no": "no", "unknown": "unknown", "several": "unknown",
    }  # fmt: skip


def test_a_study_is_a_hash_that_joins_the_files_of_one_run_alone(
    trained: Path, folder: Path, run: Run, tmp_path: Path
) -> None:
    study = {Path(row["path"]).stem: row["study"] for row in rows(run.out)}
    assert study["yes"] == study["unknown"] == study["several"] == study["refused"]
    assert None not in (study["yes"], study["no"])
    assert study["yes"] != study["no"]
    more = tmp_path / "more"
    more.mkdir()
    for path in folder.iterdir():
        (more / path.name).write_bytes(path.read_bytes())
    assert screen(trained, more, tmp_path / "other", *GUARDED) == 0
    other = {Path(row["path"]).stem: row["study"] for row in rows(tmp_path / "other")}
    assert other["yes"] == other["several"]
    assert not {study[name] for name in study if study[name]} & {other[name] for name in other if other[name]}


def test_tags_tell_of_the_device_and_with_a_key_not_even_that(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, key = tmp_path / "in", tmp_path / "key"
    folder.mkdir()
    known = {"BodyPartExamined": "CHEST", "ViewPosition": "pa", "SeriesInstanceUID": "1.2.826.0.1.77005"}
    makers = {"Manufacturer": " Kanarie  Imaging ", "ManufacturerModelName": "M" * 63 + " X"}
    names = {"Manufacturer": "KANARIE^VOGEL", "ManufacturerModelName": ["A", "B"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, more in enumerate([known | makers, known | names, {"Modality": "KANARIE VOGEL"} | makers]):
            (folder / f"{number}.dcm").write_bytes(written(file(number, **more)))
    assert screen(trained, folder, tmp_path / "out", "--modality", "DX") == 0
    tags = ("modality", "body_part", "view", "manufacturer", "device_model")
    plain = rows(tmp_path / "out")
    assert [tuple(row[name] for name in tags) for row in plain] == [
        ("DX", "CHEST", "PA", "KANARIE IMAGING", "M" * 63),
        ("DX", "CHEST", "PA", None, None),
        (None,) * 5,  # refused: what the header says instead of DX is not repeated
    ]
    assert plain[0]["series"] == plain[1]["series"] != plain[2]["series"]
    assert None not in [row["series"] for row in plain]
    assert "VOGEL" not in "".join(texts(tmp_path / "out").values()) + "".join(capfd.readouterr())
    assert screen(trained, folder, tmp_path / "keyed", "--modality", "DX", "--hash-paths", str(key)) == 0
    keyed = rows(tmp_path / "keyed")
    assert [tuple(row[name] for name in tags) for row in keyed] == [("DX", "CHEST", "PA", None, None)] * 2 + [
        (None,) * 5
    ]
    assert not {row["series"] for row in plain} & {row["series"] for row in keyed}
    assert [word for word in WORDS if word in "".join(texts(tmp_path / "keyed").values())] == []


def test_with_a_key_no_path_of_an_input_stays(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    canary, out, key = tmp_path / "KANARIE^VOGEL", tmp_path / "out", tmp_path / "key"
    patients(canary)
    (canary / "list.txt").write_text("gone-KANARIE.png\n")
    volume = nibabel.Nifti1Image(np.ones((9, 8, 7), np.int16), np.eye(4)).to_bytes()
    (canary / "cut.nii").write_bytes(volume[:-99])
    (canary / "cut.nii.gz").write_bytes(gzip.compress(volume[:-99]))
    (canary / "short.nii.gz").write_bytes(gzip.compress(volume)[:-9])
    for name in ("cut.png", "cut.tif", "cut.jpg", "cut.webp", "cut.bmp"):
        Image.fromarray(texture(np.random.default_rng(0))).save(canary / name)
        (canary / name).write_bytes((canary / name).read_bytes()[:-300])
    for name in ("broken.zip", "broken.tar", "broken.tar.gz"):
        (canary / name).write_bytes(b"none")
    flags = (*GUARDED, "--hash-paths")

    def both(*flags: str) -> int:
        return main(["screen", str(trained), str(canary), str(canary / "list.txt"), "--out", str(out), *FLAGS, *flags])

    assert both(*flags, str(key)) == 0
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert not (out / "manifest.parquet").exists()
    before = rows(out)
    assert len(before) == 26
    assert len({row["path"] for row in before}) == 24
    assert both(*flags, str(key)) == 0  # again: it is finished
    assert rows(out) == before
    assert not (out / "manifest.parquet").exists()
    assert [(path, word) for path, text in texts(out).items() for word in WORDS if word in text] == []
    assert [word for word in WORDS if word in "".join(capfd.readouterr())] == []
    assert key.read_text().strip() not in "".join(texts(out).values())

    # Who guesses the paths must not see in the run's id that they are right.
    listed = Manifest.create(tmp_path / "guess", list_inputs([canary, canary / "list.txt"]), 1000).sha256
    identity = json.loads((out / "run.json").read_text())["identity"]
    guess = hashlib.sha256(json.dumps([identity, listed], sort_keys=True).encode()).hexdigest()
    assert not guess.startswith(before[0]["run_id"])

    other = tmp_path / "other-key"
    assert both(*flags, str(other)) == 2  # which makes that key
    assert "paths: there" in capfd.readouterr().err
    assert both(*GUARDED) == 2
    assert "paths: there" in capfd.readouterr().err
    assert rows(out) == before
    again = tmp_path / "again"
    assert screen(trained, canary, again, *flags, str(other)) == 0
    for column in ("path", "input_id", "study", "series"):
        assert not {row[column] for row in before if row[column]} & {row[column] for row in rows(again)}


@pytest.mark.parametrize("content", [b"", b"short\n", b"   \n" * 20])
def test_a_key_that_is_none_is_refused(
    trained: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], content: bytes
) -> None:
    key, out = tmp_path / "key", tmp_path / "out"
    key.write_bytes(content)
    assert screen(trained, folder, out, "--hash-paths", str(key)) == 2
    assert "expected a key of at least 16" in capfd.readouterr().err
    for inside in (out / "key", out / "below" / ".." / "key"):
        assert screen(trained, folder, out, "--hash-paths", str(inside)) == 2
        assert "keep the key apart" in capfd.readouterr().err
    assert screen(trained, folder, out, "--hash-paths", str(tmp_path)) == 2
    assert screen(trained, folder, out, "--hash-paths", str(tmp_path / "none" / "key")) == 2
    assert not out.exists()
