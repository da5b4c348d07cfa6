# SPDX-License-Identifier: Apache-2.0
"""The tables of README.md and docs/benchmarks.md are those that the committed results make."""

from __future__ import annotations

import copy
import math
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scrd_fast.bench.results import save

ROOT = Path(__file__).parents[2]
summary = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "summary.py")))


@pytest.fixture(scope="module")
def runs() -> dict[str, Any]:
    found: dict[str, Any] = summary.newest(ROOT / "benchmarks" / "results")
    return found


@pytest.mark.parametrize("page", summary.PAGES, ids=lambda path: path.name)
def test_the_page_has_the_numbers_of_the_committed_results(page: Path, runs: dict[str, Any]) -> None:
    text = page.read_text(encoding="utf-8")
    assert "made by benchmarks/summary.py" in text
    assert summary.filled(text, runs) == text, "python benchmarks/summary.py writes it anew"


def test_the_overview_names_machine_versions_and_commit(runs: dict[str, Any]) -> None:
    text = " ".join(summary.overview(runs))
    assert set(runs) == {"anomaly_map", "contrastive_distance", "simplex_noise", "synthesize_anomalies"}
    for op, run in runs.items():
        assert f"`{op}`" in text
        assert all(part in text for part in (run["machine"]["cpu"], run["versions"]["torch"], run["commit"][:7]))
    assert ("No GPU has been measured" in text) == (not any(run["machine"]["gpu"] for run in runs.values()))
    assert sum(line.startswith("| `") for line in summary.overview(runs)) <= 12


def row(contender: str, ms: float, variant: str = "map", **facts: Any) -> dict[str, Any]:
    return {
        "op": "op",
        "case": "case",
        "contender": contender,
        "variant": variant,
        "status": "ok",
        "reason": "",
        "times": {"wall_warm": {"median": ms / 1e3}},
        "percent": {"bytes": 50.0, "flops": 3.0, "instructions": 1.0},
        "work": {"bytes": 1000},
    } | facts


def one_line(*rows: dict[str, Any]) -> Any:
    (line,) = summary.lines_of({"rows": list(rows)}, "op")
    return line


def cells(line: Any) -> list[str]:
    return [cell(line) for _, cell in summary.COLUMNS]


def test_the_fastest_of_each_kind_stands_in_its_column() -> None:
    line = one_line(
        row("scrd_fast", 2.0),
        row("scrd_fast avx2", 0.1),
        row("reference", 9.0),
        row("eager", 8.0),
        row("eager", 1.0, "mean"),
        row("torch.compile", 7.0),
        row("torch.compile, max-autotune", 6.0),
        row("authors", 20.0, "map"),
        row("anomalib", 10.0, "map, mirror"),
        row("read", 1.0, "read", work={"bytes": 400}),
    )
    assert cells(line) == ["2 ms", "8 ms", "6 ms", "10 ms (anomalib)", "3", "50 % (bytes)"]
    assert summary._of_floor(line) == "125 %"


def test_a_loss_and_a_failure_are_shown() -> None:
    failed: dict[str, Any] = {"times": {}, "percent": None}
    line = one_line(
        row("scrd_fast", 2.0), row("eager", 1.0), row("torch.compile", 0.0, status="FAIL", reason="wrong", **failed)
    )
    assert cells(line)[1:5] == ["1 ms", "wrong result", "", "0.5 (a loss)"]
    given_up = row("torch.compile", 0.0, status="unavailable", reason="open took 9 s and was given up", **failed)
    assert cells(one_line(row("scrd_fast", 2.0), given_up))[1:5] == ["", "given up", "", ""]
    ours = one_line(row("scrd_fast", 0.0, status="FAIL", **failed), row("eager", 1.0))
    assert cells(ours)[0] == "FAIL"
    assert math.isnan(ours.lead)


def test_the_newest_whole_run_counts(tmp_path: Path, runs: dict[str, Any]) -> None:
    old = copy.deepcopy(runs["synthesize_anomalies"])
    for name, facts in {
        "old": {},
        "new": {"time": "2999-01-01T00:00:00+0000", "commit": "new"},
        "quick": {"time": "2999-01-02T00:00:00+0000", "quick": True},
        "unfinished": {"time": "2999-01-03T00:00:00+0000", "finished": False},
    }.items():
        save(tmp_path / f"{name}.json", old | facts)
    (tmp_path / "other.json").write_text('{"schema": "scrd_fast.train/1"}')
    assert {op: run["commit"] for op, run in summary.newest(tmp_path).items()} == {"synthesize_anomalies": "new"}
