# SPDX-License-Identifier: Apache-2.0
"""What a score means, learnt from held-out normal images alone: threshold, percentiles, scale of heat maps.

No abnormal image and no test label is used. The threshold is the split-conformal order statistic (Vovk et
al., "Algorithmic Learning in a Random World", 2005): if a new normal image is exchangeable with the
calibration images, it is flagged with a probability of at most `fpr`, whatever the scores' distribution.
"""

from __future__ import annotations

import hashlib
import json
import math
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from scrd_fast.config import SCORES, Score
from scrd_fast.errors import DataError
from scrd_fast.files import write_atomically

__all__ = ["Calibration", "map_range"]

CONFIDENCE = 0.95


class Calibration(BaseModel):
    """Threshold and percentiles of one score, from the scores of held-out normal images.

    `threshold` is the k-th smallest of the n scores, k = ceil((n + 1)(1 - fpr)), or the largest where k > n
    (then `reachable` is False: so few images cannot promise so low a rate). As fpr <= 0.5, it is never below
    the median. `threshold_low` and `threshold_high` are order statistics that hold the true (1 - fpr)
    quantile with 95 % confidence; None means that so few scores give no bound on that side.

    >>> calibration = Calibration.fit([3.0, 1.0, 4.0, 2.0], "mean", fpr=0.25)
    >>> calibration.threshold, calibration.reachable
    (4.0, True)
    >>> calibration.percentile([0.5, 2.0, 9.0]).tolist()
    [0.0, 0.5, 1.0]
    >>> calibration.decide([4.0, 4.5]).tolist()
    [False, True]
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format_version: Literal[1] = 1
    score: Score
    fpr: float = Field(gt=0.0, le=0.5)
    threshold: float
    threshold_low: float | None
    threshold_high: float | None
    scores: tuple[float, ...] = Field(min_length=1)
    count: int
    map_low: float | None = None
    map_high: float | None = None

    @classmethod
    def fit(
        cls,
        scores: npt.ArrayLike,  # [N]
        score: Score,
        fpr: float = 0.05,
        *,
        map_peaks: npt.ArrayLike | None = None,  # [N]
    ) -> Calibration:
        """Calibrate on the scores of normal images that were not trained on.

        `fpr` is the target rate of false alarms. `map_peaks`, the largest map value of each image (its `max`
        score), also fixes the scale of heat maps, see `map_range`.
        Raises ValueError, naming the argument, for no scores, one that is not finite, fpr outside (0, 0.5].
        """
        if score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
        fpr = float(fpr)
        if not 0.0 < fpr <= 0.5:
            raise ValueError(f"fpr must be above 0 and at most 0.5, got {fpr}")
        values = np.sort(_finite(scores, "scores", vector=True))
        ordered = tuple(values.tolist())
        low, high = _confidence_ranks(len(ordered), fpr)
        scale = (None, None) if map_peaks is None else map_range(map_peaks)
        return cls(
            score=score,
            fpr=fpr,
            threshold=ordered[_threshold_rank(len(ordered), fpr) - 1],
            threshold_low=None if low is None else ordered[low - 1],
            threshold_high=None if high is None else ordered[high - 1],
            scores=ordered,
            count=len(ordered),
            map_low=scale[0],
            map_high=scale[1],
        )

    @model_validator(mode="after")
    def _consistent(self) -> Calibration:
        """A file that was edited or cut must not pass: every stored number follows from the scores."""
        if any(a > b for a, b in zip(self.scores, self.scores[1:], strict=False)):
            raise ValueError("scores must be sorted")
        if self.count != len(self.scores):
            raise ValueError(f"count must be the number of scores, {len(self.scores)}, got {self.count}")
        expected = self.scores[_threshold_rank(self.count, self.fpr) - 1]
        if self.threshold != expected:
            raise ValueError(f"threshold must follow from scores and fpr, {expected!r}, got {self.threshold!r}")
        # The ranks of the interval rest on logarithms that may differ by a rounding between machines, so
        # only the order is checked.
        if self.threshold_low is not None and self.threshold_low > self.threshold:
            raise ValueError("threshold_low must not be above threshold")
        if self.threshold_high is not None and self.threshold_high < self.threshold:
            raise ValueError("threshold_high must not be below threshold")
        if (self.map_low is None) != (self.map_high is None):
            raise ValueError("map_low and map_high must be given together")
        if self.map_low is not None and self.map_high is not None and self.map_low >= self.map_high:
            raise ValueError("map_low must be below map_high")
        return self

    @property
    def reachable(self) -> bool:
        """Whether `count` scores are enough for `fpr`: (count + 1) * fpr >= 1, e.g. 19 images for 5 %."""
        return (self.count + 1) * _exact(self.fpr) >= 1

    @cached_property
    def id(self) -> str:
        """Twelve hex digits that change with any of the stored values."""
        text = json.dumps(self.model_dump(), sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @cached_property
    def _sorted(self) -> npt.NDArray[np.float64]:
        return np.array(self.scores, dtype=np.float64)

    def percentile(self, scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """The share of calibration scores at or below each score: 0 ... 1, never falling as the score rises.

        The result has the shape of `scores`. 1.0 means "as high as any normal image or higher". Raises
        ValueError for a score that is not finite.
        """
        values = _finite(scores, "scores")
        return np.asarray(np.searchsorted(self._sorted, values, side="right") / self.count)

    def decide(self, scores: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Whether each score is anomalous: above the threshold. A score equal to the threshold is normal."""
        return np.asarray(_finite(scores, "scores") > self.threshold)

    def save(self, path: str | Path) -> None:
        """Write JSON with every float exact, atomically."""
        text = json.dumps(self.model_dump(), indent=1, allow_nan=False)
        write_atomically(path, text.encode())

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what `save` wrote. Raises DataError where the file is no calibration or was edited."""
        try:
            return cls.model_validate(json.loads(Path(path).read_bytes()))
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, problem['loc'])) or 'calibration'}: {problem['msg']}"
                for problem in error.errors(include_url=False)
            ]
            raise DataError(path, problems) from error
        except ValueError as error:  # no JSON, or no text at all
            raise DataError(path, [f"not a calibration file: {error}"]) from error


def map_range(peaks: npt.ArrayLike) -> tuple[float, float]:
    """One colour scale (low, high) for all heat maps, from the largest map value of each normal image.

    Low is the median peak: half of the normal images show no colour at all. High is three times as far above
    low as the largest peak: no normal image that was used here passes the first third of the scale. Abnormal
    images play no part, so the scale is the same for every later image.

    >>> map_range([1.0, 2.0, 4.0])
    (2.0, 8.0)
    """
    values = _finite(peaks, "map_peaks", vector=True)
    low = float(np.median(values))
    spread = float(values.max()) - low
    # All peaks alike, or a single image: any width does, as long as it is one.
    return low, low + 3.0 * spread if spread > 0.0 else low + max(abs(low), 1e-6)


def _finite(values: npt.ArrayLike, name: str, *, vector: bool = False) -> npt.NDArray[np.float64]:
    """`values` as float64. With `vector`, a single axis with at least one value is asked for."""
    array = np.asarray(values, dtype=np.float64)
    if vector and array.ndim != 1:
        raise ValueError(f"{name} must have one axis, got shape {array.shape}")
    if vector and array.size == 0:
        raise ValueError(f"{name} must hold at least one value, got none")
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        raise ValueError(f"{name} must be finite, got {bad} of {array.size} that are not")
    return array


def _exact(fpr: float) -> Fraction:
    """The decimal number that was typed: in floats 100 * 0.29 is 28.999999999999996, its floor off by one."""
    return Fraction(repr(fpr))


def _threshold_rank(count: int, fpr: float) -> int:
    """Rank (1-based) of the conformal threshold among `count` sorted scores."""
    return min(math.ceil((count + 1) * (1 - _exact(fpr))), count)


def _confidence_ranks(count: int, fpr: float) -> tuple[int | None, int | None]:
    """Ranks (1-based) of the order statistics that hold the (1 - fpr) quantile with 95 % confidence.

    The number of scores at or below the quantile is binomial, B ~ Bin(count, 1 - fpr), so
    P(S_(l) <= quantile < S_(u)) >= P(l <= B < u); each tail gets 2.5 % (David & Nagaraja, "Order Statistics",
    7.1). None where no rank leaves so little in its tail.
    """
    successes = np.arange(count + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    log_choose = log_factorial[-1] - log_factorial - log_factorial[::-1]
    mass = np.exp(log_choose + successes * math.log1p(-fpr) + (count - successes) * math.log(fpr))
    tail = (1.0 - CONFIDENCE) / 2.0
    below = np.cumsum(mass)  # P(B <= i)
    above = np.cumsum(mass[::-1])[::-1]  # P(B >= i)
    lows = int(np.sum(below <= tail))  # the largest l with P(B <= l - 1) within the tail
    highs = np.flatnonzero(above <= tail)  # the smallest u with P(B >= u) within the tail
    low = lows if lows >= 1 else None
    high = max(int(highs[0]), _threshold_rank(count, fpr)) if highs.size else None
    return low, high
