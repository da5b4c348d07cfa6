# SPDX-License-Identifier: Apache-2.0
"""Pictures roll up to inputs, series and studies: against SQL of a database that is not ours."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from made_tables import SCHEMA_2, row, write_parts
from run_folders import worklist

from scrd_fast.calibration import Calibration, Decision
from scrd_fast.cli import main
from scrd_fast.screening.report import write_worklist

ORDER = "score DESC NULLS LAST, path"
INPUTS = """
    CREATE VIEW inputs AS
    SELECT first(path) path, count(*) frames, max(score) score, coalesce(first(study), input_id) unit,
           first(frame ORDER BY score DESC NULLS LAST, frame) frame, first(study) study, first(series) series,
           CASE WHEN bool_or(status = 'failed') THEN 'failed'
                ELSE first(status ORDER BY score DESC NULLS LAST, frame) END status
    FROM rows GROUP BY input_id
"""
STUDIES = f"""
    SELECT first(study) study, count(DISTINCT series) series, count(*) inputs, sum(frames)::BIGINT frames,
           first(path ORDER BY {ORDER}) path, first(frame ORDER BY {ORDER}) frame, max(score) score,
           CASE WHEN bool_or(status = 'failed') THEN 'failed' ELSE first(status ORDER BY {ORDER}) END status
    FROM inputs GROUP BY unit ORDER BY {ORDER}
"""
SERIES = f"""
    SELECT series, first(study) study, count(*) inputs, sum(frames)::BIGINT frames,
           first(path ORDER BY {ORDER}) path, first(frame ORDER BY {ORDER}) frame, max(score) score,
           CASE WHEN bool_or(status = 'failed') THEN 'failed' ELSE first(status ORDER BY {ORDER}) END status
    FROM inputs WHERE series IS NOT NULL GROUP BY series ORDER BY {ORDER}
"""
WORKLIST = f"""
    SELECT path, frames, frame, score, status, study, series, max(score) OVER (PARTITION BY unit) study_score,
           CASE WHEN series IS NOT NULL THEN max(score) OVER (PARTITION BY series) END series_score
    FROM inputs ORDER BY {ORDER}
"""


def studies(out: Path, name: str = "studies") -> list[dict[str, str]]:
    with (out / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def some_rows(seed: int) -> list[list[dict[str, Any]]]:
    """Inputs in shards, in random order: studies of several series whose inputs lie in several shards, some without
    any; many equal scores; frames that failed, inputs that could not be opened or were refused."""
    random = np.random.default_rng(seed)
    shards: list[list[dict[str, Any]]] = [[], [], []]
    for number in random.permutation(60):
        study = None if random.random() < 0.2 else f"study-{random.integers(12)}"
        series = study and f"{study}.{random.integers(3)}"
        path = f"{number:02d}.dcm"
        fate = random.random()
        if fate < 0.1:
            rows = [row(path, None, None, error="missing: no such file")]
        elif fate < 0.2:
            rows = [row(path, None, 0, status="refused", error="constant: constant image", study=study, series=series)]
        else:
            scores = random.integers(0, 8, random.integers(1, 5)) / 3
            rows = [row(path, float(s), i, study=study, series=series) for i, s in enumerate(scores)]
            if random.random() < 0.2:
                rows.append(row(path, None, len(scores), error="unreadable: ends", study=study, series=series))
        shards[random.integers(3)] += rows
    return shards


def written(value: Any) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def compare(lines: list[dict[str, str]], out: Path, query: str) -> None:
    """Each column of the query's result with that of the lines, as text."""
    with duckdb.connect() as database:
        database.execute(f"CREATE VIEW rows AS SELECT * FROM read_parquet('{out / 'results' / '*.parquet'}')")
        database.execute(INPUTS)
        result = database.sql(query)
        names, expected = result.columns, result.fetchall()
    assert [tuple(line[name] for name in names) for line in lines] == [tuple(map(written, r)) for r in expected]


def decided(lines: list[dict[str, str]]) -> None:
    for line in lines:
        expected = "" if not line["score"] else "abnormal" if float(line["score"]) > 1.5 else "normal"
        assert (line["decision"], line["rule"]) == (expected, "max")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_inputs_and_studies_are_those_of_sql_on_the_same_parts(tmp_path: Path, seed: int) -> None:
    out = write_parts(tmp_path / "out", *some_rows(seed))
    counts = write_worklist(out, Decision(1.5))
    compare(studies(out), out, STUDIES)
    compare(studies(out, "series"), out, SERIES)
    compare(worklist(out), out, WORKLIST)
    lines = studies(out, "series")
    assert len(lines) == counts["series"]
    decided(lines)
    lines = studies(out)
    assert sum(int(line["inputs"]) for line in lines) == counts["inputs"] == 60
    assert sum(int(line["frames"]) for line in lines) == counts["rows"]
    assert sum(int(line["series"]) for line in lines) == counts["series"] > 12
    assert counts["study_rule"] == "max"
    decided(lines)
    named = [line["decision"] or "undecided" for line in lines if line["study"]]
    assert counts["studies"] == {name: named.count(name) for name in set(named)}


def test_the_order_of_rows_does_not_matter_where_those_of_an_input_stand_together(tmp_path: Path) -> None:
    """Whichever shard an input lies in, and wherever there."""
    shards = some_rows(3)
    inputs: dict[str, list[dict[str, Any]]] = {}
    for found in (r for shard in shards for r in shard):
        inputs.setdefault(found["input_id"], []).append(found)
    order = np.random.default_rng(0).permutation(list(inputs))
    write_parts(tmp_path / "a", *shards)
    write_parts(tmp_path / "b", *([r for name in order[i::5] for r in inputs[name]] for i in range(5)))
    assert write_worklist(tmp_path / "a", Decision(1.5)) == write_worklist(tmp_path / "b", Decision(1.5))
    for name in ("worklist.csv", "studies.csv", "series.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_study_of_two_series_in_two_shards_with_a_failed_input(tmp_path: Path) -> None:
    known = {"study": "s", "peak_row": 12, "peak_column": 8, "weight_1": 0.2, "weight_2": 0.1, "weight_3": 0.7}
    first = [row("a.dcm", 20.0, percentile=0.5, series="x", **known), row("z.png", 30.0)]
    second = [
        *(row("b.dcm", s, i, percentile=0.975, series="y", **known) for i, s in enumerate([3.0, 40.25, 40.25])),
        row("c.dcm", None, 0, error="unreadable: ends early", study="s", series="y"),
    ]
    out = write_parts(tmp_path / "out", first, second, weights="unusual")
    Calibration.fit([float(i) for i in range(1, 40)], "mean").save(out / "calibration.json")
    assert main(["report", str(out), "-q"]) == 0
    above = (
        "score 40.2 above the threshold 38, at least as high as 97.5 % of the normals, most unusual scale: coarse, "
        "peak at row 12, column 8 of frame 1"
    )
    leading, other = studies(out)
    assert leading == {
        **{"study": "s", "series": "2", "inputs": "3", "frames": "5", "path": "b.dcm", "frame": "1"},
        **{"score": "40.25", "percentile": "0.975", "decision": "abnormal", "rule": "max", "status": "failed"},
        "reason": f"{above}; 1 of 3 inputs failed",
    }
    assert (other["study"], other["path"], other["decision"], other["series"]) == ("", "z.png", "normal", "0")
    first_series, second_series = studies(out, "series")
    assert first_series == {
        **leading,
        "series": "y",
        "inputs": "2",
        "frames": "4",
        "reason": f"{above}; 1 of 2 inputs failed",
    }
    assert (second_series["series"], second_series["study"], second_series["path"]) == ("x", "s", "a.dcm")
    assert (second_series["score"], second_series["decision"], second_series["status"]) == ("20.0", "normal", "ok")
    lines = {line["path"]: line for line in worklist(out)}
    names = ("a.dcm", "b.dcm", "c.dcm", "z.png")
    assert [lines[name]["series_score"] for name in names] == ["20.0", "40.25", "40.25", ""]
    assert [lines[name]["study_score"] for name in ("a.dcm", "b.dcm", "c.dcm", "z.png")] == ["40.25"] * 3 + ["30.0"]
    assert [lines[name]["series"] for name in ("a.dcm", "b.dcm", "c.dcm", "z.png")] == ["x", "y", "y", ""]
    assert lines["b.dcm"]["reason"] == above
    assert lines["c.dcm"]["reason"] == "unreadable: ends early"
    assert lines["z.png"]["reason"] == "score 30 not above the threshold 38"


def test_weights_of_a_head_name_no_unusual_scale(tmp_path: Path) -> None:
    lines = [row("a.png", 1.0, weight_1=0.2, weight_2=0.1, weight_3=0.7)]
    out = write_parts(tmp_path / "out", lines, weights="head")
    write_worklist(out, None)
    assert worklist(out)[0]["reason"] == studies(out)[0]["reason"] == "score 1"


def test_a_frame_that_failed_is_named_beside_the_score_of_the_others(tmp_path: Path) -> None:
    error = "unreadable: holds 1 images of the 2 that it announces"
    out = write_parts(tmp_path / "out", [row("a.dcm", 1.0, 0, study="s"), row("a.dcm", None, 1, error=error)])
    write_worklist(out, Decision(2.0))
    (line,) = studies(out)
    assert line["reason"] == worklist(out)[0]["reason"] == f"score 1 not above the threshold 2; {error}"
    assert (line["status"], line["inputs"], line["frames"]) == ("failed", "1", "2")


def test_a_table_of_schema_2_has_studies_too(tmp_path: Path) -> None:
    made = [[{k: v for k, v in r.items() if k != "series"} for r in shard] for shard in some_rows(4)]
    out = write_parts(tmp_path / "out", *made, schema=SCHEMA_2)
    assert main(["report", str(out), "-q", "--compact", "--threshold", "1.5"]) == 0
    assert {line["series"] for line in worklist(out)} == {""}
    assert {line["series"] for line in studies(out)} == {"0"}
    assert studies(out, "series") == []
    assert len({line["study"] for line in studies(out)}) == 13
    assert json.loads((out / "summary.json").read_text())["series"] == 0
