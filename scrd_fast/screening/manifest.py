# SPDX-License-Identifier: Apache-2.0
"""The manifest: the inputs of a run, written once, cut into shards.

A Parquet file with one row group a shard, so that a shard is read without the others:

path     binary   as the file system has it
member   binary   of an archive, or null
error    string   "code: reason" of an entry that is only reported, or null
refused  bool     whether that is a refusal
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from scrd_fast.data.frames import Source
from scrd_fast.errors import ScrdFastError
from scrd_fast.files import replacing

if TYPE_CHECKING:
    from scrd_fast.screening.inputs import Input

__all__ = ["MANIFEST", "Entry", "Manifest", "input_id"]

MANIFEST = "manifest.parquet"  # in a run's folder

_SCHEMA = pa.schema(
    [
        pa.field("path", pa.binary(), nullable=False),
        pa.field("member", pa.binary()),
        pa.field("error", pa.string()),
        pa.field("refused", pa.bool_(), nullable=False),
    ]
)
_SHA256, _SHARD_SIZE = "scrd_fast.manifest_sha256", "scrd_fast.shard_size"  # keys of the file's metadata


class Entry(NamedTuple):
    """One input of a run. One with an `error` is not read."""

    input_id: str
    source: Source
    error: str | None
    refused: bool


def input_id(source: Source) -> str:
    """Sixteen hex digits of the hash of path and member: the same input has the same id in every run.

    >>> input_id(Source(Path("a.png")))
    '7f071235805fbf58'
    """
    path, member = _names(source)
    return hashlib.sha256(path if member is None else path + b"\0" + member).hexdigest()[:16]


def _names(source: Source) -> tuple[bytes, bytes | None]:
    return os.fsencode(source.path), None if source.member is None else os.fsencode(source.member)


class Manifest:
    """A manifest that exists. Several processes may read it, and create it, at the same time."""

    def __init__(self, path: Path, metadata: Any) -> None:
        """`open` and `create` make it."""
        self.path, self._metadata = path, metadata
        self._mapped = pa.memory_map(str(path))  # stays when the file is removed
        self.count: int = metadata.num_rows
        self.shards: int = metadata.num_row_groups
        self.sha256: str = metadata.metadata[_SHA256.encode()].decode()  # of the list; the same for any shard size
        self.shard_size = int(metadata.metadata[_SHARD_SIZE.encode()])

    @classmethod
    def open(cls, path: Path) -> Manifest:
        """Raises `ScrdFastError` that names a file which is absent, damaged or no manifest."""
        try:
            metadata = pq.read_metadata(path)
            if not metadata.schema.to_arrow_schema().equals(_SCHEMA):
                raise ValueError("its columns are others")
            return cls(path, metadata)
        except FileNotFoundError:
            raise ScrdFastError(f"{path}: no such manifest") from None
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise _damaged(path, error) from None

    @classmethod
    def create(cls, path: Path, inputs: Iterable[Input], shard_size: int) -> Manifest:
        """Write `inputs` to `path`, `shard_size` a shard, and open it; where there is a manifest already, that stays.

        Inputs are streamed. The file appears whole or not at all.
        """
        if shard_size < 1:
            raise ValueError(f"shard_size: expected at least 1, got {shard_size}")
        with replacing(path, first_wins=True) as file:
            _write(file, iter(inputs), shard_size)
        return cls.open(path)

    def shard(self, k: int) -> list[Entry]:
        """Entries of shard k, 0 to `shards` - 1, in order. Raises `ScrdFastError` if the file is damaged."""
        try:
            with pq.ParquetFile(self._mapped, metadata=self._metadata, page_checksum_verification=True) as file:
                columns = file.read_row_group(k).to_pydict()
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.path, error) from None
        entries = []
        for path, member, reason, refused in zip(*(columns[name] for name in _SCHEMA.names), strict=True):
            source = Source(Path(os.fsdecode(path)), None if member is None else os.fsdecode(member))
            entries.append(Entry(input_id(source), source, reason, refused))
        return entries


def _damaged(path: Path, error: Exception) -> ScrdFastError:
    return ScrdFastError(f"{path}: cannot be read as a manifest ({type(error).__name__}: {error})")


def _write(file: IO[bytes], inputs: Iterable[Input], shard_size: int) -> None:
    digest = hashlib.sha256()
    options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
    with pq.ParquetWriter(file, _SCHEMA, **options) as writer:
        while shard := list(itertools.islice(inputs, shard_size)):
            names = [_names(entry.source) for entry in shard]
            for path, member in names:
                digest.update(path + b"\0" + (member or b"") + b"\0")
            paths, members = zip(*names, strict=True)
            columns = [paths, members, [entry.error for entry in shard], [entry.refused for entry in shard]]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA), row_group_size=shard_size)
        writer.add_key_value_metadata({_SHA256: digest.hexdigest(), _SHARD_SIZE: str(shard_size)})
