# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scrd_fast.bench import screen_limits
from scrd_fast.bench.authors_loop import evaluate, map_of
from scrd_fast.bench.fuzz import DICOM, KINDS, PACKERS, PICTURES, break_bytes, fuzz, intact, write_files
from scrd_fast.bench.processes import members, observe, stop
from scrd_fast.bench.screen_limits import compare
from scrd_fast.bench.screen_made import Setup, make_images
from scrd_fast.data.reading import normalise, read_image
from scrd_fast.model.scrd import SCRD

TINY = Setup("resnet18", 64, 4, "cpu", images=6, rounds=1, threads=1)
ROW = {"sample_id": "a-0", "status": "ok", "score": 0.1, "percentile": float("nan"), "map": None}


def test_the_authors_loop_agrees_with_our_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SCRD.create("resnet18", weights="random", size=64).eval()
    paths = sorted(make_images(tmp_path / "images", 3, side=96).iterdir())
    images = torch.stack([read_image(path, model.config.preprocessing) for path in paths])
    ours = model.predict(images)
    for image, expected in zip(normalise(images, model.config.preprocessing), ours.map[:, 0], strict=True):
        found = map_of(model, image[None])
        assert found.std() > 1e-3  # else any two maps would agree
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    # By way of the files: their resize rounds to 8 bits, ours does not.
    found_scores = [score for _, score in evaluate(model, paths, 64)]
    assert found_scores == pytest.approx(ours.scores["max"].tolist(), abs=5e-3)
    assert found_scores != ours.scores["max"].tolist()


def test_a_whole_run_gives_a_row_for_each_contender(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "bench_screen.py"
    tiny = {"teacher": "resnet18", "size": 64, "batch-size": 4, "images": 6, "rounds": 1, "threads": 1}
    flags = [f"--{name}={value}" for name, value in tiny.items()]
    command = [sys.executable, str(script), *flags, "--only", "float32", "--out", str(tmp_path / "s.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    facts = json.loads((tmp_path / "s.json").read_text())
    assert facts["schema"] == "scrd_fast.screen/1"
    rows = {row["contender"]: row for row in facts["rows"]}
    assert list(rows) == ["authors' loop, float32", "model only, float32", "scrd_fast screen, float32"]
    for name, row in rows.items():
        assert name in done.stdout
        assert row["images"] == 6
        assert row["images_per_second"] > row["images_per_second_whole"] > 0
        assert row["peak_bytes"] > 1e8  # torch alone takes more
    assert rows["authors' loop, float32"]["map_difference"] < 1e-4
    assert rows["authors' loop, float32"]["times_faster"] == 1
    screen, model = rows["scrd_fast screen, float32"], rows["model only, float32"]
    share = screen["images_per_second"] / model["images_per_second"]
    assert screen["share_of_model_only"] == pytest.approx(share)


def test_broken_files_are_broken_in_three_ways() -> None:
    content = bytes(random.Random(1).randbytes(3000))
    draw = random.Random(2)
    for _ in range(50):
        cut = break_bytes(content, "truncated", draw)
        assert len(cut) < len(content)
        assert content.startswith(cut)
        flipped = break_bytes(content, "flipped", draw)
        assert len(flipped) == len(content)
        assert 1 <= sum((a ^ b).bit_count() for a, b in zip(content, flipped, strict=True)) <= 20
        noise = break_bytes(content, "random", draw)
        equal = sum(a == b for a, b in zip(content, noise, strict=False))
        assert equal < 12 + 0.02 * len(noise)  # one byte of 256 by chance


def test_broken_files_follow_from_the_seed(tmp_path: Path) -> None:
    names = [write_files(tmp_path / name, 6, seed) for name, seed in (("a", 0), ("again", 0), ("other", 1))]
    a, again, other = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("a", "again", "other"))
    assert a == again
    assert a.keys() == other.keys()
    broken = [name for name in a if "intact" not in name]
    assert sum(a[name] != other[name] for name in broken) == len(broken)
    kinds = [kind for _, kind in names[0].values()]
    formats = {name for name, _ in names[0].values()}
    assert {kind: kinds.count(kind) for kind in KINDS} == dict.fromkeys(KINDS, 2 * len(formats))
    with zipfile.ZipFile(tmp_path / "a" / "members.zip") as archive:  # broken are its members, not it
        assert len(archive.namelist()) == 7
        assert archive.testzip() is None


def test_intact_files_of_all_formats_can_be_read() -> None:
    import nibabel
    from pydicom import dcmread
    from pydicom.uid import JPEGLosslessSV1

    contents = intact()
    preprocessing = SCRD.create("resnet18", weights="random", size=64).config.preprocessing
    for name in (*PICTURES, *DICOM):
        assert read_image(contents[name], preprocessing).std() > 0.01, name
    assert nibabel.Nifti1Image.from_bytes(contents["nifti"]).shape == (40, 48, 3)
    assert gzip.decompress(contents["nifti-gz"]) == contents["nifti"]
    with Image.open(io.BytesIO(contents["tif-pages"])) as image:
        assert getattr(image, "n_frames", 1) == 3
    members = {"a/picture.png": contents["png"], "b.bmp": contents["bmp"]}
    with zipfile.ZipFile(io.BytesIO(contents["zip"])) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == members
    for name in ("tar", *PACKERS):
        with tarfile.open(fileobj=io.BytesIO(contents[name])) as tar:
            assert {info.name: tar.extractfile(info).read() for info in tar} == members  # type: ignore[union-attr]
    assert contents.keys() == {*PICTURES, *DICOM, *PACKERS, "tif-pages", "nifti", "nifti-gz", "zip", "tar"}
    assert JPEGLosslessSV1 == dcmread(io.BytesIO(contents["dicom-jpeg-lossless"])).file_meta.TransferSyntaxUID


def test_a_run_over_broken_files_ends_with_a_row_for_each(tmp_path: Path) -> None:
    found = fuzz(TINY, 3, tmp_path, 300, lambda text: None)
    assert found["ended"]
    assert not found["traceback"]
    assert not found["intact_but_not_read"]
    assert not found["without_a_row"]
    assert found["peak_bytes"] > 1e8  # torch alone takes more
    for name in (*PICTURES, *DICOM, *PACKERS, "tar", "tif-pages"):
        assert sum(found["formats"][name].values()) >= 4, name
        assert any(what.startswith("failed") for what in found["formats"][name]), name


def test_comparing_rows_finds_what_is_lost_double_new_or_changed() -> None:
    expected = [ROW, ROW | {"sample_id": "b-0"}, ROW | {"sample_id": "c-0"}]
    same = {"lost": 0, "double": 0, "new": 0, "changed": 0}
    again = [dict(row, percentile=float("nan")) for row in reversed(expected)]
    assert compare(expected, again) == same | {"rows": 3}
    assert compare(expected, expected[1:]) == same | {"rows": 2, "lost": 1}
    assert compare(expected, [*expected, ROW]) == same | {"rows": 4, "double": 1}
    assert compare(expected, [*expected, ROW | {"sample_id": "d"}]) == same | {"rows": 4, "new": 1}
    last_bit = ROW | {"score": float(np.nextafter(0.1, 1))}
    assert compare(expected, [last_bit, *expected[1:]]) == same | {"rows": 3, "changed": 1}
    assert compare(expected, [ROW | {"map": "x"}, *expected[1:]]) == same | {"rows": 3, "changed": 1}


def test_memory_is_that_of_all_processes() -> None:
    """Two children with 60 MB each; no process alone has as much as both."""
    child = "x = bytearray(60_000_000); import time; time.sleep(1.5)"
    start = f"[subprocess.Popen([sys.executable, '-c', {child!r}]) for _ in 'ab']"
    parent = f"import subprocess, sys; [process.wait() for process in {start}]"
    done = observe([sys.executable, "-c", parent], os.environ, interval=0.1)
    assert done.code == 0
    assert 120e6 < done.peak_bytes < 200e6
    assert 60e6 < done.largest_bytes < 110e6


def test_what_takes_too_long_is_ended_with_all_that_it_started() -> None:
    script = "import subprocess; subprocess.run(['sleep', '60'])"
    start = time.monotonic()
    done = observe([sys.executable, "-c", script], os.environ, limit=0.3, interval=0.1)
    assert done.code == -9
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("whole", [False, True])
def test_processes_that_outlive_a_killed_one_are_counted_and_ended(
    whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen_limits, "PATIENCE", 0.3)
    script = "import subprocess; subprocess.run(['sleep', '61'])"
    ended, orphans = screen_limits._killed_at([sys.executable, "-c", script], os.environ, 0.7, whole)
    assert not ended
    assert orphans == (0 if whole else 1)


def test_a_session_is_ended_and_no_other() -> None:
    ours, other = (subprocess.Popen(["sleep", "60"], start_new_session=True) for _ in "ab")
    stop(ours.pid)
    assert ours.wait() == -9
    assert members(other.pid) == [other.pid]
    stop(other.pid)
    assert other.wait() == -9
