# SPDX-License-Identifier: Apache-2.0
"""The tables of the report. A cell without a number says why there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, get_args

import numpy as np

from scrd_fast.config import Score
from scrd_fast.model.objectives import needs_noise
from scrd_fast.reproduce.config import Method
from scrd_fast.reproduce.document import Table
from scrd_fast.reproduce.plan import Data
from scrd_fast.reproduce.results import Result, Results
from scrd_fast.reproduce.selection import Measured, cross_fit
from scrd_fast.reproduce.statistics import Estimate, auroc_difference

__all__ = ["ablation", "comparison", "number", "readings", "scores", "selection", "thresholds"]

NONE = "–"
NUMBERS = {
    "auroc": "AUC",
    "f1": "F1 at the oracle threshold",
    "accuracy": "ACC at the oracle threshold",
}
Number = Callable[[dict[str, Any]], dict[str, float]]


def number(estimate: Estimate, signed: bool = False) -> str:
    """With its interval, where it has one.

    >>> number(Estimate(0.95, 0.9, 1.02)), number(Estimate(0.5))
    ('0.950 [0.900, 1.000]', '0.500')
    """
    form = "{:+.3f}" if signed else "{:.3f}"
    if estimate.low is None or estimate.high is None:
        return form.format(estimate.value)
    # The interval of Student's t knows nothing of the ends of the scale.
    low, high = (estimate.low, estimate.high) if signed else (max(estimate.low, 0.0), min(estimate.high, 1.0))
    return f"{form.format(estimate.value)} [{form.format(low)}, {form.format(high)}]"


def scores(results: Results, methods: Sequence[Method]) -> list[Table]:
    """A table each of AUC, F1 and ACC: methods by data sets, and the mean over these."""
    return [
        Table(f"{title}, with 95 % intervals", _header(results), [_row(results, m, name) for m in methods])
        for name, title in NUMBERS.items()
    ]


def _header(results: Results, *more: str) -> list[str]:
    return ["method", *more, *(data.name for data in results.data), "mean over data sets"]


def _row(results: Results, method: Method, name: str) -> list[str]:
    def take(metrics: dict[str, Any]) -> dict[str, float]:
        return dict(metrics[name])

    cells = [_cell(results, method, data, take) for data in results.data]
    mean = number(results.mean(method, take)) if results.complete(method) else NONE
    return [method.name, *cells, mean]


def _cell(results: Results, method: Method, data: Data, take: Number) -> str:
    if not results.finished(method, data):
        return results.reason(method, data)
    return number(results.estimate(method, data, take))


def readings(results: Results, methods: Sequence[Method]) -> Table:
    """AUROC of every score that can be read from a map."""
    rows = []
    for method in methods:
        for data in results.data:
            if results.finished(method, data):
                known = results.finished(method, data)[0].scores
                cells = [
                    number(results.estimate(method, data, partial(_reading, name))) if name in known else NONE
                    for name in get_args(Score)
                ]
                rows.append([method.name, data.name, method.settings.score, *cells])
    return Table("AUC of every reading of the anomaly map", ["method", "data set", "chosen", *get_args(Score)], rows)


def _reading(name: str, metrics: dict[str, Any]) -> dict[str, float]:
    return dict(metrics["by_score"][name]["auroc"])


def thresholds(results: Results, methods: Sequence[Method]) -> Table:
    """What is to be expected in use: at the threshold that held-out normal images give."""
    rows = []
    for method in methods:
        for data in results.data:
            found = results.finished(method, data)
            if found and all(result.metrics["at_threshold"] for result in found):
                takes = [partial(_at_threshold, name) for name in ("sensitivity", "specificity", "f1", "accuracy")]
                cells = [number(results.estimate(method, data, take)) for take in takes]
                rows.append([method.name, data.name, *cells])
    header = ["method", "data set", "sensitivity", "specificity", "F1", "ACC"]
    return Table("At the threshold from held-out normal images, which uses no test label", header, rows)


def _at_threshold(name: str, metrics: dict[str, Any]) -> dict[str, float]:
    return dict(metrics["at_threshold"][name])


def comparison(results: Results, method: Method, others: Sequence[Method]) -> Table:
    """AUC of `method` less that of each other one."""
    rows = []
    for other in others:
        if results.complete(method) and results.complete(other):
            pairs = [results.pair(method, other, data) for data in results.data]
            rows.append([other.name, number(auroc_difference(pairs), signed=True)])
        else:
            missing = [results.reason(m, d) for m in (method, other) for d in results.data]
            rows.append([other.name, next(filter(None, missing))])
    return Table(f"AUC of {method.name} less that of each other method", ["method", "difference"], rows)


def selection(results: Results, methods: Sequence[Method]) -> tuple[Table, str]:
    """Every trained method with every reading of its map as a candidate, and in words what cross-fitting chose."""
    candidates = {
        f"{method.name}, {name}": {data.name: _measured(results, method, data, name) for data in results.data}
        for method in methods
        for name in get_args(Score)
        if all(name in results.finished(method, data)[0].scores for data in results.data)
    }
    found = cross_fit(candidates)
    ranked = sorted(candidates, key=lambda name: -found.fixed[name])
    rows = [[name, f"{found.fixed[name]:.3f}", str(found.chosen[name] or NONE)] for name in ranked]
    each = ", ".join(f"{name} {value:.3f}" for name, value in found.auroc.items())
    mean = sum(found.auroc.values()) / len(found.auroc)
    header = ["candidate", "AUC, mean over folds, data sets and seeds", "chosen in folds"]
    return Table("Candidates", header, rows), f"The AUC of the choices is {mean:.3f} ({each})."


def _measured(results: Results, method: Method, data: Data, name: str) -> Measured:
    found = results.finished(method, data)
    return Measured(found[0].labels, np.stack([result.scores[name] for result in found]))


def ablation(results: Results, methods: Sequence[Method]) -> Table:
    """AUC with and without the parts of the method."""
    rows = []
    for method in methods:
        trained = method.kind == "trained"
        contrast = _mark(needs_noise(method.settings.objective)) if trained else NONE
        name, *cells = _row(results, method, "auroc")
        rows.append([name, contrast, _mark(_weighted(results, method)) if trained else NONE, *cells])
    return Table("AUC with and without each part", _header(results, "contrast", "scale adaptation"), rows)


def _weighted(results: Results, method: Method) -> bool | None:
    """Whether the scales' maps are weighted; None where no model is there to say so."""
    asked = method.settings.map_weights
    found: list[Result] = results.finished(method, results.data[0])
    if asked is not None or not found:
        return asked
    return found[0].map_weights


def _mark(value: bool | None) -> str:
    return "?" if value is None else "yes" if value else "no"
