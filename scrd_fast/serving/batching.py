# SPDX-License-Identifier: Apache-2.0
"""Uploads that come at the same time go through the model together."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from scrd_fast.data.frames import Source
from scrd_fast.screening.readers import Job
from scrd_fast.screening.screener import Screened, Screener

__all__ = ["Batcher", "Full", "Status"]

LINGER = 0.005  # seconds that a batch waits for more uploads
MAX_FRAMES = 64  # images of one upload
FAILING = 3  # batches in a row
PATIENCE = 10.0  # seconds in which the thread ends


Status = Literal["ok", "failing", "ending"]


class Full(Exception):  # noqa: N818 - of nobody's making
    """So many uploads are waiting that another one would wait too long."""


class _Waiting(NamedTuple):
    file: Path
    maps: bool
    answer: Future[list[Screened]]


class Batcher:
    """One thread that screens files as they are submitted, up to `screener.batch_size` of them at a time.

    At most `most_waiting` wait. `on_batch` gets of each batch the number of files, the
    seconds that it took, and those of the model among them.
    """

    def __init__(
        self,
        screener: Screener,
        *,
        most_waiting: int,
        on_batch: Callable[[int, float, float], None] = lambda files, seconds, model: None,
    ) -> None:
        self._screener, self._on_batch = screener, on_batch
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(most_waiting)
        self._closed, self._failures = False, 0  # batches in a row
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Files that no batch has taken yet."""
        return self._queue.qsize()

    @property
    def status(self) -> Status:
        """failing: the last batches all ended in an error of ours, and others would too, perhaps."""
        if self._closed or not self._thread.is_alive():
            return "ending"
        return "failing" if self._failures >= FAILING else "ok"

    def submit(self, file: Path, *, maps: bool = False) -> Future[list[Screened]]:
        """The file's results, at most `MAX_FRAMES` + 1, once it was screened; images and maps with `maps` alone.

        Raises `Full`, also after `close`.
        """
        if self.status == "ending":
            raise Full
        answer: Future[list[Screened]] = Future()
        try:
            self._queue.put_nowait(_Waiting(file, maps, answer))
        except queue.Full:
            raise Full from None
        return answer

    def close(self) -> None:
        """Screen what is waiting, then end the thread and the processes that read."""
        self._closed = True
        self._queue.put(None)
        self._thread.join(PATIENCE)
        self._screener.close()

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, last = self._gather(first)
            if wanted := [one for one in batch if one.answer.set_running_or_notify_cancel()]:
                self._screen(wanted)
            if last:
                return

    def _gather(self, first: _Waiting) -> tuple[list[_Waiting], bool]:
        """A batch, and whether it is the last."""
        batch, until = [first], time.monotonic() + LINGER
        while len(batch) < self._screener.batch_size:
            try:
                one = self._queue.get(timeout=max(until - time.monotonic(), 0.0))
            except queue.Empty:
                break
            if one is None:
                return batch, True
            batch.append(one)
        return batch, False

    def _screen(self, batch: list[_Waiting]) -> None:
        start, model = time.perf_counter(), self._screener.seconds["model"]
        frames = frozenset(range(MAX_FRAMES + 1))
        results: list[list[Screened]] = [[] for _ in batch]
        jobs = (Job(i, Source(one.file), frames) for i, one in enumerate(batch))
        try:
            for job, result in self._screener.run(self._screener.reader.read(jobs)):
                kept = result if batch[job.number].maps else replace(result, image=None, map=None)
                results[job.number].append(kept)
            if not all(results):
                raise RuntimeError("reading ended")  # since the service does
        except Exception as error:  # of one batch: the service goes on
            self._failures += 1
            for one in batch:
                one.answer.set_exception(error)
        else:
            self._failures = 0
            for one, found in zip(batch, results, strict=True):
                one.answer.set_result(found)
        with suppress(Exception):  # whoever counts must not end the service
            self._on_batch(len(batch), time.perf_counter() - start, self._screener.seconds["model"] - model)
