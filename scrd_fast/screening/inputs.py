# SPDX-License-Identifier: Apache-2.0
"""What is to be screened: every distinct file and archive member in a fixed order, streamed.

The order follows from names alone. Memory holds the names of one folder at a time; what was listed before is
remembered in a temporary database on disk.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from scrd_fast.data.archives import Head, is_archive_name, list_members
from scrd_fast.data.dicom import is_unnamed_dicom, may_be_dicom
from scrd_fast.data.frames import Source
from scrd_fast.data.reading import EXTENSIONS, is_image_name
from scrd_fast.errors import ImageError, ScrdFastError
from scrd_fast.files import nearest
from scrd_fast.screening.lists import LISTS, is_dicomdir, paths_of_dicomdir, paths_of_list

__all__ = ["Input", "list_inputs"]

_HEAD = 512  # bytes of a file that are looked at


class Input(NamedTuple):
    """One thing to be screened. `error`, "code: reason", says of an entry that it is never read, only reported."""

    source: Source
    error: str | None = None
    refused: bool = False  # by a rule; else it failed


def list_inputs(inputs: Sequence[str | Path], out: Path | None = None) -> Iterator[Input]:
    """Each distinct input once, where it is named first.

    inputs: a file, as it is; a folder: the images below it, sorted, also DICOM files with other endings or none;
    an archive: the images in it; a member, as `archive.zip!/member`; a pattern with * ? or [: all that it matches but
    lists, sorted; a list (.txt, .csv, .tsv, .parquet), whose relative paths begin at its folder; a DICOMDIR: the images
    that it references. `out`, a run's own results, and hidden files are passed over, links to folders are not followed.

    What cannot be listed in between (a folder without permission, a damaged archive) becomes an entry with an error,
    and so does a file with a list's ending that is none: it has no column `path`, and its first entry neither has the
    name of an image or archive nor exists.
    Raises `ScrdFastError` for an input that does not exist, a pattern without a match, a folder or list without
    images, and a list that cannot be read.
    """
    _real.cache_clear()  # links, and the current folder, may be others than at the last call
    own = None if out is None else os.path.realpath(out)
    with _database() as database:
        for given in inputs:
            for entry in _given(Path(given), own):
                if _is_new(database, entry.source):
                    yield entry


@contextlib.contextmanager
def _database() -> Iterator[sqlite3.Connection]:
    """A temporary one on disk, with one set of bytes. Nothing is ever committed: it goes when it is closed."""
    with contextlib.closing(sqlite3.connect("")) as database:
        database.execute("PRAGMA journal_mode = OFF")
        database.execute("CREATE TABLE seen (name BLOB PRIMARY KEY) WITHOUT ROWID")
        yield database


def _is_new(database: sqlite3.Connection, source: Source) -> bool:
    folder, name = _real(str(source.path.parent)), source.path.name
    digest = hashlib.sha256(os.fsencode("\0".join((folder, name, source.member or "")))).digest()[:16]
    return database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 1


_real = functools.lru_cache(maxsize=1024)(os.path.realpath)  # one folder by two ways is one folder


def _given(given: Path, own: str | None) -> Iterator[Input]:
    text = str(given)
    if os.path.lexists(given):
        yield from _found(given, own)
    elif (member := _member(text)) and stat.S_ISREG(_kind(member.path)):
        yield Input(member)
    elif glob.has_magic(text):
        matched = False
        for match in _sorted(glob.iglob(text, recursive=True)):  # noqa: PTH207  (pathlib's finds hidden files too)
            if not _is_own(Path(match), own) and not _is_list(Path(match)):
                matched = True
                yield from _found(Path(match), own)
        if not matched:
            raise ScrdFastError(f"{text}: no file matches (lists count only where they are named)")
    else:
        raise ScrdFastError(f"{text}: no such file or folder{nearest(given)}")


def _is_own(path: Path, own: str | None) -> bool:
    """Whether it is the folder of the run's results or lies in it; whatever link leads to its parent."""
    if own is None:
        return False
    real = os.path.join(_real(str(path.parent)), path.name)  # noqa: PTH118  (both are text)
    return real == own or real.startswith(own + os.sep)


def _sorted(names: Iterable[str]) -> Iterator[str]:
    """As `sorted`, on disk."""
    with _database() as database:
        database.executemany("INSERT OR IGNORE INTO seen VALUES (?)", ((os.fsencode(name),) for name in names))
        for (name,) in database.execute("SELECT name FROM seen ORDER BY name"):
            yield os.fsdecode(name)


def _member(text: str) -> Source | None:
    """Of `archive.zip!/member`."""
    archive, _, member = text.partition("!/")
    return Source(Path(archive), member) if member and is_archive_name(archive) else None


def _found(path: Path, own: str | None) -> Iterator[Input]:
    kind = _kind(path)
    if stat.S_ISDIR(kind):
        yield from _not_empty(path, _folder(path, own))
    elif is_image_name(path.name) or not stat.S_ISREG(kind):  # of a broken link or a pipe reading says what is wrong
        yield Input(Source(path))
    elif _is_list(path):
        yield from _not_empty(path, _list(path))
    elif is_archive_name(path.name):
        yield from _archive(path)
    elif path.name.upper() == "DICOMDIR" or is_dicomdir(_head(path) or b""):
        yield from _not_empty(path, _dicomdir(path))
    else:
        yield Input(Source(path))


def _is_list(path: Path) -> bool:
    """By its name: what is in it decides when it is read."""
    return path.suffix.lower() in LISTS and stat.S_ISREG(_kind(path))


def _kind(path: Path) -> int:
    """As `stat.S_ISDIR` and the like take it; 0 where nothing can be seen, for which `Path.is_dir` may raise."""
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _not_empty(path: Path, entries: Iterator[Input]) -> Iterator[Input]:
    first = next(entries, None)
    if first is None:
        raise ScrdFastError(f"{path}: no images there (known are {', '.join(EXTENSIONS)})")
    yield first
    yield from entries


def _list(path: Path) -> Iterator[Input]:
    """Files that a list names need not exist: reading says so."""
    try:
        yield from _entries(path)
    except ImageError as error:
        yield Input(Source(path), f"{error.code}: {error}")


def _entries(path: Path) -> Iterator[Input]:
    for text in paths_of_list(path):
        named = path.parent / text
        if (member := _member(text)) is not None:
            yield Input(Source(path.parent / member.path, member.member))
        elif is_archive_name(named.name):
            yield from _archive(named)
        elif not is_image_name(named.name) and stat.S_ISDIR(_kind(named)):
            yield Input(Source(named), "not-a-file: lists name files, this is a folder")
        else:
            yield Input(Source(named))


def _dicomdir(path: Path) -> Iterator[Input]:
    listed: dict[Path, dict[str, str]] = {}
    for reference, safe in paths_of_dicomdir(path):
        if safe:
            yield Input(Source(_on_disc(path.parent, reference, listed)))
        else:
            yield Input(Source(path, reference), "unsafe-name: a reference out of the DICOMDIR's folder", refused=True)


def _on_disc(folder: Path, reference: str, listed: dict[Path, dict[str, str]]) -> Path:
    """Where a reference is: a mounted disc may show names in small letters, or with their version, `;1`."""
    for part in reference.split("/"):
        if not os.path.lexists(folder / part):
            if folder not in listed:
                listed[folder] = {name.upper().removesuffix(";1"): name for name in _all_names(folder)}
            part = listed[folder].get(part.upper(), part)
        folder /= part
    return folder


def _all_names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:  # the image will be said to be missing
        return []


def _archive(path: Path) -> Iterator[Input]:
    """The members that would count in a folder."""
    found = False
    try:
        for member, refusal in list_members(path, _is_wanted):
            found = True
            if is_archive_name(member):
                yield Input(Source(path, member), "unsupported: an archive in an archive")
            else:
                yield Input(Source(path, member), refusal, refused=refusal is not None)
    except ImageError as error:
        yield Input(Source(path), f"{error.code}: {error}", error.refused)
    else:
        if not found:
            yield Input(Source(path), "no-images: an archive without images")


def _is_wanted(member: str, head: Head) -> bool:
    name = PurePosixPath(member).name
    if not _matters(name) or any(part[0] == "." and part != ".." for part in PurePosixPath(member).parts):
        return False
    return is_image_name(name) or is_archive_name(name) or _is_unnamed_dicom(name, head())


def _folder(folder: Path, own: str | None) -> Iterator[Input]:
    """Of each folder the files and then the folders, both sorted."""
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            files, folders = _names(here)
        except OSError as error:
            reason = "permission denied" if isinstance(error, PermissionError) else error.strerror or "not readable"
            yield Input(Source(here), f"unreadable: {reason}")
            continue
        for path in (here / name for name in files):
            if is_image_name(path.name):
                yield Input(Source(path))
            elif is_archive_name(path.name):
                yield from _archive(path)
            elif stat.S_ISREG(_kind(path)) and _is_unnamed_dicom(path.name, _head(path)):
                yield Input(Source(path))
        waiting += [below for below in (here / name for name in reversed(folders)) if not _is_own(below, own)]


def _names(folder: Path) -> tuple[list[str], list[str]]:
    """Names in a folder that matter: of files and of folders."""
    files, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name[0] == ".":
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(name)
            elif not _matters(name) or (entry.is_symlink() and stat.S_ISDIR(_kind(Path(entry)))):
                continue
            else:
                files.append(name)
    return sorted(files), sorted(folders)


def _matters(name: str) -> bool:
    """Whether a file of that name may be an image or hold some."""
    return is_image_name(name) or is_archive_name(name) or may_be_dicom(name)


def _is_unnamed_dicom(name: str, head: bytes | None) -> bool:
    # A failed row is better than a lost image.
    return head is None or (is_unnamed_dicom(name, head) and not is_dicomdir(head))


def _head(path: Path) -> bytes | None:
    """None: it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError:
        return None
