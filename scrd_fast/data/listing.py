# SPDX-License-Identifier: Apache-2.0
"""The files of a downloaded data set: those of a folder and of the archives in it, or of one archive, read in place."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from scrd_fast.data.archives import is_archive_name, list_members, read_member
from scrd_fast.data.frames import Source
from scrd_fast.data.limits import check_size
from scrd_fast.data.reading import is_image_name
from scrd_fast.errors import DataError, ImageError
from scrd_fast.files import nearest

__all__ = ["Found", "list_files", "shortened"]

_SHOWN = 20  # problems of one kind that an error lists


def shortened(problems: list[str]) -> list[str]:
    """
    >>> shortened([str(n) for n in range(23)])[-2:]
    ['19', 'and 3 more']
    """
    return problems[:_SHOWN] + ([f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else [])


@dataclass(frozen=True)
class Found:
    """A file of a source. In its name, which has slashes everywhere, an archive in a folder counts as a folder."""

    name: str
    source: Source

    @property
    def path(self) -> PurePosixPath:
        return PurePosixPath(self.name)

    @property
    def is_image(self) -> bool:
        return is_image_name(self.name)

    def read(self) -> bytes:
        """Raises `DataError`."""
        try:
            if self.source.member is not None:
                return read_member(self.source)
            check_size(self.source.path)
            return self.source.path.read_bytes()
        except (ImageError, OSError) as error:
            raise DataError(self.source, [str(error)]) from None

    def text(self) -> str:
        """UTF-8, with or without a byte order mark. Raises `DataError`."""
        try:
            return self.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(self.source, [f"expected UTF-8 text: {error}"]) from None

    def rows(self, *columns: str) -> Iterator[tuple[int, list[str]]]:
        """Line and those columns of each row of a table, without spaces around them. Raises `DataError`."""
        rows = csv.reader(io.StringIO(self.text(), newline=""))
        try:
            header = [name.strip() for name in next(rows, [])]
            if not set(columns) <= set(header):
                raise DataError(self.source, [f"expected the columns {', '.join(columns)}, got {', '.join(header)}"])
            places = [header.index(name) for name in columns]
            for row in filter(None, rows):
                if len(row) <= max(places):
                    raise DataError(
                        self.source, [f"line {rows.line_num}: expected {len(header)} values, got {len(row)}"]
                    )
                yield rows.line_num, [row[place].strip() for place in places]
        except csv.Error as error:
            raise DataError(self.source, [f"line {rows.line_num}: {error}"]) from None

    def digest(self) -> str:
        """SHA-256 of its content. Raises `DataError`."""
        return hashlib.sha256(self.read()).hexdigest()

    def put(self, target: Path) -> None:
        """As a hard link where that can be, else as a copy. Raises `DataError`."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.source.member is not None:
            target.write_bytes(self.read())
            return
        path = self.source.path.resolve()  # a link to a symbolic link would be one
        try:
            os.link(path, target)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(path, target)


def list_files(root: Path) -> list[Found]:
    """All files of a folder or an archive but hidden ones, in the order in which they are best read.

    Raises `DataError` that lists what must be refused: links that lead out, members with unsafe or repeated names.
    """
    problems: list[str] = []
    if root.is_dir():
        found = list(_of_folder(root, problems))
    elif root.is_file() and is_archive_name(root.name):
        found = list(_of_archive(root, "", problems))
    elif root.exists():
        raise DataError(root, ["expected a folder, or an archive (.zip, .tar, .tar.gz ...)"])
    else:
        raise DataError(root, [f"no such file or folder{nearest(root)}"])
    if problems:
        raise DataError(root, shortened(problems))
    return [file for file in found if not any(part[0] == "." or part == "__MACOSX" for part in file.path.parts)]


def _of_folder(root: Path, problems: list[str]) -> Iterator[Found]:
    inside = root.resolve()
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted([*names, *folders]):
            path = Path(folder) / name
            below = path.relative_to(root).as_posix()
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                problems.append(f"{below}: a link that leads out of the source, to {path.resolve()}")
            elif name not in folders and is_archive_name(name):
                yield from _of_archive(path, f"{below}/", problems)
            elif path.is_file():
                yield Found(below, Source(path))


def _of_archive(path: Path, prefix: str, problems: list[str]) -> Iterator[Found]:
    try:
        for member, problem in list_members(path):
            if problem is None:
                yield Found(prefix + PurePosixPath(member).as_posix(), Source(path, member))
            else:
                problems.append(f"{Source(path, member)}: {problem}")
    except ImageError as error:
        problems.append(f"{path}: {error}")
