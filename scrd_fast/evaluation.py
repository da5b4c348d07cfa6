# SPDX-License-Identifier: Apache-2.0
"""From a stream of predictions on labelled test images to numbers, a table of scores and pictures.

`evaluate` writes `scores.csv` first and takes its numbers from that file, by the same function that a reader
can call later: `metrics_from_csv` gives what `metrics.json` holds, to the last bit.
"""

from __future__ import annotations

import csv
import heapq
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from scrd_fast.calibration import Calibration, map_range
from scrd_fast.config import SCORES, Score
from scrd_fast.files import write_atomically
from scrd_fast.metrics import (
    Interval,
    image_intervals,
    image_metrics,
    pixel_metrics,
    roc_points,
    threshold_intervals,
)

__all__ = ["Prediction", "evaluate", "metrics_from_csv", "printable", "read_scores"]

FORMAT_VERSION = 1
LEADING = ["path", "label"]  # columns of scores.csv; the scores follow
GALLERY_COLUMNS = 4


@dataclass(eq=False)
class Prediction:
    """What the model says about one test image, and the truth."""

    path: str
    label: int  # 0 normal, 1 abnormal
    scores: dict[str, float]  # those of `scrd_fast.config.SCORES`, and perhaps `combined`
    map: npt.NDArray[np.float32]  # [H, W]
    image: npt.NDArray[np.float32]  # [H, W, 3], 0 ... 1
    mask: npt.NDArray[np.bool_] | None = None  # [H, W], True on the lesion


def evaluate(
    predictions: Iterable[Prediction],
    calibration: Calibration | None,
    score: str,
    out: Path,
    *,
    scores: Sequence[str] = SCORES,
    seed: int = 0,
    split: str | None = None,
) -> dict[str, Any]:
    """Measure `predictions`; write `scores.csv`, `metrics.json`, `roc.png`, `histogram.png`, `gallery.png`.

    The stream is read once; maps and masks are kept where a mask exists, images for the gallery alone.
    `scores` are all that the model gives, `score` the stored one, `calibration` (of the same score) adds the numbers
    at its threshold, `seed` fixes the intervals, and `split` names the data set's split. The folder `out` is made if
    need be. Returns the content of `metrics.json`.
    Raises ValueError, naming the image, for a label other than 0 and 1 or a score that is missing or not
    finite; and where only one class is present (the scores are then in `scores.csv` all the same).
    """
    _check_score(score, calibration)
    kept = _Kept(score, scores)
    for prediction in predictions:
        kept.add(prediction)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    table = out / "scores.csv"
    write_atomically(table, kept.table.getvalue().encode("utf-8", "surrogateescape"))
    metrics = metrics_from_csv(table, calibration, score, seed)
    pixel, note = _pixel_numbers(kept.maps, kept.masks, seed)
    metrics["pixel"] = pixel
    metrics["notes"].append(note)
    metrics["split"] = split
    write_atomically(out / "metrics.json", (json.dumps(metrics, indent=2, allow_nan=False) + "\n").encode())
    _draw(out, kept, metrics, calibration, score)
    return metrics


def metrics_from_csv(path: str | Path, calibration: Calibration | None, score: str, seed: int = 0) -> dict[str, Any]:
    """The numbers of `metrics.json` from `scores.csv` alone: all but `pixel` and `split`, which are None here.

    `auroc`, `auprc`, `f1`, `accuracy` of the stored `score`, each {"value", "low", "high"}; `at_threshold`:
    `f1`, `accuracy`, `sensitivity`, `specificity` at the calibration's threshold; `by_score`: the first four
    for every score; `counts`; `notes` in words.
    Raises ValueError for a file that is no such table or holds one class only.
    """
    _check_score(score, calibration)
    labels, scores = read_scores(Path(path))
    if score not in scores:
        raise ValueError(f"{path}: no column {score}")
    by_score: dict[str, dict[str, Interval]] = {
        name: image_intervals(labels, values, seed=seed) for name, values in scores.items()
    }
    notes = [
        "f1 and accuracy use an oracle threshold: the one that maximises F1 on the labels of these very test "
        "images, as published tables do. No such threshold is known in use; at_threshold is what to expect.",
        "low and high bound a 95 % percentile interval of 1,000 bootstrap resamples, stratified by class.",
    ]
    at_threshold: dict[str, Any] | None = None
    if calibration is None:
        notes.append("at_threshold is null: there is no calibration on normal images.")
    else:
        numbers = threshold_intervals(labels, scores[score], calibration.threshold, seed=seed)
        at_threshold = {"threshold": calibration.threshold, **numbers}
        notes.append(
            f"at_threshold uses no test label: its threshold comes from {calibration.count} held-out normal "
            f"images, for a false-alarm rate of {calibration.fpr:g}. Its intervals hold the threshold fixed."
        )
        if not calibration.reachable:
            notes.append(
                f"{calibration.count} calibration images are too few for a false-alarm rate of "
                f"{calibration.fpr:g}: the threshold is the largest of their scores."
            )
    return {
        "format_version": FORMAT_VERSION,
        "score": score,
        **by_score[score],
        "oracle_threshold": image_metrics(labels, scores[score])["oracle_threshold"],
        "at_threshold": at_threshold,
        "by_score": by_score,
        "pixel": None,
        "split": None,
        "counts": {"normal": int(np.sum(labels == 0)), "abnormal": int(np.sum(labels == 1))},
        "calibration_id": None if calibration is None else calibration.id,
        "notes": notes,
    }


class _Kept:
    """What must outlive the stream: the table, the maps that have masks, the images of the gallery."""

    def __init__(self, score: str, scores: Sequence[str] = SCORES) -> None:
        self.score, self.scores = score, scores
        self.table = io.StringIO()
        self.maps: list[npt.NDArray[np.float32]] = []
        self.masks: list[npt.NDArray[np.bool_]] = []
        self.gallery = {
            "Abnormal, most suspicious": _Best(1, +1),
            "Normal, most suspicious": _Best(0, +1),
            "Abnormal, least suspicious": _Best(1, -1),
        }
        # Quoting every path keeps a carriage return in a name: the writer would not see to it by itself.
        self._writer = csv.writer(self.table, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        self.table.write(",".join([*LEADING, *scores]) + "\n")

    def add(self, prediction: Prediction) -> None:
        path = prediction.path
        if prediction.label not in (0, 1):
            raise ValueError(f"{path}: label must be 0 (normal) or 1 (abnormal), got {prediction.label!r}")
        missing = [name for name in self.scores if name not in prediction.scores]
        if missing:
            raise ValueError(f"{path}: scores must hold {', '.join(self.scores)}, missing {', '.join(missing)}")
        scores: dict[str, float] = {name: float(prediction.scores[name]) for name in self.scores}
        for name, value in scores.items():
            if not math.isfinite(value):
                raise ValueError(f"{path}: score {name} must be finite, got {value}")
        if prediction.mask is not None and prediction.mask.shape != prediction.map.shape:
            shapes = f"{prediction.mask.shape} and {prediction.map.shape}"
            raise ValueError(f"{path}: mask and map must be [H, W] alike, got {shapes}")
        # The writer prints floats by repr, which is exact.
        self._writer.writerow([path, int(prediction.label), *scores.values()])
        if prediction.mask is not None:
            # Copies: a view would keep the whole batch alive that it was cut from.
            self.maps.append(np.array(prediction.map, dtype=np.float32))
            self.masks.append(np.array(prediction.mask, dtype=np.bool_))
        for best in self.gallery.values():
            best.offer(scores[self.score], prediction)


@dataclass
class _Best:
    """The few images of one label with the highest (sign +1) or lowest (sign -1) scores."""

    label: int
    sign: int
    heap: list[tuple[float, str, int, Prediction]] = field(default_factory=list)
    seen: int = 0

    def offer(self, score: float, prediction: Prediction) -> None:
        if prediction.label != self.label:
            return
        self.seen += 1
        # Equal scores are ordered by path, so that the order of the stream does not show; the running number
        # keeps predictions themselves from being compared.
        key = (self.sign * score, prediction.path, self.seen)
        if len(self.heap) == GALLERY_COLUMNS and key < self.heap[0][:3]:
            return
        mask = None if prediction.mask is None else np.array(prediction.mask, dtype=np.bool_)
        copy = Prediction(
            prediction.path,
            prediction.label,
            dict(prediction.scores),
            np.array(prediction.map, dtype=np.float32),
            np.array(prediction.image, dtype=np.float32),
            mask,
        )
        heapq.heappush(self.heap, (*key, copy))
        if len(self.heap) > GALLERY_COLUMNS:
            heapq.heappop(self.heap)

    def ranked(self) -> list[Prediction]:
        """The most extreme first."""
        return [entry[3] for entry in sorted(self.heap, key=lambda entry: entry[:3], reverse=True)]


def _check_score(score: str, calibration: Calibration | None) -> None:
    if score not in get_args(Score):
        raise ValueError(f"score must be one of {', '.join(get_args(Score))}, got {score!r}")
    if calibration is not None and calibration.score != score:
        raise ValueError(f"calibration must be of the score {score!r}, got one of {calibration.score!r}")


def read_scores(path: Path) -> tuple[npt.NDArray[np.int64], dict[str, npt.NDArray[np.float64]]]:
    """Labels [N] and every score [N] of `scores.csv`. Raises ValueError with the file and line at fault."""
    labels: list[int] = []
    columns: list[list[float]] = []
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        names = header[len(LEADING) :]
        if header != [*LEADING, *names] or names not in ([*SCORES], [*SCORES, "combined"]):
            expected = ",".join([*LEADING, *SCORES])
            raise ValueError(f"{path}: columns must be {expected} and perhaps combined, got {','.join(header)}")
        for row in rows:
            try:
                _, label, *values = row
                if label not in ("0", "1") or len(values) != len(names):
                    raise ValueError
                numbers = [float(value) for value in values]
                if not all(map(math.isfinite, numbers)):
                    raise ValueError
            except ValueError:
                raise ValueError(f"{path}: line {rows.line_num} is no row of path, label, scores") from None
            labels.append(int(label))
            columns.append(numbers)
    label_array = np.array(labels, dtype=np.int64)
    if len(set(labels)) < 2:
        found = "no images" if not labels else f"only {'abnormal' if labels[0] else 'normal'} images"
        raise ValueError(f"{path}: metrics need normal and abnormal test images, got {found}")
    array = np.array(columns, dtype=np.float64)
    return label_array, {name: np.ascontiguousarray(array[:, i]) for i, name in enumerate(names)}


def _pixel_numbers(
    maps: list[npt.NDArray[np.float32]], masks: list[npt.NDArray[np.bool_]], seed: int
) -> tuple[dict[str, Interval] | None, str]:
    """Pixel metrics, or None, and a sentence that says what they cover."""
    if not masks:
        return None, "pixel is null: no test image has a mask."
    if not any(mask.any() for mask in masks) or all(mask.all() for mask in masks):
        return None, "pixel is null: the masks do not hold both lesion and background."
    return pixel_metrics(maps, masks, seed=seed), (
        f"pixel covers the {len(masks)} test images with a mask; its dice uses an oracle threshold, the one "
        "that maximises it on these masks; aupro is integrated to a false-positive rate of 0.3. The "
        "intervals resample images, those with and without a lesion apart."
    )


def printable(path: str) -> str:
    """The end of a file's name, as text that can be drawn: names may hold line breaks or broken bytes."""
    return "".join(letter if letter.isprintable() else "?" for letter in Path(path).name[-28:])


def _draw(out: Path, kept: _Kept, metrics: dict[str, Any], calibration: Calibration | None, score: str) -> None:
    from scrd_fast.plots import Panel, draw_gallery, draw_histogram, draw_roc

    labels, scores = read_scores(out / "scores.csv")
    auroc, at = metrics["auroc"], metrics["at_threshold"]
    caption = f"AUROC {auroc['value']:.3f} [{auroc['low']:.3f}, {auroc['high']:.3f}]"
    point = None if at is None else (1.0 - at["specificity"]["value"], at["sensitivity"]["value"])
    draw_roc(out / "roc.png", *roc_points(labels, scores[score]), caption, point)
    threshold = None if at is None else at["threshold"]
    values = scores[score]
    draw_histogram(out / "histogram.png", values[labels == 0], values[labels == 1], score, threshold)

    if calibration is not None and calibration.map_scale:
        (low, high), source = calibration.map_scale, "calibration images"
    else:
        low, high = map_range(scores["max"][labels == 0])
        source = "normal test images"
    rows = [
        (
            f"{name} (score {score})",
            [Panel(f"{printable(p.path)}   {p.scores[score]:.4g}", p.image, p.map, p.mask) for p in best.ranked()],
        )
        for name, best in kept.gallery.items()
    ]
    draw_gallery(out / "gallery.png", rows, low, high, f"map value (scale from the {source})")
