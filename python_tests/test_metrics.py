# SPDX-License-Identifier: Apache-2.0
"""Image metrics and their intervals against hand-computed cases, scikit-learn and a naive bootstrap."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from scrd_fast import metrics
from scrd_fast.errors import MissingExtraError
from scrd_fast.metrics import (
    at_threshold,
    bootstrap,
    image_intervals,
    image_metrics,
    roc_points,
    threshold_intervals,
)

# Sums of at most 10^5 terms of double precision: 1e-16 * sqrt(1e5) is 3e-14.
EXACT = 1e-13

LABELLED = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8)), min_size=2, max_size=40).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)


def sample(normal: int, abnormal: int, *, seed: int = 0, steps: int = 0) -> tuple[npt.NDArray[Any], ...]:
    """Labels and overlapping scores; `steps` > 0 rounds the scores, so that many are equal."""
    random = np.random.default_rng(seed)
    labels = np.r_[np.zeros(normal, int), np.ones(abnormal, int)]
    scores = random.normal(size=labels.size) + labels
    return labels, np.round(scores * steps) / steps if steps else scores


# Image metrics


def test_by_hand() -> None:
    labels, scores = [0, 0, 1, 0, 1, 1], [1.0, 2.0, 2.0, 3.0, 4.0, 5.0]
    result = image_metrics(labels, scores)
    # 9 pairs: 4 and 5 beat all three normals (6), 2 beats 1, ties with 2, loses to 3 (1.5).
    assert result["auroc"] == pytest.approx(7.5 / 9, abs=EXACT)
    # Recall rises by 1/3 at precision 1, 1, and at the tie to 3/5.
    assert result["auprc"] == pytest.approx((1 + 1 + 3 / 5) / 3, abs=EXACT)
    # Flagging {5, 4}: 4/5; {5, 4, 3}: 2/3; {5, 4, 3, 2, 2}: 3/4.
    assert result["f1"] == pytest.approx(0.8, abs=EXACT)
    assert result["accuracy"] == pytest.approx(5 / 6, abs=EXACT)
    assert result["oracle_threshold"] == 3.0


def test_at_threshold_by_hand() -> None:
    labels, scores = [0, 0, 1, 0, 1, 1], [1.0, 2.0, 2.0, 3.0, 4.0, 5.0]
    expected = {"f1": 2 * 2 / (2 * 2 + 1 + 1), "accuracy": 4 / 6, "sensitivity": 2 / 3, "specificity": 2 / 3}
    # A score equal to the threshold is normal.
    assert at_threshold(labels, scores, 2.0) == pytest.approx(expected, abs=EXACT)
    nothing = at_threshold(labels, scores, 5.0)
    assert nothing == {"f1": 0.0, "accuracy": 0.5, "sensitivity": 0.0, "specificity": 1.0}
    everything = at_threshold(labels, scores, 0.0)
    assert everything == pytest.approx(
        {"f1": 6 / 9, "accuracy": 0.5, "sensitivity": 1.0, "specificity": 0.0}, abs=EXACT
    )


@settings(deadline=None, max_examples=60)
@given(LABELLED)
def test_oracle_threshold_is_the_best_of_all(rows: list[tuple[int, int]]) -> None:
    labels, scores = [label for label, _ in rows], [float(score) for _, score in rows]
    result = image_metrics(labels, scores)
    again = at_threshold(labels, scores, result["oracle_threshold"])
    assert (again["f1"], again["accuracy"]) == (result["f1"], result["accuracy"])
    for threshold in np.arange(-1, 10):
        assert sk.f1_score(labels, np.array(scores) > threshold, zero_division=0) <= result["f1"] + EXACT


@settings(deadline=None, max_examples=60)
@given(LABELLED, st.integers(-1, 9))
def test_at_threshold_against_sklearn(rows: list[tuple[int, int]], threshold: int) -> None:
    labels, scores = np.array(rows).T
    flagged = scores > threshold
    assert at_threshold(labels, scores, threshold) == pytest.approx(
        {
            "f1": sk.f1_score(labels, flagged, zero_division=0),
            "accuracy": sk.accuracy_score(labels, flagged),
            "sensitivity": sk.recall_score(labels, flagged),
            "specificity": sk.recall_score(1 - labels, ~flagged),
        },
        abs=EXACT,
    )


def test_everything_flagged_is_a_threshold_below_all() -> None:
    # All three abnormal images score lowest: the best F1 flags everything.
    result = image_metrics([1, 1, 1, 0], [0.0, 0.0, 0.0, 1.0])
    assert result["oracle_threshold"] < 0.0
    assert at_threshold([1, 1, 1, 0], [0.0, 0.0, 0.0, 1.0], result["oracle_threshold"])["f1"] == result["f1"]


@pytest.mark.parametrize("steps", [0, 3])
def test_roc_points_against_sklearn(steps: int) -> None:
    labels, scores = sample(200, 130, steps=steps)
    fpr, tpr = roc_points(labels, scores)
    expected_fpr, expected_tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(fpr, expected_fpr, atol=EXACT)
    np.testing.assert_allclose(tpr, expected_tpr, atol=EXACT)


# Intervals


def naive_draws(
    labels: npt.NDArray[Any], scores: npt.NDArray[Any], threshold: float, resamples: int
) -> dict[str, list[float]]:
    """The same bootstrap by repeating items and asking scikit-learn, one resample after the other."""
    draws: dict[str, list[float]] = {}
    for weights in metrics._draws(labels == 1, 7, resamples, 1):
        label, score = np.repeat(labels, weights[0]), np.repeat(scores, weights[0])
        precision, recall, thresholds = sk.precision_recall_curve(label, score)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
        ties = np.flatnonzero(f1[:-1] > f1.max() - 1e-12)
        best = thresholds[ties[-1]]  # the highest of equally good thresholds
        flagged = score > threshold
        for name, value in (
            ("auroc", sk.roc_auc_score(label, score)),
            ("auprc", sk.average_precision_score(label, score)),
            ("f1", f1.max()),
            ("accuracy", sk.accuracy_score(label, score >= best)),
            ("at f1", sk.f1_score(label, flagged)),
            ("at accuracy", sk.accuracy_score(label, flagged)),
            ("at sensitivity", sk.recall_score(label, flagged)),
            ("at specificity", sk.recall_score(1 - label, ~flagged)),
        ):
            draws.setdefault(name, []).append(float(value))
    return draws


@pytest.mark.parametrize("steps", [0, 4])
def test_intervals_equal_a_naive_bootstrap(steps: int) -> None:
    labels, scores = sample(45, 30, steps=steps)
    found: dict[str, Any] = dict(image_intervals(labels, scores, seed=7, resamples=60))
    at = threshold_intervals(labels, scores, 0.5, seed=7, resamples=60)
    found.update({f"at {name}": interval for name, interval in at.items()})
    draws = naive_draws(labels, scores, 0.5, 60)
    assert set(found) == set(draws)
    for name, values in draws.items():
        low, high = np.percentile(values, [2.5, 97.5])
        value = found[name]["value"]
        assert found[name]["low"] == pytest.approx(min(low, value), abs=EXACT), name
        assert found[name]["high"] == pytest.approx(max(high, value), abs=EXACT), name


def test_intervals_hold_the_value_and_have_width() -> None:
    labels, scores = sample(300, 200)
    for interval in (
        *image_intervals(labels, scores).values(),
        *threshold_intervals(labels, scores, 0.7).values(),
    ):
        assert interval["low"] is not None
        assert interval["high"] is not None
        assert interval["low"] < interval["value"] < interval["high"]


def test_intervals_cover_the_truth() -> None:
    """AUROC of N(0,1) against N(1,1) is Phi(1 / sqrt 2) = 0.7602; the interval should hold it in 95 %."""
    hits = 0
    for seed in range(200):
        interval = image_intervals(*sample(80, 80, seed=seed), seed=seed, resamples=200)["auroc"]
        assert interval["low"] is not None
        assert interval["high"] is not None
        hits += interval["low"] <= 0.76025 <= interval["high"]
    # Three standard errors of 200 draws are 4.6 points.
    assert 180 <= hits <= 199


def test_intervals_narrow_as_the_square_root() -> None:
    def width(size: int) -> float:
        interval = image_intervals(*sample(size, size))["auroc"]
        assert interval["low"] is not None
        assert interval["high"] is not None
        return interval["high"] - interval["low"]

    assert width(100) / width(1600) == pytest.approx(4.0, rel=0.25)


def test_seed_decides() -> None:
    labels, scores = sample(50, 50)
    assert image_intervals(labels, scores, seed=1) == image_intervals(labels, scores, seed=1)
    assert image_intervals(labels, scores, seed=1) != image_intervals(labels, scores, seed=2)


def test_draws_keep_class_sizes_and_ignore_the_chunk() -> None:
    groups = np.array([True, False, True, True, False, False, False])
    whole = np.concatenate(list(metrics._draws(groups, 5, 40, 40)))
    parts = np.concatenate(list(metrics._draws(groups, 5, 40, 7)))
    assert (whole == parts).all()
    assert whole.shape == (40, 7)
    assert (whole[:, groups].sum(axis=1) == 3).all()
    assert (whole[:, ~groups].sum(axis=1) == 4).all()
    assert len(np.unique(whole, axis=0)) > 20


def test_perfect_separation() -> None:
    for interval in image_intervals([0, 0, 1, 1], [0.0, 1.0, 2.0, 3.0], resamples=50).values():
        assert interval == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_bootstrap_of_a_mean() -> None:
    """The interval of a mean is 1.96 standard errors wide on each side."""
    values = np.random.default_rng(1).normal(size=400)
    low, high = bootstrap(lambda w: {"mean": w @ values / 400}, np.ones(400, dtype=bool), resamples=4000)["mean"]
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)


@pytest.mark.slow
def test_time_of_a_full_evaluation() -> None:
    labels, scores = sample(700, 800)
    image_metrics(labels, scores)  # the import of scikit-learn is not counted
    start = time.process_time()
    for _ in range(4):
        image_intervals(labels, scores)
    threshold_intervals(labels, scores, 0.5)
    assert time.process_time() - start < 30.0


# Wrong input


@pytest.mark.parametrize(
    ("labels", "scores", "text"),
    [
        ([0, 0], [1.0, 2.0], "both classes, got normal only"),
        ([1, 1], [1.0, 2.0], "both classes, got abnormal only"),
        ([], [], "both classes, got none"),
        ([0, 2], [1.0, 2.0], "labels must be 0"),
        ([0, 1], [1.0, float("nan")], "scores must be finite, got 1"),
        ([0, 1], [1.0], r"got \(2,\) and \(1,\)"),
        ([[0, 1]], [[1.0, 2.0]], r"must be \[N\] each"),
    ],
)
def test_wrong_image_arguments(labels: list[int], scores: list[float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        image_metrics(labels, scores)
    with pytest.raises(ValueError, match=text):
        at_threshold(labels, scores, 0.0)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(MissingExtraError, match=r"scikit-learn is not installed.*\[model\] extra"):
        image_metrics([0, 1], [0.0, 1.0])
