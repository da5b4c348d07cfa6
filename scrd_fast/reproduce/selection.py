# SPDX-License-Identifier: Apache-2.0
"""Choosing among candidates on labelled development images without flattering the choice: cross-fitting.

The images of each data set are cut into folds. For each fold the candidate with the highest mean AUROC on the other
folds is chosen and measured on that fold, which had no part in the choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scrd_fast.metrics import image_metrics

__all__ = ["CrossFit", "Measured", "cross_fit"]


@dataclass(frozen=True)
class Measured:
    """What one candidate says of one data set."""

    labels: npt.NDArray[np.int64]  # [N], 0 normal or 1 abnormal
    scores: npt.NDArray[np.float64]  # [S, N], a row for each seed

    def auroc(self, at: npt.NDArray[np.int64]) -> float:
        """On the images `at`, mean over the seeds."""
        return float(np.mean([image_metrics(self.labels[at], row[at])["auroc"] for row in self.scores]))


@dataclass(frozen=True)
class CrossFit:
    """`chosen`: how many folds chose each candidate; `auroc`: of the choices, by data set, mean over the folds;
    `fixed`: of every candidate measured on the same folds, mean over data sets."""

    chosen: Counter[str]
    auroc: dict[str, float]
    fixed: dict[str, float]


def cross_fit(candidates: Mapping[str, Mapping[str, Measured]], *, folds: int = 5, seed: int = 0) -> CrossFit:
    """`candidates`: by name, what each says of every data set, by its name; all of the same images.

    Folds hold equal shares of both classes. Raises ValueError where a class has fewer images than there are folds.

    >>> labels = np.arange(40) % 2
    >>> good, bad = (Measured(labels, np.array([x])) for x in (labels + 0.0, 1.0 - labels))
    >>> found = cross_fit({"good": {"set": good}, "bad": {"set": bad}})
    >>> dict(found.chosen), found.auroc
    ({'good': 5}, {'set': 1.0})
    """
    first = next(iter(candidates.values()))
    cuts = {data: _folds(one.labels, folds, seed) for data, one in first.items()}
    names = list(candidates)
    on = np.array([_by_fold(candidates[name], cuts, folds) for name in names])  # [candidate, data set, fold, in or out]
    choices = on[..., 1].mean(axis=1).argmax(axis=0)
    measured = on[choices, :, np.arange(folds), 0]
    return CrossFit(
        Counter(names[i] for i in choices),
        dict(zip(cuts, measured.mean(axis=0).tolist(), strict=True)),
        dict(zip(names, on[..., 0].mean(axis=(1, 2)).tolist(), strict=True)),
    )


def _by_fold(
    measured: Mapping[str, Measured], cuts: Mapping[str, npt.NDArray[np.int64]], folds: int
) -> list[list[tuple[float, float]]]:
    """AUROC on each fold and on all others, for each data set."""
    return [
        [tuple(one.auroc(np.flatnonzero(rule)) for rule in (cut == f, cut != f)) for f in range(folds)]  # type: ignore[misc]
        for one, cut in ((measured[data], cuts[data]) for data in cuts)
    ]


def _folds(labels: npt.NDArray[np.int64], folds: int, seed: int) -> npt.NDArray[np.int64]:
    """The fold of each image."""
    generator, cut = np.random.default_rng(seed), np.empty(len(labels), dtype=np.int64)
    for label in (0, 1):
        at = generator.permutation(np.flatnonzero(labels == label))
        if len(at) < folds:
            raise ValueError(f"folds: each class needs at least {folds} images, label {label} has {len(at)}")
        cut[at] = np.arange(len(at)) % folds
    return cut
