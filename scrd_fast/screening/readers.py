# SPDX-License-Identifier: Apache-2.0
"""Files become frames, several at a time, in the order in which they were asked for."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

from scrd_fast.config import Preprocessing
from scrd_fast.data.frames import Frame, Source
from scrd_fast.data.reading import read_frames
from scrd_fast.errors import ImageError

__all__ = ["NO_FRAMES", "Found", "Job", "Read", "Reader", "Threads"]

THREADS = 4  # decoding and resizing release the interpreter's lock
AHEAD = 2 * THREADS  # files, each of which may be a volume in memory


class Job(NamedTuple):
    """A file to be read: one frame of it, some, or all."""

    number: int  # what the caller knows it by
    source: Source | None  # None: its pixels are there already
    only: int | frozenset[int] | None = None
    group: int = 0  # pictures of two groups never share a batch


Found = tuple[Job, Frame | ImageError]
Read = Callable[[Source, Preprocessing, int | frozenset[int] | None], Iterator[Frame]]
NO_FRAMES = ("no-pixels", "holds no image")


class Reader(Protocol):
    """What reads: threads of this process, or processes of their own."""

    @property
    def seconds(self) -> float:
        """Spent in reading, by all threads or processes."""
        ...

    @property
    def died(self) -> int:
        """How many processes had to be replaced."""
        ...

    def read(self, jobs: Iterable[Job]) -> Generator[Found, None, None]:
        """For each job its frames, an error, or some frames and then an error. Pixels are valid until the next."""
        ...

    def close(self) -> None: ...


class Threads:
    """A `Reader` in this process. A file that never ends is waited for, and one that crashes a decoder ends all."""

    def __init__(self, preprocessing: Preprocessing, read: Read = read_frames) -> None:
        self._preprocessing, self._read = preprocessing, read
        self.seconds, self.died = 0.0, 0

    def close(self) -> None:
        """Nothing outlasts `read`."""

    def read(self, jobs: Iterable[Job]) -> Generator[Found, None, None]:
        remaining = iter(jobs)
        pending: deque[tuple[Job, Future[_Begun]]] = deque()
        with ThreadPoolExecutor(THREADS) as pool:
            try:
                while True:
                    for job in itertools.islice(remaining, AHEAD - len(pending)):
                        pending.append((job, pool.submit(self._begin, job)))
                    if not pending:
                        return
                    job, future = pending.popleft()
                    found, frames = future.result()
                    yield job, found or ImageError(*NO_FRAMES)
                    while isinstance(found, Frame) and (found := self._next(frames)) is not None:
                        yield job, found
            finally:  # left early: files that nobody waits for are not read
                for _, future in pending:
                    future.cancel()

    def _begin(self, job: Job) -> _Begun:
        """The first frame; the others are read as they are asked for, since a file may have thousands."""
        assert job.source is not None  # for the type checker: what has pixels is not read
        frames = self._read(job.source, self._preprocessing, job.only)
        return self._next(frames), frames

    def _next(self, frames: Iterator[Frame]) -> Frame | ImageError | None:
        clock = time.perf_counter()
        try:
            return next(frames, None)
        except ImageError as error:
            return error
        finally:
            self.seconds += time.perf_counter() - clock


_Begun = tuple[Frame | ImageError | None, Iterator[Frame]]
