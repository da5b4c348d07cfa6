# SPDX-License-Identifier: Apache-2.0
"""What `train`, `evaluate` and `calibrate` do, between the command line and the library."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from scrd_fast.aucp import pick_reading
from scrd_fast.autobatch import fitting_batch_size
from scrd_fast.calibration import Calibration
from scrd_fast.config import Precision, Score
from scrd_fast.console import Console
from scrd_fast.data.datasets import open_dataset
from scrd_fast.data.facts import InputFacts, PictureFacts
from scrd_fast.data.frames import About, Source
from scrd_fast.data.known import split_name
from scrd_fast.device import usable_cores
from scrd_fast.distributed import is_first
from scrd_fast.errors import ImageError, ScrdFastError
from scrd_fast.evaluation import evaluate as measure
from scrd_fast.labelled import Seen, labelled
from scrd_fast.model.scrd import SCRD
from scrd_fast.runs import begin, claim_folder, finish
from scrd_fast.screening.inputs import list_inputs
from scrd_fast.screening.screener import Screened, Screener, model_folder
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
            open_dataset(data, checked.slice_axis),
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
    screener = Screener.from_pretrained(run, device=device, precision=precision, batch_size=batch_size)
    config = screener.model.config
    dataset = open_dataset(data, config.preprocessing.slice_axis)
    dataset.require(train=False, test=True)
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
        results = screener.screen((Source(item.path), item.frame or 0) for item in dataset.test)
        seen = (_seen(result) for result in results)
        predictions = labelled(dataset, config.preprocessing, seen, lambda done: advance(done, ""))
        try:
            metrics = measure(
                predictions,
                screener.calibration,
                config.score,
                out,
                scores=config.scores,
                seed=seed,
                split=split_name(dataset.root),
            )
        except ValueError as error:
            raise ScrdFastError(str(error)) from None
    finish(out, record)
    console.log(_headline(metrics))
    console.result(out / "metrics.json", metrics)


def _seen(result: Screened) -> Seen | ImageError:
    if result.scores is None or result.image is None or result.map is None:
        return result.error or ImageError("failed", "gave no result")
    return Seen(result.image, result.map, result.scores)


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
    unlabelled: list[Path],
    fpr: float,
    site: str | None,
    batch_size: int,
    precision: Precision,
    device: str,
) -> None:
    """With `unlabelled` the stored score becomes the one of the largest AUCp."""
    folder = model_folder(run)
    screener = Screener(  # without the old calibration, which may not fit
        SCRD.from_pretrained(folder),
        device=device,
        precision=precision,
        batch_size=batch_size,
        workers=usable_cores(),
        maps=False,
    )
    with closing(screener):
        scores, abouts = _scored(console, screener, normals)
        others, _ = _scored(console, screener, unlabelled) if unlabelled else ([], [])
    model = screener.model
    chosen: dict[str, Any] = {}
    if others:
        name, values = pick_reading(_columns(scores), _columns(others), model.config.score)
        model.config = model.config.model_copy(update={"score": name})
        chosen = {"aucp": values, "unlabelled": len(others)}
        console.log(f"score {name}, of the largest AUCp: {', '.join(f'{n} {v:.3f}' for n, v in values.items())}")
    calibration = _calibrated(scores, abouts, model.config.score, fpr, model.fingerprint(), site)
    if not calibration.reachable:
        console.warn(f"{len(scores)} images are too few for a false-alarm rate of {fpr:g}; the largest score is taken")
    path = folder / "calibration.json"
    calibration.save(path)
    if others:
        model.save_config(folder)  # last: if it fails, the calibration is of another score, which screening refuses
    console.log(_threshold_text(calibration))
    console.result(path, _calibration_content(path, calibration) | chosen)


def _scored(console: Console, screener: Screener, inputs: list[Path]) -> tuple[list[dict[str, float]], list[About]]:
    """Every score, and what is known, of each picture that can be read; there is at least one."""
    listed = list(list_inputs(inputs))
    problems = [f"{entry.source}: {entry.error}" for entry in listed if entry.error]
    scores: list[dict[str, float]] = []
    abouts: list[About] = []
    with console.progress(len(listed), "inputs") as advance:
        for result in screener.screen(entry.source for entry in listed if not entry.error):
            advance(result.number + 1, "")
            if result.scores is not None and result.about is not None:
                scores.append(result.scores)
                abouts.append(result.about)
            else:
                problems.append(f"{result.source}: {result.error}")
    for problem in problems:
        console.warn(f"{problem}: left out")
    if not scores:
        raise ScrdFastError(f"calibrate: no image of {', '.join(map(str, inputs))} could be read")
    return scores, abouts


def _columns(scores: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [row[name] for row in scores] for name in scores[0]}


def _calibrated(
    scores: list[dict[str, float]],
    abouts: list[About],
    name: Score,
    fpr: float,
    model_sha256: str,
    site: str | None,
) -> Calibration:
    """From every score and what is known of each picture."""
    try:
        return Calibration.fit(
            [s[name] for s in scores],
            name,
            fpr,
            map_peaks=[s["max"] for s in scores],
            model_sha256=model_sha256,
            site=site,
            inputs=InputFacts.of(abouts),
            pictures=PictureFacts.of(abouts),
        )
    except ValueError as error:
        raise ScrdFastError(f"calibrate: {error}") from None


def _calibration_content(path: Path, calibration: Calibration) -> dict[str, Any]:
    return {
        "calibration": str(path),
        "id": calibration.id,
        "site": calibration.site,
        "score": calibration.score,
        "count": calibration.count,
        **asdict(calibration.decision),
        "threshold_low": calibration.threshold_low,
        "threshold_high": calibration.threshold_high,
    }


def _threshold_text(calibration: Calibration) -> str:
    def text(value: float | None, low: float | None, high: float | None) -> str:
        shown = ["?" if v is None else f"{v:.4g}" for v in (value, low, high)]
        return f"{shown[0]} ({shown[1]} to {shown[2]})"

    decision = calibration.decision
    threshold = text(decision.threshold, calibration.threshold_low, calibration.threshold_high)
    rate = text(decision.expected_fpr, decision.fpr_low, decision.fpr_high)
    site = f" of {calibration.site}" if calibration.site else ""
    return (
        f"calibration {calibration.id} from {calibration.count} normal images{site}: threshold {threshold}, "
        f"expected false-positive rate {rate}, each with its 95 % interval"
    )
