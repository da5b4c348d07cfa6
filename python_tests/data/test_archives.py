# SPDX-License-Identifier: Apache-2.0
"""Archives that zipfile and tarfile write, and hostile ones."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import threading
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scrd_fast.config import Preprocessing
from scrd_fast.data import archives
from scrd_fast.data.archives import list_members, read_member
from scrd_fast.data.frames import Source
from scrd_fast.data.reading import count_frames, read_image
from scrd_fast.errors import ImageError

ENDINGS = ["zip", "tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"]


def packed(path: Path, members: dict[str, bytes]) -> Path:
    """As its name says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return path
    mode = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            add(archive, name, content)
    return path


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, "/etc/passwd"
    archive.addfile(info, io.BytesIO(content))


def failure(source: Source) -> tuple[str, bool]:
    with pytest.raises(ImageError) as caught:
        read_member(source)
    for name in (source.path.name, source.member):
        assert name not in str(caught.value)
    return caught.value.code, caught.value.refused


@pytest.mark.parametrize("ending", ENDINGS)
def test_members_are_listed_and_read_in_any_order(tmp_path: Path, ending: str) -> None:
    generator = np.random.default_rng(0)
    members = {f"s{i}/b-{i}.bin": generator.bytes(int(generator.integers(0, 1_500_000))) for i in range(4)}
    path = packed(tmp_path / f"a.{ending}", members)
    assert list(list_members(path)) == [(name, None) for name in members]
    for name in [*members, *reversed(members), *members]:
        assert read_member(Source(path, name)) == members[name]
    assert failure(Source(path, "s0/none")) == ("missing", False)
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", ["zip", "tar.gz"])
def test_an_image_in_an_archive_is_the_image(tmp_path: Path, ending: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    path = packed(tmp_path / f"a.{ending}", {"x/a.png": (tmp_path / "a.png").read_bytes()})
    source = Source(path, "x/a.png")
    preprocessing = Preprocessing(size=32)
    assert torch.equal(read_image(source, preprocessing), read_image(tmp_path / "a.png", preprocessing))
    assert count_frames(source) == 1


def test_members_in_order_are_read_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    real = archives._open

    def counted(path: Path) -> object:
        opened.append(path)
        return real(path)

    monkeypatch.setattr(archives, "_open", counted)
    path = packed(tmp_path / "a.tar.gz", {f"{i}": bytes(1000) for i in range(20)})
    backwards: list[int] = []
    read_member(Source(path, "0"))
    file = archives._kept.archive._file
    seek = file.seek

    def noted(at: int) -> None:
        backwards.extend([at] if at < file.tell() else [])
        seek(at)

    monkeypatch.setattr(file, "seek", noted)
    for i in range(1, 20):
        read_member(Source(path, f"{i}"))
    assert len(opened) == 1
    assert backwards == []


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_unfolding_up_to_a_member_is_progress(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path / f"a.{ending}", {"x": b"first", "big": bytes(20 * 2**20), "y": b"last"})
    calls: list[int] = []
    monkeypatch.setattr(archives, "on_progress", lambda: calls.append(1))
    assert read_member(Source(path, "y")) == b"last"
    assert (len(calls) >= 20) == (ending != "tar")  # in a plain file it is a jump
    calls.clear()
    assert read_member(Source(path, "x")) == b"first"
    calls.clear()
    assert read_member(Source(path, "y")) == b"last"
    assert (len(calls) >= 20) == (ending != "tar")


def test_another_thread_has_its_own(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.tar", {f"{i}": bytes([i]) * 100_000 for i in range(20)})
    wrong: list[str] = []

    def read(order: list[int]) -> None:
        wrong.extend(f"{i}" for i in order if read_member(Source(path, f"{i}")) != bytes([i]) * 100_000)

    threads = [threading.Thread(target=read, args=(list(range(20))[::step] * 5,)) for step in (1, -1, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_archive_that_was_replaced_is_opened_anew(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", {"x": b"old"})
    assert read_member(Source(path, "x")) == b"old"
    packed(tmp_path / "b.zip", {"x": b"newer"}).replace(path)
    assert read_member(Source(path, "x")) == b"newer"


HOSTILE_NAMES = ["/etc/passwd", "../up", "a/../../up", "C:/x.png", "C:\\x.png", "..\\up", "\\\\host\\x"]


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_names_that_lead_out_are_refused(tmp_path: Path, ending: str) -> None:
    path = packed(tmp_path / f"a.{ending}", dict.fromkeys([*HOSTILE_NAMES, "good"], b"x"))
    listed = dict(list_members(path))
    assert listed.pop("good") is None
    assert len(listed) == len(HOSTILE_NAMES)
    for name, problem in listed.items():
        assert problem == "unsafe-name: leads out of the archive"
        assert failure(Source(path, name)) == ("unsafe-name", True)


def test_links_devices_and_holes_are_refused_and_folders_passed_over(tmp_path: Path) -> None:
    kinds = {"soft": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "pipe": tarfile.FIFOTYPE, "disk": tarfile.BLKTYPE}
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "folder", kind=tarfile.DIRTYPE)
        for name, kind in kinds.items():
            add(archive, name, kind=kind)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.mkdir("folder") if hasattr(zipped, "mkdir") else zipped.writestr("folder/", b"")
        info = zipfile.ZipInfo("soft")
        info.external_attr = 0o120777 << 16
        zipped.writestr(info, "/etc/passwd")
    for path, names in ((tmp_path / "a.tar", list(kinds)), (tmp_path / "a.zip", ["soft"])):
        listed = dict(list_members(path))
        assert list(listed) == names
        for name in names:
            assert (listed[name] or "").startswith("not-a-file: ")
            assert failure(Source(path, name)) == ("not-a-file", True)


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_the_second_of_one_name_is_refused_and_the_first_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    if ending == "zip":
        with zipfile.ZipFile(path, "w") as zipped:
            zipped.writestr("x", b"1")
            with pytest.warns(UserWarning, match="Duplicate"):
                zipped.writestr("x", b"2")
    else:
        with tarfile.open(path, "w") as archive:
            for content in (b"1", b"2"):
                add(archive, "x", content)
            add(archive, "y")
    assert [problem is None for name, problem in list_members(path) if name == "x"] == [True, False]
    if ending == "tar":
        read_member(Source(path, "y"))
    assert read_member(Source(path, "x")) == b"1"


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz"])
def test_what_announces_too_much_is_refused(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scrd_fast.data.limits.MAX_BYTES", 1000)
    path = packed(tmp_path / f"a.{ending}", {"big": os.urandom(1001), "good": os.urandom(1000)})
    assert list(list_members(path)) == [("big", "too-large: 1001 bytes, at most 1000 are read"), ("good", None)]
    assert failure(Source(path, "big")) == ("too-large", True)
    assert len(read_member(Source(path, "good"))) == 1000


@pytest.mark.parametrize("ending", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
def test_a_bomb_takes_no_memory(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_RATIO_FROM", 5 * 2**20)
    path = packed(tmp_path / f"a.{ending}", {"bomb": bytes(40 * 2**20), "after": b"x"})
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    try:
        if ending == "zip":
            assert dict(list_members(path))["bomb"] == "too-large: unfolds to more than 200 times its size"
        else:
            with pytest.raises(ImageError, match="200 times its size") as caught:
                list(list_members(path))
            assert (caught.value.code, caught.value.refused) == ("too-large", True)
        assert failure(Source(path, "after" if ending != "zip" else "bomb")) == ("too-large", True)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


def test_a_header_that_lies_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory says 100 bytes, and there are many more; or many more, and there are few."""
    path = packed(tmp_path / "a.zip", {"x": bytes(5_000_000)})
    content = path.read_bytes()
    for announced in (100, 6_000_000):
        path.write_bytes(content.replace(struct.pack("<L", 5_000_000), struct.pack("<L", announced)))
        assert list(list_members(path)) == [("x", None)]
        assert failure(Source(path, "x"))[1] is False
    monkeypatch.setattr("scrd_fast.data.limits.MAX_BYTES", 1_000_000)
    tar = packed(tmp_path / "a.tar", {"x": b"1234"})
    raw = bytearray(tar.read_bytes())
    raw[124:136] = b"00004000000\0"
    raw[148:156] = b"%06o\0 " % (sum(raw[:148]) + 8 * 32 + sum(raw[156:512]))
    tar.write_bytes(raw)
    assert failure(Source(tar, "x")) == ("too-large", True)
    monkeypatch.undo()
    assert failure(Source(tar, "x")) == ("unreadable", False)


def test_a_header_of_a_name_that_has_no_end_takes_no_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 90 * 2**20
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.addfile(info, io.BytesIO(b"n" * info.size))
    tracemalloc.start()
    with pytest.raises(ImageError, match="larger than any"):
        list(list_members(tmp_path / "a.tar.gz"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20


# "secret", with the password "x": traditional encryption, as other programs write it and zipfile does not.
def _encrypted(path: Path) -> Path:
    packed(path, {"x": b"secret"})
    raw = bytearray(path.read_bytes())
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    return path


def test_a_member_with_a_password_fails(tmp_path: Path) -> None:
    path = _encrypted(tmp_path / "a.zip")
    assert list(list_members(path)) == [("x", None)]
    assert failure(Source(path, "x")) == ("encrypted", False)


def test_packers_that_unfold_at_once_are_not_used(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x", b"content" * 100)
    assert failure(Source(tmp_path / "a.zip", "x")) == ("unsupported", False)


@pytest.mark.parametrize("ending", ENDINGS)
def test_cut_archives_and_others_fail_with_a_code(tmp_path: Path, ending: str) -> None:
    members = {f"{i}": os.urandom(20_000) for i in range(5)}
    content = packed(tmp_path / f"a.{ending}", members).read_bytes()
    path = tmp_path / f"b.{ending}"
    for cut in (0, 1, 100, 3000, len(content) // 2, len(content) * 9 // 10):
        path.write_bytes(content[:cut])
        assert failure(Source(path, "4"))[0] in ("not-an-archive", "missing", "unreadable")
    path.write_bytes(b"a text, nothing else" * 100)
    with pytest.raises(ImageError) as caught:
        list(list_members(path))
    assert caught.value.code == "not-an-archive"
    assert failure(Source(tmp_path / f"none.{ending}", "4")) == ("missing", False)


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
@pytest.mark.parametrize("damage", ["flipped", "zeroed", "cut before", "cut within", "cut in the member before"])
def test_members_of_a_damaged_tar_never_vanish_without_a_word(tmp_path: Path, ending: str, damage: str) -> None:
    content = bytearray(packed(tmp_path / "a.tar", {f"{i}": bytes([i]) * 1000 for i in range(10)}).read_bytes())
    at = 4 * 1536  # of the fifth header
    if damage == "flipped":
        content[at + 3] ^= 1
    elif damage == "zeroed":
        content[at : at + 512] = bytes(512)
    else:
        del content[at + {"cut before": 0, "cut within": 100, "cut in the member before": -700}[damage] :]
    path = tmp_path / f"b.{ending}"
    path.write_bytes(gzip.compress(content) if ending == "tar.gz" else content)
    found: list[str] = []
    with pytest.raises(ImageError, match=r"^damaged amid its members: ") as caught:
        found.extend(name for name, _ in list_members(path))
    assert (caught.value.code, caught.value.refused) == ("unreadable", False)
    assert found == ["0", "1", "2", "3"]
    assert read_member(Source(path, "2")) == bytes([2]) * 1000
    assert failure(Source(path, "5")) == ("unreadable", False)


@pytest.mark.parametrize("blocks", [1, 2, 20])
def test_a_tar_ends_with_one_block_of_zeros_or_more(tmp_path: Path, blocks: int) -> None:
    path = packed(tmp_path / "a.tar", {"x": b"1", "y": b"2"})
    path.write_bytes(path.read_bytes()[:2048] + bytes(512 * blocks))
    assert list(list_members(path)) == [("x", None), ("y", None)]
    path.write_bytes(bytes(512 * blocks))
    assert list(list_members(path)) == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_changed_archives_never_do_anything_else(tmp_path: Path, ending: str) -> None:
    generator = np.random.default_rng(1)
    content = packed(tmp_path / f"a.{ending}", {f"{i}": generator.bytes(500) for i in range(3)}).read_bytes()
    path = tmp_path / f"b.{ending}"
    failed = 0
    for _ in range(60):
        changed = bytearray(content)
        for at in generator.integers(0, len(content), 5):
            changed[at] = generator.integers(256)
        path.write_bytes(changed)
        try:
            for name, problem in list_members(path):
                if problem is None:
                    read_member(Source(path, name))
        except ImageError:
            failed += 1
    assert failed


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_negative_size_is_no_walk_without_an_end(tmp_path: Path, ending: str) -> None:
    """Written in base 256, as tarfile reads it: from the third header back to the second."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name in ("a.png", "b.png", "c.png"):
            archive.addfile(tarfile.TarInfo(name))
    content = bytearray(plain.getvalue())
    header = content[1024:1536]
    header[124:136] = b"\xff" * 4 + (-1024).to_bytes(8, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[1024:1536] = header
    path = tmp_path / f"n.{ending}"
    path.write_bytes(bytes(content) if ending == "tar" else gzip.compress(bytes(content)))
    members = list_members(path)
    assert [next(members)[0], next(members)[0]] == ["a.png", "b.png"]
    with pytest.raises(ImageError, match="a size leads back"):
        next(members)
    with pytest.raises(ImageError, match="a size leads back"):
        read_member(Source(path, "z.png"))
