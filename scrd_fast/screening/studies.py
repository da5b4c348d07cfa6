# SPDX-License-Identifier: Apache-2.0
"""Pictures speak for their series and studies, and every line of a worklist says why it stands where it does.

All tables come out of one temporary database on disk, so that memory does not grow with the inputs.
"""

from __future__ import annotations

import csv
import io
import sqlite3
from collections.abc import Iterable
from typing import Any, BinaryIO, NamedTuple

from scrd_fast.calibration import Decision

__all__ = ["INPUT_COLUMNS", "RULE", "SERIES_COLUMNS", "STUDY_COLUMNS", "Row", "Studies", "reason"]

RULE = "max"  # the highest-scoring picture speaks for its series and its study
INPUT_COLUMNS = (
    *("path", "frames", "frame", "score", "percentile", "decision", "flags", "status", "error", "study"),
    *("series", "study_score", "series_score", "reason"),
)
_LED = ("inputs", "frames", "path", "frame", "score", "percentile", "decision", "rule", "status", "reason")
STUDY_COLUMNS = ("study", "series", *_LED)
SERIES_COLUMNS = ("series", "study", *_LED)
_STORED = (*(name for name in INPUT_COLUMNS if name not in ("study_score", "series_score")), "unit")
_SCALES = ("fine", "middle", "coarse")
_ORDER = "score IS NULL, score DESC, path"

_UNITS = {"study": "unit", "series": "series"}  # and the column by which inputs belong to one
_TABLE = """
    CREATE TABLE {name}_sums (
        {unit} PRIMARY KEY, {name}_series, {name}_inputs, {name}_frames, {name}_score, {name}_failed
    ) WITHOUT ROWID
"""
_SUMS = """
    INSERT INTO {name}_sums
    SELECT {unit}, count(DISTINCT series), count(*), sum(frames), max(score), sum(status = 'failed')
    FROM inputs WHERE {unit} IS NOT NULL GROUP BY {unit}
"""
_INPUT_LINES = f"""
    SELECT {", ".join(INPUT_COLUMNS)}
    FROM inputs JOIN study_sums USING (unit) LEFT JOIN series_sums USING (series) ORDER BY {_ORDER}
"""
_LED_LINES = f"""
    SELECT {{first}}, {{name}}_inputs, {{name}}_frames, path, frame, score, percentile, decision, '{RULE}',
           CASE WHEN {{name}}_failed THEN 'failed' ELSE status END,
           reason || CASE WHEN {{name}}_failed AND {{name}}_inputs > 1
                     THEN '; ' || {{name}}_failed || ' of ' || {{name}}_inputs || ' inputs failed' ELSE '' END
    FROM (SELECT *, row_number() OVER (PARTITION BY {{unit}} ORDER BY {_ORDER}) AS place FROM inputs)
    JOIN {{name}}_sums USING ({{unit}})
    WHERE place = 1 ORDER BY {_ORDER}
"""
_VERDICTS = """
    SELECT verdict, count(*) FROM (
        SELECT CASE max(decision = 'abnormal') WHEN 1 THEN 'abnormal' WHEN 0 THEN 'normal' ELSE 'undecided' END verdict
        FROM inputs WHERE study IS NOT NULL GROUP BY study
    ) GROUP BY verdict
"""


class Row(NamedTuple):
    """The columns of the table that worklists rest on, by their names there."""

    input_id: str
    path: str
    frame: int | None
    score: float | None
    percentile: float | None
    flags: list[str] | None
    status: str
    error: str | None
    study: str | None
    series: str | None
    peak_row: int | None
    peak_column: int | None
    weight_1: float | None
    weight_2: float | None
    weight_3: float | None


class Studies:
    """The inputs of a run and the studies that they make up; an input that names no study is one of its own.

    `lines` have the columns of `INPUT_COLUMNS` without the scores of study and series, in any order.
    """

    def __init__(self, database: sqlite3.Connection, lines: Iterable[tuple[Any, ...]]) -> None:
        self._database, study = database, _STORED.index("study")
        database.execute(f"CREATE TABLE inputs ({', '.join(_STORED)})")
        marked = ((*line, number if line[study] is None else line[study]) for number, line in enumerate(lines))
        database.executemany(f"INSERT INTO inputs VALUES ({', '.join('?' * len(_STORED))})", marked)
        for name, unit in _UNITS.items():
            database.execute(_TABLE.format(name=name, unit=unit))
            database.execute(_SUMS.format(name=name, unit=unit))

    def write_inputs(self, file: BinaryIO) -> None:
        """As CSV, the highest score first, what has none last, equals by path."""
        self._write(file, INPUT_COLUMNS, _INPUT_LINES)

    def write_studies(self, file: BinaryIO) -> None:
        """As CSV, in the same order, each led by its highest-scoring input."""
        self._write(file, STUDY_COLUMNS, _LED_LINES.format(name="study", unit="unit", first="study, study_series"))

    def write_series(self, file: BinaryIO) -> None:
        """As `write_studies`, of what names a series."""
        self._write(file, SERIES_COLUMNS, _LED_LINES.format(name="series", unit="series", first="series, study"))

    def _write(self, file: BinaryIO, columns: tuple[str, ...], query: str) -> None:
        text = io.TextIOWrapper(file, "utf-8", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(self._database.execute(query))
        text.detach()  # flushes; the file is closed where it was opened

    def counts(self) -> dict[str, Any]:
        """Inputs, rows, series, and studies by decision; the last two of what names any."""
        totals = self._database.execute(
            "SELECT count(*), coalesce(sum(frames), 0), count(DISTINCT series) FROM inputs"
        ).fetchone()
        studies = dict(self._database.execute(_VERDICTS))
        return dict(zip(("inputs", "rows", "series"), totals, strict=True)) | {"studies": studies, "study_rule": RULE}


def reason(lead: Row, frames: int, decision: Decision | None, error: str | None) -> str:
    """Why an input of so many frames stands where it does, in a sentence; `error` is that of any of its frames."""
    if lead.score is None:
        return error or "no score"
    parts = [_compared(lead.score, decision)]
    if lead.percentile is not None:
        parts.append(f"at least as high as {100 * lead.percentile:.3g} % of the normals")
    weights = [w for w in (lead.weight_1, lead.weight_2, lead.weight_3) if w is not None]
    if len(weights) == len(_SCALES):
        parts.append(f"most unusual scale: {_SCALES[weights.index(max(weights))]}")
    if lead.peak_row is not None:
        of = f" of frame {lead.frame}" if frames > 1 else ""
        parts.append(f"peak at row {lead.peak_row}, column {lead.peak_column}{of}")
    return ", ".join(parts) + (f"; {error}" if error else "")


def _compared(score: float, decision: Decision | None) -> str:
    """
    >>> _compared(2.3149, Decision(1.8704)), _compared(1.8704, Decision(1.87041))
    ('score 2.31 above the threshold 1.87', 'score 1.8704 not above the threshold 1.87041')
    """
    if decision is None:
        return f"score {score:.3g}"
    texts = [(f"{score:.{digits}g}", f"{decision.threshold:.{digits}g}") for digits in (3, 6, 17)]
    shown, threshold = next((pair for pair in texts if pair[0] != pair[1]), texts[0])
    return f"score {shown} {'above' if score > decision.threshold else 'not above'} the threshold {threshold}"
