# SPDX-License-Identifier: Apache-2.0
"""A made-up run of the command `bench`, whose result several files of tests look at."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from made import ENOUGH, GOOD, REFERENCE, case, contender, doubled

from scrd_fast.bench import run
from scrd_fast.bench.results import load
from scrd_fast.console import Console

WRONG = contender("wrong", lambda x: 3 * x)


@pytest.fixture
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command measures a made-up case, and a machine of boundless speed."""
    monkeypatch.setattr(run, "select", lambda ops, short: [case(GOOD, REFERENCE)])
    monkeypatch.setattr(run, "measure_peaks", lambda device, sizes, reads, repeats: ENOUGH)


@pytest.fixture
def _with_failure(_tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "select", lambda ops, short: [case(GOOD, REFERENCE, WRONG)])


@pytest.fixture
def images(_tiny: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Of a case that counts images, six a call, with rivals of its own and one that is not there."""
    away = contender("elsewhere", doubled, environment="elsewhere")
    made = dataclasses.replace(case(GOOD, REFERENCE, away), op="map", unit="images", rivals=("reference", "elsewhere"))
    monkeypatch.setattr(run, "select", lambda ops, short: [made, case(GOOD, REFERENCE)])
    out = tmp_path / "images.json"
    assert not run.bench(Console(quiet=True), [], True, out, "cpu", 3, 1)
    return load(out)


@pytest.fixture
def results(_with_failure: None, tmp_path: Path) -> dict[str, Any]:
    out = tmp_path / "made.json"
    assert run.bench(Console(quiet=True), [], True, out, "cpu", 3, 1)
    return load(out)
