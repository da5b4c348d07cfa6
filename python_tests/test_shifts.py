# SPDX-License-Identifier: Apache-2.0
"""Distances of samples, their tests and intervals, against scipy and by simulation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import cityblock

from scrd_fast.shifts import LEAST, WORDS, Shift, adjusted, chance_psi, compare_counts, compare_numbers, psi_edges

Draw = Callable[[np.random.Generator, int], np.ndarray]
FEW = [(0, 30, 30), (1, 12, 150), (2, 700, 40)]


def normal(generator: np.random.Generator, n: int) -> np.ndarray:
    return generator.normal(size=n)


def tied(generator: np.random.Generator, n: int) -> np.ndarray:
    return np.maximum(generator.integers(-8, 8, n), 0) / 4  # half of them 0, as the darkest pixels of pictures are


@pytest.mark.parametrize(("seed", "n", "m"), FEW)
@pytest.mark.parametrize("draw", [normal, tied])
def test_numbers_have_scipys_distance_and_test(draw: Draw, seed: int, n: int, m: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = draw(generator, n) + 0.25, draw(generator, m)
    expected = stats.ks_2samp(a, b)
    shift = compare_numbers(a, b)
    assert (shift.effect, shift.p, shift.n, shift.n_reference) == (expected.statistic, expected.pvalue, n, m)
    assert 0 <= shift.low <= shift.effect <= shift.high <= 1
    edges = psi_edges(b)
    shares = [np.histogram(np.digitize(x, edges, right=True), np.arange(len(edges) + 2))[0] + 0.5 for x in (a, b)]
    shares = [x / x.sum() for x in shares]
    symmetric = stats.entropy(shares[0], shares[1]) + stats.entropy(shares[1], shares[0])  # what the index is
    assert shift.psi == pytest.approx(symmetric)


@pytest.mark.parametrize(("seed", "n", "m"), [(0, 30, 30), (1, 12, 150)])
def test_counts_have_scipys_distance_and_about_its_chance(seed: int, n: int, m: int) -> None:
    generator = np.random.default_rng(seed)
    words = np.array(["CHEST", "HAND", "KNEE"])
    a, b = (Counter(generator.choice(words, k, p=p)) for k, p in ((n, (0.5, 0.3, 0.2)), (m, (0.6, 0.3, 0.1))))
    table = np.array([[x[w] for w in words] for x in (a, b)])
    shift = compare_counts(a, b)
    assert shift.effect == pytest.approx(cityblock(table[0] / n, table[1] / m) / 2)
    exact = stats.chi2_contingency(table, correction=False, method=stats.PermutationMethod(999, rng=seed)).pvalue
    assert shift.p == pytest.approx(exact, abs=0.05)
    assert 0 <= shift.low <= shift.effect <= shift.high <= 1


def test_words_that_are_rare_count_as_one() -> None:
    counts = {f"{i:03d}": 1 for i in range(100)}
    many = compare_counts(counts | {"A": 50}, {f"{i:03d}": 1 for i in range(100, 200)} | {"A": 50})
    few = compare_counts(
        {f"{i:03d}": 1 for i in range(WORDS - 1)} | {"A": 50, "?": 100 - WORDS + 1}, {"A": 50, "?": 100}
    )
    assert many.effect == pytest.approx(few.effect)
    assert many.psi == pytest.approx(few.psi)


def test_one_word_everywhere_and_two_that_differ() -> None:
    same, other = compare_counts({"DX": 40}, {"DX": 90}), compare_counts({"CR": 40}, {"DX": 90})
    assert (same.effect, same.low, same.p) == (0.0, 0.0, 1.0)
    assert same.high == pytest.approx(1 - 0.05 ** (1 / 40))  # what 40 draws need not show
    assert (other.effect, other.high) == (1.0, 1.0)
    assert other.low == pytest.approx(0.05 ** (1 / 40))
    assert other.p < 1e-3


@pytest.mark.parametrize(("draw", "n", "m"), [(normal, 40, 40), (normal, 30, 150), (tied, 40, 100)])
def test_samples_of_one_distribution_have_intervals_that_hold_0(draw: Draw, n: int, m: int) -> None:
    """In 95 % of cases: of 80, fewer than 70 once in 300 times."""
    generator = np.random.default_rng(5)
    assert sum(compare_numbers(draw(generator, n), draw(generator, m)).low == 0 for _ in range(80)) >= 70


@pytest.mark.parametrize("distance", [0.1, 0.3, 0.7])
def test_a_true_distance_lies_in_its_interval(distance: float) -> None:
    generator = np.random.default_rng(6)
    far = 2 * stats.norm.ppf((1 + distance) / 2)  # of two normal distributions with that distance
    found = [compare_numbers(normal(generator, 60) + far, normal(generator, 80)) for _ in range(40)]
    assert sum(shift.low <= distance <= shift.high for shift in found) >= 36


def test_the_index_stays_below_its_chance() -> None:
    generator = np.random.default_rng(7)
    found = [compare_numbers(normal(generator, 60), normal(generator, 100)) for _ in range(100)]
    assert found[0].psi_chance == chance_psi(60, 100, 10)
    assert 0.85 <= np.mean([shift.psi <= shift.psi_chance for shift in found]) <= 1.0
    assert np.median([shift.psi for shift in found]) > 0.1  # where a rule of thumb sees a shift
    assert chance_psi(60, 100, 1) == 0.0


@given(st.permutations(range(20)), st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_the_order_of_values_and_words_does_not_matter(order: list[int], seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=20).round(1)
    reference = np.arange(30) / 15 - 1
    assert compare_numbers(values[order], reference[::-1]) == compare_numbers(values, reference)
    counts = {f"word {i}": 1 + i for i in range(20)}
    shuffled = {f"word {i}": 1 + i for i in order}
    assert compare_counts(shuffled, {"word 3": 9}) == compare_counts(counts, {"word 3": 9})


def test_an_index_with_empty_bins_is_finite() -> None:
    shift = compare_numbers(np.full(50, 9.0), np.arange(200.0) / 200)
    assert (shift.effect, shift.low > 0.8, np.isfinite(shift.psi)) == (1.0, True, True)
    assert compare_numbers(np.zeros(20), np.zeros(20)) == Shift(
        20, 20, 0, 0, 1 - 0.05 ** (1 / 20), 1, 0, chance_psi(20, 20, 2)
    )


def test_holms_adjustment_by_its_steps() -> None:
    chances = [0.03, 0.001, 0.2, 0.011, 0.04]
    expected = {0.001: 5 * 0.001, 0.011: 4 * 0.011, 0.03: 3 * 0.03, 0.04: 3 * 0.03, 0.2: 0.2}
    assert adjusted(chances) == pytest.approx([expected[p] for p in chances])
    assert adjusted([]) == []
    assert adjusted([0.7, 0.9]) == [1.0, 1.0]


@pytest.mark.parametrize("values", [[1.0] * (LEAST - 1), [1.0, 2.0, 3.0, 4.0, float("nan")], [[1.0] * 9]])
def test_what_cannot_be_compared_is_an_error(values: list[float]) -> None:
    with pytest.raises(ValueError, match="reference must be at least 5 finite numbers"):
        compare_numbers(range(9), values)
    with pytest.raises(ValueError, match="at least 5 words each"):
        compare_counts({"a": 9}, {"b": 4})
