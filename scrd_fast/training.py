# SPDX-License-Identifier: Apache-2.0
"""Training: normal images in, a run folder out.

    RUN/run.json        settings, versions, hashes and timings
    RUN/metrics.jsonl   a line per `log_every` iterations
    RUN/tensorboard/    the same for TensorBoard
    RUN/checkpoints/    the last few, for resuming
    RUN/model/          the finished model: model.safetensors, config.json, calibration.json

The model kept is the last one, unless unlabelled images are given to choose a checkpoint; no label is ever read.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from scrd_fast.budget import peak_bytes
from scrd_fast.calibration import Calibration
from scrd_fast.checkpoint_choice import choose_checkpoint, readings
from scrd_fast.config import ModelConfig
from scrd_fast.data.datasets import DataSet, Item, unlabelled_items
from scrd_fast.data.images import ImageStore, content_hashes, hashes_of, split_calibration
from scrd_fast.data.known import split_name
from scrd_fast.device import SLOW_BFLOAT16, bfloat16_is_slow, pick_device
from scrd_fast.distributed import is_first, launch
from scrd_fast.errors import ScrdFastError
from scrd_fast.loop import Interrupted, Loop, batch_indices
from scrd_fast.model.reference import LEAST, fit_reference, left_out_scores
from scrd_fast.model.scrd import SCRD
from scrd_fast.runs import RunFolder
from scrd_fast.settings import TrainSettings

__all__ = ["Interrupted", "batch_indices", "new_model", "train"]


def train(
    data: DataSet,
    out: Path,
    settings: TrainSettings,
    *,
    on_step: Callable[[int, float, float], None] = lambda iteration, loss, images_per_second: None,
    log: Callable[[str], None] = lambda text: None,
) -> SCRD:
    """Train on `data.train`, or go on where a run of the same settings in `out` was stopped.

    `on_step` gets the iteration, the loss and the rate after each step that is logged. Raises `DataError` for
    unusable images (all of them listed, before training begins) and `Interrupted` after SIGINT or SIGTERM. Of several
    processes the first returns the model as it is stored; the others' has no reference to held-out images.
    """
    data.require(train=True, test=False)
    fabric = launch(pick_device(settings.device), settings.precision)
    _check_shares(settings, fabric.world_size)
    log = log if is_first() else lambda text: None
    hashes = hashes_of(data.train)
    train_part, held_out = split_calibration(
        hashes, settings.calibration_fraction, frames=[item.frame for item in data.train]
    )
    if not train_part:
        raise ScrdFastError(f"{data.root}: no images are left to train on after the calibration part")
    if settings.score == "combined" and len(held_out) < LEAST:
        raise ScrdFastError(
            f"{data.root}: --score combined needs {LEAST} held-out normal images, of these {len(hashes)} images "
            f"{len(held_out)} are held out; give more images or take another score"
        )
    model = new_model(settings)
    run = RunFolder.open(out, settings, hashes, model.config.teacher.sha256)
    if run.finished:
        log(f"{out} is finished already")
        return SCRD.from_pretrained(run.model)
    _warn_of_copies(data, hashes, log)
    if settings.precision == "bf16" and bfloat16_is_slow(fabric.device.type):
        log(f"warning: {SLOW_BFLOAT16}")
    unlabelled = unlabelled_items(settings.unlabelled, settings.slice_axis) if settings.unlabelled else []
    beside = next(p for p in (out, *out.absolute().parents) if p.is_dir())
    store = ImageStore(data.train, model.config.preprocessing, settings.cache, beside)
    log(f"reading {len(store)} images")
    store.check(data.root)
    if settings.unlabelled and is_first():
        ImageStore(unlabelled, model.config.preprocessing, cache="off").check(settings.unlabelled)
    fabric.barrier()  # all have looked at the folder before one writes there
    if is_first():
        run.begin()  # only now, so that a mistake above leaves no folder behind
    fabric.barrier()  # now it is there
    loop = Loop(fabric, model, store, train_part, settings, run, lambda i: _name(data, i))
    with _stop_requests() as stop:
        _run(loop, stop, on_step if is_first() else lambda *_: None, log)
    peak = peak_bytes(fabric.device)
    log(f"{loop.budget.text()}; peak memory {peak / 1e9:.2f} GB")
    model = model.to(fabric.device).eval()
    if not is_first():
        return model
    normals = [data.train[i] for i in held_out]
    chosen: dict[str, Any] = {"checkpoint": "last"}  # never by a test label
    if unlabelled:
        chosen = choose_checkpoint(model, loop.checkpoints, normals, unlabelled, settings, log)
    log(f"calibrating on {len(held_out)} held-out normal images")
    run.model.mkdir(exist_ok=True)
    clock = time.perf_counter()
    calibrated = _calibrate(model, normals, settings, run.model, log)
    rate = calibrated / (time.perf_counter() - clock)  # screening's estimates rest on it
    model.save_pretrained(run.model)  # last: a model without its calibration would pass for a finished one
    run.finish(
        **chosen,
        data=str(data.root),
        split=split_name(data.root),
        train_images=len(train_part),
        calibration_images=len(held_out),
        calibration_images_per_second=round(rate, 2),
        step_seconds={part: round(x / max(loop.budget.steps, 1), 5) for part, x in loop.budget.seconds.items()},
        peak_memory_bytes=peak,
        processes=fabric.world_size,
    )
    return model


def _name(data: DataSet, number: int) -> str:
    path, frame = data.train[number].path, data.train[number].frame
    name = str(path.relative_to(data.root) if path.is_relative_to(data.root) else path)
    return name if frame is None else f"{name}, image {frame}"


def _check_shares(settings: TrainSettings, processes: int) -> None:
    pieces = processes * settings.accumulate
    if settings.batch_size % pieces or settings.batch_size < 2 * pieces:
        raise ScrdFastError(
            f"--batch-size must be a multiple of {pieces}, and at least {2 * pieces}, for {processes} processes and "
            f"--accumulate {settings.accumulate}, got {settings.batch_size}"
        )


def _run(
    loop: Loop, stop: threading.Event, on_step: Callable[[int, float, float], None], log: Callable[[str], None]
) -> None:
    try:
        loop.run(stop, on_step, log)
    except RuntimeError as error:
        if loop.fabric.world_size == 1:
            raise
        # Of the ways in which torch says so there are many, and all are such errors.
        raise ScrdFastError(
            f"process {loop.fabric.global_rank} of {loop.fabric.world_size} cannot go on, another one has ended or "
            f"cannot be reached ({str(error).splitlines()[0]}); {loop.checkpoints.newest_text()}"
        ) from None


def new_model(settings: TrainSettings) -> SCRD:
    """The model as it is before its first step: it follows from the settings alone.

    A score that needs held-out images is given to it at the end.
    """
    torch.manual_seed(settings.seed)
    return SCRD.create(
        settings.teacher,
        weights=settings.teacher_weights,
        objective=settings.objective,
        score=ModelConfig().score if settings.score == "combined" else settings.score,
        map_weights=settings.map_weights,
        preprocessing=settings.preprocessing(),
    )


def _calibrate(
    model: SCRD, items: list[Item], settings: TrainSettings, folder: Path, log: Callable[[str], None]
) -> int:
    """From held-out normal images, in float32, which is what screening computes in unless asked otherwise.

    They also give the model its reference.
    """
    if not items:
        log("no images were held out: there will be no threshold; `scrd-fast calibrate` sets one")
        return 0
    columns, scales, pictures = readings(model, items, settings.batch_size)
    name = settings.score
    if len(items) >= LEAST:
        reference = fit_reference(scales, columns["top1"])
        model.config = model.config.model_copy(update={"reference": reference, "score": name})
        columns["combined"] = left_out_scores(scales, columns["top1"]).tolist()
    calibration = Calibration.fit(
        columns[name], name, map_peaks=columns["max"], model_sha256=model.fingerprint(), pictures=pictures
    )
    if not calibration.reachable:
        log(f"{len(items)} calibration images are too few for a false-alarm rate of {calibration.fpr:g}")
    calibration.save(folder / "calibration.json")
    return len(items)


def _warn_of_copies(data: DataSet, hashes: list[str], log: Callable[[str], None]) -> None:
    """The test files are hashed, never decoded."""
    trained = set(hashes)
    copies = sum(h in trained for h in content_hashes([i.path for i in data.test if i.path.is_file()]))
    if copies:
        log(f"warning: {copies} test images are copies of training images under other names; results will flatter")


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM set a flag that the loop reads between two iterations; a second SIGINT stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def request(_number: int, _frame: object) -> None:
        if stop.is_set():
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        stop.set()

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
