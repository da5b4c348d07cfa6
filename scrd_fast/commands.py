# SPDX-License-Identifier: Apache-2.0
"""What `train`, `evaluate` and `calibrate` do, between the command line and the library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from scrd_fast.autobatch import fitting_batch_size
from scrd_fast.calibration import Calibration
from scrd_fast.config import Precision
from scrd_fast.console import Console
from scrd_fast.data.datasets import DataSet, Item, open_dataset
from scrd_fast.data.reading import read_mask
from scrd_fast.distributed import is_first
from scrd_fast.errors import DataError, ScrdFastError
from scrd_fast.evaluation import Prediction
from scrd_fast.evaluation import evaluate as measure
from scrd_fast.runs import begin, claim_folder, finish
from scrd_fast.screening.manifest import list_inputs
from scrd_fast.screening.screener import Screener, model_folder
from scrd_fast.settings import TrainSettings
from scrd_fast.training import new_model
from scrd_fast.training import train as fit

__all__ = ["calibrate", "evaluate", "train"]


def train(console: Console, data: Path, out: Path, settings: dict[str, Any]) -> None:
    """`batch_size` may be "auto"."""
    asked = settings["batch_size"]
    checked = _checked(settings | ({"batch_size": 2 * settings["accumulate"]} if asked == "auto" else {}))
    if asked == "auto":
        checked = checked.model_copy(
            update={"batch_size": fitting_batch_size(checked, lambda: new_model(checked), out)}
        )
        console.log(f"batch size {checked.batch_size}")
    with console.progress(checked.iterations, "iterations") as advance:
        fit(
            open_dataset(data),
            out,
            checked,
            on_step=lambda i, loss, rate: advance(i, f"loss {loss:.4f}, {rate:.1f} images/s"),
            log=console.log,
        )
    if is_first():
        console.result(out / "model", {"model": str(out / "model"), "metrics": str(out / "metrics.jsonl")})


def _checked(settings: dict[str, Any]) -> TrainSettings:
    try:
        return TrainSettings(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        text = first["msg"].removeprefix("Value error, ")
        if first["loc"]:
            text = f"--{str(first['loc'][0]).replace('_', '-')}: {text}, got {first['input']!r}"
        raise ScrdFastError(text) from None


def evaluate(
    console: Console,
    run: Path,
    data: Path,
    out: Path,
    batch_size: int,
    precision: Precision,
    device: str,
    seed: int,
) -> None:
    dataset = open_dataset(data)
    dataset.require(train=False, test=True)
    screener = Screener.from_pretrained(run, device=device, precision=precision, batch_size=batch_size)
    config = screener.model.config
    console.detail(f"{config.teacher.name} on {screener.device}, {len(dataset.test)} images")
    # The plots and numbers follow from these alone; another model's results are never overwritten.
    identity = {
        "command": "evaluate",
        "model_sha256": screener.model.fingerprint(),
        "calibration": screener.calibration.id if screener.calibration else None,
        "data": str(data.resolve()),
        "precision": precision,
        "seed": seed,
    }
    record = claim_folder(out, identity)
    begin(out, record)
    with console.progress(len(dataset.test), "images") as advance:
        predictions = _predictions(screener, dataset, lambda done: advance(done, ""))
        try:
            metrics = measure(predictions, screener.calibration, config.score, out, seed=seed)
        except ValueError as error:
            raise ScrdFastError(str(error)) from None
    finish(out, record)
    console.log(_headline(metrics))
    console.result(out / "metrics.json", metrics)


def _predictions(screener: Screener, dataset: DataSet, advance: Any) -> Iterator[Prediction]:
    """Every test image must be readable: a number measured on a part of them would be another number."""
    problems: list[str] = []
    items: list[Item] = dataset.test
    preprocessing = screener.model.config.preprocessing
    # Where lesions have masks, the pixels of normal images count too: all of them are background.
    background = np.zeros((preprocessing.size, preprocessing.size), bool) if any(i.mask for i in items) else None
    for done, (item, result) in enumerate(zip(items, screener(i.path for i in items), strict=True), start=1):
        advance(done)
        if result.error is not None or result.image is None or result.map is None:
            problems.append(f"{item.path}: {result.error}")
            continue
        mask = read_mask(item.mask, preprocessing) if item.mask else background if item.label == 0 else None
        image = result.image.permute(1, 2, 0).numpy()
        path = str(item.path.relative_to(dataset.root)) if item.path.is_relative_to(dataset.root) else str(item.path)
        yield Prediction(path, item.label, result.scores, result.map.numpy(), image, mask)
    if problems:
        raise DataError(dataset.root, problems)


def _headline(metrics: dict[str, Any]) -> str:
    def text(name: str, value: dict[str, float]) -> str:
        return f"{name} {value['value']:.3f} ({value['low']:.3f}-{value['high']:.3f})"

    parts = [text("AUROC", metrics["auroc"]), text("AUPRC", metrics["auprc"])]
    if metrics["at_threshold"]:
        at = metrics["at_threshold"]
        parts += [text("sensitivity", at["sensitivity"]), text("specificity", at["specificity"])]
    return ", ".join(parts)


def calibrate(
    console: Console,
    run: Path,
    normals: list[Path],
    fpr: float,
    batch_size: int,
    precision: Precision,
    device: str,
) -> None:
    screener = Screener.from_pretrained(run, device=device, precision=precision, batch_size=batch_size)
    paths = list_inputs(normals)
    scores: list[dict[str, float]] = []
    with console.progress(len(paths), "images") as advance:
        for done, result in enumerate(screener(paths), start=1):
            advance(done, "")
            if result.error is None:
                scores.append(result.scores)
            else:
                console.warn(f"{result.path}: left out: {result.error}")
    if not scores:
        raise ScrdFastError("calibrate: no image could be read")
    name = screener.model.config.score
    try:
        calibration = Calibration.fit([s[name] for s in scores], name, fpr, map_peaks=[s["max"] for s in scores])
    except ValueError as error:
        raise ScrdFastError(f"calibrate: {error}") from None
    if not calibration.reachable:
        console.warn(f"{len(scores)} images are too few for a false-alarm rate of {fpr:g}; the largest score is taken")
    path = model_folder(run) / "calibration.json"
    calibration.save(path)
    console.result(path, {"calibration": str(path), "id": calibration.id, "threshold": calibration.threshold})
