# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a stream: exact tables, one code path for all numbers, bounded memory, clear errors."""

from __future__ import annotations

import csv
import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from scrd_fast import evaluation
from scrd_fast.calibration import Calibration
from scrd_fast.config import SCORES
from scrd_fast.evaluation import Prediction, evaluate, metrics_from_csv
from scrd_fast.metrics import pixel_metrics

SIZE = 24


def prediction(number: int, label: int, *, mask: bool = True) -> Prediction:
    """A small image with a noise map; abnormal ones have a warm square at a random place."""
    random = np.random.default_rng([number, label])
    heat = random.uniform(0.1, 0.2, (SIZE, SIZE))
    lesion = np.zeros((SIZE, SIZE), dtype=bool)
    if label:
        top, left = random.integers(0, SIZE - 6, 2)
        lesion[top : top + 6, left : left + 6] = True
        heat[lesion] += random.uniform(0.0, 0.1)
    heat = heat.astype(np.float32)
    ranked = np.sort(heat.ravel())[::-1]
    scores = {
        "mean": float(heat.mean()),
        "max": float(ranked[0]),
        "top1": float(ranked[:6].mean()),
        "top5": float(ranked[:29].mean()),
    }
    image = random.uniform(0.3, 0.6, (SIZE, SIZE, 3)).astype(np.float32)
    return Prediction(f"{'ab' if label else 'ok'}/{number}.png", label, scores, heat, image, lesion if mask else None)


def stream(normal: int = 30, abnormal: int = 24, *, mask: bool = True) -> Iterator[Prediction]:
    for number in range(max(normal, abnormal)):
        if number < normal:
            yield prediction(number, 0, mask=mask)
        if number < abnormal:
            yield prediction(number, 1, mask=mask)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests are about numbers, and the pictures take most of the time."""
    monkeypatch.setattr(evaluation, "_draw", lambda *_: None)


def calibrated(fpr: float = 0.1) -> Calibration:
    held_out = [prediction(number, 0) for number in range(100, 160)]
    peaks = [item.scores["max"] for item in held_out]
    return Calibration.fit([item.scores["top5"] for item in held_out], "top5", fpr, map_peaks=peaks)


def read_rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))


def test_files_and_table(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    result = evaluate(stream(), calibrated(), "top5", out)
    names = ["gallery.png", "histogram.png", "metrics.json", "roc.png", "scores.csv"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert json.loads((out / "metrics.json").read_text()) == result
    header, *rows = read_rows(out / "scores.csv")
    assert header == ["path", "label", "mean", "max", "top1", "top5"]
    for row, item in zip(rows, stream(), strict=True):
        assert row[:2] == [item.path, str(item.label)]
        assert [float(text) for text in row[2:]] == [item.scores[name] for name in SCORES]
    for name in names[:2]:
        with Image.open(out / name) as image:
            assert min(image.size) > 300


@pytest.mark.usefixtures("no_pictures")
def test_numbers_against_sklearn(tmp_path: Path) -> None:
    calibration = calibrated()
    result = evaluate(stream(), calibration, "top5", tmp_path)
    items = list(stream())
    labels = np.array([item.label for item in items])
    for name in SCORES:
        scores = np.array([item.scores[name] for item in items])
        assert result["by_score"][name]["auroc"]["value"] == pytest.approx(roc_auc_score(labels, scores))
    scores = np.array([item.scores["top5"] for item in items])
    best = scores > result["oracle_threshold"]
    assert result["f1"]["value"] == pytest.approx(f1_score(labels, best))
    assert result["accuracy"]["value"] == pytest.approx(accuracy_score(labels, best))
    flagged = calibration.decide(scores)
    at = result["at_threshold"]
    assert at["threshold"] == calibration.threshold
    assert at["f1"]["value"] == pytest.approx(f1_score(labels, flagged))
    assert at["sensitivity"]["value"] == pytest.approx(flagged[labels == 1].mean())
    assert at["specificity"]["value"] == pytest.approx(1 - flagged[labels == 0].mean())
    assert result["counts"] == {"normal": 30, "abnormal": 24}
    assert result["calibration_id"] == calibration.id
    assert result["pixel"] == pixel_metrics([i.map for i in items], [i.mask for i in items if i.mask is not None])


@pytest.mark.usefixtures("no_pictures")
def test_shape_of_the_result(tmp_path: Path) -> None:
    result = evaluate(stream(), calibrated(), "top5", tmp_path)
    interval = {"value", "low", "high"}
    for name in ("auroc", "auprc", "f1", "accuracy"):
        assert set(result[name]) == interval
        assert result[name] == result["by_score"]["top5"][name]
        assert result[name]["low"] <= result[name]["value"] <= result[name]["high"]
    assert set(result["by_score"]) == set(SCORES)
    assert set(result["at_threshold"]) == {"threshold", "f1", "accuracy", "sensitivity", "specificity"}
    assert set(result["pixel"]) == {"auroc", "aupro", "dice"}
    assert result["format_version"] == 1
    assert result["score"] == "top5"
    notes = " ".join(result["notes"])
    assert "f1 and accuracy use an oracle threshold" in notes
    assert "dice uses an oracle threshold" in notes
    assert "at_threshold uses no test label" in notes


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("with_calibration", [True, False])
def test_recomputing_from_the_table_is_exact(tmp_path: Path, with_calibration: bool) -> None:
    calibration = calibrated() if with_calibration else None
    evaluate(stream(), calibration, "top5", tmp_path, seed=5)
    stored = json.loads((tmp_path / "metrics.json").read_text())
    again = metrics_from_csv(tmp_path / "scores.csv", calibration, "top5", 5)
    assert again.pop("pixel") is None
    assert stored.pop("pixel") is not None
    # The last note is about the masks, which the table does not hold.
    assert stored.pop("notes")[:-1] == again.pop("notes")
    assert stored == again


def test_one_evaluation_twice_is_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        evaluate(stream(), calibrated(), "top5", tmp_path / name, seed=1)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.usefixtures("no_pictures")
def test_without_calibration_and_masks(tmp_path: Path) -> None:
    result = evaluate(stream(mask=False), None, "mean", tmp_path)
    assert result["at_threshold"] is None
    assert result["pixel"] is None
    assert result["calibration_id"] is None
    assert any("no test image has a mask" in note for note in result["notes"])
    assert any("no calibration" in note for note in result["notes"])


@pytest.mark.usefixtures("no_pictures")
def test_masks_without_lesions(tmp_path: Path) -> None:
    def empty() -> Iterator[Prediction]:
        for item in stream(6, 6):
            item.mask = np.zeros((SIZE, SIZE), dtype=bool)
            yield item

    result = evaluate(empty(), None, "mean", tmp_path)
    assert result["pixel"] is None
    assert "do not hold both" in result["notes"][-1]


@pytest.mark.usefixtures("no_pictures")
def test_unreachable_rate_is_said(tmp_path: Path) -> None:
    few = Calibration.fit([0.15, 0.16], "mean", 0.05)
    notes = evaluate(stream(mask=False), few, "mean", tmp_path)["notes"]
    assert any("2 calibration images are too few" in note for note in notes)


def test_odd_paths_survive(tmp_path: Path) -> None:
    names = ["a,b.png", 'a"b.png', "a\nb.png", "a\rb.png", "ü 像.png", "bad\udcff.png", " a ", "$x_1^$.png"]
    items = list(stream(4, 4, mask=False))
    for item, name in zip(items, names, strict=True):
        item.path = name
    # All eight are drawn too.
    evaluate(items, None, "mean", tmp_path)
    assert [row[0] for row in read_rows(tmp_path / "scores.csv")[1:]] == names
    assert metrics_from_csv(tmp_path / "scores.csv", None, "mean")["counts"] == {"normal": 4, "abnormal": 4}


@pytest.mark.usefixtures("no_pictures")
def test_numpy_scores_are_written_as_numbers(tmp_path: Path) -> None:
    items = list(stream(5, 5, mask=False))
    items[0].scores = {name: np.float32(0.1) for name in SCORES}  # type: ignore[misc]
    evaluate(items, None, "mean", tmp_path)
    row = read_rows(tmp_path / "scores.csv")[1]
    assert row[2:] == ["0.10000000149011612"] * 4


# Memory


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("mask", [True, False])
def test_stream_is_not_kept(tmp_path: Path, mask: bool) -> None:
    """Images beyond the gallery are freed while the stream runs; maps too where there is no mask."""
    alive: list[weakref.ref[Any]] = []
    most = 0

    def watched() -> Iterator[Prediction]:
        nonlocal most
        for item in stream(60, 60, mask=mask):
            batch = np.stack([item.image, item.image])  # as a loader cuts images from a batch
            item.image = batch[0]
            alive.extend(weakref.ref(array) for array in (batch, item.map))
            del batch
            yield item
            del item
            most = max(most, sum(reference() is not None for reference in alive))

    evaluate(watched(), None, "mean", tmp_path)
    # The stream's own arrays: those of the item at hand alone, since everything that stays is a copy.
    assert most <= 4


def test_gallery_holds_the_extremes_in_any_order() -> None:
    items = list(stream(20, 20))
    orders = [items, items[::-1]]
    expected = {
        name: [i.path for i in sorted((i for i in items if i.label == label), key=lambda i: sign * i.scores["mean"])]
        for name, label, sign in (
            ("Abnormal, most suspicious", 1, -1),
            ("Normal, most suspicious", 0, -1),
            ("Abnormal, least suspicious", 1, 1),
        )
    }
    for order in orders:
        kept = evaluation._Kept("mean")
        for item in order:
            kept.add(item)
        assert set(kept.gallery) == set(expected)
        for name, best in kept.gallery.items():
            assert [item.path for item in best.ranked()] == expected[name][: evaluation.GALLERY_COLUMNS]


def test_gallery_of_equal_scores_ignores_the_order() -> None:
    items = list(stream(12, 12))
    for item in items:
        item.scores = dict.fromkeys(SCORES, 1.0)
    chosen = []
    for order in (items, items[::-1]):
        kept = evaluation._Kept("mean")
        for item in order:
            kept.add(item)
        chosen.append([[item.path for item in best.ranked()] for best in kept.gallery.values()])
    assert chosen[0] == chosen[1]


# Wrong input


@pytest.mark.parametrize(("normal", "abnormal", "text"), [(5, 0, "only normal"), (0, 5, "only abnormal")])
def test_one_class_is_refused(tmp_path: Path, normal: int, abnormal: int, text: str) -> None:
    with pytest.raises(ValueError, match=rf"need normal and abnormal test images, got {text} images"):
        evaluate(stream(normal, abnormal), None, "mean", tmp_path)
    # The scores were paid for: they stay.
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]
    assert len(read_rows(tmp_path / "scores.csv")) == 6


def test_empty_stream_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got no images"):
        evaluate([], None, "mean", tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_score_that_is_no_number_names_the_image(tmp_path: Path, value: float) -> None:
    items = list(stream(3, 3))
    items[4].scores["top1"] = value
    with pytest.raises(ValueError, match=r"ok/2\.png: score top1 must be finite"):
        evaluate(items, None, "mean", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_wrong_predictions_name_the_image(tmp_path: Path) -> None:
    item = prediction(0, 0)
    del item.scores["max"]
    with pytest.raises(ValueError, match=r"ok/0\.png: scores must hold .*, missing max"):
        evaluate([item], None, "mean", tmp_path)
    item = prediction(0, 0)
    item.label = 2
    with pytest.raises(ValueError, match=r"ok/0\.png: label must be 0"):
        evaluate([item], None, "mean", tmp_path)
    item = prediction(0, 0)
    item.mask = np.zeros((2, 2), dtype=bool)
    with pytest.raises(ValueError, match=r"ok/0\.png: mask and map must be \[H, W\] alike"):
        evaluate([item], None, "mean", tmp_path)


def test_score_and_calibration_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="score must be one of"):
        evaluate(stream(), None, "median", tmp_path)
    with pytest.raises(ValueError, match="calibration must be of the score 'mean', got one of 'top5'"):
        evaluate(stream(), calibrated(), "mean", tmp_path)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("x.png,2,1,1,1,1", "line 3"),
        ("x.png,1,1,1,1", "line 3"),
        ("x.png,1,1,1,1,one", "line 3"),
        ("x.png,1,1,1,nan,1", "line 3"),
        ("", "line 3"),
    ],
)
def test_broken_tables_are_refused(tmp_path: Path, line: str, text: str) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(f"path,label,mean,max,top1,top5\na.png,0,1,1,1,1\n{line}\nb.png,1,2,2,2,2\n")
    with pytest.raises(ValueError, match=text):
        metrics_from_csv(path, None, "mean")
    path.write_text("path,label\n")
    with pytest.raises(
        ValueError, match="columns must be path,label,mean,max,top1,top5 and perhaps combined, got path,label"
    ):
        metrics_from_csv(path, None, "mean")
