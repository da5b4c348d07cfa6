# SPDX-License-Identifier: Apache-2.0
"""Whole runs of the command line: pictures that they draw, their records, going on, and the guard."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import texture
from PIL import Image
from run_folders import loaded, png, rows, screened

import scrd_fast
from scrd_fast.calibration import Calibration
from scrd_fast.cli import main
from scrd_fast.screening.manifest import Manifest
from scrd_fast.screening.pictures import MAP_STEP
from scrd_fast.screening.writers import keyed_hash, read_part

pydicom = pytest.importorskip("pydicom")

from dicom_files import made, written  # noqa: E402

FLAGS = ["-q", "--device", "cpu", "--workers", "2"]


def screen(run: Path, inputs: list[Path], out: Path, *flags: str) -> int:
    return main(["screen", str(run), *map(str, inputs), "--out", str(out), *FLAGS, *flags])


@pytest.fixture(scope="module")
def drawn(trained: Path, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the test images with maps and overlays. Not to be changed."""
    out = tmp_path_factory.mktemp("drawn") / "out"
    assert screen(trained, [tree / "test"], out, "--maps", "png", "--overlays", "above", "-v") == 0
    return out


def test_a_map_in_16_bits_is_the_screeners_within_half_a_step(trained: Path, tree: Path, drawn: Path) -> None:
    expected = screened(trained, [tree / "test"])
    for row in rows(drawn):
        with Image.open(drawn / row["map"]) as image:
            assert float(image.info["scrd_fast.step"]) == MAP_STEP
            found = np.asarray(image).astype(np.float64) * MAP_STEP
        result = expected[row["path"], 0]
        assert result.map is not None
        assert np.abs(found - result.map.numpy()).max() <= MAP_STEP / 2 + 1e-5
    assert len(list((drawn / "maps").iterdir())) == len(rows(drawn)) == 12


def test_overlays_above_are_those_of_the_abnormal(drawn: Path) -> None:
    abnormal = {f"{row['sample_id']}.png" for row in rows(drawn) if row["decision"] == "abnormal"}
    assert 0 < len(abnormal) < 12
    assert {path.name for path in (drawn / "overlays").iterdir()} == abnormal


def test_pictures_that_cannot_be_written_are_flags_of_rows_that_are_ok(
    trained: Path, tree: Path, tmp_path: Path
) -> None:
    flags = ("--maps", "png", "--overlays", "above", "--shard-size", "6")
    out = tmp_path / "out"
    assert screen(trained, [tree / "test"], out, *flags, "--shard", "0/2") == 0
    for name in ("maps", "overlays"):
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).write_text("in the way")
    assert screen(trained, [tree / "test"], out, *flags) == 0
    late = read_part(out / "results/part-000001.parquet")
    for row in late:
        drawing = ["overlay-not-written"] if row["decision"] == "abnormal" else []
        assert (row["status"], row["map"]) == ("ok", None)
        assert row["flags"] == ["map-not-written", *drawing]
    assert loaded(out / "summary.json")["flags"]["map-not-written"] == len(late) == 6


def test_overlays_of_the_most_suspicious_that_cannot_be_written_do_not_keep_a_run_from_its_end(
    trained: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert screen(trained, [tree / "test"], out, "--shard-size", "6", "--shard", "0/2") == 0
    (out / "overlays").write_text("in the way")
    assert screen(trained, [tree / "test"], out, "--shard-size", "6") == 0
    assert "overlays cannot be written: File exists" in capsys.readouterr().err
    assert loaded(out / "summary.json")["inputs"] == 12
    assert loaded(out / "run.json")["status"] == "finished"


def test_the_record_of_a_run_says_what_was_run(trained: Path, tree: Path, drawn: Path) -> None:
    record, summary = loaded(drawn / "run.json"), loaded(drawn / "summary.json")
    calibration = Calibration.load(drawn / "calibration.json")
    identity = record["identity"]
    assert record["status"] == "finished"
    assert record["started"] <= record["finished"]
    assert identity["command"] == "screen"
    assert identity["model_sha256"] == scrd_fast.SCRD.from_pretrained(trained / "model").fingerprint()
    assert identity["calibration"] == summary["calibration_id"] == calibration.id
    assert identity["settings"]["precision"] == "32"
    assert record["versions"]["scrd_fast"] == scrd_fast.__version__
    assert record["versions"]["torch"] == torch.__version__
    assert record["summary"] == summary
    assert (summary["inputs"], summary["rows"], summary["status"]) == (12, 12, {"ok": 12})
    assert sum(summary["decision"].values()) == 12
    assert summary["seconds_by_stage"].keys() == {"read", "wait", "model", "write"}
    own = {"reading": "wait", "model": "model", "writing": "write"}
    seconds = {name: summary["seconds_by_stage"][stage] for name, stage in own.items()}
    assert seconds[summary["bottleneck"]] == max(seconds.values())
    assert (summary["device"], summary["decided_by"], summary["run_status"]) == ("cpu", "run", "finished")
    assert (summary["threshold"], summary["fpr"]) == (calibration.threshold, calibration.fpr)
    manifest = Manifest.open(drawn / "manifest.parquet")
    assert (manifest.count, record["manifest"]) == (12, keyed_hash(b"", manifest.sha256.encode()))
    with Image.open(drawn / "overlay-scale.png") as legend:
        legend.load()
    assert str(tree) not in (drawn / "run.json").read_text()  # a path of an image names a patient, perhaps


def test_two_runs_give_the_same_bits(trained: Path, tree: Path, drawn: Path, tmp_path: Path) -> None:
    assert screen(trained, [tree / "test"], tmp_path / "out", "--maps", "png", "--overlays", "above") == 0
    assert rows(tmp_path / "out") == rows(drawn)
    for path in (drawn / "maps").iterdir():
        assert path.read_bytes() == (tmp_path / "out/maps" / path.name).read_bytes()


def stamps(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (out / "results").iterdir()}


def test_a_finished_run_stays_as_it_is_until_a_new_one_is_asked_for(
    trained: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = shutil.copytree(tree / "test/good", tmp_path / "in"), tmp_path / "out"
    flags = ("--shard-size", "4", "--overlays", "2")
    assert screen(trained, [folder], out, *flags) == 0
    before, drawn = stamps(out), {path.name for path in (out / "overlays").iterdir()}
    assert screen(trained, [folder], out, *flags) == 0
    assert stamps(out) == before
    for other, name in (
        (("--precision", "bf16"), "precision: there '32', asked for 'bf16'"),
        (("--shard-size", "5"), "shard_size: there 4, asked for 5"),
        (("--modality", "dx"), "modality: there [], asked for ['DX']"),
        (("--overlays", "above"), "overlays_above: there False, asked for True"),
    ):
        capsys.readouterr()
        assert screen(trained, [folder], out, *flags, *other) == 2
        assert name in capsys.readouterr().err
    shutil.copy(tree / "test/square/000.png", folder / "new.png")
    assert screen(trained, [folder], out, *flags) == 2
    assert "the inputs are others by now" in capsys.readouterr().err
    assert stamps(out) == before
    assert screen(trained, [folder, tmp_path / "inn"], out, *flags, "--new-run") == 2  # mistyped
    assert "no such file or folder; did you mean" in capsys.readouterr().err
    assert screen(trained, [folder], out, *flags, "--new-run", "--shard", "0/2") == 2
    assert "remove what the others have done" in capsys.readouterr().err
    assert stamps(out) == before
    (out / "notes.txt").write_text("of the user")
    assert screen(trained, [folder], out, *flags, "--new-run") == 0
    assert len(rows(out)) == 7
    assert {path.name for path in (out / "overlays").iterdir()} != drawn
    assert len(list((out / "overlays").iterdir())) == 2
    assert (out / "notes.txt").read_text() == "of the user"


def xray(pixels: np.ndarray[Any, Any], **elements: Any) -> bytes:
    height, width = pixels.shape
    dataset = made(8, Rows=height, Columns=width, WindowCenter=128, WindowWidth=256, **elements)
    dataset.PixelData = pixels.tobytes()
    return written(dataset)


def test_rules_of_the_guard_and_another_site_show_in_the_rows(
    trained: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(trained, tmp_path / "run")
    assert main(["calibrate", str(model), str(tree / "test/good"), "--site", "a", "-q"]) == 0
    folder, pixels = tmp_path / "in", texture(np.random.default_rng(3))
    folder.mkdir()
    (folder / "ct.dcm").write_bytes(xray(pixels, Modality="CT"))
    (folder / "dx.dcm").write_bytes(xray(pixels, Modality="DX"))
    (folder / "silent.png").write_bytes(png(pixels))
    (folder / "constant.png").write_bytes(png(np.full_like(pixels, 90)))
    flags = ("--modality", "dx, cr", "--strict", "--site", "b")
    capsys.readouterr()
    assert screen(model, [folder], tmp_path / "out", *flags) == 0
    assert "made at a, not at b" in capsys.readouterr().err
    found = {Path(row["path"]).name: row for row in rows(tmp_path / "out")}
    assert found["ct.dcm"]["status"] == found["constant.png"]["status"] == "refused"
    assert found["ct.dcm"]["error"] == "unexpected-modality: the header has another modality than CR or DX"
    assert found["constant.png"]["error"] == "constant: constant image"
    assert (found["ct.dcm"]["frame"], found["ct.dcm"]["score"], found["ct.dcm"]["flags"]) == (0, None, [])
    assert found["dx.dcm"]["flags"] == ["foreign-calibration"]
    assert found["silent.png"]["flags"] == ["no-modality", "foreign-calibration"]
    assert found["dx.dcm"]["status"] == found["silent.png"]["status"] == "ok"
    assert screen(model, [folder], tmp_path / "own", "--site", "a") == 0
    assert capsys.readouterr().err == ""
    own = {Path(row["path"]).name: row["flags"] for row in rows(tmp_path / "own")}
    assert own["dx.dcm"] == own["ct.dcm"] == own["silent.png"] == []
    assert "constant" in own["constant.png"]
