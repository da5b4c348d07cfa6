# SPDX-License-Identifier: Apache-2.0
"""What the normal images of a calibration looked like, in gross facts, and which picture is unlike them all.

Facts of the file alone, never a distance of features: an anomaly is an outlier there, and must not be refused for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Field

from scrd_fast.config import Strict

if TYPE_CHECKING:
    from scrd_fast.data.frames import About

__all__ = ["DEVICE_TAGS", "PIXELS", "TAGS", "InputFacts", "PictureFacts", "pixel_statistics"]

PIXELS = ("pixel_mean", "pixel_std", "pixel_p01", "pixel_p50", "pixel_p99")  # columns of results
DEVICE_TAGS = ("manufacturer", "device_model")
TAGS = ("modality", "body_part", "view", *DEVICE_TAGS)
RARE = 0.01  # share of the normals below which a kind of picture is unusual
SIZE_FACTOR = 2  # another device or export, not another patient
VALUE_MARGIN = 0.1  # least widening of a range of values, which lie in 0 to 1


def _ordered(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError("the least must not be above the largest")
    return limits


def _ascending(values: tuple[float, ...]) -> tuple[float, ...]:
    if any(a > b for a, b in pairwise(values)):
        raise ValueError("values must be sorted")
    return values


_Pixels = Annotated[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], AfterValidator(_ordered)]
_Unit = Annotated[float, Field(ge=0.0, le=1.0)]
_Values = Annotated[tuple[_Unit, _Unit], AfterValidator(_ordered)]


class InputFacts(Strict):
    """Least and largest of what the calibration images had; `colour` is the share of them in colour.

    `unusual` leaves room around these: a factor of 2 for sizes; for values the width of the range itself, at least
    0.1. A new picture like the n normals lies outside the range of one fact with a chance of 2 / (n + 1): the bare
    ranges of 20 normals would flag every third. One odd calibration image widens a range, so that fewer pictures are
    flagged, never more.
    """

    count: Annotated[int, Field(ge=1)]
    colour: _Unit
    height: _Pixels
    width: _Pixels
    low: _Values  # of each picture's least, largest and mean value
    high: _Values
    mean: _Values

    @classmethod
    def of(cls, abouts: Iterable[About]) -> InputFacts:
        """One pass; nothing is kept. Raises ValueError for no pictures."""
        count = colour = 0
        names = ("height", "width", "low", "high", "mean")
        limits: dict[str, tuple[float, float]] = {}
        for about in abouts:
            count += 1
            colour += about.colour
            for name in names:
                value = getattr(about, name)
                least, largest = limits.get(name, (value, value))
                limits[name] = min(least, value), max(largest, value)
        if not count:
            raise ValueError("abouts must hold at least one picture, got none")
        return cls.model_validate({"count": count, "colour": colour / count, **limits})

    def unusual(self, about: About) -> list[str]:
        """Flags: unusual-colour, unusual-size, unusual-range."""
        kind = self.colour if about.colour else 1 - self.colour
        flags = ["unusual-colour"] if kind < RARE else []
        sizes = ((about.height, self.height), (about.width, self.width))
        if any(not least / SIZE_FACTOR <= value <= largest * SIZE_FACTOR for value, (least, largest) in sizes):
            flags.append("unusual-size")
        values = ((about.low, self.low), (about.high, self.high), (about.mean, self.mean))
        if any(not _near(value, *limits) for value, limits in values):
            flags.append("unusual-range")
        return flags


_Sorted = Annotated[tuple[_Unit, ...], Field(min_length=1), AfterValidator(_ascending)]
_Counts = dict[str, Annotated[int, Field(ge=1)]]


class PictureFacts(Strict):
    """What later runs are compared with: pixel statistics of each calibration picture, and how often each tag was seen.

    Each column is in an order of its own, so that it tells nothing of a single picture. A tag that a picture lacks is
    counted as "".
    """

    pixels: dict[Literal["pixel_mean", "pixel_std", "pixel_p01", "pixel_p50", "pixel_p99"], _Sorted]
    tags: dict[Literal["modality", "body_part", "view", "manufacturer", "device_model"], _Counts]

    @classmethod
    def of(cls, abouts: Iterable[About]) -> PictureFacts:
        """Raises ValueError for no pictures."""
        columns: dict[str, list[float]] = {name: [] for name in PIXELS}
        tags: dict[str, Counter[str]] = {name: Counter() for name in TAGS}
        for about in abouts:
            for name in PIXELS:
                columns[name].append(getattr(about, name.removeprefix("pixel_")))
            for name in TAGS:
                tags[name][getattr(about, name) or ""] += 1
        if not columns[PIXELS[0]]:
            raise ValueError("abouts must hold at least one picture, got none")
        return cls.model_validate(
            {
                "pixels": {k: sorted(v) for k, v in columns.items()},
                "tags": {k: dict(sorted(v.items())) for k, v in tags.items()},
            }
        )

    def without_devices(self) -> PictureFacts:
        """Without the tags that name a device's maker."""
        return self.model_copy(update={"tags": {k: v for k, v in self.tags.items() if k not in DEVICE_TAGS}})


def pixel_statistics(pixels: npt.NDArray[Any]) -> tuple[float, float, float, float, float]:
    """Mean, standard deviation, 1, 50 and 99 % percentile of a picture [3, P, P] in [0, 1] as a model is given it.

    They are those of the mean of its channels, in float64, and follow from this picture alone. Percentiles are
    numpy's, between two pixels linear.

    >>> pixel_statistics(np.stack([np.eye(2), np.eye(2), np.eye(2)]))
    (0.5, 0.5, 0.0, 0.5, 1.0)
    """
    gray = pixels.mean(axis=0, dtype=np.float64)
    low, middle, high = np.percentile(gray, (1, 50, 99)).tolist()
    return float(gray.mean()), float(gray.std()), low, middle, high


def _near(value: float, least: float, largest: float) -> bool:
    margin = max(largest - least, VALUE_MARGIN)
    return least - margin <= value <= largest + margin
