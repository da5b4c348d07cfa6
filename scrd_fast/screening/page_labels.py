# SPDX-License-Identifier: Apache-2.0
"""Labels that somebody gives for the inputs of a run, and what the scores make of them."""

from __future__ import annotations

import csv
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from scrd_fast.console import Console
from scrd_fast.errors import DataError, ScrdFastError, reason_of
from scrd_fast.screening.page_scores import EXACT, Grid, distribution, rounded

__all__ = ["Labels"]

_VALUES = {"0": 0, "normal": 0, "1": 1, "abnormal": 1}
_POINTS = 400  # a side of the grid on which the points of an ROC curve are told apart

_FITTING = """
    CREATE TABLE fitting AS
    SELECT inputs.path, labels.label, inputs.score, labels.path AS labelled FROM inputs JOIN labels USING (path)
    UNION ALL
    SELECT inputs.path, labels.label, inputs.score, labels.path FROM inputs JOIN labels USING (name)
    WHERE inputs.path NOT IN (SELECT path FROM labels) AND labels.path NOT IN (SELECT path FROM inputs)
    AND name IN (SELECT name FROM labels GROUP BY name HAVING count(*) = 1)
    AND name IN (SELECT name FROM inputs GROUP BY name HAVING count(*) = 1)
"""


class Labels:
    """The labels of a CSV file with the columns `path` and `label` (0 or normal, 1 or abnormal).

    A path fits an input as it was given; else by its last part, where that is the only one of its name on both sides.
    `shown` gives what stands for a path in the run's table, where that is not the path itself.
    Memory holds 9 bytes of each that fits. Raises `DataError` for a file that is not so, or contradicts itself.
    """

    def __init__(self, path: Path, shown: Callable[[str], str] = str) -> None:
        self._database = sqlite3.connect("")  # a nameless file, and only where a little memory does not do
        self._database.execute("CREATE TABLE labels (path TEXT PRIMARY KEY, name TEXT, label INTEGER)")
        try:
            with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                self._fill(path, _lines(path, csv.reader(file)), shown)
        except (OSError, csv.Error) as error:
            raise DataError(path, [f"cannot be read as labels: {reason_of(error)}"]) from None

    def _fill(self, source: Path, lines: Iterator[tuple[int, str, str]], shown: Callable[[str], str]) -> None:
        self.count = 0
        for number, given, word in lines:
            label = _VALUES.get(word.strip().lower())
            if label is None:
                raise DataError(source, [f"line {number}: expected a label 0, 1, normal or abnormal, got {word!r}"])
            text = shown(_as_in_the_table(given))
            known = self._database.execute("SELECT label FROM labels WHERE path = ?", (text,)).fetchone()
            if known not in (None, (label,)):
                raise DataError(source, [f"line {number}: this path has another label above"])
            if known is None:
                self._database.execute("INSERT INTO labels VALUES (?, ?, ?)", (text, PurePath(text).name, label))
                self.count += 1
        if not self.count:
            raise DataError(source, ["holds no label"])

    def fit(self, rows: Iterable[tuple[str, float | None]]) -> None:
        """Find the inputs of a run, whose rows are (path, score). An input's score is its highest picture's."""
        with self._database as database:
            database.execute("DROP TABLE IF EXISTS inputs")
            database.execute("DROP TABLE IF EXISTS fitting")
            database.execute("CREATE TABLE inputs (path TEXT PRIMARY KEY, name TEXT, score REAL)")
            database.executemany(
                "INSERT INTO inputs VALUES (?, ?, ?) ON CONFLICT (path) DO UPDATE SET "
                "score = max(coalesce(score, excluded.score), coalesce(excluded.score, score))",
                ((path, PurePath(path).name, score) for path, score in rows),
            )
            database.execute(_FITTING)
            database.execute("CREATE INDEX fits ON fitting (path)")

    def of(self, paths: Iterable[str]) -> list[int | None]:
        """The labels of inputs, after `fit`."""
        find = "SELECT label FROM fitting WHERE path = ?"
        found = (self._database.execute(find, (path,)).fetchone() for path in paths)
        return [row and row[0] for row in found]

    def told(self, console: Console, grid: Grid) -> dict[str, Any]:
        """For the page, after `fit`: counts; where both labels have scores, AUROC, its curve and both groups' scores.

        The interval of the AUROC (a bootstrap) is left out beyond `EXACT` inputs.
        """
        fitting, used, scored, inputs = self._database.execute(
            "SELECT count(*), count(DISTINCT labelled), count(score), (SELECT count(*) FROM inputs) FROM fitting"
        ).fetchone()
        told: dict[str, Any] = {
            "labels": self.count, "unmatched": self.count - used, "unlabelled": inputs - fitting,
            "without_score": fitting - scored, "scored": scored,
        }  # fmt: skip
        if told["unmatched"]:
            console.warn(f"--labels: {told['unmatched']} of {self.count} labels fit no input of this run")
        found = np.fromiter(
            self._database.execute("SELECT label, score FROM fitting WHERE score IS NOT NULL ORDER BY path"),
            np.dtype([("label", np.int8), ("score", np.float64)]),
        )
        labels, scores = found["label"], found["score"]
        if len(np.unique(labels)) < 2:
            console.warn("--labels: no AUROC, since not both labels have scored inputs")
            return told
        try:
            return told | _measured(labels, scores, grid)
        except ScrdFastError as error:  # without scikit-learn
            console.warn(f"--labels: no AUROC: {error}")
            return told


def _as_in_the_table(given: str) -> str:
    """Bytes that are no UTF-8 are escaped there: as surrogates, and these by a backslash."""
    return given.encode("utf-8", "backslashreplace").decode()


def _lines(source: Path, rows: Iterator[list[str]]) -> Iterator[tuple[int, str, str]]:
    """Number, path and label of each line that is not empty."""
    header = [name.strip().lower() for name in next(rows, [])]
    if not {"path", "label"} <= set(header):
        raise DataError(source, [f"expected the columns path and label, got {', '.join(header[:9]) or 'none'}"])
    path, label = header.index("path"), header.index("label")
    for number, row in enumerate(rows, start=2):
        if not row:
            continue
        if len(row) <= max(path, label):
            raise DataError(source, [f"line {number}: has {len(row)} columns, expected {len(header)}"])
        yield number, row[path], row[label]


def _measured(labels: Any, scores: Any, grid: Grid) -> dict[str, Any]:
    from scrd_fast.metrics import image_intervals, image_metrics, roc_points

    if len(scores) <= EXACT:
        auroc = dict(image_intervals(labels, scores)["auroc"])
    else:
        auroc = {"value": image_metrics(labels, scores)["auroc"], "low": None, "high": None}
    fpr, tpr = roc_points(labels, scores)
    places = np.rint(np.stack([fpr, tpr]) * _POINTS)
    kept = np.flatnonzero((np.diff(places, axis=1, prepend=-1, append=-1) != 0).any(axis=0)[1:])
    return {
        "auroc": auroc,
        "curve": [rounded(fpr[kept].tolist()), rounded(tpr[kept].tolist())],
        "normal": distribution(grid, [scores[labels == 0]]),
        "abnormal": distribution(grid, [scores[labels == 1]]),
    }
