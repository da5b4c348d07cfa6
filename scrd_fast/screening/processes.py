# SPDX-License-Identifier: Apache-2.0
"""Processes that read files, and may die or hang without harm.

A decoder that is given hostile bytes can crash, take all memory or never return. Here that costs one process, which is
replaced, and one file, which becomes an error.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scrd_fast.config import Preprocessing
from scrd_fast.data import archives
from scrd_fast.data.frames import About, Frame, Original
from scrd_fast.data.reading import read_frames
from scrd_fast.errors import ImageError, UnavailableError
from scrd_fast.memory import free_memory
from scrd_fast.screening.readers import NO_FRAMES, Found, Job, Read

__all__ = ["Processes", "cause_of_death", "warm_up"]

SLOTS = 6  # frames that a process may be ahead
QUEUED = 2  # files that a process has been given
ATTEMPTS = 2  # processes that may die of one file, or before they begin
MOST_MEMORY, LEAST_MEMORY = 8 * 2**30, 4 * 2**30  # bytes for the pictures of a process: the largest need the least
START, END = 300.0, 5.0  # seconds that a process may take to begin, and to be gone once it was killed
PULSE = 1.0  # seconds, at least, from one sign of life to the next while an archive is unfolded

Slot = tuple[int, int]  # which process of a lane, and which place in its memory
Error = tuple[str, str, bool]  # code, reason, refused


class _Message(NamedTuple):
    """What a process says: nothing (it is ready, or alive), a frame, or the end of a file."""

    frame: tuple[int, int, About, Original | None] | None = None  # slot, index, about, original
    seconds: float | None = None  # that reading took; a file has ended
    error: Error | None = None


def warm_up() -> None:
    """Begin what takes seconds before the first process can read; returns at once."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        from multiprocessing import forkserver

        _context()
        forkserver.ensure_running()


def _context() -> Any:
    kinds = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in kinds else "spawn")
    if "forkserver" in kinds:  # torch is imported once, and a successor begins at once
        context.set_forkserver_preload([__name__])
    return context


class Processes:
    """A `Reader` of `count` processes.

    A file from which nothing comes for `timeout` seconds fails, unless an archive is unfolded on the way to it, and
    so does one on which two processes died. What else a dead process was to read goes to its successor. Raises
    `UnavailableError` where processes do not even begin.
    `read`, a function of a module, is what they read with.
    """

    def __init__(self, preprocessing: Preprocessing, count: int, timeout: float, read: Read = read_frames) -> None:
        self._timeout, self._busy, self._closed = timeout, False, False
        self._lanes = [_Lane(preprocessing, count, read) for _ in range(count)]

    @property
    def seconds(self) -> float:
        return sum(lane.seconds for lane in self._lanes)

    @property
    def died(self) -> int:
        """How many processes had to be replaced."""
        return sum(lane.died for lane in self._lanes)

    def close(self) -> None:
        """Also while another thread reads: its reading ends within a second."""
        self._closed = True
        for lane in self._lanes:
            lane.close()

    def read(self, jobs: Iterable[Job]) -> Generator[Found, None, None]:
        if self._busy or self._closed:
            raise RuntimeError("one reading at a time, and none after the end: close the results of the one before")
        self._busy = True
        remaining = iter(jobs)
        turns: deque[_Lane] = deque()  # who reads what comes next

        def hand_out() -> None:
            while True:
                lane = min(self._lanes, key=lambda lane: len(lane.jobs))
                if len(lane.jobs) >= QUEUED or len(turns) >= SLOTS * len(self._lanes):
                    return
                if (job := next(remaining, None)) is None:
                    return
                turns.append(lane)
                lane.give(job)

        try:
            while True:
                hand_out()
                if not turns:
                    return
                lane, ended = turns.popleft(), False
                while not ended:
                    while not lane.inbox:
                        self._listen()
                        if self._closed:
                            return
                        hand_out()
                    job, found, slot = lane.inbox.popleft()
                    ended = slot is None
                    if found is not None:
                        yield job, found
                    if slot is not None:
                        lane.free(slot)
        finally:
            self._busy = False
            for lane in self._lanes:  # left early: what is under way is of no use to another caller
                if lane.jobs or lane.inbox:
                    lane.start_anew()

    def _listen(self) -> None:
        """Wait for news of any process, for a second at most."""
        lanes: dict[Any, _Lane] = {lane.pipe: lane for lane in self._lanes}
        for pipe in connection.wait(list(lanes), timeout=min(1.0, self._timeout / 4)):
            lanes[pipe].receive()
        for lane in self._lanes:
            if lane.silence() > self._timeout:
                lane.give_up("timeout", f"not read within {self._timeout:g} s")
            lane.check_start()


class _Lane:
    """One process at a time, and the files that it is to read."""

    def __init__(self, preprocessing: Preprocessing, count: int, read: Read) -> None:
        self._preprocessing, self._count, self._read = preprocessing, count, read
        self._context = _context()
        self.seconds, self.died, self._number, self._unborn = 0.0, 0, 0, 0
        self.jobs: deque[Job] = deque()
        self.inbox: deque[tuple[Job, Frame | ImageError | None, Slot | None]] = deque()  # without a slot: a file's end
        self._deaths, self._last = 0, -1  # of the first job: processes that it killed, the last frame that came
        self._closed = False
        self._start()

    def _start(self) -> None:
        if self._closed:
            return
        size = self._preprocessing.canvas
        # Memory of its own: frames of a process before it are perhaps not used yet.
        shared = self._context.RawArray("f", SLOTS * 3 * size * size)
        self._slots = _as_frames(shared, size)
        self.pipe, theirs = self._context.Pipe()
        arguments = (theirs, shared, self._preprocessing, self._count, self._read)
        self._process = self._context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._number += 1
        self._ready, self._held, self._since = False, 0, time.monotonic()
        for job in self.jobs:
            self._send(job)

    def kill(self) -> None:
        self._process.kill()
        self._process.join(END)  # where a disk hangs even that takes long; it is left to itself then
        self.pipe.close()

    def close(self) -> None:
        """For good. The pipe goes with the lane: another thread may listen to it."""
        self._closed = True
        self._process.kill()
        self._process.join(END)

    def start_anew(self) -> None:
        """With nothing to do."""
        self.kill()
        self.jobs.clear()
        self.inbox.clear()
        self._deaths, self._last = 0, -1
        self._start()

    def give(self, job: Job) -> None:
        if not self.jobs:
            self._since = time.monotonic()
        self.jobs.append(job)
        self._send(job)

    def free(self, slot: Slot) -> None:
        if slot[0] != self._number:
            return
        if self._held == SLOTS:  # it could not go on until now
            self._since = time.monotonic()
        self._held -= 1
        self._send(slot[1])

    def _send(self, message: Job | int) -> None:
        with contextlib.suppress(OSError):  # dead: that is seen when it is listened to
            self.pipe.send(message)

    def silence(self) -> float:
        """Seconds for which it could have said something and did not."""
        waits = not self.jobs or self._held == SLOTS or not self._ready
        return 0.0 if waits else time.monotonic() - self._since

    def check_start(self) -> None:
        if not self._ready and time.monotonic() - self._since > START:
            self._died()

    def receive(self) -> None:
        """All that the process has to say, which can be that it is dead."""
        try:
            while self.pipe.poll():
                self._note(self.pipe.recv())
        except (EOFError, OSError):
            self._died()

    def _note(self, message: _Message) -> None:
        self._since = time.monotonic()
        if message.frame is not None:
            slot, index, about, original = message.frame
            self._held += 1
            if index <= self._last:  # from a process before this one it came already
                self.free((self._number, slot))
                return
            self._last = index
            frame = Frame(index, self._slots[slot], about, original)
            self.inbox.append((self.jobs[0], frame, (self._number, slot)))
        elif message.seconds is not None:
            self.seconds += message.seconds
            self._end(message.error)
        else:
            self._ready, self._unborn = True, 0

    def _end(self, error: Error | None) -> None:
        """The first job is done."""
        if error is None and self._last < 0:
            error = (*NO_FRAMES, False)
        found = None if error is None else ImageError(error[0], error[1], refused=error[2])
        self.inbox.append((self.jobs.popleft(), found, None))
        self._deaths, self._last = 0, -1

    def give_up(self, code: str, reason: str) -> None:
        """Kill the process for the sake of its first job, which fails."""
        self.kill()
        self.died += 1
        self._end((code, reason, False))
        self._start()

    def _died(self) -> None:
        self.kill()
        self.died += 1
        if not self._ready:
            self._unborn += 1
            if self._unborn >= ATTEMPTS:
                raise UnavailableError(f"the process that reads files does not start ({cause_of_death(self._process)})")
        elif self.jobs:
            self._deaths += 1
            if self._deaths >= ATTEMPTS:
                self._end(("crashed", f"the process that read it died ({cause_of_death(self._process)})", False))
        self._start()


def cause_of_death(process: Any) -> str:
    code = process.exitcode
    if code is None:
        return "it cannot be ended"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _as_frames(shared: Any, size: int) -> Tensor:
    return torch.frombuffer(shared, dtype=torch.float32).view(SLOTS, 3, size, size)


def _serve(pipe: connection.Connection, shared: Any, preprocessing: Preprocessing, count: int, read: Read) -> None:
    """The life of such a process: it reads what it is told to, and ends with the one that tells it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # that of a terminal reaches all; who started it ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")  # decoders have many words for what becomes an error or a picture anyhow
    torch.set_num_threads(1)
    _limit_memory(count)
    slots = _as_frames(shared, preprocessing.canvas)
    free, jobs = deque(range(SLOTS)), deque[Job]()

    def hear() -> None:
        message = pipe.recv()
        (jobs if isinstance(message, Job) else free).append(message)  # type: ignore[arg-type]

    with contextlib.suppress(EOFError, OSError):  # nobody is there any more
        pipe.send(_Message())
        archives.on_progress = _pulse(pipe)
        while True:
            while not jobs:
                hear()
            job, clock, error = jobs.popleft(), time.perf_counter(), None
            waited = 0.0
            assert job.source is not None  # for the type checker: what has pixels is not read
            try:
                for frame in read(job.source, preprocessing, job.only):
                    start = time.perf_counter()
                    while not free:
                        hear()
                    waited += time.perf_counter() - start
                    slot = free.popleft()
                    slots[slot] = frame.pixels
                    pipe.send(_Message(frame=(slot, frame.index, frame.about, frame.original)))
            except ImageError as failed:
                error = (failed.code, str(failed), failed.refused)
            pipe.send(_Message(seconds=time.perf_counter() - clock - waited, error=error))


def _pulse(pipe: connection.Connection) -> Callable[[], None]:
    """What says that the process is alive, however often it is called."""
    last = time.monotonic()

    def pulse() -> None:
        nonlocal last
        if time.monotonic() - last >= PULSE:
            last = time.monotonic()
            with contextlib.suppress(OSError):  # nobody is there any more: the next message finds out
                pipe.send(_Message())

    return pulse


def _end_with_parent() -> None:
    """Also in the middle of a file that never ends, when nobody is left to say that it took too long."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # for the type checker: this is a child
    parent.join()
    os._exit(1)


def _limit_memory(count: int) -> None:
    """Files that ask for more than there is, `count` at a time, shall fail, not the machine."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    used = int(fields["VmData"].split()[0]) * 1024
    limit = used + min(MOST_MEMORY, max(free_memory() // (count + 1), LEAST_MEMORY))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
