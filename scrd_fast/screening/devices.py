# SPDX-License-Identifier: Apache-2.0
"""Shards on several devices: a process for each, which asks for shard after shard and is replaced if it dies."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from multiprocessing import connection
from typing import Any

import torch

from scrd_fast.errors import ScrdFastError, UnavailableError, error_of
from scrd_fast.screening.processes import cause_of_death
from scrd_fast.screening.shards import Progress, Shards, Task

__all__ = ["screen_on_devices"]

ATTEMPTS = 2  # processes that may die of one shard


def screen_on_devices(task: Task, devices: list[str], numbers: list[int], progress: Progress) -> dict[str, float]:
    """Screen the shards `numbers`, each once. Returns what that cost, as `Shards.costs` of all together.

    A shard on which a process died is given out once more. Raises `UnavailableError`, after all other shards are done,
    where that process died too; and `ScrdFastError` for what ended a process in order.
    """
    waiting, lost = deque(numbers), list[str]()
    attempts: dict[int, int] = {}
    members = [_Member(task, device, len(devices)) for device in devices[: len(waiting)]]
    try:
        while True:
            for member in members:
                member.start_for(waiting)
            busy: dict[Any, _Member] = {member.pipe: member for member in members if member.pipe is not None}
            if not busy:
                break
            for pipe in connection.wait(list(busy)):
                member = busy[pipe]
                try:
                    member.hear(waiting, progress)
                except (EOFError, OSError):
                    cause = member.end(progress)
                    if member.stillborn >= ATTEMPTS:
                        raise UnavailableError(
                            f"{member.device}: the process that screens does not start ({cause})"
                        ) from None
                    if not member.shards:  # it was told to end, or will be started anew
                        continue
                    first = member.shards[0]
                    attempts[first] = attempts.get(first, 0) + 1
                    if attempts[first] >= ATTEMPTS:
                        member.shards.popleft()
                        lost.append(f"shard {first} ({cause})")
                    waiting.extendleft(reversed(member.shards))
                    member.shards.clear()
    finally:
        for member in members:
            member.end(progress)
    if lost:
        raise UnavailableError(f"processes died twice on {', '.join(lost)}; the same command tries again")
    return dict(sum((member.costs for member in members), Counter[str]()))


class _Member:
    """The process of a device, which is there while there are shards for it."""

    def __init__(self, task: Task, device: str, count: int) -> None:
        self._arguments, self.device = (task, device, count), device
        self.stillborn = 0  # processes in a row that died before they said anything
        self._process: Any = None
        self.pipe: Any = None
        self.shards: deque[int] = deque()  # given to it: it begins with the next before the first is complete
        self.costs: Counter[str] = Counter()  # type: ignore[assignment]  # of shards that are done
        self._told = [0, 0, 0]  # of the progress with the first

    def start_for(self, waiting: deque[int]) -> None:
        """A process, if there is something to do and none that does it."""
        if self._process is not None or not waiting:
            return
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, *self._arguments))
        self._process.start()
        theirs.close()
        self.stillborn += 1

    def hear(self, waiting: deque[int], progress: Progress) -> None:
        kind, content = self.pipe.recv()
        self.stillborn = 0
        if kind == "next":
            self._give(waiting)
        elif kind == "progress":
            self._told = [a + b for a, b in zip(self._told, content, strict=True)]
            progress(*content)
        elif kind == "done":
            self.shards.popleft()
            self.costs.update(content)
            self._told = [0, 0, 0]
        else:
            raise error_of(*content)

    def _give(self, waiting: deque[int]) -> None:
        """The next shard, or word that there are no more."""
        shard = waiting.popleft() if waiting else None
        if shard is not None:
            self.shards.append(shard)
        with contextlib.suppress(OSError):  # dead, which is heard next
            self.pipe.send(shard)

    def end(self, progress: Progress) -> str:
        """Kill the process; what it told of an unfinished shard is taken back. Returns what it died of."""
        if self._process is None:
            return ""
        self._process.kill()
        self._process.join()
        self.pipe.close()
        self.costs["replaced"] += bool(self.shards)
        cause, self._process, self.pipe = cause_of_death(self._process), None, None
        taken, self._told = self._told, [0, 0, 0]
        progress(*(-count for count in taken))
        return cause


def _work(pipe: connection.Connection, task: Task, device: str, count: int) -> None:
    """The life of such a process. It ends with the one that gives it shards."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # that of a terminal reaches all; who started it ends it
    if device == "cpu":  # they share the cores
        torch.set_num_threads(max(torch.get_num_threads() // count, 1))
    shards, lock = None, threading.Lock()

    def tell(kind: str, content: Any = None) -> None:
        with lock:  # shards are asked for by the thread that reads
            pipe.send((kind, content))

    try:
        shards = working = Shards(task, device)
        shards.screen(
            _asked_for(tell, pipe),
            lambda *counts: tell("progress", counts),
            lambda _: tell("done", working.new_costs()),
        )
    except (EOFError, ConnectionError):  # nobody is there any more
        pass
    except ScrdFastError as error:
        tell("error", (error.exit_code, str(error)))
    finally:
        if shards is not None:
            shards.close()


def _asked_for(tell: Callable[[str], None], pipe: connection.Connection) -> Iterator[int]:
    tell("next")
    while (number := pipe.recv()) is not None:
        yield number
        tell("next")
