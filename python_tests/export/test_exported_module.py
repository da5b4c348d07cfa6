# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scrd_fast.calibration import Calibration
from scrd_fast.choices import ExportPrecision
from scrd_fast.errors import ScrdFastError
from scrd_fast.export.check import Differences, MismatchError, bundled_batches, compare, require_agreement
from scrd_fast.export.detector import Detector
from scrd_fast.export.formats import Runner
from scrd_fast.model import inference
from scrd_fast.model.scrd import SCRD
from scrd_fast.screening.screener import Screener, load

VARIANTS: dict[str, dict[str, Any]] = {
    "as trained": {},
    "pad": {"fit": "pad"},
    "tiles": {"tiles": 2},
    "map weights": {"objective": "paper", "map_weights": True, "score": "top1"},
    "mean, no reference": {"score": "mean", "reference": None},
}


def variant(run: Path, name: str) -> tuple[SCRD, Calibration]:
    """The trained model with another configuration; its calibration, where the score changes, of made-up numbers."""
    model, calibration = load(run)
    assert calibration is not None
    changes = dict(VARIANTS[name])
    inner = {key: changes.pop(key) for key in ("fit", "tiles") if key in changes}
    changes["preprocessing"] = model.config.preprocessing.model_copy(update=inner)
    model.config = model.config.model_copy(update=changes)
    if model.config.score != calibration.score:
        calibration = Calibration.fit(np.linspace(0.4, 1.6, 41), model.config.score)
    return model, calibration


def runner(detector: Detector) -> Runner:
    return torch.inference_mode()(detector.eval())


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_says_what_the_screener_says(trained: Path, name: str, plain: bool) -> None:
    model, calibration = variant(trained, name)
    sizes = [(1, 1, 1), (1, 7, 5), (5, 64, 64), (2, 300, 211)]
    generator = torch.Generator().manual_seed(7)
    batches = [torch.rand(n, 3, h, w, generator=generator) for n, h, w in sizes]
    with Screener(model, calibration, device="cpu") as screener:
        found = compare(runner(Detector(model, calibration, plain=plain)), screener, batches)
    assert found.images == 9
    assert max(found.score, found.scores) <= 1e-4
    assert found.map <= 1e-5
    assert found.decisions == 0


def test_bundled_images_are_the_same_each_time_and_of_many_sizes() -> None:
    first, second = (list(bundled_batches(64)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert {batch.shape[0] for batch in first} >= {1, 2, 5}
    assert {tuple(batch.shape[2:]) for batch in first} >= {(1, 1), (7, 5), (64, 64), (300, 211)}
    assert all(0 <= float(batch.min()) <= float(batch.max()) <= 1 for batch in first)


@pytest.fixture(scope="module")
def judged(trained: Path) -> tuple[Tensor, list[float]]:
    """Pictures, and their scores by the detector."""
    model, calibration = load(trained)
    assert calibration is not None
    images = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    return images, runner(Detector(model, calibration))(images)["score"].tolist()


def test_a_score_that_equals_the_threshold_is_normal(trained: Path, judged: tuple[Tensor, list[float]]) -> None:
    """And counts all normals with that very score: three of five lie at or below the middle one, two at the same."""
    images, scores = judged
    ranked = sorted(scores)
    model, _ = load(trained)
    normals = [ranked[0], ranked[2], ranked[2], ranked[3], ranked[4]]
    calibration = Calibration.fit(normals, "combined", fpr=0.5)
    assert calibration.threshold == ranked[2]
    outputs = runner(Detector(model, calibration))(images)
    by_score = sorted(zip(scores, outputs["percentile"].tolist(), outputs["decision"].tolist(), strict=True))
    assert [decision for _, _, decision in by_score] == [False, False, False, True, True]
    assert [percentile for _, percentile, _ in by_score] == pytest.approx([0.2, 0.2, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_thresholds_between_two_float32_are_kept(trained: Path, judged: tuple[Tensor, list[float]], shift: int) -> None:
    """A hair (of float64) below a score it is abnormal, a hair above it is normal."""
    images, scores = judged
    threshold = float(np.nextafter(scores[0], shift * np.inf)) if shift else scores[0]
    assert shift == 0 or np.float32(threshold) == np.float32(scores[0])
    model, _ = load(trained)
    calibration = Calibration.fit([threshold], "combined", fpr=0.5)
    outputs = runner(Detector(model, calibration))(images)
    assert bool(outputs["decision"][0]) is (shift < 0) is bool(calibration.decide(scores[0]))
    assert float(outputs["percentile"][0]) == float(calibration.percentile(scores[0])) == float(shift <= 0)


def test_batch_norms_that_stay_refuse_bfloat16(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calibration = load(trained)
    assert calibration is not None
    monkeypatch.setattr(inference, "fast_form", lambda network, *_: (network, None))  # as for densenet121
    with pytest.raises(ScrdFastError, match="--precision bf16: batch-norms of resnet18"):
        Detector(model, calibration, precision="bf16")


def altered(trained: Path, name: str, change: Callable[[Tensor], Tensor]) -> Differences:
    """A detector one of whose outputs is another, compared with the screener."""
    model, calibration = load(trained)
    assert calibration is not None
    detector = Detector(model, calibration).eval()

    @torch.inference_mode()
    def run(images: Tensor) -> dict[str, Tensor]:
        outputs = detector(images)
        return outputs | {name: change(outputs[name])}

    with Screener(model, calibration, device="cpu") as screener:
        return compare(run, screener, [torch.rand(2, 3, 64, 64)])


@pytest.mark.parametrize("name", ["score_max", "map"])
def test_not_a_number_is_the_largest_difference(trained: Path, name: str) -> None:
    found = altered(trained, name, lambda x: x * float("nan"))
    assert max(found.scores, found.map) == float("inf")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("decision", torch.logical_not),
        ("percentile", lambda x: 1 - x),
        ("score", lambda x: x - 1000),
        ("score", lambda x: x * float("inf")),
    ],
)
def test_a_decision_that_does_not_follow_from_a_finite_score_is_found(
    trained: Path, name: str, change: Callable[[Tensor], Tensor]
) -> None:
    with pytest.raises(MismatchError, match=r"follow from its score|not finite"):
        altered(trained, name, change)


CALIBRATION = Calibration.fit([1.0, 2.0, 3.0, 4.0], "mean")  # a standard deviation of 1.12


@pytest.mark.parametrize(
    ("precision", "score", "decisions", "agrees"),
    [
        ("32", 9e-5, 0, True), ("32", 1.1e-4, 0, False), ("32", 0.0, 1, False),
        ("bf16", 0.1, 0, True), ("bf16", 0.12, 0, False), ("bf16", 0.0, 6, False),
        ("int8", 1.1, 5, True), ("int8", 1.2, 0, False), ("int8", 0.0, 6, False),
    ],
)  # fmt: skip
def test_what_is_let_pass(precision: ExportPrecision, score: float, decisions: int, agrees: bool) -> None:
    found = Differences(images=100, score=score, scores=score, map=0.0, decisions=decisions)
    with nullcontext() if agrees else pytest.raises(MismatchError, match="differs from the model and was not kept"):
        require_agreement(found, precision, CALIBRATION)


def test_other_scores_and_maps_are_bounded_too() -> None:
    for other in ({"scores": 2e-4, "map": 0.0}, {"scores": 0.0, "map": 2e-4}):
        with pytest.raises(MismatchError):
            require_agreement(Differences(images=1, score=0.0, decisions=0, **other), "32", CALIBRATION)
