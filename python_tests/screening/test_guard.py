# SPDX-License-Identifier: Apache-2.0
"""What is refused and what is only flagged, and that a refusal repeats nothing that could be a patient's."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest

from scrd_fast.data.facts import InputFacts
from scrd_fast.data.frames import About
from scrd_fast.screening.guard import Guard

PNG = About(height=64, width=64, colour=False, low=0.0, high=1.0, mean=0.5)
CHEST = replace(PNG, modality="DX", body_part="CHEST", view="PA", burned_in="no")
FACTS = InputFacts.of([PNG])


def refusal(guard: Guard, about: About) -> tuple[str, str] | None:
    _, error = guard.check(about)
    if error is None:
        return None
    assert error.refused
    return error.code, str(error)


def test_without_rules_everything_passes() -> None:
    for about in (PNG, CHEST, replace(CHEST, modality="CT")):
        assert Guard().check(about) == ([], None)


@pytest.mark.parametrize(
    ("rule", "header", "expected"),
    [
        (
            {"modality": {"DX", "CR"}},
            {"modality": "CT"},
            "modality than CR or DX",
        ),
        (
            {"body_part": {"chest"}},
            {"body_part": "KNEE"},
            "body part than CHEST",
        ),
        ({"view": {"PA", "AP"}}, {"view": "LL"}, "view than AP or PA"),
    ],
)
def test_a_header_that_contradicts_a_rule_is_refused(
    rule: dict[str, Any], header: dict[str, str], expected: str
) -> None:
    assert refusal(Guard(**rule), CHEST) is None
    code, reason = refusal(Guard(**rule), replace(CHEST, **header)) or ("", "")
    assert (code, reason) == (f"unexpected-{next(iter(rule)).replace('_', '-')}", f"the header has another {expected}")


@pytest.mark.parametrize("value", ["Doe^Jane", "Müller", "DOE JANE 19700101X", "CT\n", "ct", "A" * 17, "1.2.840.1"])
def test_what_a_header_says_is_never_repeated(value: str) -> None:
    assert refusal(Guard(modality={"CR"}), replace(CHEST, modality=value)) == (
        "unexpected-modality",
        "the header has another modality than CR",
    )


@pytest.mark.parametrize("silent", [None, ""])
def test_a_silent_header_is_flagged_and_a_file_without_one_cannot_contradict(silent: str | None) -> None:
    guard = Guard(modality={"DX"}, body_part={"CHEST"}, view={"PA"}, strict=True)
    assert guard.check(replace(CHEST, view=silent)) == (["no-view"], None)
    assert guard.check(PNG) == (["no-modality", "no-body-part", "no-view"], None)


@pytest.mark.parametrize("flag", ["constant", "all-zero"])
def test_a_doubtful_picture_is_refused_by_a_strict_guard_alone(flag: str) -> None:
    about = replace(PNG, flags=("half-rescaled", flag))
    assert Guard().check(about) == (["half-rescaled", flag], None)
    found = refusal(Guard(strict=True), about)
    assert found is not None
    assert found[0] == flag


@pytest.mark.parametrize(
    ("change", "flag"),
    [({"colour": True}, "unusual-colour"), ({"height": 640}, "unusual-size"), ({"mean": 0.0}, "unusual-range")],
)
def test_what_is_unlike_the_calibration_is_flagged_and_refused_where_strict(change: dict[str, Any], flag: str) -> None:
    about = replace(PNG, **change)
    assert Guard(facts=FACTS).check(about) == ([flag], None)
    flags, error = Guard(facts=FACTS, strict=True).check(about)
    assert flags == [flag]
    assert error is not None
    assert (error.code, error.refused) == (flag, True)


def test_strict_lets_what_is_usual_pass() -> None:
    assert Guard(facts=FACTS, strict=True).check(replace(PNG, flags=("half-rescaled",))) == (["half-rescaled"], None)


def test_a_rule_comes_before_gross_facts_and_flags_are_complete() -> None:
    guard = Guard(modality={"CR"}, view={"PA"}, strict=True, facts=FACTS)
    flags, error = guard.check(replace(PNG, colour=True, modality="CT", flags=("constant",)))
    assert flags == ["constant", "unusual-colour", "no-view"]
    assert error is not None
    assert error.code == "unexpected-modality"


@pytest.mark.parametrize("word", ["", "A" * 17, "CH/EST"])
def test_a_rule_that_no_header_could_meet_is_an_error(word: str) -> None:
    with pytest.raises(ValueError, match="body_part must be words of at most 16"):
        Guard(body_part={word})


def test_a_guard_goes_to_worker_processes() -> None:
    guard = Guard(modality={"dx"}, facts=FACTS)
    assert pickle.loads(pickle.dumps(guard)) == guard
