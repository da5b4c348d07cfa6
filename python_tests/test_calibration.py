# SPDX-License-Identifier: Apache-2.0
"""Thresholds and percentiles from normal scores: by hand, guarantees by simulation, exact files."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import beta, binom, binomtest

from scrd_fast.calibration import Calibration, Decision, map_range
from scrd_fast.data.facts import InputFacts
from scrd_fast.errors import DataError
from scrd_fast.ranks import beta_quantile, quantile_ranks, share_interval, threshold_rank

FINITE = st.floats(allow_nan=False, allow_infinity=False)
SCORES = st.lists(FINITE, min_size=1, max_size=60)
RATES = st.floats(min_value=1e-4, max_value=0.5)


def test_four_normals_give_the_largest_never_the_smallest() -> None:
    calibration = Calibration.fit([3, 1, 4, 2], "mean")
    assert calibration.threshold == 4.0
    assert not calibration.reachable
    assert calibration.scores == (1.0, 2.0, 3.0, 4.0)
    assert calibration.count == 4


@pytest.mark.parametrize(
    ("count", "fpr", "rank", "reachable"),
    [
        (19, 0.05, 19, True),  # (19 + 1) * 0.05 = 1: the smallest set that can promise 5 %
        (18, 0.05, 18, False),
        (39, 0.05, 38, True),
        (99, 0.05, 95, True),
        (100, 0.05, 96, True),  # ceil(101 * 0.95 = 95.95)
        (99, 0.29, 71, True),  # 100 * 0.71 is 71 exactly, which floats miss: 100 * (1 - 0.29) = 70.99...9
        (9, 0.5, 5, True),
        (10, 0.5, 6, True),
        (1, 0.5, 1, True),
    ],
)
def test_threshold_rank(count: int, fpr: float, rank: int, reachable: bool) -> None:
    calibration = Calibration.fit(np.arange(1, count + 1), "top1", fpr)
    assert calibration.threshold == rank
    assert calibration.reachable == reachable


@settings(deadline=None, max_examples=60)
@given(SCORES, RATES)
def test_threshold_is_a_score_at_or_above_the_median(scores: list[float], fpr: float) -> None:
    calibration = Calibration.fit(scores, "max", fpr)
    assert calibration.threshold in scores
    # At least half of the scores lie at or below: the definition of "not below the median" without overflow.
    assert 2 * sum(score <= calibration.threshold for score in scores) >= len(scores)
    if calibration.threshold_low is not None:
        assert calibration.threshold_low <= calibration.threshold
    if calibration.threshold_high is not None:
        assert calibration.threshold_high >= calibration.threshold


@settings(deadline=None, max_examples=60)
@given(SCORES, RATES, RATES)
def test_lower_rate_never_lowers_the_threshold(scores: list[float], one: float, two: float) -> None:
    strict, loose = sorted((one, two))
    assert Calibration.fit(scores, "max", strict).threshold >= Calibration.fit(scores, "max", loose).threshold


@settings(deadline=None, max_examples=60)
@given(SCORES, st.lists(FINITE, min_size=2, max_size=20))
def test_percentile_is_the_share_at_or_below_and_monotone(scores: list[float], new: list[float]) -> None:
    calibration = Calibration.fit(scores, "mean", 0.1)
    ordered = sorted(new)
    shares = calibration.percentile(ordered)
    assert shares.tolist() == [sum(s <= x for s in scores) / len(scores) for x in ordered]
    assert (np.diff(shares) >= 0).all()


def test_percentile_by_hand() -> None:
    calibration = Calibration.fit([1.0, 2.0, 2.0, 3.0], "mean")
    assert calibration.percentile([0.9, 1.0, 1.9, 2.0, 3.0, 9.0]).tolist() == [
        0.0,
        0.25,
        0.25,
        0.75,
        1.0,
        1.0,
    ]
    assert calibration.percentile(2.5).shape == ()
    assert calibration.percentile(np.full((2, 3), 2.5)).shape == (2, 3)


def test_float32_scores_keep_their_place() -> None:
    """A float32 score stored as float64 must still equal the same float32 score later."""
    scores = np.linspace(0.1, 0.2, 40, dtype=np.float32)
    calibration = Calibration.fit(scores, "mean")
    assert calibration.percentile(scores).tolist() == [(i + 1) / 40 for i in range(40)]
    assert calibration.decide(scores).sum() == 1  # threshold = the 39th of 40


def test_decide_is_strictly_above() -> None:
    calibration = Calibration.fit(range(100), "mean")
    assert calibration.threshold == 95.0
    above = np.nextafter(95.0, 100.0)
    assert calibration.decide([94.0, 95.0, above]).tolist() == [False, False, True]


def test_false_alarm_rate_is_the_promised_one() -> None:
    """Over many calibration sets of 99, the mean chance to flag a new normal image is 1 - 95/100 exactly."""
    random = np.random.default_rng(3)
    draws, fresh = 1500, 200
    rates = np.empty(draws)
    for i in range(draws):
        calibration = Calibration.fit(random.lognormal(size=99), "mean", 0.05)
        rates[i] = calibration.decide(random.lognormal(size=fresh)).mean()
    error = rates.std() / math.sqrt(draws)
    assert error < 0.001
    assert abs(rates.mean() - 0.05) < 4 * error


def test_interval_covers_the_true_quantile() -> None:
    random = np.random.default_rng(4)
    draws, quantile = 1000, -math.log(0.1)
    hits = 0
    for _ in range(draws):
        calibration = Calibration.fit(random.exponential(size=120), "mean", 0.1)
        assert calibration.threshold_low is not None
        assert calibration.threshold_high is not None
        hits += calibration.threshold_low <= quantile < calibration.threshold_high
    # Order statistics cover at least 95 %; four standard errors of 1,000 draws are 2.8 points.
    assert hits / draws > 0.95 - 0.028
    assert hits / draws < 0.995  # an interval of everything would pass the line above


@pytest.mark.parametrize("count", [1, 5, 20, 72, 73, 200, 5000])
@pytest.mark.parametrize("fpr", [0.001, 0.05, 0.5])
def test_interval_ranks_against_scipy(count: int, fpr: float) -> None:
    low, high = quantile_ranks(count, fpr)
    ranks = np.arange(1, count + 1)
    below, above = binom.cdf(ranks - 1, count, 1 - fpr), binom.sf(ranks - 1, count, 1 - fpr)
    lows, highs = ranks[below <= 0.025], ranks[above <= 0.025]
    assert low == (lows[-1] if lows.size else None)
    assert high == (highs[0] if highs.size else None)


@pytest.mark.parametrize("count", [1, 4, 19, 100, 2000, 100_000])
@pytest.mark.parametrize("fpr", [0.001, 0.05, 0.5])
def test_expected_rate_and_its_interval_against_scipy(count: int, fpr: float) -> None:
    decision = Calibration.fit(np.arange(count), "mean", fpr).decision
    rank = threshold_rank(count, fpr)
    law = beta(count + 1 - rank, rank)
    assert decision.expected_fpr == pytest.approx(law.mean(), rel=1e-12)
    assert decision.fpr_low == pytest.approx(law.ppf(0.025), rel=1e-8)
    assert decision.fpr_high == pytest.approx(law.ppf(0.975), rel=1e-8)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.001, 0.999))
def test_beta_quantiles_against_scipy(a: int, b: int, probability: float) -> None:
    assert beta_quantile(probability, a, b) == pytest.approx(beta.ppf(probability, a, b), rel=1e-9)


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (0, 30), (3, 30), (30, 30), (71, 1000)])
def test_interval_of_a_share_against_scipy(hits: int, count: int) -> None:
    expected = binomtest(hits, count).proportion_ci(0.95, "exact")
    assert share_interval(hits, count) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-15)


def test_interval_holds_the_true_rate_of_most_calibration_sets() -> None:
    """A threshold t flags exp(-t) of the normals exactly where scores are exponential."""
    random = np.random.default_rng(5)
    draws = 2000
    inside = 0
    for _ in range(draws):
        decision = Calibration.fit(random.exponential(size=60), "mean", 0.1).decision
        assert decision.fpr_low is not None
        assert decision.fpr_high is not None
        inside += decision.fpr_low <= math.exp(-decision.threshold) <= decision.fpr_high
    assert abs(inside / draws - 0.95) < 4 * math.sqrt(0.95 * 0.05 / draws)


@settings(deadline=None, max_examples=60)
@given(SCORES, RATES, RATES)
def test_another_rate_decides_as_a_calibration_for_it(scores: list[float], one: float, two: float) -> None:
    decision = Calibration.fit(scores, "max", one).at(fpr=two)
    assert decision == Calibration.fit(scores, "max", two).decision
    assert 2 * sum(score <= decision.threshold for score in scores) >= len(scores)


@settings(deadline=None, max_examples=60)
@given(SCORES, FINITE)
def test_a_given_threshold_is_kept_and_its_rate_is_the_share_above(scores: list[float], threshold: float) -> None:
    decision = Calibration.fit(scores, "max").at(threshold=threshold)
    assert decision.threshold == threshold
    assert decision.fpr is None
    share = sum(decision.verdict(score) == "abnormal" for score in scores) / len(scores)
    assert decision.expected_fpr == share
    assert decision.fpr_low is not None
    assert decision.fpr_high is not None
    assert decision.fpr_low <= share <= decision.fpr_high


def test_no_rate_makes_four_normals_give_the_smallest() -> None:
    calibration = Calibration.fit([1, 2, 3, 4], "mean")
    assert {calibration.at(fpr=fpr).threshold for fpr in (0.001, 0.2, 0.3, 0.4, 0.5)} == {3.0, 4.0}
    assert calibration.decision.expected_fpr == 0.2  # not the 5 % that was asked for: four are too few


def test_a_decision_wants_one_of_both_and_numbers() -> None:
    calibration = Calibration.fit([1.0, 2.0], "mean")
    for arguments in ({}, {"fpr": 0.1, "threshold": 1.0}):
        with pytest.raises(ValueError, match="either fpr or threshold"):
            calibration.at(**arguments)
    for fpr in (0.0, 0.51, float("nan")):
        with pytest.raises(ValueError, match=r"fpr must be above 0 and at most 0\.5"):
            calibration.at(fpr=fpr)
    for threshold in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="threshold must be finite"):
            calibration.at(threshold=threshold)
        with pytest.raises(ValueError, match="threshold must be finite"):
            Decision(threshold)


def test_few_scores_have_no_upper_bound() -> None:
    assert Calibration.fit(range(50), "mean").threshold_high is None
    assert Calibration.fit(range(73), "mean").threshold_high == 72.0


@settings(deadline=None, max_examples=60)
@given(SCORES, RATES)
def test_file_round_trip_is_exact(tmp_path_factory: pytest.TempPathFactory, scores: list[float], fpr: float) -> None:
    path = tmp_path_factory.mktemp("calibration") / "calibration.json"
    calibration = Calibration.fit(scores, "top5", fpr)
    calibration.save(path)
    loaded = Calibration.load(path)
    assert loaded == calibration
    assert loaded.id == calibration.id
    assert [value.hex() for value in loaded.scores] == [value.hex() for value in calibration.scores]


def test_id_changes_with_every_value() -> None:
    base = Calibration.fit([1.0, 2.0, 3.0], "mean", 0.1)
    others = [
        Calibration.fit([1.0, 2.0, 3.0], "max", 0.1),
        Calibration.fit([1.0, 2.0, 3.0], "mean", 0.11),
        Calibration.fit([1.0, np.nextafter(2.0, 3.0), 3.0], "mean", 0.1),
        Calibration.fit([1.0, 2.0, 3.0], "mean", 0.1, map_peaks=[1.0, 2.0]),
    ]
    ids = {base.id, *(other.id for other in others)}
    assert len(ids) == 5
    assert all(len(i) == 12 and set(i) <= set("0123456789abcdef") for i in ids)
    assert base.id == Calibration.fit([3.0, 1.0, 2.0], "mean", 0.1).id


FACTS = InputFacts(
    count=3, colour=0.0, height=(64, 70), width=(64, 64), low=(0.0, 0.1), high=(0.9, 1.0), mean=(0.2, 0.4)
)


def test_provenance_is_kept_and_changes_the_id(tmp_path: Path) -> None:
    plain = Calibration.fit([1.0, 2.0], "mean")
    of_a_site = Calibration.fit([1.0, 2.0], "mean", model_sha256="a" * 64, site="St. Mary's", inputs=FACTS)
    of_a_site.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == of_a_site
    assert of_a_site.id != plain.id
    assert of_a_site.id != Calibration.fit([1.0, 2.0], "mean", model_sha256="a" * 64, site="B", inputs=FACTS).id


def test_a_file_from_before_provenance_loads_with_its_id(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(
        '{"format_version": 1, "score": "mean", "fpr": 0.25, "threshold": 4.0, "threshold_low": 1.0,'
        ' "threshold_high": null, "scores": [1.0, 2.0, 3.0, 4.0], "count": 4, "map_low": null, "map_high": null}'
    )
    old = Calibration.load(path)
    assert (old.model_sha256, old.site, old.inputs) == (None, None, None)
    assert old.id == "896375ba4ced"  # as the version without provenance computed it
    old.save(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(path.read_text())


def test_a_calibration_of_elsewhere_says_why() -> None:
    here = Calibration.fit([1.0], "mean", model_sha256="a" * 64, site="A")
    assert here.mismatch("a" * 64, "A") == here.mismatch("a" * 64) == []
    assert here.mismatch("b" * 64) == ["made with another model"]
    assert here.mismatch("b" * 64, "B") == ["made with another model", "made at A, not at B"]
    unknown = Calibration.fit([1.0], "mean")
    assert unknown.mismatch("a" * 64) == []
    assert unknown.mismatch("a" * 64, "B") == ["made at no named site, not at B"]


@pytest.mark.parametrize("site", ["", "x" * 101])
def test_a_site_has_a_name_of_some_length(site: str) -> None:
    with pytest.raises(ValueError, match=f"site must have 1 to 100 characters, got {len(site)}"):
        Calibration.fit([1.0], "mean", site=site)


def test_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Calibration.fit([1.0], "mean").threshold = 0.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("scores", "score", "fpr", "text"),
    [
        ([], "mean", 0.05, "scores must hold at least one value"),
        ([1.0, float("nan")], "mean", 0.05, "scores must be finite, got 1 of 2"),
        ([1.0, float("inf")], "mean", 0.05, "scores must be finite"),
        ([[1.0]], "mean", 0.05, r"scores must have one axis, got shape \(1, 1\)"),
        ([1.0], "median", 0.05, "score must be one of mean, max, top1, top5, combined, got 'median'"),
        ([1.0], "mean", 0.0, "fpr must be above 0"),
        ([1.0], "mean", 0.51, "fpr must be above 0 and at most 0.5, got 0.51"),
        ([1.0], "mean", float("nan"), "fpr must be above 0"),
    ],
)
def test_wrong_arguments(scores: list[float], score: str, fpr: float, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Calibration.fit(scores, score, fpr)  # type: ignore[arg-type]


def test_nan_has_no_percentile_and_no_decision() -> None:
    calibration = Calibration.fit([1.0, 2.0], "mean")
    with pytest.raises(ValueError, match="scores must be finite"):
        calibration.percentile([1.0, float("nan")])
    with pytest.raises(ValueError, match="scores must be finite"):
        calibration.decide(float("nan"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"threshold": 1.0}, "threshold must follow from scores and fpr"),
        ({"scores": [2.0, 1.0, 3.0]}, "scores must be sorted"),
        ({"count": 4}, "count must be the number of scores"),
        ({"scores": []}, "scores: "),
        ({"fpr": 0.7}, "fpr: "),
        ({"format_version": 2}, "format_version: "),
        ({"extra": 1}, "extra: "),
        ({"score": "sum"}, "score: "),
        ({"threshold_low": 9.0}, "threshold_low must not be above"),
        ({"threshold_high": 0.0}, "threshold_high must not be below"),
        ({"map_low": 1.0}, "map_low and map_high must be given together"),
        ({"map_low": 1.0, "map_high": 1.0}, "map_low must be below map_high"),
        ({"scores": [1.0, 2.0, float("nan")]}, "scores"),
        ({"model_sha256": "abc"}, "model_sha256: "),
        ({"site": ""}, "site: "),
        ({"inputs": {"count": 3}}, "inputs.colour: "),
        ({"inputs": FACTS.model_dump() | {"height": [70, 64]}}, "inputs.height: .*least"),
    ],
)
def test_changed_files_are_refused(tmp_path: Path, change: dict[str, object], text: str) -> None:
    path = tmp_path / "calibration.json"
    Calibration.fit([1.0, 2.0, 3.0], "mean").save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=text) as caught:
        Calibration.load(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b""])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"calibration\.json: "):
        Calibration.load(path)
    with pytest.raises(FileNotFoundError):
        Calibration.load(tmp_path / "none.json")


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(min_value=0.0, max_value=10.0), min_size=1, max_size=60))
def test_map_range_keeps_normal_images_cold(peaks: list[float]) -> None:
    low, high = map_range(peaks)
    assert low < high
    assert 2 * sum(peak <= low for peak in peaks) >= len(peaks)
    third = low + (high - low) / 3
    assert max(peaks) <= third or math.isclose(max(peaks), third, rel_tol=1e-12)


def test_importing_is_light() -> None:
    modules = "calibration, metrics, evaluation, plots, files"
    code = (
        f"import sys\nfrom scrd_fast import {modules}\n"
        "print([m for m in ('torch', 'sklearn', 'scipy', 'matplotlib') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
