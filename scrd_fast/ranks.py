# SPDX-License-Identifier: Apache-2.0
"""Order statistics of n scores, without scipy: which rank is a threshold, and how sure its rate is.

Everything rests on binomial tails, which hold for continuous scores of any distribution; scores that tie are flagged
less often, never more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt

__all__ = ["TAIL", "beta_quantile", "exact", "quantile_ranks", "share_interval", "threshold_rank"]

TAIL = 0.025  # of each side of a 95 % interval


def exact(fpr: float) -> Fraction:
    """The decimal number that was typed: in floats 100 * 0.29 is 28.999999999999996, its floor off by one."""
    return Fraction(repr(fpr))


def threshold_rank(count: int, fpr: float) -> int:
    """Rank (1-based) of the conformal threshold among `count` sorted scores."""
    return min(math.ceil((count + 1) * (1 - exact(fpr))), count)


def quantile_ranks(count: int, fpr: float) -> tuple[int | None, int | None]:
    """Ranks (1-based) of the order statistics that hold the (1 - fpr) quantile with 95 % confidence.

    The number of scores at or below the quantile is binomial, B ~ Bin(count, 1 - fpr), so
    P(S_(l) <= quantile < S_(u)) >= P(l <= B < u); each tail gets 2.5 % (David & Nagaraja, "Order Statistics",
    7.1). None where no rank leaves so little in its tail.
    """
    mass = _binomial(count)(math.log1p(-fpr), math.log(fpr))
    below = np.cumsum(mass)  # P(B <= i)
    above = np.cumsum(mass[::-1])[::-1]  # P(B >= i)
    lows = int(np.sum(below <= TAIL))  # the largest l with P(B <= l - 1) within the tail
    highs = np.flatnonzero(above <= TAIL)  # the smallest u with P(B >= u) within the tail
    low = lows if lows >= 1 else None
    high = max(int(highs[0]), threshold_rank(count, fpr)) if highs.size else None
    return low, high


def beta_quantile(probability: float, a: int, b: int) -> float:
    """Where the distribution function of Beta(a, b) reaches `probability`, for whole a and b of at least 1.

    The rate of new scores above the k-th smallest of n is Beta(n + 1 - k, k) over the draws of the n. Bisected on
    P(Beta(a, b) <= p) = P(Bin(a + b - 1, p) >= a), to the last bits.

    >>> round(beta_quantile(0.5, 1, 1), 12), round(beta_quantile(0.025, 1, 19), 6)
    (0.5, 0.001332)
    """
    mass = _binomial(a + b - 1)
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        if float(mass(math.log(middle), math.log1p(-middle))[a:].sum()) < probability:
            low = middle
        else:
            high = middle
    return high


def share_interval(hits: int, count: int) -> tuple[float, float]:
    """Exact 95 % interval (Clopper-Pearson, equal tails) of a rate that `hits` of `count` were seen of."""
    low = beta_quantile(TAIL, hits, count - hits + 1) if hits else 0.0
    high = beta_quantile(1 - TAIL, hits + 1, count - hits) if hits < count else 1.0
    return low, high


def _binomial(count: int) -> Callable[[float, float], npt.NDArray[np.float64]]:
    """P(B = 0 ... count) of `count` draws, from the logarithms of the chances of success and of failure."""
    successes = np.arange(count + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    log_choose = log_factorial[-1] - log_factorial - log_factorial[::-1]

    def mass(log_success: float, log_failure: float) -> npt.NDArray[np.float64]:
        return np.asarray(np.exp(log_choose + successes * log_success + (count - successes) * log_failure))

    return mass
