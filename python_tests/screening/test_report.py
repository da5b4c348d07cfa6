# SPDX-License-Identifier: Apache-2.0
"""Worklist, summary and the one file of all rows, from parts that are built here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_tables import SCHEMA, row, write_parts
from run_folders import worklist

from scrd_fast.calibration import Calibration, Decision
from scrd_fast.cli import main
from scrd_fast.errors import DataError
from scrd_fast.screening.report import write_worklist

NORMALS = [float(i) for i in range(1, 40)]  # the threshold for 5 % is 38


def shards() -> tuple[list[dict[str, Any]], ...]:
    refused = {"status": "refused", "error": "unexpected-modality: modality CT, expected DX"}
    return (
        [
            row("b.png", 20.0, percentile=0.5),
            row("z.png", error="missing: no such file", frame=None),
            row("a.png", 20.0, flags=["no-view"]),
            row("ü,;\n.png", 50.25, flags=["constant", "no-view"], study="s1"),
        ],
        [
            *(row("volume.nii", s, i, flags=[f"f{i}"], study="s2") for i, s in enumerate([1.5, 39.5, 39.5, -2.0])),
            row("ct.dcm", frame=None, **refused),
            row("c.dcm", 0.1 + 0.2, study="s1"),
            row("slices.dcm", 3.0, 0, study="s3"),
            row("slices.dcm", None, 1, error="damaged: frame 1 cannot be decoded", study="s3"),
            row("lost.dcm", None, None, error="damaged: ends early", study="s4"),
        ],
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of two parts with its calibration."""
    out = write_parts(tmp_path / "out", *shards())
    Calibration.fit(NORMALS, "mean").save(out / "calibration.json")
    (out / "run.json").write_text(json.dumps({"status": "finished"}))
    return out


def summary(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "summary.json").read_text()))


def report(out: Path, *flags: str) -> int:
    return main(["report", str(out), "-q", *flags])


def test_the_worklist_has_a_line_per_input_the_most_suspicious_first(run: Path) -> None:
    assert report(run) == 0
    table = worklist(run)
    order = ["ü,;\n.png", "volume.nii", "a.png", "b.png", "slices.dcm", "c.dcm", "ct.dcm", "lost.dcm", "z.png"]
    assert [line["path"] for line in table] == order
    assert list(table[0]) == [
        *("path", "frames", "frame", "score", "percentile", "decision", "flags", "status", "error", "study"),
        *("series", "study_score", "series_score", "reason"),
    ]
    assert [line["decision"] for line in table] == ["abnormal"] * 2 + ["normal"] * 4 + [""] * 3
    assert [line["status"] for line in table] == ["ok"] * 4 + ["failed", "ok", "refused", "failed", "failed"]
    assert float(table[5]["score"]) == 0.1 + 0.2  # exactly
    assert table[0]["flags"] == "constant;no-view"
    assert table[3]["percentile"] == "0.5"
    assert [line["study"] for line in table] == ["s1", "s2", "", "", "s3", "s1", "", "s4", ""]


def test_the_highest_frame_leads_its_input(run: Path) -> None:
    report(run)
    volume = next(line for line in worklist(run) if line["path"] == "volume.nii")
    assert (volume["frames"], volume["frame"], volume["score"], volume["flags"]) == ("4", "1", "39.5", "f1")


def test_an_error_of_another_frame_is_not_lost(run: Path) -> None:
    report(run)
    slices = next(line for line in worklist(run) if line["path"] == "slices.dcm")
    assert (slices["status"], slices["frame"], slices["error"]) == ("failed", "0", "damaged: frame 1 cannot be decoded")


def test_the_summary_counts_inputs_studies_and_rows(run: Path) -> None:
    report(run)
    found = summary(run)
    calibration = Calibration.load(run / "calibration.json")
    assert (found["inputs"], found["rows"]) == (9, 13)
    assert found["status"] == {"failed": 3, "ok": 5, "refused": 1}
    assert found["decision"] == {"abnormal": 2, "normal": 4}
    assert found["errors"] == {"damaged": 2, "missing": 1, "unexpected-modality": 1}
    assert found["flags"] == {"constant": 1, "f0": 1, "f1": 1, "f2": 1, "f3": 1, "no-view": 2}
    assert found["studies"] == {"abnormal": 2, "normal": 1, "undecided": 1}
    assert (found["series"], found["study_rule"]) == (0, "max")
    assert (found["threshold"], found["fpr"], found["expected_fpr"]) == (38.0, 0.05, 0.05)
    assert found["fpr_low"] < 0.05 < found["fpr_high"]
    assert (found["calibration_id"], found["decided_by"], found["run_status"]) == (calibration.id, "run", "finished")


@pytest.mark.parametrize(
    ("flags", "threshold", "fpr", "decided_by"),
    [
        (["--fpr", "0.5"], 20.0, 0.5, "report --fpr 0.5"),
        (["--threshold", "2.5"], 2.5, None, "report --threshold 2.5"),
    ],
)
def test_another_threshold_decides_anew(
    run: Path, flags: list[str], threshold: float, fpr: float | None, decided_by: str
) -> None:
    before = {path: path.read_bytes() for path in (run / "results").iterdir()}
    assert report(run, *flags) == 0
    for line in worklist(run):
        expected = "" if not line["score"] else "abnormal" if float(line["score"]) > threshold else "normal"
        assert line["decision"] == expected
    found = summary(run)
    assert (found["threshold"], found["fpr"], found["decided_by"]) == (threshold, fpr, decided_by)
    share = sum(score > threshold for score in NORMALS) / len(NORMALS)
    assert found["expected_fpr"] == pytest.approx(share if fpr is None else 0.5)
    assert before == {path: path.read_bytes() for path in (run / "results").iterdir()}
    assert report(run) == 0  # and back
    assert summary(run)["decided_by"] == "run"


def test_what_the_run_wrote_into_the_summary_stays(run: Path) -> None:
    (run / "summary.json").write_text(json.dumps({"seconds": 12.5, "images_per_second": 3.0, "threshold": 1.0}))
    report(run)
    assert (summary(run)["seconds"], summary(run)["images_per_second"], summary(run)["threshold"]) == (12.5, 3.0, 38.0)


def test_without_a_calibration_a_threshold_still_decides(run: Path) -> None:
    (run / "calibration.json").unlink()
    assert report(run) == 0
    assert {line["decision"] for line in worklist(run)} == {""}
    assert (summary(run)["decision"], summary(run)["threshold"], summary(run)["calibration_id"]) == ({}, None, None)
    assert report(run, "--threshold", "30") == 0
    assert summary(run)["decision"] == {"abnormal": 2, "normal": 4}
    assert (summary(run)["expected_fpr"], summary(run)["fpr_high"]) == (None, None)


def test_an_unfinished_run_is_reported_as_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "run.json").write_text(json.dumps({"status": "running"}))
    (run / "results" / "part-000001.parquet").unlink()
    (run / "results" / ".part-000001.parquet.77-0a.tmp").write_bytes(b"half")
    assert report(run) == 0
    assert "the run is not finished: 4 inputs so far" in capsys.readouterr().err
    assert (summary(run)["inputs"], summary(run)["run_status"]) == (4, "running")


def test_the_result_is_the_worklists_path_or_the_summary(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(run)
    assert capsys.readouterr().out == f"{run / 'worklist.csv'}\n"
    report(run, "--json")
    assert json.loads(capsys.readouterr().out) == summary(run)


def _broken(run: Path) -> Iterator[tuple[Path, list[str], str]]:
    yield run, ["--fpr", "0.1", "--threshold", "1"], "--threshold and --fpr exclude each other"
    yield run, ["--threshold", "nan"], "threshold must be finite"
    yield run, ["--fpr", "0.7"], "--fpr"
    yield run.parent / "ou", [], "did you mean"
    yield run.parent, [], "no finished part"
    (run / "calibration.json").unlink()
    yield run, ["--fpr", "0.1"], "--fpr needs a calibration"
    table = pq.read_table(run / "results" / "part-000000.parquet")
    pq.write_table(table.drop_columns(["flags", "study"]), run / "results" / "part-000000.parquet")
    yield run, [], "part-000000.parquet: no column flags, study"
    (run / "results" / "part-000000.parquet").write_bytes(b"PAR1 and no more")
    yield run, [], "part-000000.parquet: not a readable part"


def test_what_cannot_be_reported_is_one_line_and_exit_code_2(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, flags, text in _broken(run):
        assert report(folder, *flags) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.strip().splitlines()) == 1
        assert text in captured.err
    assert not (run / "worklist.csv").exists()
    assert not (run / "studies.csv").exists()
    assert not (run / "series.csv").exists()


def test_compact_holds_every_row_with_the_decisions_of_now(run: Path) -> None:
    assert report(run, "--compact", "--fpr", "0.5") == 0
    table = pq.read_table(run / "results.parquet")
    assert table.schema.names == SCHEMA.names
    assert table.schema.metadata[b"scrd_fast.schema_version"] == b"3"
    decided = json.loads(table.schema.metadata[b"scrd_fast.decision"])
    assert decided == {name: summary(run)[name] for name in decided}
    assert decided["threshold"] == 20.0
    before = pq.read_table(run / "results")
    assert table.drop_columns("decision").equals(before.drop_columns("decision"))
    for score, decision in zip(table["score"].to_pylist(), table["decision"].to_pylist(), strict=True):
        assert decision == (None if score is None else "abnormal" if score > 20 else "normal")
    assert pq.ParquetFile(run / "results.parquet").metadata.row_group(0).column(0).compression == "ZSTD"


def test_pandas_duckdb_and_polars_read_the_same_values(run: Path) -> None:
    assert report(run, "--compact") == 0  # by the run's own threshold: nothing changes
    expected = [r for part in shards() for r in pa.Table.from_pylist(part, schema=SCHEMA).to_pylist()]
    for source in (run / "results" / "part-*.parquet", run / "results.parquet"):
        by_duckdb = duckdb.read_parquet(str(source)).to_arrow_table()
        by_polars = polars.read_parquet(source)
        assert by_duckdb.column_names == by_polars.columns == SCHEMA.names
        assert by_duckdb.to_pylist() == by_polars.to_dicts() == expected
    for place in (run / "results", run / "results.parquet"):
        frame = pandas.read_parquet(place)
        assert list(frame.columns) == SCHEMA.names
        for name in ("path", "status", "score", "decision", "frame", "study"):
            values = [None if pandas.isna(v) else v for v in frame[name]]
            assert values == [r[name] for r in expected]
        assert [list(v) for v in frame["flags"]] == [r["flags"] for r in expected]


def test_many_parts_become_few_groups_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scrd_fast.screening.report._ROW_GROUP", 10)
    parts = [[row(f"{part}-{i}.png", float(i)) for i in range(4)] for part in range(7)]
    out = write_parts(tmp_path / "out", *parts)
    assert report(out, "--compact") == 0
    file = pq.ParquetFile(out / "results.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)] == [12, 12, 4]
    assert file.read()["path"].to_pylist() == [r["path"] for part in parts for r in part]


def test_order_is_that_of_a_sort_in_memory(tmp_path: Path) -> None:
    """More lines than the database keeps in memory, in random order, with many equal scores."""
    random = np.random.default_rng(0)
    scores = random.integers(0, 300, 20_000) / 7
    paths = [f"/some/long/folder/of/a/study/{i:08d}.dcm" for i in random.permutation(20_000)]
    rows = [row(p, float(s)) for p, s in zip(paths, scores, strict=True)]
    out = write_parts(tmp_path / "out", rows[:9_000], rows[9_000:])
    counts = write_worklist(out, Decision(20.0))
    assert counts["decision"] == {"abnormal": int((scores > 20).sum()), "normal": int((scores <= 20).sum())}
    keys = [(-float(line["score"]), line["path"]) for line in worklist(out)]
    assert len(keys) == 20_000
    assert all(a < b for a, b in pairwise(keys))


def test_a_worklist_that_fails_keeps_the_old_one(run: Path) -> None:
    report(run)
    before = [(run / name).read_bytes() for name in ("worklist.csv", "studies.csv", "series.csv")]
    (run / "results" / "part-000001.parquet").write_bytes(b"")
    with pytest.raises(DataError, match="part-000001"):
        write_worklist(run, None)
    assert [(run / name).read_bytes() for name in ("worklist.csv", "studies.csv", "series.csv")] == before
    assert not [p for p in run.iterdir() if p.suffix == ".tmp"]


def test_a_report_loads_neither_a_model_nor_torch(run: Path) -> None:
    code = (
        "import sys\nfrom scrd_fast.cli import main\n"
        f"print(main(['report', {str(run)!r}, '--compact', '-q']), 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "0 False"
