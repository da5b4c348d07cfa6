# SPDX-License-Identifier: Apache-2.0
"""What finished runs say, and what became of the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scrd_fast.evaluation import read_scores
from scrd_fast.files import read_record
from scrd_fast.reproduce.config import Method
from scrd_fast.reproduce.execute import NEEDS_ANOMALIB
from scrd_fast.reproduce.plan import Data, Run
from scrd_fast.reproduce.statistics import Estimate, Pair, over_seeds

__all__ = ["Result", "Results"]


@dataclass(frozen=True)
class Result:
    """A finished run. `metrics`: what `scrd-fast evaluate` writes."""

    run: Run
    folder: Path
    record: dict[str, Any]
    metrics: dict[str, Any]
    labels: npt.NDArray[np.int64]  # [N]
    scores: dict[str, npt.NDArray[np.float64]]  # every reading, each [N]

    @property
    def stored(self) -> npt.NDArray[np.float64]:
        """The scores that the method is measured by."""
        return self.scores[self.run.method.settings.score]

    @property
    def map_weights(self) -> bool:
        """Of a trained method: whether its map is weighted by scale."""
        return bool(self.record["map_weights"])


class Results:
    """Runs by data set, method and seed, as the folder `out` has them."""

    def __init__(self, data: Sequence[Data], out: Path) -> None:
        self.data, self.out = list(data), out
        self._known: dict[str, Result | str] = {}

    def of(self, run: Run) -> Result | str:
        """The result, or why there is none."""
        if run.id not in self._known:
            self._known[run.id] = _read(run, run.folder(self.out))
        return self._known[run.id]

    def finished(self, method: Method, data: Data) -> list[Result]:
        """Those of all its seeds; none where one is missing, since a mean over fewer would be another number."""
        found = [self.of(Run(data, method, seed)) for seed in method.seeds]
        good = [result for result in found if isinstance(result, Result)]
        return good if len(good) == len(found) else []

    def reason(self, method: Method, data: Data) -> str:
        """Why `finished` has none."""
        found = [self.of(Run(data, method, seed)) for seed in method.seeds]
        return next((result for result in found if isinstance(result, str)), "")

    def complete(self, method: Method) -> bool:
        return all(self.finished(method, data) for data in self.data)

    def estimate(self, method: Method, data: Data, number: Callable[[dict[str, Any]], dict[str, float]]) -> Estimate:
        """Over seeds, of what `number` takes from the metrics: {"value", "low", "high"}.

        Where the seeds say nothing (a single one, or all alike) it has the bootstrap's interval of the evaluation.
        """
        found = [number(result.metrics) for result in self.finished(method, data)]
        estimate = over_seeds([one["value"] for one in found])
        if estimate.low is None:
            return Estimate(estimate.value, found[0]["low"], found[0]["high"])
        return estimate

    def mean(self, method: Method, number: Callable[[dict[str, Any]], dict[str, float]]) -> Estimate:
        """Over data sets, then over seeds."""
        table = [[number(r.metrics)["value"] for r in self.finished(method, data)] for data in self.data]
        return over_seeds(np.mean(table, axis=0).tolist())

    def pair(self, first: Method, second: Method, data: Data) -> Pair:
        a, b = self.finished(first, data), self.finished(second, data)
        return Pair(a[0].labels, np.stack([r.stored for r in a]), np.stack([r.stored for r in b]))


def _read(run: Run, folder: Path) -> Result | str:
    record = read_record(folder / "run.json")
    status = record.get("status")
    if status == "failed":
        return f"failed: {record['reason']}"
    if status != "finished":
        return NEEDS_ANOMALIB if run.method.kind == "anomalib" else "not run yet"
    metrics = json.loads((folder / "metrics.json").read_text())
    labels, scores = read_scores(folder / "scores.csv")
    return Result(run, folder, record, metrics, labels, scores)
