# SPDX-License-Identifier: Apache-2.0
"""How many scores lie above a threshold, for any number of scores in little memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["EXACT", "Grid", "distribution", "rounded"]

EXACT = 10_000  # scores that are told one by one
_BINS = 4096

FloatArray = npt.NDArray[np.float64]


class Grid(NamedTuple):
    """Thresholds (first + k) * step / divisor, k = 0 ... steps, all integers: short decimals, exact in any language.

    >>> grid = Grid.over(0.0, 0.4)
    >>> grid.step / grid.divisor, grid.steps
    (0.0001, 4000)
    """

    first: int
    step: int
    divisor: int
    steps: int

    @classmethod
    def over(cls, low: float, high: float) -> Grid:
        """At most 4,096 steps (and one) that cover low ... high, finite numbers."""
        if low == high:
            low, high = low - 0.5, high + 0.5
        span = max(high - low, 1e-9 * max(abs(low), abs(high)))
        places = math.ceil(-math.log10(span / _BINS))  # of the decimal below the step
        for factor in (1, 2, 5, 10):
            step = factor * 10.0**-places
            if span / step <= _BINS:
                break
        whole, divisor = (factor, 10**places) if places >= 0 else (factor * 10**-places, 1)
        first = math.floor(low / step)
        return cls(first, whole, divisor, max(math.ceil(high / step) - first, 1))

    @property
    def edges(self) -> FloatArray:
        return np.asarray((self.first + np.arange(self.steps + 1)) * self.step / self.divisor)


def distribution(grid: Grid, scores: Iterable[FloatArray]) -> dict[str, Any]:
    """For the page: `count`, and `above`, how many are greater than each threshold of the grid; or, of at most `EXACT`
    scores, these themselves, sorted, as `exact`. `scores` come in pieces; their own number takes no memory.

    >>> distribution(Grid.over(0.0, 0.4), [np.array([0.25, 0.1])])
    {'count': 2, 'exact': [0.1, 0.25]}
    """
    edges, kept, count = grid.edges, list[FloatArray](), 0
    bins = np.zeros(len(edges) + 1, np.int64)  # the last: above all, where low and high were rounded
    for piece in scores:
        bins += np.bincount(np.searchsorted(edges, piece, side="left"), minlength=len(bins))
        count += len(piece)
        if count <= EXACT:
            kept.append(piece)
        else:
            kept.clear()
    if count <= EXACT:
        return {"count": count, "exact": np.sort(np.concatenate([np.empty(0), *kept])).tolist()}
    return {"count": count, "above": (count - np.cumsum(bins)[:-1]).tolist()}


def rounded(values: Iterable[float | None]) -> list[float | None]:
    """To six significant digits; what JSON lacks becomes null."""
    return [None if x is None or not math.isfinite(x) else float(f"{x:.6g}") for x in values]
