# SPDX-License-Identifier: Apache-2.0
"""Gross facts of calibration images: what they are by hand, how seldom they call a like picture unusual."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scrd_fast.data.facts import InputFacts
from scrd_fast.data.frames import About

GRAY = About(height=1000, width=800, colour=False, low=0.0, high=0.9, mean=0.4)


def test_facts_by_hand() -> None:
    facts = InputFacts.of([GRAY, replace(GRAY, height=1200, width=700, colour=True, low=0.1, high=1.0, mean=0.3)])
    assert facts == InputFacts(
        count=2, colour=0.5, height=(1000, 1200), width=(700, 800), low=(0.0, 0.1), high=(0.9, 1.0), mean=(0.3, 0.4)
    )


def test_facts_are_gathered_in_one_pass() -> None:
    assert InputFacts.of(iter([GRAY] * 3)) == InputFacts.of([GRAY] * 3)
    with pytest.raises(ValueError, match="at least one picture"):
        InputFacts.of(iter([]))


@pytest.mark.parametrize(
    ("change", "flags"),
    [
        ({}, []),
        ({"colour": True}, ["unusual-colour"]),
        ({"height": 2000, "width": 400}, []),  # a factor of two is no other kind of picture
        ({"height": 2001}, ["unusual-size"]),
        ({"width": 399}, ["unusual-size"]),
        ({"mean": 0.31}, []),
        ({"mean": 0.29}, ["unusual-range"]),
        ({"high": 0.79}, ["unusual-range"]),  # near black
        ({"low": 0.11}, ["unusual-range"]),
        ({"colour": True, "height": 9, "mean": 0.0}, ["unusual-colour", "unusual-size", "unusual-range"]),
    ],
)
def test_what_is_unlike_all_is_flagged(change: dict[str, Any], flags: list[str]) -> None:
    assert InputFacts.of([GRAY] * 3).unusual(replace(GRAY, **change)) == flags


def test_gray_among_colour_is_unusual_and_a_mixture_has_no_unusual_colour() -> None:
    colour = replace(GRAY, colour=True)
    assert InputFacts.of([colour] * 5).unusual(GRAY) == ["unusual-colour"]
    mixed = InputFacts.of([colour, *[GRAY] * 99])
    assert mixed.unusual(GRAY) == mixed.unusual(colour) == []
    assert InputFacts.of([colour, *[GRAY] * 100]).unusual(colour) == ["unusual-colour"]


def test_pictures_like_twenty_normals_are_hardly_ever_flagged() -> None:
    """The bare ranges, without their margins, would flag a good part of them."""
    random = np.random.default_rng(0)

    def draw() -> About:
        height, width = random.lognormal(6.5, 0.15, 2).astype(int)
        low, mean, high = random.beta(2, 30), random.normal(0.45, 0.06), 1 - random.beta(2, 30)
        return About(int(height), int(width), False, float(low), float(high), float(np.clip(mean, low, high)))

    flagged = bare = 0
    for _ in range(40):
        facts = InputFacts.of(draw() for _ in range(20))
        for about in (draw() for _ in range(50)):
            flagged += bool(facts.unusual(about))
            names = ("height", "width", "low", "high", "mean")
            ranges = ((getattr(about, name), getattr(facts, name)) for name in names)
            bare += any(not least <= value <= largest for value, (least, largest) in ranges)
    assert flagged / 2000 < 0.01
    assert bare / 2000 > 0.2
