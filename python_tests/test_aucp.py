# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm

from scrd_fast.aucp import aucp, pick_reading


def made(apart: float, share: float, count: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of normal images, N(0, 1), and of unlabelled ones, of which a share is N(apart, 1)."""
    generator = np.random.default_rng(seed)
    abnormal = generator.random(count) < share
    return generator.standard_normal(count), generator.standard_normal(count) + apart * abnormal


def test_it_is_the_u_statistic_of_mann_and_whitney() -> None:
    generator = np.random.default_rng(0)
    normal, unlabelled = generator.integers(0, 9, 40), generator.integers(2, 12, 31)  # with ties
    expected = mannwhitneyu(unlabelled, normal).statistic / (40 * 31)
    assert aucp(normal, unlabelled) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("apart", [-1.0, 0.5, 2.0])
def test_it_is_one_half_and_the_share_of_what_auc_is_above_it(apart: float, share: float) -> None:
    auc = norm.cdf(apart / 2**0.5)  # of two normal distributions of equal variance
    # Four standard deviations of an AUROC of 20,000 against 20,000: sqrt(1 / (6 * 20,000)) = 0.003 at one half.
    assert aucp(*made(apart, share)) == pytest.approx(0.5 + share * (auc - 0.5), abs=0.012)


def test_the_reading_with_the_largest_one_is_picked() -> None:
    normal, unlabelled = zip(*(made(apart, 0.5, 500, seed) for seed, apart in enumerate((0.2, 2.0, 1.0))), strict=True)
    names = ("mean", "max", "top5")
    best, values = pick_reading(
        dict(zip(names, normal, strict=True)), dict(zip(names, unlabelled, strict=True)), "top5"
    )
    assert best == "max"
    assert values == {n: aucp(a, b) for n, a, b in zip(names, normal, unlabelled, strict=True)}


def test_the_default_wins_a_tie() -> None:
    scores = {"mean": [1.0, 2.0], "max": [1.0, 2.0], "top1": [1.0, 2.0]}
    for default in scores:
        assert pick_reading(scores, scores, default) == (default, dict.fromkeys(scores, 0.5))


@pytest.mark.parametrize("bad", [[], [[1.0]], [np.nan], [np.inf]])
def test_bad_scores_are_refused(bad: list[object]) -> None:
    for arguments in (([1.0], bad), (bad, [1.0])):
        with pytest.raises(ValueError, match="scores"):
            aucp(*arguments)


def test_readings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="same readings"):
        pick_reading({"mean": [1.0]}, {"max": [1.0]}, "mean")
    with pytest.raises(ValueError, match="'top5'"):
        pick_reading({"mean": [1.0]}, {"mean": [1.0]}, "top5")
    with pytest.raises(ValueError, match="default"):
        pick_reading({}, {}, "mean")
