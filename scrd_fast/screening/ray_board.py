# SPDX-License-Identifier: Apache-2.0
"""Where the machines of a Ray cluster tell how far they are. Imports little: it has a process of its own."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import ray

from scrd_fast.errors import ScrdFastError, UnavailableError

__all__ = ["Board", "State", "telling"]


class State(NamedTuple):
    """What all machines have told."""

    counts: tuple[int, ...]  # inputs that are done, rows, inputs that failed
    costs: dict[str, float]  # of shards that are done
    failure: tuple[int, str] | None  # exit code and text of what cannot go on


class Board:
    """An actor where all machines tell how far they are. A shard that is begun anew counts from nothing."""

    def __init__(self) -> None:
        self._shards: dict[int, tuple[int, int, int]] = {}
        self._counts: tuple[int, ...] = (0, 0, 0)
        self._failure: tuple[int, str] | None = None
        self._costs: Counter[str] = Counter()

    def begin(self, shard: int) -> None:
        self._costs["replaced"] += shard in self._shards  # the actor before died
        self.tell(shard, (0, 0, 0))

    def tell(self, shard: int, counts: tuple[int, int, int]) -> None:
        before = self._shards.get(shard, (0, 0, 0))
        self._shards[shard] = counts
        self._counts = tuple(n + new - old for n, new, old in zip(self._counts, counts, before, strict=True))

    def spent(self, costs: dict[str, float]) -> None:
        self._costs.update(costs)

    def fail(self, code: int, text: str) -> None:
        self._failure = self._failure or (code, text)

    def state(self) -> State:
        return State(self._counts, dict(self._costs), self._failure)


@contextlib.contextmanager
def telling(board: Any) -> Iterator[None]:
    """What cannot go on is told before Ray, which goes on with other shards, makes a log entry of it."""
    try:
        yield
    except Exception as error:
        known = isinstance(error, ScrdFastError)
        code = error.exit_code if isinstance(error, ScrdFastError) else UnavailableError.exit_code
        text = str(error) if known else f"{type(error).__name__}: {error} (unexpected)"
        ray.get(board.fail.remote(code, f"{socket.gethostname()}: {text}"))
        raise
