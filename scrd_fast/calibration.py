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
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from scrd_fast.config import Score
from scrd_fast.data.facts import InputFacts, PictureFacts
from scrd_fast.errors import DataError
from scrd_fast.files import write_atomically
from scrd_fast.ranks import TAIL, beta_quantile, exact, quantile_ranks, share_interval, threshold_rank

__all__ = ["Calibration", "Decision", "map_range"]

_PROVENANCE = ("model_sha256", "site", "inputs", "pictures")


@dataclass(frozen=True)
class Decision:
    """A threshold, and the rate of normal images that is to be expected above it, with its 95 % interval.

    `fpr` is the rate that was asked for, None where the threshold was given. Without a calibration no rate is known.

    >>> Decision(2.5).verdict(2.5), Decision(2.5).verdict(3.0)
    ('normal', 'abnormal')
    """

    threshold: float
    fpr: float | None = None
    expected_fpr: float | None = None
    fpr_low: float | None = None
    fpr_high: float | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold must be finite, got {self.threshold}")

    def verdict(self, score: float) -> Literal["normal", "abnormal"]:
        """Only what lies above the threshold is abnormal."""
        return "abnormal" if score > self.threshold else "normal"


class Calibration(BaseModel):
    """Threshold and percentiles of one score, from the scores of held-out normal images.

    `threshold` is the k-th smallest of the n scores, k = ceil((n + 1)(1 - fpr)), or the largest where k > n
    (then `reachable` is False: so few images cannot promise so low a rate). As fpr <= 0.5, it is never below
    the median. `threshold_low` and `threshold_high` are order statistics that hold the true (1 - fpr)
    quantile with 95 % confidence; None means that so few scores give no bound on that side. `decision` says how many
    normal images the threshold is expected to flag, `at` the same of another rate or threshold.

    `model_sha256` (the model's fingerprint), `site` (a name that its user gave) and `inputs` say what the scores came
    from, `pictures` is what later pictures can be compared with; None: not known.

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
    model_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    site: str | None = Field(default=None, min_length=1, max_length=100)
    inputs: InputFacts | None = None
    pictures: PictureFacts | None = None

    @classmethod
    def fit(
        cls,
        scores: npt.ArrayLike,  # [N]
        score: Score,
        fpr: float = 0.05,
        *,
        map_peaks: npt.ArrayLike | None = None,  # [N]
        model_sha256: str | None = None,
        site: str | None = None,
        inputs: InputFacts | None = None,
        pictures: PictureFacts | None = None,
    ) -> Calibration:
        """Calibrate on the scores of normal images that were not trained on.

        `fpr` is the target rate of false alarms. `map_peaks`, the largest map value of each image (its `max`
        score), also fixes the scale of heat maps, see `map_range`.
        Raises ValueError, naming the argument, for no scores, one that is not finite, fpr outside (0, 0.5], a site
        without a name or with one of more than 100 characters.
        """
        if site is not None and not 1 <= len(site) <= 100:
            raise ValueError(f"site must have 1 to 100 characters, got {len(site)}")
        if score not in get_args(Score):
            raise ValueError(f"score must be one of {', '.join(get_args(Score))}, got {score!r}")
        fpr = _rate(fpr)
        values = np.sort(_finite(scores, "scores", vector=True))
        ordered = tuple(values.tolist())
        low, high = quantile_ranks(len(ordered), fpr)
        scale = (None, None) if map_peaks is None else map_range(map_peaks)
        return cls(
            score=score,
            fpr=fpr,
            threshold=ordered[threshold_rank(len(ordered), fpr) - 1],
            threshold_low=None if low is None else ordered[low - 1],
            threshold_high=None if high is None else ordered[high - 1],
            scores=ordered,
            count=len(ordered),
            map_low=scale[0],
            map_high=scale[1],
            model_sha256=model_sha256,
            site=site,
            inputs=inputs,
            pictures=pictures,
        )

    @model_validator(mode="after")
    def _consistent(self) -> Calibration:
        """A file that was edited or cut must not pass: every stored number follows from the scores."""
        if any(a > b for a, b in zip(self.scores, self.scores[1:], strict=False)):
            raise ValueError("scores must be sorted")
        if self.count != len(self.scores):
            raise ValueError(f"count must be the number of scores, {len(self.scores)}, got {self.count}")
        expected = self.scores[threshold_rank(self.count, self.fpr) - 1]
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
        if self.pictures is not None:
            counts = {*map(len, self.pictures.pixels.values()), *(sum(t.values()) for t in self.pictures.tags.values())}
            if counts - {self.count}:
                raise ValueError(f"pictures must be of as many images as there are scores, {self.count}")
        return self

    @property
    def reachable(self) -> bool:
        """Whether `count` scores are enough for `fpr`: (count + 1) * fpr >= 1, e.g. 19 images for 5 %."""
        return (self.count + 1) * exact(self.fpr) >= 1

    @property
    def map_scale(self) -> tuple[float, float] | None:
        """Of heat maps, where it is known."""
        return None if self.map_low is None or self.map_high is None else (self.map_low, self.map_high)

    @cached_property
    def decision(self) -> Decision:
        """The stored threshold with its expected rate."""
        return self.at(fpr=self.fpr)

    def at(self, fpr: float | None = None, threshold: float | None = None) -> Decision:
        """Decide anew by the same scores: for another rate in (0, 0.5], or at a threshold that is given.

        Over calibration sets the rate of new normal images above the k-th smallest of n scores is
        Beta(n + 1 - k, k) distributed, at most that where scores tie; its mean and its equal-tailed 95 % interval are
        given. For a given threshold they are the share of the scores above it and its Clopper-Pearson interval, which
        holds for a threshold that was not chosen by looking at these scores. Raises ValueError for both or neither, a
        rate outside (0, 0.5], a threshold that is not finite.

        >>> calibration = Calibration.fit([1.0, 2.0, 3.0, 4.0], "mean", fpr=0.2)
        >>> calibration.at(fpr=0.5).threshold, calibration.at(fpr=0.5).expected_fpr
        (3.0, 0.4)
        >>> calibration.at(threshold=1.5).expected_fpr
        0.75
        """
        if (fpr is None) == (threshold is None):
            raise ValueError("either fpr or threshold must be given")
        if fpr is not None:
            rank = threshold_rank(self.count, _rate(fpr))
            above = self.count + 1 - rank
            low, high = (beta_quantile(p, above, rank) for p in (TAIL, 1 - TAIL))
            return Decision(self.scores[rank - 1], float(fpr), above / (self.count + 1), low, high)
        decision = Decision(float(threshold))  # type: ignore[arg-type]  # refuses nan
        hits = int(np.count_nonzero(self._sorted > decision.threshold))
        return Decision(decision.threshold, None, hits / self.count, *share_interval(hits, self.count))

    def for_rate(self, fpr: float) -> Calibration:
        """The same scores with the threshold of another rate in (0, 0.5]. Raises ValueError for any other.

        >>> calibration = Calibration.fit([1.0, 2.0, 3.0, 4.0], "mean", fpr=0.2)
        >>> calibration.for_rate(0.5).threshold, calibration.threshold
        (3.0, 4.0)
        """
        again = Calibration.fit(self.scores, self.score, fpr).model_dump()
        changed = {name: again[name] for name in ("fpr", "threshold", "threshold_low", "threshold_high")}
        return Calibration.model_validate(self.model_dump() | changed)

    def mismatch(self, model_sha256: str, site: str | None = None) -> list[str]:
        """Why this calibration is another model's or another site's; empty where it fits or nothing is known.

        `site` None asks for no site. A calibration of no named site is foreign to every site that is asked for.
        """
        reasons = []
        if self.model_sha256 not in (None, model_sha256):
            reasons.append("made with another model")
        if site not in (None, self.site):
            reasons.append(f"made at {self.site or 'no named site'}, not at {site}")
        return reasons

    def _stored(self) -> dict[str, Any]:
        """Provenance that is not known is left out: without any, files and ids are what they were before it existed."""
        return self.model_dump(exclude={name for name in _PROVENANCE if getattr(self, name) is None})

    @cached_property
    def id(self) -> str:
        """Twelve hex digits that change with any of the stored values but `pictures`, which decide nothing."""
        text = json.dumps({k: v for k, v in self._stored().items() if k != "pictures"}, sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def without_devices(self) -> Calibration:
        """The same without the names of devices, for results that are not to hold them; it has the same `id`."""
        return self.model_copy(update={"pictures": self.pictures and self.pictures.without_devices()})

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
        text = json.dumps(self._stored(), indent=1, allow_nan=False)
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


def _rate(fpr: float) -> float:
    if not 0.0 < fpr <= 0.5:
        raise ValueError(f"fpr must be above 0 and at most 0.5, got {fpr}")
    return float(fpr)
