# SPDX-License-Identifier: Apache-2.0
"""Sources that are broken or mean harm: an error that names what is wrong, and nothing written."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from data_sources import COUNTS, brain_tumor, isic, listed, record, rsna, run, small, uuid, zipped

from scrd_fast.data.listing import list_files
from scrd_fast.errors import DataError

pytest.importorskip("imagehash")
pytestmark = pytest.mark.usefixtures("small")
_ = small  # a fixture


@pytest.fixture
def error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs that must fail: gives what they say, after looking that nothing was left."""

    def fails(name: str, source: Path, *flags: str) -> str:
        before = sorted(tmp_path.iterdir())
        assert run(name, source, tmp_path / "out", *flags) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        assert sorted(tmp_path.iterdir()) == before
        return captured.err

    return fails


def change(source: Path, edit: Any) -> Path:
    path = source / "data.json"
    lists = json.loads(path.read_text())
    edit(lists)
    path.write_text(json.dumps(lists))
    return source


@pytest.fixture
def brain(tmp_path: Path) -> Path:
    return listed(tmp_path / "s", COUNTS["brain_tumor"])


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "C:\\x.jpg", "..\\x.jpg", "a/../../x.jpg", "", "a\n"])
def test_names_that_lead_out(name: str, brain: Path, error: Any) -> None:
    assert "leads out of images/" in error("brain_tumor", change(brain, lambda x: x["train"]["0"].append(name)))


def test_names_listed_twice(brain: Path, error: Any) -> None:
    def twice(lists: Any) -> None:
        lists["train"]["0"][1] = lists["train"]["0"][0]
        lists["test"]["1"][0] = lists["test"]["0"][0]

    text = error("brain_tumor", change(brain, twice))
    assert "n_000.jpg: listed in train 0 and again in train 0" in text
    assert "n_006.jpg: listed in test 0 and again in test 1" in text


def test_missing_files_are_listed_not_endlessly(brain: Path, error: Any) -> None:
    change(brain, lambda x: x["train"]["0"].extend(f"gone_{i}.jpg" for i in range(40)))
    text = error("brain_tumor", brain)
    assert "gone_0.jpg: listed in train 0, not in the source" in text
    assert "and 20 more" in text
    assert "gone_39" not in text


@pytest.mark.parametrize(
    "content",
    ["", "[1]", '{"train": {"0": "abc"}}', '{"train": {"0": [1]}}', '{"train": [1]}', "[" * 100_000, "\udcff"],
)
def test_lists_that_are_none(content: str, brain: Path, error: Any) -> None:
    (brain / "data.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    text = error("brain_tumor", brain)
    assert "data.json: expected" in text


def test_marks_and_line_ends_of_windows(brain: Path, tmp_path: Path) -> None:
    text = (brain / "data.json").read_text()
    assert run("brain_tumor", brain, tmp_path / "a") == 0
    (brain / "data.json").write_bytes(
        b"\xef\xbb\xbf" + json.dumps(json.loads(text), indent=1).replace("\n", "\r\n").encode()
    )
    assert run("brain_tumor", brain, tmp_path / "b") == 0
    assert record(tmp_path / "a") == record(tmp_path / "b")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_links_that_lead_out(kind: str, brain: Path, tmp_path: Path, error: Any) -> None:
    outside = listed(tmp_path / "outside", COUNTS["brain_tumor"]) / "images"
    if kind == "file":
        (brain / "images" / "n_000.jpg").unlink()
        (brain / "images" / "n_000.jpg").symlink_to(outside / "n_000.jpg")
        assert "images/n_000.jpg: a link that leads out of the source" in error("brain_tumor", brain)
    else:
        (brain / "more").symlink_to(outside)
        assert "more: a link that leads out of the source" in error("brain_tumor", brain)


def test_links_inside_are_followed_to_the_file(brain: Path, tmp_path: Path) -> None:
    (brain / "images" / "n_000.jpg").rename(brain / "kept.jpg")
    (brain / "images" / "n_000.jpg").symlink_to(brain / "kept.jpg")
    assert run("brain_tumor", brain, tmp_path / "out") == 0
    made = tmp_path / "out" / "images" / "n_000.jpg"
    assert not made.is_symlink()
    assert made.samefile(brain / "kept.jpg")


def test_members_that_lead_out_are_refused(brain: Path, tmp_path: Path, error: Any) -> None:
    packed = zipped(tmp_path / "s.zip", brain)
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("../evil.jpg", b"x")
    assert "s.zip!/../evil.jpg: unsafe-name" in error("brain_tumor", packed)


def test_links_and_repeats_in_archives_are_refused(brain: Path, tmp_path: Path, error: Any) -> None:
    packed = tmp_path / "s.tar"
    with tarfile.open(packed, "w") as archive:
        archive.add(brain, "s")
        link = tarfile.TarInfo("s/images/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        again = tarfile.TarInfo("s/data.json")
        again.size = 2
        archive.addfile(again, io.BytesIO(b"{}"))
    text = error("brain_tumor", packed)
    assert "link.jpg: not-a-file" in text
    assert "s/data.json: duplicate-name" in text


def test_a_broken_archive(tmp_path: Path, error: Any) -> None:
    (tmp_path / "s.zip").write_bytes(b"PK none")
    assert "s.zip: an archive that cannot be read" in error("brain_tumor", tmp_path / "s.zip")


def test_several_lists_are_not_chosen_from(tmp_path: Path, error: Any) -> None:
    for name in ("RSNA", "BrainTumor"):
        listed(tmp_path / "s" / name, COUNTS["brain_tumor"])
    assert "holds 2 of what must be there once (BrainTumor/data.json, RSNA/data.json)" in error(
        "brain_tumor", tmp_path / "s"
    )


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("patientId,class", "patientId,Target", "expected the columns patientId, class, got patientId, Target"),
        ("Normal", "Healthy", "line 2: expected one of the classes of the challenge, got 'Healthy'"),
        (f"{uuid(0)},Normal", uuid(0), "line 2: expected 2 values, got 1"),
        (f"{uuid(0)},Normal", f"{uuid(1)},Lung Opacity", f"line 3: patient {uuid(1)} has two classes"),
        (f"{uuid(0)},", "unknown,", "unknown.dcm: in the table, not in stage_2_train_images"),
    ],
)
def test_tables_of_rsna(old: str, new: str, text: str, tmp_path: Path, error: Any) -> None:
    pytest.importorskip("pydicom")
    table = rsna(tmp_path / "s") / "stage_2_detailed_class_info.csv"
    table.write_text(table.read_text().replace(old, new, 1))
    assert text in error("rsna", tmp_path / "s")


def test_a_table_of_isic(tmp_path: Path, error: Any) -> None:
    source = isic(tmp_path / "s")
    table = next(source.rglob("*Test_GroundTruth.csv"))
    table.write_text(table.read_text().replace("NV", "nevus"))
    assert "expected the columns image, NV, got image, MEL, nevus, BCC" in error("isic2018", source)
    table.write_text("image,NV\nISIC_0000015,maybe\n")
    assert "line 2: expected 0 or 1 in the column NV, got 'maybe'" in error("isic2018", source)


def test_one_name_in_two_folders_of_isic(tmp_path: Path, error: Any) -> None:
    source = isic(tmp_path / "s")
    path = next((source / "ISIC2018_Task3_Test_Input").iterdir())
    (source / "ISIC2018_Task3_Training_Input" / path.name).write_bytes(path.read_bytes())
    assert "which of them is meant is not known" in error("isic2018", source)


def test_an_unknown_folder_of_the_brain_set(tmp_path: Path, error: Any) -> None:
    source = brain_tumor(tmp_path / "s")
    (source / "Training" / "glioma").rename(source / "Training" / "gliomas")
    assert "Training/gliomas: a folder that is none of the classes" in error("brain_tumor", source)


@pytest.mark.parametrize("name", list(COUNTS))
def test_a_source_of_something_else(name: str, tmp_path: Path, error: Any) -> None:
    (tmp_path / "s").mkdir()
    assert f"not a source of {name}: expected " in error(name, tmp_path / "s")


def test_unreadable_images_are_listed(brain: Path, error: Any) -> None:
    for name in ("n_000.jpg", "n_009.jpg"):
        (brain / "images" / name).write_bytes(b"none")
    text = error("brain_tumor", brain)
    assert "images/n_000.jpg: no known image format" in text
    assert "images/n_009.jpg: no known image format" in text


def test_usage(brain: Path, tmp_path: Path, error: Any) -> None:
    assert "no data set named 'brain_tumour'; did you mean brain_tumor?" in error("brain_tumour", brain)
    assert "no data set named 'x'; known are rsna, brain_tumor" in error("x", brain)
    assert "no such file or folder; did you mean" in error("brain_tumor", tmp_path / "s2")
    assert "expected a folder, or an archive" in error("brain_tumor", brain / "data.json")
    assert "--split: the split of isic2018 is no list" in error("isic2018", brain, "--split", str(brain / "data.json"))
    text = error("brain_tumor", brain, "--split", str(tmp_path / "none.json"))
    assert "none.json: " in text
    assert "No such file" in text


def test_without_imagehash(brain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "imagehash", None)
    assert run("brain_tumor", brain, tmp_path / "out") == 4
    assert "ImageHash is not installed; install this package with its [model] extra" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_hidden_files_are_passed_over(brain: Path, tmp_path: Path) -> None:
    (brain / ".DS_Store").write_bytes(b"x")
    (brain / "__MACOSX" / "images").mkdir(parents=True)
    (brain / "__MACOSX" / "images" / "._n_000.jpg").write_bytes(b"x")
    (brain / "images" / "._n_001.jpg").write_bytes(b"x")
    assert {f.path.name for f in list_files(brain)} == {"data.json", *(f"n_{i:03d}.jpg" for i in range(14))}
    with pytest.raises(DataError, match="no such file or folder"):
        list_files(tmp_path / "none")
