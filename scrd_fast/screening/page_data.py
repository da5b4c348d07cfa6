# SPDX-License-Identifier: Apache-2.0
"""What the page of a run is made of, as columns: its most suspicious rows, counts of all, studies, pictures.

However many rows a run has, memory holds a part of the table and twice the rows that the page shows.
"""

from __future__ import annotations

import base64
import csv
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scrd_fast.calibration import Calibration
from scrd_fast.config import SCORES
from scrd_fast.console import Console
from scrd_fast.screening.page_labels import Labels
from scrd_fast.screening.page_scores import EXACT, Grid, distribution, rounded
from scrd_fast.screening.report import parts

__all__ = ["ERRORS", "ROWS", "STUDIES", "page_data", "picture_data"]

ROWS = EXACT  # scored pictures that are listed
ERRORS = 1_000  # pictures without a score that are listed
STUDIES = 10_000

_TEXTS = (
    *("sample_id", "path", "status", "error", "shown_by", "burned_in", "geometry", "study"),
    *("series", "modality", "body_part", "view", "manufacturer", "device_model"),
)
_WHOLE = ("frame", "peak_row", "peak_column", "height", "width")
_SCALES = tuple(f"{kind}_{k}" for kind in ("scale", "weight") for k in (1, 2, 3))
_ROUNDED = ("percentile", *(f"score_{name}" for name in SCORES), *_SCALES)
_COLUMNS = pa.schema(
    [
        *((name, pa.string()) for name in _TEXTS),
        *((name, pa.int32()) for name in _WHOLE),
        *((name, pa.float64()) for name in ("score", *_ROUNDED)),
        ("flags", pa.list_(pa.string())),
    ]
)
_ORDER = [("score", "descending"), ("path", "ascending"), ("frame", "ascending")]


def page_data(console: Console, out: Path, calibration: Calibration | None, labels: Labels | None) -> dict[str, Any]:
    """All but the pictures, of the finished parts of a run."""
    scored, failed, counts, (low, high) = _listed(out)
    normals = np.array(calibration.scores if calibration else (), np.float64)
    grid = Grid.over(min([low, *normals[:1]]), max([high, *normals[-1:]]))
    rows = pa.concat_tables([scored, failed])
    data: dict[str, Any] = {
        "rows": len(rows),
        "listed": len(scored),
        "counts": counts,
        "grid": grid._asdict(),
        # What is listed tells the scores of a run that has no more.
        "scores": {"count": len(scored)} if counts["scored"] <= ROWS else distribution(grid, _scores(out)),
        "normals": distribution(grid, [normals]) if calibration else None,
        "columns": _columns(rows),
        "studies": _studies(out / "studies.csv"),
        "labels": None,
    }
    if labels is not None:
        labels.fit(_paths(out))
        data["columns"]["label"] = labels.of(rows["path"].to_pylist())
        data["labels"] = labels.told(console, grid)
    return data


def _listed(out: Path) -> tuple[pa.Table, pa.Table, dict[str, Any], tuple[float, float]]:
    """The rows to be listed, with and without scores; counts of all; their least and greatest score."""
    best = failed = _COLUMNS.empty_table()
    status: Counter[str] = Counter()
    total = scored = 0
    low, high = float("inf"), float("-inf")
    for table in _tables(out):
        total += len(table)
        status.update(table["status"].to_pylist())
        with_score = table.filter(pc.is_valid(table["score"]))
        if len(with_score):
            scored += len(with_score)
            least, greatest = pc.min_max(with_score["score"]).as_py().values()
            low, high = min(low, least), max(high, greatest)
            best = pa.concat_tables([best, with_score])
        if len(best) > 2 * ROWS:
            best = _first(best)
        if len(failed) < ERRORS:
            failed = pa.concat_tables([failed, table.filter(pc.is_null(table["score"]))])[:ERRORS]
    counts = {"rows": total, "scored": scored, "status": dict(sorted(status.items()))}
    return _first(best), failed, counts, (low, high) if scored else (0.0, 0.0)


def _first(table: pa.Table) -> pa.Table:
    return table.take(pc.sort_indices(table, sort_keys=_ORDER)[:ROWS])


def _tables(out: Path) -> Iterator[pa.Table]:
    """The parts with the columns of now: what a version did not write yet is null."""
    for path in parts(out):
        with pq.ParquetFile(path) as file:
            table = file.read([name for name in _COLUMNS.names if name in file.schema_arrow.names])
        columns = [
            table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
            for field in _COLUMNS
        ]
        yield pa.table(columns, schema=_COLUMNS)


def _scores(out: Path) -> Iterator[npt.NDArray[np.float64]]:
    for path in parts(out):
        yield pq.read_table(path, columns=["score"])["score"].drop_null().to_numpy()


def _paths(out: Path) -> Iterator[tuple[str, float | None]]:
    for path in parts(out):
        table = pq.read_table(path, columns=["path", "score"])
        yield from zip(table["path"].to_pylist(), table["score"].to_pylist(), strict=True)


def _columns(rows: pa.Table) -> dict[str, Any]:
    columns: dict[str, Any] = {name: _coded(rows[name]) for name in _TEXTS}
    columns |= {name: rows[name].to_pylist() for name in ("score", *_WHOLE)}
    columns |= {name: rounded(rows[name].to_pylist()) for name in _ROUNDED}
    flags = [value or [] for value in rows["flags"].to_pylist()]
    words = {word: number for number, word in enumerate(sorted(set(itertools.chain(*flags))))}
    columns["flags"] = {"words": list(words), "codes": [[words[word] for word in value] for value in flags]}
    return columns


def _coded(column: pa.ChunkedArray) -> dict[str, Any]:
    """Each distinct text once, and for each row which it is, or null."""
    coded = column.combine_chunks().dictionary_encode()
    return {"words": coded.dictionary.to_pylist(), "codes": coded.indices.to_pylist()}


def _studies(path: Path) -> dict[str, Any] | None:
    """The first lines of `studies.csv` that name a study, by column, and how many there are; None where none does."""
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        names = next(csv.reader(file), [])
        lines = (line for line in csv.reader(file) if line and line[0])  # an input of no study stands in the worklist
        shown = list(itertools.islice(lines, STUDIES))
        count = len(shown) + sum(1 for _ in lines)
    if not count:
        return None
    return {"count": count, "columns": {name: [line[i] for line in shown] for i, name in enumerate(names)}}


def picture_data(path: Path, samples: Iterable[str], run_id: str | None) -> dict[str, Any] | None:
    """Of `page.parquet`, as base64: a small picture for each of `samples` or null; the layers of some, by position.

    None where there is no such file, or another run's.
    """
    try:
        with pq.ParquetFile(path) as file:
            metadata = file.schema_arrow.metadata or {}
            if metadata.get(b"scrd_fast.run_id", b"").decode() != run_id:
                return None
            table = file.read()
    except (OSError, pa.ArrowException):
        return None
    places = {name: place for place, name in enumerate(samples)}
    small: list[str | None] = [None] * len(places)
    layers = {}
    for row in table.to_pylist():
        place = places.get(row["sample_id"])
        if place is None:
            continue
        if row["thumbnail"]:
            small[place] = base64.b64encode(row["thumbnail"]).decode()
        if row["picture"] and row["heat"]:
            layers[place] = [base64.b64encode(row[name]).decode() for name in ("picture", "heat")]
    scale = json.loads(metadata.get(b"scrd_fast.scale", b"null"))
    return {"small": small, "layers": layers, "scale": scale}
