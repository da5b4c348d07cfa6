# SPDX-License-Identifier: Apache-2.0
"""The training loop: normal images in, a run folder out.

    RUN/run.json        settings, versions, hashes and timings
    RUN/metrics.jsonl   a line per `log_every` iterations
    RUN/tensorboard/    the same for TensorBoard
    RUN/checkpoints/    the last few, for resuming
    RUN/model/          the finished model: model.safetensors, config.json, calibration.json

Which images and which noise an iteration sees follows from the seed and the iteration's number alone, so a resumed
run does what an uninterrupted one would have done. The model kept is the last one; no test image is ever read.
"""

from __future__ import annotations

import importlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scrd_fast.calibration import Calibration
from scrd_fast.config import SCORES, Precision
from scrd_fast.data.datasets import DataSet
from scrd_fast.data.images import ImageStore, content_hashes, split_calibration
from scrd_fast.data.reading import normalise
from scrd_fast.device import pick_device
from scrd_fast.errors import MissingExtraError, ScrdFastError
from scrd_fast.model.objectives import needs_noise
from scrd_fast.model.scrd import SCRD
from scrd_fast.ops import synthesize_anomalies
from scrd_fast.runs import Checkpoints, RunFolder
from scrd_fast.settings import TrainSettings
from scrd_fast.synthesis import draw_anomalies

__all__ = ["Interrupted", "batch_indices", "train"]


class Interrupted(ScrdFastError):  # noqa: N818 - not a mistake of anybody's
    """Training was asked to stop; what was done is saved."""

    exit_code = 130


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
    unusable images (all of them listed, before training begins) and `Interrupted` after SIGINT or SIGTERM.
    """
    device = pick_device(settings.device)
    data.require(train=True, test=False)
    hashes = content_hashes([item.path for item in data.train])
    train_part, held_out = split_calibration(hashes, settings.calibration_fraction)
    if not train_part:
        raise ScrdFastError(f"{data.root}: no images are left to train on after the calibration part")
    model = _new_model(settings)
    run = RunFolder.open(out, settings, hashes, model.config.teacher.sha256)
    if run.finished:
        log(f"{out} is finished already")
        return SCRD.from_pretrained(run.model)
    _warn_of_copies(data, hashes, log)
    store = ImageStore([item.path for item in data.train], model.config.preprocessing)
    log(f"reading {len(store)} images")
    store.check(data.root)
    run.begin()  # only now, so that a mistake above leaves no folder behind
    loop = _Loop(_fabric(device, settings.precision), model, store, train_part, settings, run)
    with _stop_requests() as stop:
        loop.run(stop, on_step, log)
    log(f"calibrating on {len(held_out)} held-out normal images")
    model.eval()
    run.model.mkdir(exist_ok=True)
    clock = time.perf_counter()
    calibrated = _calibrate(model, [store.paths[i] for i in held_out], settings.batch_size, run.model, log)
    rate = calibrated / (time.perf_counter() - clock)  # screening's estimates rest on it
    model.save_pretrained(run.model)  # last: a model without its calibration would pass for a finished one
    run.finish(
        checkpoint="last",  # never chosen by a test label
        data=str(data.root),
        train_images=len(train_part),
        calibration_images=len(held_out),
        calibration_images_per_second=round(rate, 2),
    )
    return model


def _new_model(settings: TrainSettings) -> SCRD:
    torch.manual_seed(settings.seed)
    return SCRD.create(
        settings.teacher,
        weights=settings.teacher_weights,
        objective=settings.objective,
        score=settings.score,
        map_weights=settings.map_weights,
        preprocessing=settings.preprocessing(),
    )


def batch_indices(iteration: int, batch_size: int, count: int, seed: int) -> list[int]:
    """Positions of the images of a batch: a stream of permutations, one per epoch, cut into batches.

    >>> sorted(batch_indices(0, 3, 5, seed=1) + batch_indices(1, 3, 5, seed=1)[:2])
    [0, 1, 2, 3, 4]
    """
    positions = range(iteration * batch_size, (iteration + 1) * batch_size)
    orders: dict[int, list[int]] = {}
    for epoch in {p // count for p in positions}:
        generator = torch.Generator().manual_seed(_mix(seed, 1, epoch))
        orders[epoch] = torch.randperm(count, generator=generator).tolist()
    return [orders[p // count][p % count] for p in positions]


def _mix(seed: int, stream: int, step: int) -> int:
    """A seed of its own for each stream of random numbers and each step: counters, so that nothing must be stored."""
    return (seed * 0x9E3779B97F4A7C15 + stream * 0xBF58476D1CE4E5B9 + step * 0x94D049BB133111EB) % 2**63


class _Step(nn.Module):
    """What Fabric wraps: `forward` is the loss, so that autocast and the gradient exchange apply to it."""

    def __init__(self, model: SCRD) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, noisy: Tensor | None) -> Any:
        return self.model.training_loss(images, noisy)


class _Loop:
    def __init__(
        self,
        fabric: Any,
        model: SCRD,
        store: ImageStore,
        train_part: list[int],
        settings: TrainSettings,
        run: RunFolder,
    ) -> None:
        self.fabric, self.store, self.train_part, self.settings, self.run_folder = (
            fabric, store, train_part, settings, run,
        )  # fmt: skip
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.Adam(model.trainable_parameters(), lr=settings.lr, betas=(0.5, 0.999))
        self.model = model
        self.step_module, self.optimizer = fabric.setup(_Step(model), optimizer)
        self.checkpoints = Checkpoints(run.checkpoints, keep=settings.keep_checkpoints)
        self.std = torch.tensor(store.preprocessing.std, device=fabric.device)

    def run(
        self, stop: threading.Event, on_step: Callable[[int, float, float], None], log: Callable[[str], None]
    ) -> None:
        start = self._resume(log)
        self.model.train()
        with self.run_folder.metrics(start) as write:
            clock, since = time.perf_counter(), start
            for iteration in range(start, self.settings.iterations):
                parts = self._step(iteration)
                done = iteration + 1
                if done % self.settings.log_every == 0 or done == self.settings.iterations:
                    now = time.perf_counter()
                    rate = (done - since) * self.settings.batch_size / (now - clock)
                    clock, since = now, done
                    loss = self._finite(parts, done)
                    write(_record(done, parts, rate))
                    on_step(done, loss, rate)
                if done % self.settings.checkpoint_every == 0 and done < self.settings.iterations:
                    self._save(done, parts)
                if stop.is_set():
                    self._save(done, parts)
                    raise Interrupted(f"stopped after iteration {done}; the same command goes on from there")
            if start < self.settings.iterations:
                self._save(self.settings.iterations, parts)

    def _finite(self, parts: Any, iteration: int) -> float:
        loss = float(parts.loss.detach())
        if not math.isfinite(loss):
            raise ScrdFastError(f"the loss is {loss} at iteration {iteration}; {self.checkpoints.newest_text()}")
        return loss

    def _step(self, iteration: int) -> Any:
        settings = self.settings
        positions = batch_indices(iteration, settings.batch_size, len(self.train_part), settings.seed)
        images = self.store.batch([self.train_part[p] for p in positions]).to(self.fabric.device)
        images = normalise(images, self.store.preprocessing).contiguous(memory_format=torch.channels_last)
        noisy = self._noisy(images, iteration) if needs_noise(settings.objective) else None
        parts = self.step_module(images, noisy)
        self.optimizer.zero_grad()
        self.fabric.backward(parts.loss)
        self.optimizer.step()
        return parts

    def _noisy(self, images: Tensor, iteration: int) -> Tensor:
        settings = self.settings
        generator = torch.Generator(images.device).manual_seed(_mix(settings.seed, 2, iteration))
        boxes, seeds = draw_anomalies(images.shape[0], images.shape[2], generator)
        return synthesize_anomalies(
            images, boxes, seeds, strength=settings.strength, std=self.std, variant=settings.noise
        )

    def _resume(self, log: Callable[[str], None]) -> int:
        state = self.checkpoints.load_newest(self.fabric.device)
        if state is None:
            return 0
        self.model.load_state_dict(state["model"], strict=False)  # the teacher is not in it: it never changes
        self.optimizer.load_state_dict(state["optimizer"])
        log(f"going on after iteration {state['iteration']}")
        return int(state["iteration"])

    def _save(self, iteration: int, parts: Any) -> None:
        self._finite(parts, iteration)
        if not all(p.isfinite().all() for p in self.model.trainable_parameters()):
            raise ScrdFastError(f"weights are not finite at iteration {iteration}; {self.checkpoints.newest_text()}")
        model = {k: v for k, v in self.model.state_dict().items() if not k.startswith("teacher.")}
        state = {"iteration": iteration, "model": model, "optimizer": self.optimizer.state_dict()}
        self.checkpoints.save(iteration, state)


def _record(iteration: int, parts: Any, rate: float) -> dict[str, Any]:
    def scales(x: Tensor) -> list[float]:
        return [round(v, 6) for v in x.detach().float().mean(0).tolist()]

    record = {"iteration": iteration, "loss": float(parts.loss.detach()), "d_clean": scales(parts.d_clean)}
    if parts.d_noisy is not None:
        record["d_noisy"] = scales(parts.d_noisy)
    return record | {"weights": scales(parts.weights), "images_per_second": round(rate, 2)}


def _calibrate(model: SCRD, paths: list[Path], batch_size: int, folder: Path, log: Callable[[str], None]) -> int:
    """From held-out normal images, in float32, which is what screening computes in unless asked otherwise."""
    if not paths:
        log("no images were held out: there will be no threshold; `scrd-fast calibrate` sets one")
        return 0
    store = ImageStore(paths, model.config.preprocessing, cache_bytes=0)  # read anew, as in screening: it is timed
    columns: dict[str, list[float]] = {name: [] for name in SCORES}
    for start in range(0, len(paths), batch_size):
        images = store.batch(range(start, min(start + batch_size, len(paths))))
        for name, values in model.predict(images).scores.items():
            columns[name] += values.tolist()
    calibration = Calibration.fit(columns[model.config.score], model.config.score, map_peaks=columns["max"])
    if not calibration.reachable:
        log(f"{len(paths)} calibration images are too few for a false-alarm rate of {calibration.fpr:g}")
    calibration.save(folder / "calibration.json")
    return len(paths)


def _warn_of_copies(data: DataSet, hashes: list[str], log: Callable[[str], None]) -> None:
    """The test files are hashed, never decoded."""
    trained = set(hashes)
    copies = sum(h in trained for h in content_hashes([i.path for i in data.test if i.path.is_file()]))
    if copies:
        log(f"warning: {copies} test images are copies of training images under other names; results will flatter")


def _fabric(device: torch.device, precision: Precision) -> Any:
    try:
        fabric_module = importlib.import_module("lightning_fabric")
    except ImportError:
        raise MissingExtraError("lightning-fabric", "model") from None
    names = {"32": "32-true", "bf16": "bf16-mixed"}
    fabric = fabric_module.Fabric(accelerator=device.type, devices=1, precision=names[precision])
    fabric.launch()
    return fabric


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
