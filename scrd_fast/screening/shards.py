# SPDX-License-Identifier: Apache-2.0
"""One process's part of a run: shards of the manifest, each committed as a whole."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from scrd_fast.calibration import Calibration
from scrd_fast.errors import ImageError
from scrd_fast.model.objectives import trains_weights
from scrd_fast.model.scrd import SCRD
from scrd_fast.screening.dicom.common import Maker
from scrd_fast.screening.dicom.writer import DicomResults
from scrd_fast.screening.guard import Guard
from scrd_fast.screening.manifest import MANIFEST, Entry, Manifest
from scrd_fast.screening.pictures import Pictures
from scrd_fast.screening.readers import Job
from scrd_fast.screening.screener import Screened, Screener, load
from scrd_fast.screening.settings import ScreenSettings
from scrd_fast.screening.writers import SCHEMA, Rows, commit_part

__all__ = ["Shards", "Task", "part_facts"]

UNWRITTEN = 64  # pictures that may wait to be written
UNWRITTEN_ORIGINALS = 16  # the same where they are kept in their own size
CHUNK = 4096  # rows that are kept as such

Progress = Callable[[int, int, int], None]  # further inputs that are done, rows, and inputs that failed
Commit = Callable[[int, list[pa.Table]], None]  # takes a complete shard and its rows


@dataclass(frozen=True)
class Task:
    """What a process needs to know to screen shards of a run."""

    run: Path
    out: Path
    settings: ScreenSettings
    run_id: str
    marks: tuple[str, ...]  # flags of every row
    key: bytes | None = field(repr=False)  # replaces paths by keyed hashes
    started: str  # the run, as in its record
    model_sha256: str  # of the model that the run began with


def part_facts(run_id: str, model: SCRD, calibration: Calibration | None) -> dict[str, str]:
    """What stands in the metadata of each part."""
    # Weights that follow from a reference say which scale is unusual; a head's do not.
    compared = model.config.reference is not None and not trains_weights(model.config.objective)
    decided = {"calibration_id": calibration.id, "threshold": repr(calibration.threshold)} if calibration else {}
    return {"run_id": run_id, "weights": "unusual" if compared else "head"} | decided


class Shards:
    """A model on one device that screens shard after shard."""

    def __init__(self, task: Task, device: str, loaded: tuple[SCRD, Calibration | None] | None = None) -> None:
        settings, self._task = task.settings, task
        model, calibration = loaded or load(task.run)
        self._manifest = Manifest.open(task.out / MANIFEST)
        dicom = _dicom_results(task, model, calibration) if settings.dicom else None
        self._pictures = Pictures(task.out, settings.maps, settings.overlays == "above", calibration, dicom)
        self.screener = Screener(
            model,
            calibration,
            device=device,
            precision=settings.precision,
            batch_size=settings.batch_size,
            compile=settings.compile,
            workers=max(settings.workers // settings.devices, 1),
            file_timeout=settings.file_timeout,
            guard=Guard(
                frozenset(settings.modality),
                frozenset(settings.body_part),
                frozenset(settings.view),
                settings.strict,
                calibration.inputs if calibration else None,
            ),
            maps=self._pictures.wanted,
            originals=dicom is not None,
        )
        self._rows = Rows(task.run_id, model.config.score, task.marks, task.key)
        self._results: Generator[tuple[Job, Screened], None, None] | None = None
        self._facts = part_facts(task.run_id, model, calibration)
        self._writing = 0.0
        self._told: dict[str, float] = {}

    def close(self) -> None:
        self.screener.close()  # first: a thread that still reads ends at once, not after a file that hangs
        if self._results is not None:
            self._results.close()
        self._pictures.close()

    @property
    def costs(self) -> dict[str, float]:
        """Seconds: this thread waited for files, ran the model, wrote; all that read did so. Processes replaced."""
        reader = self.screener.reader
        return {"read": reader.seconds, **self.screener.seconds, "write": self._writing, "replaced": reader.died}

    def new_costs(self) -> dict[str, float]:
        """`costs` since this was last asked for."""
        now = self.costs
        new = {name: now[name] - self._told.get(name, 0.0) for name in now}
        self._told = now
        return new

    def screen(
        self, numbers: Iterable[int], progress: Progress, done: Callable[[int], None], commit: Commit | None = None
    ) -> None:
        """Screen shard after shard without a pause between them, and commit each as soon as it is complete.

        `commit` takes its rows instead of writing its part. Raises `ScrdFastError` where a part cannot be written.
        """
        begun: deque[_Shard] = deque()
        give = commit or self._write

        def jobs() -> Iterator[Job]:
            for number in numbers:
                shard = _Shard(number, self._manifest.shard(number))
                begun.append(shard)
                for position, entry in enumerate(shard.entries):
                    if entry.error is None:
                        yield Job(position, entry.source, group=number)

        def finish(shard: _Shard) -> None:
            self._pass_over(shard, len(shard.entries), progress)
            self._pack(shard)
            give(shard.number, shard.tables)
            done(shard.number)

        self._results = self.screener.run(self.screener.reader.read(jobs()))
        for job, result in self._results:
            while begun[0].number != job.group:
                finish(begun.popleft())
            self._pass_over(begun[0], job.number, progress)
            self._add(begun[0], job.number, result, progress)
        while begun:
            finish(begun.popleft())

    def _pass_over(self, shard: _Shard, before: int, progress: Progress) -> None:
        """Rows of the entries before this position that were not read, as they are only listed."""
        for position in range(shard.reached, before):
            self._add(shard, position, _listed(shard.entries[position]), progress)

    def _add(self, shard: _Shard, position: int, result: Screened, progress: Progress) -> None:
        row = self._rows.of(shard.entries[position], result)
        shard.rows.append(row)
        if result.map is not None:
            self._settle(shard, (UNWRITTEN_ORIGINALS if self._task.settings.dicom else UNWRITTEN) - 1)
            shard.pending.append((row, self._pictures.begin(row["sample_id"], result)))
        newly_failed = result.status == "failed" and shard.failed != position
        shard.failed = position if newly_failed else shard.failed
        progress(position + 1 - shard.reached, 1, int(newly_failed))
        shard.reached = position + 1
        if len(shard.rows) == CHUNK:
            self._pack(shard)

    def _write(self, number: int, tables: list[pa.Table]) -> None:
        clock = time.perf_counter()
        commit_part(self._task.out, number, tables, self._facts)
        self._writing += time.perf_counter() - clock

    def _pack(self, shard: _Shard) -> None:
        """Rows as a table, which takes a tenth of their memory: an input may have thousands."""
        self._settle(shard, 0)
        shard.tables.append(pa.Table.from_pylist(shard.rows, schema=SCHEMA))
        shard.rows.clear()

    def _settle(self, shard: _Shard, most: int) -> None:
        """Wait until at most so many pictures are unwritten."""
        clock = time.perf_counter()
        while len(shard.pending) > most:
            row, written = shard.pending.popleft()
            row["map"], flags = written.result()
            row["flags"] += flags
        self._writing += time.perf_counter() - clock


def _dicom_results(task: Task, model: SCRD, calibration: Calibration | None) -> DicomResults:
    assert calibration is not None  # for the type checker: the run has seen to it
    config, foreign = model.config, "foreign-calibration" in task.marks
    maker = Maker(
        config.teacher.name,
        task.model_sha256,
        task.settings.precision,
        config.preprocessing,
        calibration,
        foreign,
        "".join(letter for letter in task.started if letter.isdigit())[:14],
    )
    return DicomResults(task.out, task.settings.dicom, maker)


@dataclass
class _Shard:
    """A shard that is being screened."""

    number: int
    entries: list[Entry]
    rows: list[dict[str, Any]] = field(default_factory=list)
    tables: list[pa.Table] = field(default_factory=list)  # of the rows before
    pending: deque[tuple[dict[str, Any], Future[tuple[str | None, list[str]]]]] = field(default_factory=deque)
    reached: int = 0  # entries that have a row
    failed: int = -1  # the last that has a failed one


def _listed(entry: Entry) -> Screened:
    if entry.error is None:
        raise RuntimeError("an input was passed over by the reader")  # never make up a row for it
    code, _, reason = entry.error.partition(": ")
    return Screened(0, entry.source, None, ImageError(code, reason, refused=entry.refused))
