# SPDX-License-Identifier: Apache-2.0
"""The table of results: a row for each picture, in Parquet parts that appear whole or not at all."""

from __future__ import annotations

import hashlib
import hmac
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from scrd_fast.config import SCORES, Score
from scrd_fast.data.facts import DEVICE_TAGS, PIXELS, TAGS
from scrd_fast.errors import ScrdFastError
from scrd_fast.files import write_atomically

if TYPE_CHECKING:
    from scrd_fast.screening.manifest import Entry
    from scrd_fast.screening.screener import Screened

__all__ = [
    "CHECKPOINT",
    "RESULTS",
    "SCHEMA",
    "SCHEMA_VERSION",
    "Rows",
    "commit_part",
    "is_finished",
    "keyed_hash",
    "part_path",
    "read_part",
    "sample_id",
    "shown_id",
    "write_part",
]

RESULTS = "results"  # in a run's folder
CHECKPOINT = "ray-checkpoint"  # there, while a cluster works on it

SCALES = 3
SCHEMA_VERSION = "3"
SCHEMA = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("input_id", pa.string(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("frame", pa.int32()),  # null where the file could not be opened
        pa.field("status", pa.string(), nullable=False),  # ok, failed or refused
        pa.field("score", pa.float64()),  # the model's stored score, raw
        pa.field("percentile", pa.float64()),  # among the calibration normals, 0 to 1
        pa.field("decision", pa.string()),  # normal or abnormal; null without a calibration
        pa.field("error", pa.string()),  # "code: reason"
        *(pa.field(f"score_{name}", pa.float64()) for name in SCORES),
        *(pa.field(f"scale_{k}", pa.float64()) for k in range(1, SCALES + 1)),  # mean distance, finest first
        *(pa.field(f"weight_{k}", pa.float64()) for k in range(1, SCALES + 1)),
        pa.field("peak_row", pa.int32()),  # of the map's largest value, in pixels of the stored picture
        pa.field("peak_column", pa.int32()),
        pa.field("height", pa.int32()),  # of the stored picture
        pa.field("width", pa.int32()),
        pa.field("shown_by", pa.string()),  # which rule made pixels of what is stored
        pa.field("flags", pa.list_(pa.string()), nullable=False),
        pa.field("burned_in", pa.string()),  # DICOM's BurnedInAnnotation: yes, no or unknown
        pa.field("geometry", pa.string()),  # axes of a volume, where they are known
        pa.field("study", pa.string()),  # keyed hash of DICOM's StudyInstanceUID
        pa.field("series", pa.string()),  # the same of its SeriesInstanceUID
        *(pa.field(name, pa.string()) for name in TAGS),  # of the header, in capitals
        *(pa.field(name, pa.float64()) for name in PIXELS),  # of the picture that the model was given
        pa.field("map", pa.string()),  # file, relative to the run's folder
    ],
    metadata={"scrd_fast.schema_version": SCHEMA_VERSION},
)
_DECISIONS = {None: None, True: "abnormal", False: "normal"}


class Rows:
    """Makes rows. `key`, if given, replaces paths and ids that follow from them by keyed hashes."""

    def __init__(self, run_id: str, score: Score, marks: Sequence[str] = (), key: bytes | None = None) -> None:
        self._run_id, self._score, self._marks, self._key = run_id, score, tuple(marks), key

    def of(self, entry: Entry, result: Screened) -> dict[str, Any]:
        """The row of a result. `marks` are flags of every row that is ok."""
        about, scores, peak = result.about, result.scores or {}, result.peak or (None, None)
        name = shown_id(entry, self._key)
        return {
            "run_id": self._run_id,
            "input_id": name,
            "sample_id": sample_id(name, result.frame),
            "path": self._path(entry),
            "frame": result.frame,
            "status": result.status,
            "score": scores.get(self._score),
            "percentile": result.percentile,
            "decision": _DECISIONS[result.abnormal],
            "error": None if result.error is None else f"{result.error.code}: {result.error}",
            **{f"score_{name}": scores.get(name) for name in SCORES},
            **{f"scale_{k}": x for k, x in enumerate(result.scales, start=1)},
            **{f"weight_{k}": x for k, x in enumerate(result.weights, start=1)},
            "peak_row": peak[0],
            "peak_column": peak[1],
            "height": about and about.height,
            "width": about and about.width,
            "shown_by": about and about.shown,
            "flags": [*result.flags, *(self._marks if result.error is None else ())],
            "burned_in": about and about.burned_in,
            "geometry": about and about.geometry,
            "study": about and self._hashed(about.study),
            "series": about and self._hashed(about.series),
            **self._tags(result),
            **{name: about and getattr(about, name.removeprefix("pixel_")) for name in PIXELS},
            "map": None,
        }

    def _hashed(self, uid: str | None) -> str | None:
        return uid and keyed_hash(self._key or self._run_id.encode(), uid.encode())

    def _tags(self, result: Screened) -> dict[str, str | None]:
        """Of a refused picture none: what its header says instead of what was asked for is not repeated."""
        hidden = DEVICE_TAGS if self._key else ()
        if result.about is None or result.status == "refused":
            return {}
        return {name: getattr(result.about, name) for name in TAGS if name not in hidden}

    def _path(self, entry: Entry) -> str:
        text = str(entry.source).encode("utf-8", "backslashreplace")
        return text.decode() if self._key is None else keyed_hash(self._key, text)


def shown_id(entry: Entry, key: bytes | None) -> str:
    """The id of an input in the table."""
    return entry.input_id if key is None else keyed_hash(key, entry.input_id.encode())


def keyed_hash(key: bytes, text: bytes) -> str:
    """
    >>> keyed_hash(b"key", b"a.png")
    '031526548717d0c7'
    """
    return hmac.new(key, text, hashlib.sha256).hexdigest()[:16]


def sample_id(name: str, frame: int | None) -> str:
    return name if frame is None else f"{name}-{frame}"


def part_path(out: Path, number: int) -> Path:
    return out / RESULTS / f"part-{number:06d}.parquet"


def commit_part(out: Path, number: int, tables: Sequence[pa.Table], facts: Mapping[str, str]) -> None:
    """A shard's rows become its part. Raises `ScrdFastError` where it cannot be written."""
    part = part_path(out, number)
    try:
        write_part(part, tables, facts)
    except OSError as error:
        raise ScrdFastError(
            f"{part}: {error.strerror or error}; what was finished before is kept, the same command goes on"
        ) from None


def write_part(path: Path, tables: Sequence[pa.Table], facts: Mapping[str, str]) -> None:
    """Tables of `SCHEMA` as one part; `facts` go into its metadata, with `scrd_fast.` before their names."""
    metadata = SCHEMA.metadata | {f"scrd_fast.{name}": value for name, value in facts.items()}
    buffer = io.BytesIO()
    joined = pa.concat_tables([SCHEMA.empty_table(), *tables]).replace_schema_metadata(metadata)
    pq.write_table(joined, buffer, compression="zstd")
    write_atomically(path, buffer.getvalue())


def is_finished(path: Path, run_id: str) -> bool:
    """Whether a part is there. Raises `ScrdFastError` where it is damaged, or another run's."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except FileNotFoundError:
        return False
    except (pa.ArrowException, OSError) as error:
        raise ScrdFastError(f"{path}: no part that can be read ({type(error).__name__}); remove it to go on") from None
    if metadata.get(b"scrd_fast.run_id") != run_id.encode():
        raise ScrdFastError(f"{path}: a part of another run; take a new folder, or --new-run")
    return True


def read_part(path: Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Rows of a part in the manifest's order: of all columns, or of some."""
    rows: list[dict[str, Any]] = pq.read_table(path, columns=columns).to_pylist()
    return rows
