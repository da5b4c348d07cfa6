# SPDX-License-Identifier: Apache-2.0
"""Members of zip and tar archives, listed and read where they are: nothing is ever extracted."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import os
import stat
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from scrd_fast.data import limits
from scrd_fast.data.frames import Source
from scrd_fast.errors import ImageError

__all__ = ["is_archive_name", "list_members", "read_member"]

_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_PACKERS = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
_HEAD = 512  # bytes that tell what a member is
_CHUNK = 2**20  # bytes read at once: what a hostile header announces is never taken at once
_MAX_RATIO, _RATIO_FROM = 200, 100 * 2**20  # unfolded to packed, where unfolded it is more than these bytes
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, ValueError)

Head = Callable[[], bytes | None]
Wanted = Callable[[str, Head], bool]


def _nothing() -> None:
    pass


on_progress: Callable[[], None] = _nothing
"""Called for each part of an archive that was read: to unfold a long stream up to a member is no standstill."""


def is_archive_name(name: str) -> bool:
    """
    >>> is_archive_name("studies.TAR.GZ"), is_archive_name("T1.nii.gz")
    (True, False)
    """
    return name.lower().endswith(_ENDINGS)


def list_members(path: Path, wanted: Wanted | None = None) -> Iterator[tuple[str, str | None]]:
    """Name of each member that is no folder, in the archive's order, and "code: reason" where it must be refused.

    wanted: which are listed, by their name and what gives their first 512 bytes: none of what is no file, None where
    they cannot be read.
    A second member of one name is refused: which one is meant is not known. Raises `ImageError` for what is no archive,
    and for a damaged one after the members that were found.
    """
    with _failures():
        archive = _open(path)
    with archive, _failures("unreadable"):
        seen: set[int] = set()
        for name, problem, head in archive.members():
            if hash(name) in seen:
                problem = "duplicate-name: another member has this name"
            seen.add(hash(name))
            if wanted is None or wanted(name, head):
                yield name, problem


def read_member(source: Source) -> bytes:
    """A member's bytes, at most `limits.MAX_BYTES`, whatever is announced. Raises `ImageError`.

    The last archive of each thread stays open: members that are asked for in their order are read in one pass.
    """
    if source.member is None:
        raise ValueError(f"source must name a member, got {source}")
    with _failures():
        archive = _last_opened(source.path)
    with _failures("unreadable"):
        try:
            return archive.read(source.member)
        except BaseException:
            _forget()  # where a broken one stands is not known
            raise


class _Zip:
    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        self._first = {info.filename: info for info in reversed(self._zip.infolist())}

    def __enter__(self) -> _Zip:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def members(self) -> Iterator[tuple[str, str | None, Head]]:
        """Name, why it must be refused, and what gives the first bytes."""
        for info in self._zip.infolist():
            if not info.is_dir():
                problem = self._problem(info)
                yield info.filename, problem, functools.partial(self._head, info, problem)

    def _head(self, info: zipfile.ZipInfo, problem: str | None) -> bytes | None:
        if problem == _NOT_A_FILE:
            return b""
        try:
            with _failures(), self._open(info) as file:
                return file.read(_HEAD)
        except ImageError:
            return None

    def _open(self, info: zipfile.ZipInfo) -> IO[bytes]:
        if info.flag_bits & 0x1:
            raise ImageError("encrypted", "a member with a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ImageError("unsupported", "a member that is neither stored nor deflated")  # others unfold at once
        return self._zip.open(info)

    def _problem(self, info: zipfile.ZipInfo) -> str | None:
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            return _NOT_A_FILE
        large = info.file_size > _RATIO_FROM and info.file_size > _MAX_RATIO * info.compress_size
        return _problem_of(info.orig_filename, info.file_size, large)

    def read(self, name: str) -> bytes:
        first = self._first.get(name)
        if first is None:
            raise ImageError("missing", "no such member")
        _refuse(self._problem(first))
        with self._open(first) as file:
            return _whole(_read_all(file), first.file_size)


class _Tar:
    """Read forwards as far as is needed; the way back is to what was passed."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            packer = _PACKERS.get(file.read(2), open)
        self._file = _Bounded(packer(path, "rb"), path.stat().st_size, packer is not open)  # type: ignore[operator]
        try:
            self._tar = tarfile.TarFile(fileobj=self._file, mode="r")  # type: ignore[arg-type]
        except BaseException:
            self._file.close()
            raise
        self._beyond = 0  # where the next header may begin
        self._passed: dict[str, tuple[int, int, str | None]] = {}  # offset of the bytes, their count, problem
        self._onward = self._walk()

    def __enter__(self) -> _Tar:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _walk(self) -> Iterator[tuple[str, tuple[int, int, str | None]]]:
        while (info := self._next()) is not None:
            self._tar.members = []  # type: ignore[attr-defined]  # it would keep them all
            if info.isdir():
                continue
            plain = info.isreg() and not info.issparse()
            problem = _problem_of(info.name, info.size) if plain else _NOT_A_FILE
            yield info.name, (info.offset_data, info.size, problem)

    def _next(self) -> tarfile.TarInfo | None:
        """None at the end alone: tarfile also ends, without a word, at a header that is broken or missing."""
        try:
            info = self._tar.next()
        except tarfile.TarError:
            raise ImageError("unreadable", "damaged amid its members: one is cut or its header broken") from None
        # Sizes may be written as negative numbers, and lead back to headers that were passed: a walk without an end.
        if info is not None and (info.size < 0 or info.offset < self._beyond):
            raise ImageError("unreadable", "damaged amid its members: a size leads back")
        self._beyond = self._tar.offset
        # Two blocks of zeros are the end, of which some programs write one; a single one may be a lost header.
        if info is None and (self._file.last != bytes(tarfile.BLOCKSIZE) or any(self._file.read(tarfile.BLOCKSIZE))):
            raise ImageError("unreadable", "damaged amid its members: no header and no end where one must be")
        return info

    def members(self) -> Iterator[tuple[str, str | None, Head]]:
        """As those of a zip; the first bytes are to be taken before the next member is."""
        for name, (offset, size, problem) in self._onward:
            yield name, problem, functools.partial(self._head, offset, 0 if problem == _NOT_A_FILE else size)

    def _head(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(min(_HEAD, size))

    def read(self, name: str) -> bytes:
        while name not in self._passed:
            found = next(self._onward, None)
            if found is None:
                raise ImageError("missing", "no such member")
            self._passed.setdefault(*found)
        offset, size, problem = self._passed[name]
        _refuse(problem)
        self._file.seek(offset)
        return _whole(_read_all(self._file, size), size)


class _Bounded:
    """A file for tarfile that never gives much at once, and that ends a stream which unfolds absurdly."""

    def __init__(self, file: BinaryIO, size: int, packed: bool) -> None:
        self._file, self._packed, self._most = file, packed, max(_MAX_RATIO * size, 2 * _RATIO_FROM)
        self.last = b""  # what was read last: to go back for it would unfold a stream anew
        self.tell, self.close = file.tell, file.close

    def read(self, count: int) -> bytes:
        if count > _CHUNK:  # a header of such a size holds no name
            raise ImageError("not-an-archive", "a header that is larger than any")
        if self._file.tell() > self._most:
            raise ImageError("too-large", f"unfolds to more than {_MAX_RATIO} times its size", refused=True)
        self.last = self._file.read(count)
        on_progress()
        return self.last

    def seek(self, to: int) -> None:
        """In a stream by unfolding what lies between, in steps that are progress; it may end before."""
        if not self._packed or to < self.tell():
            self._file.seek(0 if self._packed else to)
        while (left := to - self.tell()) > 0 and self.read(min(_CHUNK, left)):
            pass


_NOT_A_FILE = "not-a-file: a link, a device or a sparse file"


def _problem_of(name: str, size: int, absurd: bool = False) -> str | None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or name[1:2] == ":" or "\0" in name or not path.parts:
        return "unsafe-name: leads out of the archive"
    if size > limits.MAX_BYTES:
        return f"too-large: {size} bytes, at most {limits.MAX_BYTES} are read"
    return f"too-large: unfolds to more than {_MAX_RATIO} times its size" if absurd else None


def _refuse(problem: str | None) -> None:
    if problem is not None:
        code, reason = problem.split(": ", 1)
        raise ImageError(code, reason, refused=True)


def _read_all(file: IO[bytes] | _Bounded, size: int | None = None) -> bytes:
    """To the end, or `size` bytes; in steps, so that memory follows what is there and not what is announced."""
    out = io.BytesIO()
    left = limits.MAX_BYTES + 1 if size is None else size
    while left > 0 and (chunk := file.read(min(_CHUNK, left))):
        out.write(chunk)
        left -= len(chunk)
    if out.tell() > limits.MAX_BYTES:
        raise ImageError("too-large", f"more than {limits.MAX_BYTES} bytes", refused=True)
    return out.getvalue()


def _whole(content: bytes, announced: int) -> bytes:
    if len(content) != announced:
        raise ImageError("unreadable", f"{len(content)} bytes are there, {announced} were announced")
    return content


def _open(path: Path) -> _Zip | _Tar:
    limits.check_kind(path)
    return _Zip(path) if path.name.lower().endswith(".zip") else _Tar(path)


_kept = threading.local()


def _last_opened(path: Path) -> _Zip | _Tar:
    """Of this thread and process: after a fork two would move one file's position."""
    status = path.stat()
    key = (os.getpid(), path, status.st_mtime_ns, status.st_size)
    if getattr(_kept, "key", None) != key:
        _forget()
        _kept.archive, _kept.key = _open(path), key
    archive: _Zip | _Tar = _kept.archive
    return archive


def _forget() -> None:
    archive = getattr(_kept, "archive", None)
    if archive is not None:
        archive.__exit__()
    _kept.archive = _kept.key = None


@contextmanager
def _failures(broken: str = "not-an-archive") -> Iterator[None]:
    """Whatever goes wrong inside becomes an `ImageError`, without names."""
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError("missing", "no such file") from None
    except MemoryError:
        raise ImageError("too-large", "not enough memory") from None
    except _BROKEN as error:
        raise ImageError(broken, f"an archive that cannot be read ({type(error).__name__})") from None
    except Exception as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise ImageError("unreadable", text) from None
