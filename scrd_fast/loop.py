# SPDX-License-Identifier: Apache-2.0
"""The loop over training steps: what it is given, when it writes, when it stops.

Which images and which noise an iteration sees follows from the seed and the iteration's number alone, so a resumed
run does what an uninterrupted one would have done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from scrd_fast.budget import Budget
from scrd_fast.data.cache import TensorCache
from scrd_fast.data.images import ImageStore
from scrd_fast.data.loading import Prefetcher, pinned
from scrd_fast.distributed import is_first
from scrd_fast.errors import ScrdFastError
from scrd_fast.model.scrd import SCRD, LossParts
from scrd_fast.model.tiling import cut_tiles
from scrd_fast.runs import Checkpoints, RunFolder
from scrd_fast.settings import TrainSettings
from scrd_fast.step import Step, mix

__all__ = ["Interrupted", "Loop", "batch_indices"]


class Interrupted(ScrdFastError):  # noqa: N818 - not a mistake of anybody's
    """Training was asked to stop; what was done is saved."""

    exit_code = 130


def batch_indices(iteration: int, batch_size: int, count: int, seed: int) -> list[int]:
    """Positions of the images of a batch: a stream of permutations, one per epoch, cut into batches.

    >>> sorted(batch_indices(0, 3, 5, seed=1) + batch_indices(1, 3, 5, seed=1)[:2])
    [0, 1, 2, 3, 4]
    """
    positions = range(iteration * batch_size, (iteration + 1) * batch_size)
    orders: dict[int, list[int]] = {}
    for epoch in {p // count for p in positions}:
        generator = torch.Generator().manual_seed(mix(seed, 1, epoch))
        orders[epoch] = torch.randperm(count, generator=generator).tolist()
    return [orders[p // count][p % count] for p in positions]


class Loop:
    """`names` gives the name of an image by its number, for errors."""

    def __init__(
        self,
        fabric: Any,
        model: SCRD,
        store: ImageStore,
        train_part: list[int],
        settings: TrainSettings,
        run: RunFolder,
        names: Callable[[int], str],
    ) -> None:
        self.fabric, self.store, self.train_part, self.settings, self.run_folder, self.names = (
            fabric, store, train_part, settings, run, names,
        )  # fmt: skip
        self.model, self.budget = model, Budget(fabric.device)
        self.step = Step(fabric, model, settings, self._feature_cache(), self.budget)
        self.checkpoints = Checkpoints(run.checkpoints, keep=settings.keep_checkpoints)

    def run(
        self, stop: threading.Event, on_step: Callable[[int, float, float], None], log: Callable[[str], None]
    ) -> None:
        start = self._resume(log)
        self.model.train()
        steps = range(start, self.settings.iterations)
        with self._metrics(start) as write, Prefetcher(self._load, steps) as batches:
            clock, since = time.perf_counter(), start
            for iteration in steps:
                with self.budget("load"):
                    images = next(batches).to(self.fabric.device, non_blocking=True)
                parts = self.step(iteration, images, self._share(iteration))
                done = iteration + 1
                logged = done % self.settings.log_every == 0 or done == self.settings.iterations
                if logged:
                    self._require_finite()
                    self.budget.settle()
                    now = time.perf_counter()
                    rate = (done - since) * self.settings.batch_size / (now - clock)
                    clock, since = now, done
                    write(_record(done, parts, rate))
                    on_step(done, float(parts.loss), rate)
                if done % self.settings.checkpoint_every == 0 and done < self.settings.iterations:
                    self._save(done)
                if self._stops(stop, logged):
                    self._save(done)
                    raise Interrupted(f"stopped after iteration {done}; the same command goes on from there")
            if start < self.settings.iterations:
                self._save(self.settings.iterations)

    @contextmanager
    def _metrics(self, start: int) -> Iterator[Callable[[dict[str, Any]], None]]:
        if not is_first():
            yield lambda record: None
            return
        with self.run_folder.metrics(start) as write:
            yield write

    def _stops(self, stop: threading.Event, logged: bool) -> bool:
        """Several processes stop together: they ask each other when they log, where they wait anyway."""
        if self.fabric.world_size == 1:
            return stop.is_set()
        if not logged:
            return False
        asked = torch.tensor(float(stop.is_set()), device=self.fabric.device)
        return bool(self.fabric.all_reduce(asked, reduce_op="max") > 0)

    def _own(self) -> slice:
        """This process's part of a batch."""
        size, rank, world = self.settings.batch_size, self.fabric.global_rank, self.fabric.world_size
        return slice(size * rank // world, size * (rank + 1) // world)

    def _share(self, iteration: int) -> list[int]:
        """Numbers of the images that are this process's in a batch."""
        settings = self.settings
        positions = batch_indices(iteration, settings.batch_size, len(self.train_part), settings.seed)
        return [self.train_part[p] for p in positions[self._own()]]

    def _load(self, iteration: int) -> Tensor:
        images, settings = self.store.batch(self._share(iteration)), self.settings
        if settings.tiles > 1:  # one of each image, drawn for the whole batch, so that a share gets what it always gets
            generator = torch.Generator().manual_seed(mix(settings.seed, 3, iteration))
            places = torch.randint(settings.tiles, (settings.batch_size, 2), generator=generator)
            images = cut_tiles(images, places[self._own()], self.model.config.preprocessing)
        return pinned(images, self.fabric.device)

    def _feature_cache(self) -> TensorCache | None:
        settings, teacher = self.settings, self.model.teacher
        if settings.cache_features == "off":
            return None
        shapes = teacher.shapes(settings.size)
        return TensorCache(
            len(self.store), shapes, torch.bfloat16, settings.cache_features,
            folder=self.run_folder.path, what="features (--cache-features)", channels_last=True,
        )  # fmt: skip

    def _require_finite(self) -> None:
        bad = int(self.step.first_bad)
        if bad < 0:
            return
        positions = batch_indices(bad, self.settings.batch_size, len(self.train_part), self.settings.seed)
        names = ", ".join(self.names(self.train_part[p]) for p in positions)
        raise ScrdFastError(
            f"the loss is not finite at iteration {bad + 1}, whose images are {names}; {self.checkpoints.newest_text()}"
        )

    def _resume(self, log: Callable[[str], None]) -> int:
        state = self.checkpoints.load_newest(self.fabric.device)
        if state is None:
            return 0
        self.model.load_state_dict(state["model"], strict=False)  # the teacher is not in it: it never changes
        self.step.optimizer.load_state_dict(state["optimizer"])
        log(f"going on after iteration {state['iteration']}")
        return int(state["iteration"])

    def _save(self, iteration: int) -> None:
        self._require_finite()
        if not all(p.isfinite().all() for p in self.model.trainable_parameters()):
            raise ScrdFastError(f"weights are not finite at iteration {iteration}; {self.checkpoints.newest_text()}")
        if not is_first():
            return
        model = {k: v for k, v in self.model.state_dict().items() if not k.startswith("teacher.")}
        state = {"iteration": iteration, "model": model, "optimizer": self.step.optimizer.state_dict()}
        try:
            self.checkpoints.save(iteration, state)
        except OSError as error:
            raise ScrdFastError(
                f"{self.checkpoints.folder}: the checkpoint of iteration {iteration} could not be written "
                f"({error.strerror or error}); nothing that was saved before is lost: {self.checkpoints.newest_text()}"
            ) from None


def _record(iteration: int, parts: LossParts, rate: float) -> dict[str, Any]:
    def scales(x: Tensor) -> list[float]:
        return [round(v, 6) for v in x.float().mean(0).tolist()]

    record: dict[str, Any] = {"iteration": iteration, "loss": float(parts.loss), "d_clean": scales(parts.d_clean)}
    if parts.d_noisy is not None:
        record["d_noisy"] = scales(parts.d_noisy)
    return record | {"weights": scales(parts.weights), "images_per_second": round(rate, 2)}
