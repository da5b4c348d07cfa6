# SPDX-License-Identifier: Apache-2.0
"""What sums a screening run up, from the parts of its table: worklist, summary, one file of all rows.

Everything here works on a run's folder, finished or not, without a model, and never holds more rows than a part has.
The parts themselves are never changed: another threshold is another worklist.

OUT/results/part-*.parquet   read
OUT/calibration.json         read: the calibration that the run used
OUT/worklist.csv             a line per input, most suspicious first
OUT/studies.csv, series.csv  a line per study or series, the same
OUT/summary.json             counts, and what decided
OUT/results.parquet          on request: all rows with the decisions of now
OUT/report.html              all of it as a page, see page.py
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import asdict, fields
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scrd_fast.calibration import Calibration, Decision
from scrd_fast.console import Console
from scrd_fast.errors import DataError, ScrdFastError
from scrd_fast.files import nearest, replacing, write_atomically
from scrd_fast.screening.studies import Row, Studies, reason

__all__ = ["compact", "load_json", "parts", "report", "tables", "write_summary", "write_worklist"]

_ROW_GROUP = 65_536  # rows
_NO_DECISION = dict.fromkeys(field.name for field in fields(Decision))
_WEIGHTS = ("weight_1", "weight_2", "weight_3")
_NEWER = ("series",)  # than the oldest schema that is read


def report(
    console: Console, out: Path, threshold: float | None, fpr: float | None, merge: bool, labels: Path | None
) -> None:
    """Decide a run's table anew: by a threshold, by a rate, or by neither as the run did."""
    from scrd_fast.screening.page import write_page  # which reads parts as is done here
    from scrd_fast.screening.page_labels import Labels

    parts(out)
    if threshold is not None and fpr is not None:
        raise ScrdFastError("--threshold and --fpr exclude each other; give one of them")
    path = out / "calibration.json"
    calibration = Calibration.load(path) if path.is_file() else None
    if fpr is not None and calibration is None:
        raise ScrdFastError(f"--fpr needs a calibration, and there is no {path}; --threshold needs none")
    decision, decided_by = _decision(calibration, threshold, fpr)
    known = None if labels is None else Labels(labels)
    counts = write_worklist(out, decision)
    facts = load_json(out / "summary.json") | {"run_status": load_json(out / "run.json").get("status")}
    summary = write_summary(out, counts, decision, calibration, decided_by, facts)
    if merge:
        compact(out, decision, calibration)
    write_page(console, out, summary, decision, calibration, known)
    if summary["run_status"] == "running":
        console.warn(f"the run is not finished: {counts['inputs']} inputs so far")
    console.log(f"{counts['inputs']} inputs: " + ", ".join(f"{n} {name}" for name, n in counts["decision"].items()))
    console.result(out / "worklist.csv", summary)


def _decision(
    calibration: Calibration | None, threshold: float | None, fpr: float | None
) -> tuple[Decision | None, str]:
    if threshold is not None:
        decided_by = f"report --threshold {threshold!r}"
        return calibration.at(threshold=threshold) if calibration else Decision(threshold), decided_by
    if calibration is None:
        return None, "run"
    return (calibration.decision, "run") if fpr is None else (calibration.at(fpr=fpr), f"report --fpr {fpr!r}")


def load_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_bytes())) if path.is_file() else {}


def parts(out: Path) -> list[Path]:
    """The finished parts of a run's table, in order. Raises `ScrdFastError` where there is none."""
    found = sorted((out / "results").glob("part-*.parquet"), key=lambda path: (len(path.name), path.name))
    if not found:
        hint = "" if out.exists() else nearest(out)
        raise ScrdFastError(f"{out}: no finished part of a table there (results/part-*.parquet){hint}")
    return found


def tables(out: Path, columns: list[str] | None = None, newer: Collection[str] = ()) -> Iterator[pa.Table]:
    """The parts, one at a time; of `columns` those in `newer` may be missing."""
    for path in parts(out):
        try:
            with pq.ParquetFile(path) as file:
                missing = sorted({*(columns or ())} - {*file.schema_arrow.names, *newer})
                if missing:
                    raise DataError(path, [f"no column {', '.join(missing)}; another version wrote it"])
                yield file.read(columns)  # without what is not there
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(path, [f"not a readable part: {' '.join(str(error).split())}"]) from None


def _rows(out: Path) -> Iterator[Row]:
    for table in tables(out, list(Row._fields), _NEWER):
        unknown = {*Row._fields} - {*table.column_names}
        if (table.schema.metadata or {}).get(b"scrd_fast.weights") != b"unusual":  # then they say something else
            unknown |= {*_WEIGHTS}
        for batch in table.to_batches(max_chunksize=8192):
            none = [None] * len(batch)
            yield from map(Row, *(none if n in unknown else batch.column(n).to_pylist() for n in Row._fields))


def write_worklist(out: Path, decision: Decision | None) -> dict[str, Any]:
    """Write `out/worklist.csv`, a line per input led by its highest-scoring frame, and `out/studies.csv` and
    `out/series.csv`, a line per study or series led by its highest-scoring input; returns counts.

    The highest score comes first, what has none last, equals by path. An input has failed where one of its frames has,
    a study or series where one of its inputs has; else they are what leads them is. An input's error, where its leading
    frame has none, is the first of another frame. `inputs`, `status`, `decision`, `series` and `studies` count inputs,
    series and studies, the latter by their decision; `rows`, `errors` (by code) and `flags` count frames. Rows of one
    input must stand together, those of a study need not. Raises `DataError` for a part that cannot be read.
    """
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("status", "decision", "errors", "flags")}
    with closing(sqlite3.connect("")) as database:  # a nameless file, and only where a little memory does not do
        inputs = groupby(_rows(out), attrgetter("input_id"))
        studies = Studies(database, (_line(list(frames), decision, counts) for _, frames in inputs))
        with (
            replacing(out / "worklist.csv") as of_inputs,
            replacing(out / "studies.csv") as of_studies,
            replacing(out / "series.csv") as of_series,
        ):
            studies.write_inputs(of_inputs)
            studies.write_studies(of_studies)
            studies.write_series(of_series)
        totals = studies.counts()
    return totals | {name: dict(sorted(counter.items())) for name, counter in counts.items()}


def _line(frames: list[Row], decision: Decision | None, counts: dict[str, Counter[str]]) -> tuple[Any, ...]:
    """An input's line, by `INPUT_COLUMNS` but for the scores of its study and series; counts what its frames have."""
    lead = max(frames, key=lambda row: float("-inf") if row.score is None else row.score)
    verdict = _verdict(decision, lead.score)
    status = "failed" if any(row.status == "failed" for row in frames) else lead.status
    counts["status"][status] += 1
    if verdict:
        counts["decision"][verdict] += 1
    errors = [row.error for row in frames if row.error]
    counts["errors"].update(error.partition(":")[0] for error in errors)
    counts["flags"].update(flag for row in frames for flag in row.flags or ())
    error = lead.error or next(iter(errors), None)
    flags = ";".join(lead.flags or ())
    return (
        *(lead.path, len(frames), lead.frame, lead.score, lead.percentile),
        *(verdict, flags, status, error, lead.study, lead.series),
        reason(lead, len(frames), decision, error),
    )


def _verdict(decision: Decision | None, score: float | None) -> str | None:
    return None if decision is None or score is None else decision.verdict(score)


def write_summary(
    out: Path,
    counts: dict[str, Any],
    decision: Decision | None,
    calibration: Calibration | None,
    decided_by: str,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Write `out/summary.json`: the counts of `write_worklist`, what decided, and whatever else is in `facts`."""
    summary = facts | counts | _decided(decision, calibration) | {"decided_by": decided_by}
    write_atomically(out / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    return summary


def _decided(decision: Decision | None, calibration: Calibration | None) -> dict[str, Any]:
    known = asdict(decision) if decision else _NO_DECISION
    return known | {"calibration_id": calibration.id if calibration else None}


def compact(out: Path, decision: Decision | None, calibration: Calibration | None) -> None:
    """Write `out/results.parquet`: all rows of all parts in their order, with the decisions of now.

    What decided is in the metadata of the file's schema, as JSON, under `scrd_fast.decision`.
    """
    schema = pq.read_schema(parts(out)[0])
    decided = json.dumps(_decided(decision, calibration)).encode()
    schema = schema.with_metadata((schema.metadata or {}) | {b"scrd_fast.decision": decided})
    place = schema.get_field_index("decision")
    with (
        replacing(out / "results.parquet") as file,
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        for table in _grouped(tables(out)):
            verdicts = [_verdict(decision, score) for score in table.column("score").to_pylist()]
            decisions = pa.array(verdicts, schema.field(place).type)
            writer.write_table(table.set_column(place, schema.field(place), decisions))


def _grouped(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Tables of about `_ROW_GROUP` rows: as many small groups as there are parts would make a slow file."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= _ROW_GROUP:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
