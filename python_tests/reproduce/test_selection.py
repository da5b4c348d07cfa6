# SPDX-License-Identifier: Apache-2.0
"""Cross-fitting: the choice is made without the images that it is measured on."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from scrd_fast.reproduce.selection import Measured, cross_fit

LABELS = np.repeat([0, 1], [37, 53])


def noise(seed: int, gain: float = 0.0, seeds: int = 2) -> Measured:
    generator = np.random.default_rng(seed)
    return Measured(LABELS, generator.normal(size=(seeds, len(LABELS))) + gain * LABELS)


def test_the_better_candidate_is_chosen_in_every_fold() -> None:
    found = cross_fit({"a": {"one": noise(0), "two": noise(1)}, "b": {"one": noise(2, 2.0), "two": noise(3, 2.0)}})
    assert dict(found.chosen) == {"b": 5}
    assert found.fixed["b"] == pytest.approx(np.mean(list(found.auroc.values())))


def test_one_candidate_is_measured_as_scikit_learn_does() -> None:
    only = noise(4, 1.0)
    found = cross_fit({"only": {"set": only}}, folds=3)
    assert found.auroc["set"] == pytest.approx(np.mean([roc_auc_score(LABELS, row) for row in only.scores]), abs=0.05)


def test_a_choice_among_noise_is_not_flattered() -> None:
    """Of two hundred useless candidates the best looks good on the images that chose it, and is not."""
    candidates = {str(i): {"set": noise(i, seeds=1)} for i in range(200)}
    best = max(roc_auc_score(LABELS, c["set"].scores[0]) for c in candidates.values())
    assert best > 0.62
    assert cross_fit(candidates).auroc["set"] < 0.58


def test_too_few_images_for_the_folds() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    with pytest.raises(ValueError, match="at least 5 images, label 0 has 3"):
        cross_fit({"a": {"set": Measured(labels, np.zeros((1, 8)))}})
