# SPDX-License-Identifier: Apache-2.0
"""Files that name files: lists as text, CSV or Parquet, and DICOMDIR; all but the last are streamed."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scrd_fast.data.archives import is_archive_name
from scrd_fast.data.limits import check_size
from scrd_fast.data.reading import is_image_name
from scrd_fast.errors import ImageError, MissingExtraError, ScrdFastError

__all__ = ["LISTS", "is_dicomdir", "paths_of_dicomdir", "paths_of_list"]

LISTS = (".txt", ".csv", ".tsv", ".parquet")
_DIRECTORY_UID = b"1.2.840.10008.1.3.10"  # Media Storage Directory Storage, in the meta header of a DICOMDIR


def paths_of_list(path: Path) -> Iterator[str]:
    """The paths in a list, as they are written there.

    .txt: one a line; empty lines and those that begin with # are passed over. .csv, .tsv: the column `path`, or, where
    the first row names none, the first column of all rows. .parquet: the column `path`, text or bytes.
    Raises `ScrdFastError` that names the list if it cannot be read, and `ImageError` "not-a-list" where there is no
    such column and the first entry neither has the name of an image or archive nor is there: notes and tables of
    labels have the same endings, and what they say must not become paths.
    """
    suffix = path.suffix.lower()
    read = {".txt": _lines, ".parquet": _parquet_column}.get(suffix, _column)
    first = True
    try:
        for text, is_path in read(path):
            if not text.strip():
                continue
            if first and not is_path and not _names_image(text, path.parent):
                raise _not_a_list()
            first = False
            if "\0" in text:
                raise ScrdFastError(f"{path}: holds a NUL byte, expected paths in UTF-8")
            yield text
    except OSError as error:
        raise ScrdFastError(f"{path}: cannot be read as a list: {error.strerror or error}") from None


def _not_a_list() -> ImageError:
    return ImageError("not-a-list", "its first entry names no image")


def _names_image(text: str, folder: Path) -> bool:
    named = is_image_name(text) or is_archive_name(text.partition("!/")[0])
    return "\0" not in text and (named or os.path.lexists(folder / text))


def _lines(path: Path) -> Iterator[tuple[str, bool]]:
    """Of each entry, here and below, its text, and whether its column says that it is a path."""
    with path.open("rb") as file:  # as bytes: a name need not be text
        for number, line in enumerate(file):
            text = os.fsdecode(line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line).rstrip("\r\n")
            if not text.startswith("#"):
                yield text, False


def _column(path: Path) -> Iterator[tuple[str, bool]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        column, named = 0, False
        try:
            for number, row in enumerate(rows):
                if number == 0 and "path" in row:
                    column, named = row.index("path"), True
                elif row:
                    if len(row) <= column:
                        raise csv.Error(f"has {len(row)} columns, expected at least {column + 1}")
                    yield row[column], named
        except csv.Error as error:
            raise ScrdFastError(f"{path}: line {rows.line_num}: {error}") from None


def _parquet_column(path: Path) -> Iterator[tuple[str, bool]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if "path" not in file.schema_arrow.names:
                raise _not_a_list()
            for batch in file.iter_batches(columns=["path"], batch_size=10_000):
                for value in batch.column(0).to_pylist():
                    if not isinstance(value, (str, bytes, type(None))):
                        raise ScrdFastError(f"{path}: the column `path` holds {type(value).__name__}, expected text")
                    yield os.fsdecode(value or ""), True
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ScrdFastError(f"{path}: cannot be read as a list: {error}") from None


_UNSAFE = set("\0\\:")  # the last two leave a folder on Windows


def is_dicomdir(head: bytes) -> bool:
    """Whether a file with these first 512 bytes is a DICOM directory."""
    return head[128:132] == b"DICM" and _DIRECTORY_UID + b"\x02\x00" in head  # the next element follows


def paths_of_dicomdir(path: Path) -> Iterator[tuple[str, bool]]:
    """Paths of the images that a DICOMDIR references, relative to its folder, and whether each is safe.

    A reference that leaves the folder is not. Raises `ScrdFastError` that names the file if it cannot be read.
    """
    try:
        from scrd_fast.data.dicom import _quiet_pydicom

        pydicom = _quiet_pydicom()
    except ImportError:
        raise MissingExtraError("pydicom", "dicom") from None
    try:
        check_size(path)
        if pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID.is_deflated:
            raise ValueError("no DICOMDIR is, and how large it grows is not known before")
        records: Any = pydicom.dcmread(path, specific_tags=["DirectoryRecordSequence"]).DirectoryRecordSequence
        named = [r.ReferencedFileID for r in records if r.get("DirectoryRecordType") == "IMAGE"]
        references = [name if isinstance(name, str) else "/".join(name) for name in named]
    except Exception as error:  # its text could hold values of the header
        raise ScrdFastError(f"{path}: cannot be read as a DICOMDIR ({type(error).__name__})") from None
    for reference in references:
        parts = reference.split("/")
        yield reference, not any(part in ("", ".", "..") or _UNSAFE & set(part) for part in parts)
