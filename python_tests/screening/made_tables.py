# SPDX-License-Identifier: Apache-2.0
"""Tables of screening runs that tests make up, row by row, with a schema of their own to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SCORES = ("score_mean", "score_max", "score_top1", "score_top5")
SCALES = tuple(f"{name}_{k}" for name in ("scale", "weight") for k in (1, 2, 3))
TAGS = ("modality", "body_part", "view", "manufacturer", "device_model")
PIXELS = ("pixel_mean", "pixel_std", "pixel_p01", "pixel_p50", "pixel_p99")
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("run_id", "input_id", "sample_id", "path")),
        ("frame", pa.int32()),
        ("status", pa.string()),
        ("score", pa.float64()),
        ("percentile", pa.float64()),
        *((name, pa.string()) for name in ("decision", "error")),
        *((name, pa.float64()) for name in (*SCORES, *SCALES)),
        *((name, pa.int32()) for name in ("peak_row", "peak_column", "height", "width")),
        ("shown_by", pa.string()),
        ("flags", pa.list_(pa.string())),
        *((name, pa.string()) for name in ("burned_in", "geometry", "study", "series", *TAGS)),
        *((name, pa.float64()) for name in PIXELS),
        ("map", pa.string()),
    ],
    metadata={"scrd_fast.schema_version": "3"},
)
SCHEMA_2 = pa.schema(
    [field for field in SCHEMA if field.name not in ("series", *TAGS, *PIXELS)],
    metadata={"scrd_fast.schema_version": "2"},
)


def row(path: str, score: float | None = None, frame: int | None = 0, **more: Any) -> dict[str, Any]:
    status = "ok" if score is not None else "failed"
    known = {"run_id": "r", "input_id": f"id-{path}", "sample_id": f"id-{path}-{frame}", "path": path, "status": status}
    decision = None if score is None else "abnormal" if score > 38 else "normal"
    return known | {"frame": frame, "score": score, "decision": decision, "flags": [], **more}


def write_parts(out: Path, *shards: list[dict[str, Any]], schema: pa.Schema = SCHEMA, **facts: str) -> Path:
    """The folder of a run that has these parts; `facts` go into their metadata."""
    (out / "results").mkdir(parents=True)
    schema = schema.with_metadata(schema.metadata | {f"scrd_fast.{name}": value for name, value in facts.items()})
    for number, rows in enumerate(shards):
        part = out / "results" / f"part-{number:06d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), part, compression="zstd")
    return out
