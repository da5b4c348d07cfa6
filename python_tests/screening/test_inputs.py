# SPDX-License-Identifier: Apache-2.0
"""What is listed, in which order, and what is not."""

from __future__ import annotations

import os
import sys
import tarfile
import zipfile
from collections import deque
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scrd_fast.data.frames import Source
from scrd_fast.errors import ScrdFastError
from scrd_fast.screening.inputs import Input, list_inputs

DICOM = bytes(128) + b"DICM" + bytes(40)


def listed(*inputs: str | Path, out: Path | None = None) -> list[str]:
    """Sources as text; an entry with an error as its code in brackets."""
    entries = list_inputs(inputs, out)
    return [f"{e.source} [{e.error.split(':')[0]}]" if e.error else str(e.source) for e in entries]


def touch(folder: Path, *names: str, content: bytes = b"") -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return path


def test_a_folder_gives_the_images_below_it_sorted(here: Path) -> None:
    touch(here, "in/b.png", "in/a.dcm", "in/b/c.TIF", "in/a/z.jpeg", "in/a/y.bmp", "in/notes.txt", "in/list.csv")
    assert listed("in") == ["in/a.dcm", "in/b.png", "in/a/y.bmp", "in/a/z.jpeg", "in/b/c.TIF"]


def test_a_file_that_is_named_stays_whatever_it_is(here: Path) -> None:
    touch(here, "notes.md", "empty.png", ".hidden.png")
    (here / "broken.png").symlink_to("gone.png")
    os.mkfifo("pipe")
    named = ["notes.md", "empty.png", "broken.png", "pipe", ".hidden.png"]
    assert listed(*named) == named


def test_files_with_other_endings_or_none_count_if_they_are_dicom(here: Path) -> None:
    names = ["1.2.840.7", "IM1", "a.IMA", "b.v2", "e.img", "f.1", "g.", "h.DCM;1"]
    touch(here / "in", *names, content=DICOM)
    touch(here / "in", "README", "1.2.840.8", "c.img", "d.dat", content=b"text")
    os.mkfifo("in/pipe")  # opening it would wait for ever
    assert listed("in") == [f"in/{name}" for name in names]


def test_with_another_ending_the_preamble_is_wanted(here: Path) -> None:
    touch(here / "in", "IM1", "a.raw", "b.7", content=b"\x08\x00\x05\x00" + bytes(200))
    assert listed("in") == ["in/IM1", "in/b.7"]


def test_only_what_its_name_does_not_tell_is_opened(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(here / "in", "a.png", "b.dcm", "c.txt", "d.json", "e.PDF", "f.py", "IM1", "g.IMA", content=DICOM)
    opened: list[str] = []
    read = Path.open

    def recorded(path: Path, *args: Any, **kwargs: Any) -> Any:
        opened.append(path.name)
        return read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", recorded)
    assert listed("in") == ["in/IM1", "in/a.png", "in/b.dcm", "in/g.IMA"]
    assert opened == ["IM1", "g.IMA"]


def test_hidden_files_results_and_links_to_folders_are_passed_over(here: Path) -> None:
    touch(here, "in/a.png", "in/.b.png", "in/.git/c.png", "in/out/overlays/d.png", "in/outer/e.png", "other/f.png")
    (here / "in" / "link").symlink_to(here / "other")
    (here / "in" / "link.png").symlink_to(here / "other")
    (here / "in" / "self.png").symlink_to("self.png")
    (here / "in" / "file.png").symlink_to(here / "other" / "f.png")
    expected = ["in/a.png", "in/file.png", "in/self.png", "in/outer/e.png"]
    for out in (here / "in" / "out", Path("in/out"), Path("in/../in/out")):
        assert listed("in", out=out) == expected
        assert listed("in/[!l]*", out=out) == ["in/a.png", "in/file.png", "in/outer/e.png", "in/self.png"]
        assert sorted(listed("in/out*/**/*.png", out=out)) == ["in/outer/e.png"]


def test_a_folder_that_cannot_be_read_is_an_entry_with_an_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(here, "in/a/1.png", "in/b/2.png", "in/c/3.png")
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert [e for e in list_inputs(["in"]) if e.error] == [Input(Source(Path("in/b")), "unreadable: permission denied")]
    assert listed("in") == ["in/a/1.png", "in/b [unreadable]", "in/c/3.png"]


def test_deep_folders_are_no_recursion(here: Path) -> None:
    deep = here
    for _ in range(150):
        deep = deep / "d"
    touch(deep, "a.png")
    limit = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(120)
        assert len(listed(here)) == 1
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize("given", ["gone.png", "gone/", "*.dcm", "gone.zip!/a.png", "notes.txt!/a.png"])
def test_what_is_not_there_is_an_error_that_names_it(here: Path, given: str) -> None:
    touch(here, "gone1.png", "notes.txt")
    with pytest.raises(ScrdFastError) as caught:
        listed(given)
    assert str(caught.value).startswith(given.rstrip("/"))
    assert given != "gone.png" or str(caught.value).endswith("did you mean gone1.png?")


def test_a_folder_or_list_without_images_is_an_error(here: Path) -> None:
    touch(here, "in/notes.md", "list.txt", "in/x.txt", content=b"# nothing\n\n")
    for given in ("in", "list.txt"):
        with pytest.raises(ScrdFastError, match=f"^{given}: no images there"):
            listed(given)


def test_a_pattern_gives_what_it_matches_sorted(here: Path) -> None:
    touch(here, "s10/a.png", "s2/b.png", "s2/a.png", "s2/notes.md", "t/c.png", "s2/.d.png", "s2/x/e.png")
    assert listed("s*/*.png") == ["s10/a.png", "s2/a.png", "s2/b.png"]
    assert listed("s?") == ["s2/a.png", "s2/b.png", "s2/x/e.png"]
    assert listed("**/[ce].png") == ["s2/x/e.png", "t/c.png"]
    touch(here, "a[1].png", "a1.png")
    assert listed("a[1].png") == ["a[1].png"]  # there is such a file


def test_names_that_are_not_utf_8_survive(here: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    touch(here, f"in/{name}", "in/new\nline.png", "in/a,b.png")
    assert {e.source.path for e in list_inputs(["in"])} == set(Path("in").iterdir())
    assert listed("in/caf*") == [f"in/{name}"]
    Path("list.txt").write_bytes(b"in/caf\xe9.png\r\nin/a,b.png")
    assert listed("list.txt") == [f"in/{name}", "in/a,b.png"]
    Path("list.csv").write_bytes(b'path\nin/caf\xe9.png\n"in/a,b.png"\n"in/new\nline.png"\n')
    assert listed("list.csv") == [f"in/{name}", "in/a,b.png", "in/new\nline.png"]
    pq.write_table(pa.table({"path": [os.fsencode(p) for p in sorted(Path("in").iterdir())]}), "list.parquet")
    assert listed("list.parquet") == [str(p) for p in sorted(Path("in").iterdir())]


def test_archives_are_listed_in_place(here: Path) -> None:
    touch(here, "in/a.png", "in/c.png")
    hidden = ("__MACOSX/._x.png", ".git/z.png", "2/DICOMDIR")
    zipped(here / "in" / "b.zip", "2/x.png", "1/y.dcm", "notes.md", *hidden)
    with tarfile.open("in/d.tgz", "w:gz") as archive:
        archive.add("in/a.png", "z.png")
    inside = ["in/b.zip!/2/x.png", "in/b.zip!/1/y.dcm"]  # in the archive's order
    assert listed("in/b.zip") == inside
    assert listed("in") == ["in/a.png", *inside, "in/c.png", "in/d.tgz!/z.png"]
    Path("l.txt").write_text("in/d.tgz\nin/b.zip!/1/y.dcm\ngone.zip\n")
    assert listed("l.txt") == ["in/d.tgz!/z.png", "in/b.zip!/1/y.dcm", "gone.zip [missing]"]
    assert listed("in/b.zip!/1/y.dcm", "in/d.tgz!/gone.png") == ["in/b.zip!/1/y.dcm", "in/d.tgz!/gone.png"]


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz"])
def test_members_with_other_endings_or_none_count_if_they_are_dicom(here: Path, ending: str) -> None:
    touch(here, "IM1", "1.2.3", "big", "scan.v2", content=DICOM)
    Path("big").write_bytes(DICOM + os.urandom(100_000))
    touch(here, "a.png", "LICENSE", "SHA256SUMS", "x.tar.123", "notes.md", content=b"text" * 500)
    touch(here, "empty")
    touch(here, "full", content=b"x" * 512)
    Path("link").symlink_to("IM1")
    names = [
        "LICENSE",
        "IM1",
        "a.png",
        "big",
        "SHA256SUMS",
        "empty",
        "full",
        "x.tar.123",
        "1.2.3",
        "scan.v2",
        "notes.md",
    ]
    path = Path(f"a.{ending}")
    if ending == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.write(name)
    else:
        with tarfile.open(path, "w:gz" if ending == "tar.gz" else "w") as tar:
            for name in [*names, "link"]:
                tar.add(name)
    assert listed(path) == [f"{path}!/{name}" for name in ("IM1", "a.png", "big", "1.2.3", "scan.v2")]


def test_members_that_cannot_be_looked_at_count(here: Path) -> None:
    """A failed row is better than a lost image."""
    raw = bytearray(zipped(here / "a.zip", "IM1", "notes.md").read_bytes())
    raw[6] |= 1  # encrypted
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    Path("a.zip").write_bytes(raw)
    assert listed("a.zip") == ["a.zip!/IM1"]


def test_bad_archives_and_unsafe_members_are_entries_with_errors(here: Path) -> None:
    touch(here / "in", "bad.zip", "bad.tgz", content=b"no archive")
    zipped(here / "in" / "empty.zip", "notes.md")
    zipped(here / "in" / "leaves.zip", "../x.png", "y.png", "z.zip", "../x.md")
    assert listed("in") == [
        "in/bad.tgz [not-an-archive]",
        "in/bad.zip [not-an-archive]",
        "in/empty.zip [no-images]",
        "in/leaves.zip!/../x.png [unsafe-name]",
        "in/leaves.zip!/y.png",
        "in/leaves.zip!/z.zip [unsupported]",
    ]
    assert [str(e.source) for e in list_inputs(["in"]) if e.refused] == ["in/leaves.zip!/../x.png"]


def test_members_before_a_damage_are_inputs_and_the_archive_is_an_entry_with_an_error(here: Path) -> None:
    touch(here, *(f"{i}.png" for i in range(10)), content=b"x")
    with tarfile.open("a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for i in range(10):
            archive.add(f"{i}.png")
    content = bytearray(Path("a.tar").read_bytes())
    content[4 * 1024] ^= 1
    Path("a.tar").write_bytes(content)
    *found, last = list_inputs(["a.tar"])
    assert [str(entry.source) for entry in found] == [f"a.tar!/{i}.png" for i in range(4)]
    assert last.source == Source(Path("a.tar"))
    assert (last.error or "").startswith("unreadable: damaged amid its members: ")
    assert not last.refused


def test_each_input_is_listed_once_where_it_is_named_first(here: Path) -> None:
    touch(here, "in/a.png", "in/b.png", "in/c.png")
    zipped(here / "in" / "d.zip", "x.png", "y.png")
    (here / "alias").symlink_to("in")
    Path("in/l.txt").write_text("c.png\n../in/a.png\nd.zip!/y.png\n")
    first = ["in/b.png", "in/c.png", "in/../in/a.png", "in/d.zip!/y.png"]
    again = ["in", here / "in" / "a.png", "alias", "alias/c.png", "./in/*", "in/l.txt"]
    assert listed("in/b.png", "in/l.txt", *again) == [*first, "in/d.zip!/x.png"]


@pytest.mark.usefixtures("here")
def test_the_listing_is_streamed() -> None:
    Path("l.txt").write_text("".join(f"{i}.png\n" for i in range(5000)))
    entries = list_inputs(["l.txt", "gone.png"])
    assert str(next(entries).source) == "0.png"
    with pytest.raises(ScrdFastError, match=r"^gone.png: no such file"):  # found out at the end of the list
        deque(entries, maxlen=0)


@pytest.mark.usefixtures("here")
def test_what_cannot_be_seen_does_not_stop_the_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    touch(Path("in"), "IM1", "1.2", content=DICOM)
    touch(Path("in"), "a.png", "x.md")
    Path("in/link").symlink_to("secret")
    Path("in/l.txt").write_text("x.md\nsecret/x\n")
    seen, opened = Path.stat, Path.open

    def stat(path: Path, **kwargs: Any) -> os.stat_result:
        if path.name == "link" or path.parent.name == "secret":
            raise PermissionError(13, "Permission denied")
        return seen(path, **kwargs)

    def open_(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name in ("IM1", "x.md"):
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "stat", stat)
    monkeypatch.setattr(Path, "open", open_)
    assert listed("in") == ["in/1.2", "in/IM1", "in/a.png"]
    assert listed("in/l.txt", "in/x.md") == ["in/x.md", "in/secret/x"]


def test_a_dicomdir_gives_the_images_that_it_references(here: Path) -> None:
    pytest.importorskip("pydicom")
    from pydicom import examples
    from pydicom.fileset import FileSet

    fileset = FileSet()
    for number in range(3):
        dataset = examples.ct
        dataset.SOPInstanceUID = f"1.2.3.{number}"
        fileset.add(dataset)
    fileset.write(here / "disc")
    images = sorted(
        str(p.relative_to(here)) for p in (here / "disc").rglob("*") if p.is_file() and p.name != "DICOMDIR"
    )
    assert len(images) == 3
    assert sorted(listed("disc/DICOMDIR")) == images
    assert sorted(listed("disc")) == images  # and the directory is no image
    Path("disc/DICOMDIR").rename("disc/index")
    assert sorted(listed("disc/index")) == images  # known by its content
    assert sorted(listed("disc")) == images


@pytest.mark.parametrize("parts", [["..", "x.dcm"], "/etc/x.dcm", ["A", "..", "..", "X"], ["A", ""], ["C:", "X"]])
def test_a_dicomdir_does_not_lead_out_of_its_folder(here: Path, parts: Any) -> None:
    dicomdir(here / "DICOMDIR", parts, ["A", "B"])
    entries = list(list_inputs(["DICOMDIR"]))
    assert [e.refused for e in entries] == [True, False]
    assert entries[0].error == "unsafe-name: a reference out of the DICOMDIR's folder"
    assert str(entries[1].source) == "A/B"


def test_names_on_a_mounted_disc_may_differ_from_the_dicomdir(here: Path) -> None:
    dicomdir(here / "DICOMDIR", ["A", "B1"], ["A", "B2"], ["A", "GONE"], ["C", "D"], ["NO", "D"], "E")
    touch(here, "a/b1", "a/B2;1", "C/D", "C/d;1", "e;1")
    assert listed("DICOMDIR") == ["a/b1", "a/B2;1", "a/GONE", "C/D", "NO/D", "e;1"]


def dicomdir(path: Path, *references: Any, syntax: str = "1.2.840.10008.1.2.1") -> None:
    """As pydicom would not write it."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, MediaStorageDirectoryStorage

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.DirectoryRecordSequence = []
    for kind, reference in [("PATIENT", None), ("SR DOCUMENT", ["R"]), *(("IMAGE", r) for r in references)]:
        record = Dataset()
        record.DirectoryRecordType = kind
        if reference is not None:
            with pydicom.config.disable_value_validation():
                record.ReferencedFileID = reference
        dataset.DirectoryRecordSequence.append(record)
    dataset.save_as(path, enforce_file_format=True)


@pytest.mark.usefixtures("here")
def test_a_damaged_dicomdir_is_an_error_that_names_it() -> None:
    pytest.importorskip("pydicom")
    dicomdir(Path("DICOMDIR"), ["A"], syntax="1.2.840.10008.1.2.1.99")  # deflated
    with pytest.raises(ScrdFastError, match=r"^DICOMDIR: cannot be read as a DICOMDIR \(ValueError\)$"):
        listed("DICOMDIR")
    Path("DICOMDIR").write_bytes(b"no DICOM")
    with pytest.raises(ScrdFastError, match=r"^DICOMDIR: cannot be read as a DICOMDIR \(InvalidDicomError\)$"):
        listed("DICOMDIR")
