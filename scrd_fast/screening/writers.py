# SPDX-License-Identifier: Apache-2.0
"""The table of results: Parquet parts that appear whole or not at all, and a worklist for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scrd_fast.files import write_atomically
from scrd_fast.screening.manifest import input_id
from scrd_fast.screening.screener import Screened

__all__ = ["SCHEMA", "read_parts", "row_of", "worklist", "write_part", "write_worklist"]

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
    ],
    metadata={"scrd_fast.schema_version": "1"},
)
_WORKLIST = ["path", "score", "percentile", "decision", "status", "error"]


def row_of(result: Screened, run_id: str, score: str) -> dict[str, Any]:
    name = input_id(result.path)
    decisions = {None: None, True: "abnormal", False: "normal"}
    return {
        "run_id": run_id,
        "input_id": name,
        "sample_id": name if result.error else f"{name}-0",
        "path": str(result.path).encode("utf-8", "backslashreplace").decode(),
        "frame": None if result.error else 0,
        "status": result.status,
        "score": result.scores.get(score),
        "percentile": result.percentile,
        "decision": decisions[result.abnormal],
        "error": f"{result.error.code}: {result.error}" if result.error else None,
    }


def write_part(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), buffer, compression="zstd")
    write_atomically(path, buffer.getvalue())


def read_parts(folder: Path) -> list[dict[str, Any]]:
    """All committed rows, in the manifest's order."""
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("part-*.parquet")):
        rows += pq.read_table(path).to_pylist()
    return rows


def worklist(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The most suspicious first, then what could not be read."""

    def order(row: Mapping[str, Any]) -> tuple[bool, float, str]:
        return row["score"] is None, -(row["score"] or 0.0), row["path"]

    return sorted(rows, key=order)


def write_worklist(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, _WORKLIST, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
