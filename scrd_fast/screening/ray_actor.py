# SPDX-License-Identifier: Apache-2.0
"""The actor of a Ray cluster that has a model. `ray_engine` says how it fits together. Wants Ray."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import torch

from scrd_fast.errors import UnavailableError
from scrd_fast.memory import keep_freed_memory
from scrd_fast.screening.manifest import MANIFEST
from scrd_fast.screening.ray_board import telling
from scrd_fast.screening.shards import Shards, Task
from scrd_fast.screening.writers import SCHEMA

__all__ = ["Place", "Screening"]

TELL_EVERY = 0.5  # seconds
_SHARED = " cannot be seen there: RUN, OUT and the inputs must lie where all machines see them, by the same paths"


@dataclass(frozen=True)
class Place:
    """Where and how an actor works."""

    device: str  # cpu or cuda: Ray shows an actor its own GPU alone
    threads: int | None  # of torch on a CPU; None: as many as Ray grants it cores
    folder: str  # that relative paths begin at
    witnesses: tuple[Path, ...]  # inputs that the command itself sees


class Screening:
    """A model on one device of the cluster: the inputs of a shard come in, their rows go out.

    A row of what goes out is an input still: `shard`, `input_id`, and `rows`, all its rows of the table.
    """

    def __init__(self, task: Task, place: Place, board: Any) -> None:
        self._task, self._place, self._board = task, place, board
        self._shards: Shards | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        with telling(self._board):
            return self._screen(batch)

    def _screen(self, batch: pa.Table) -> pa.Table:
        number, ids = batch["shard"][0].as_py(), batch["input_id"].combine_chunks()
        shards = self._shards = self._shards or self._begin()
        tables: list[pa.Table] = []
        ray.get(self._board.begin.remote(number))
        progress = _Progress(self._board, number)
        shards.screen([number], progress, lambda _: None, lambda _, found: tables.extend(found))
        joined = pa.concat_tables(tables).combine_chunks()
        offsets = _starts(joined["input_id"].to_pylist())
        if joined["input_id"].combine_chunks().take(pa.array(offsets[:-1])) != ids:
            raise RuntimeError(f"shard {number}: its inputs are others than Ray has handed out")
        progress.end(shards.new_costs())
        rows = pa.StructArray.from_arrays([column.combine_chunks() for column in joined.columns], fields=list(SCHEMA))
        lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), rows)
        return pa.table({"shard": batch["shard"], "input_id": ids, "rows": lists})

    def _begin(self) -> Shards:
        """Load the model, once this machine is known to see what the command sees."""
        with contextlib.suppress(OSError):  # what is missing is found next
            os.chdir(self._place.folder)
        if not (self._task.out / MANIFEST).is_file():
            raise UnavailableError(f"{self._task.out}{_SHARED}")
        if not all(os.path.lexists(path) for path in self._place.witnesses):
            raise UnavailableError(f"inputs that the command itself sees{_SHARED}")
        if self._place.device == "cpu":
            granted = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
            torch.set_num_threads(self._place.threads or max(int(granted), 1))
        if self._task.settings.precision == "bf16":
            keep_freed_memory()
        # Ray's own handlers of an exit wait for each other now and then (2.60): the process would stay, with its model.
        atexit.register(os._exit, 0)
        # Processes that read are told to import the main module, which here is Ray's: not one of them needs it.
        vars(sys.modules["__main__"]).pop("__file__", None)
        return Shards(self._task, self._place.device)


def _starts(ids: list[str]) -> list[int]:
    """Where the rows of each input begin, and where the last end.

    >>> _starts(["a", "a", "b"])
    [0, 2, 3]
    """
    return [i for i, name in enumerate(ids) if i == 0 or ids[i - 1] != name] + [len(ids)]


class _Progress:
    """Tells of one shard, now and then."""

    def __init__(self, board: Any, shard: int) -> None:
        self._board, self._shard, self._counts, self._told = board, shard, (0, 0, 0), time.monotonic()

    def __call__(self, inputs: int, rows: int, failed: int) -> None:
        done, written, bad = self._counts
        self._counts = done + inputs, written + rows, bad + failed
        if time.monotonic() - self._told > TELL_EVERY:
            self._told = time.monotonic()
            self._board.tell.remote(self._shard, self._counts)

    def end(self, costs: dict[str, float]) -> None:
        ray.get([self._board.tell.remote(self._shard, self._counts), self._board.spent.remote(costs)])
