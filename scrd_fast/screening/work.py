# SPDX-License-Identifier: Apache-2.0
"""What one process does of a run: the shards of its share, and the overlays at the end."""

from __future__ import annotations

import heapq
import itertools
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scrd_fast.calibration import Calibration
from scrd_fast.config import Preprocessing
from scrd_fast.console import Advance, Console
from scrd_fast.data.frames import Frame, Source
from scrd_fast.device import device_name, pick_device
from scrd_fast.errors import ScrdFastError, reason_of
from scrd_fast.model.scrd import SCRD
from scrd_fast.plots import draw_colour_bar
from scrd_fast.screening.devices import screen_on_devices
from scrd_fast.screening.manifest import Manifest
from scrd_fast.screening.page import PICTURES
from scrd_fast.screening.page_pictures import LAYERS, THUMBNAILS, PagePicture, layers, thumbnail, write_pictures
from scrd_fast.screening.pictures import draw_overlay
from scrd_fast.screening.processes import Processes
from scrd_fast.screening.readers import Job, Reader
from scrd_fast.screening.screener import Screened
from scrd_fast.screening.settings import ScreenSettings
from scrd_fast.screening.shards import Shards, Task, part_facts
from scrd_fast.screening.writers import is_finished, part_path, read_part, sample_id, shown_id

__all__ = ["ALL", "LEGEND", "Share", "Work", "device_kind"]


class Share(NamedTuple):
    """Part `number`, from 0, of `parts` of a run's shards, for schedulers that start several processes."""

    number: int
    parts: int


ALL = Share(0, 1)
LEGEND = "overlay-scale.png"  # in a run's folder


class _TooManyFailedError(Exception):
    """And going on was not wanted."""


def device_kind(settings: ScreenSettings) -> str:
    """Where models run: "cpu" or "cuda". Those of a cluster may have a GPU where this machine has none."""
    return "cuda" if (settings.engine, settings.device) == ("ray", "cuda") else pick_device(settings.device).type


def devices_of(settings: ScreenSettings) -> list[str]:
    kind = device_kind(settings)
    return [f"{kind}:{i}" if kind == "cuda" else kind for i in range(settings.devices)]


def _terminal(settings: ScreenSettings) -> AbstractContextManager[None]:
    if settings.engine == "local":
        return nullcontext()
    from scrd_fast.screening.ray_engine import quiet_terminal

    return quiet_terminal()


class Work:
    """The shards of this process's share."""

    def __init__(
        self, console: Console, task: Task, manifest: Manifest, share: Share, loaded: tuple[SCRD, Calibration | None]
    ) -> None:
        self._console, self._task, self._manifest, self._share, self._loaded = console, task, manifest, share, loaded
        self._shards: Shards | None = None
        self._scale: tuple[float, float] | None = None  # of colours
        self.too_many_failed = False  # of this process's share

    def close(self) -> None:
        if self._shards is not None:
            self._shards.close()

    def screen(self) -> dict[str, Any]:
        """Screen what is missing. Returns how long that took, and where the time went."""
        out, settings, share = self._task.out, self._task.settings, self._share
        own = range(share.number, self._manifest.shards, share.parts)
        finished = dict.fromkeys(k for k in own if is_finished(part_path(out, k), self._task.run_id))
        numbers = [k for k in own if k not in finished]
        most = settings.max_failures * sum(map(self._size, own))
        counted = settings.stop_on_failures or share.parts > 1  # else the summary tells
        failed = sum(len(_failed(part_path(out, k))) for k in finished) if counted else 0
        self.too_many_failed = failed > most
        if not numbers:
            return {}
        for name in ("results.parquet", "drift.json", "drift.png"):  # of fewer rows than there will be
            (out / name).unlink(missing_ok=True)
        done = self._manifest.count - sum(map(self._size, numbers))
        progress = _Progress(done, failed, most if settings.stop_on_failures else None)
        devices, started = devices_of(settings), time.perf_counter()
        if len(devices) == 1 and settings.engine == "local":
            self._shards = Shards(self._task, devices[0], self._loaded)
        clock = time.perf_counter()
        with _terminal(settings), self._console.progress(self._manifest.count, "inputs") as advance:
            progress.advance = advance
            try:
                costs = self._run(devices, numbers, progress)
            except _TooManyFailedError as error:
                costs, self.too_many_failed = {}, True
                self._console.warn(f"{error} inputs failed, more than --max-failures allows: stopped")
        seconds = time.perf_counter() - clock
        self.too_many_failed = self.too_many_failed or progress.failed > most
        replaced = costs.pop("replaced", 0)
        return {
            "seconds_to_start": round(clock - started, 2),
            "seconds": round(seconds, 2),
            "images_per_second": round(progress.rows / seconds, 2),
            "seconds_by_stage": {stage: round(x, 2) for stage, x in costs.items()},
            "bottleneck": _bottleneck(costs),
            "processes_replaced": int(replaced),
            "device": device_kind(settings) if settings.engine == "ray" else device_name(pick_device(settings.device)),
        }

    def _run(self, devices: list[str], numbers: list[int], progress: _Progress) -> dict[str, float]:
        if self._task.settings.engine == "ray":
            from scrd_fast.screening.ray_engine import screen_on_ray

            kind, facts = device_kind(self._task.settings), part_facts(self._task.run_id, *self._loaded)
            return screen_on_ray(self._task, kind, facts, self._manifest, numbers, progress)
        if self._shards is None:
            return screen_on_devices(self._task, devices, numbers, progress)
        self._shards.screen(numbers, progress, lambda number: None)
        return self._shards.costs

    def _size(self, number: int) -> int:
        """Inputs of a shard."""
        size = self._manifest.shard_size
        return min(size, self._manifest.count - number * size)

    def draw(self) -> None:
        """Overlays, their legend, and the pictures of the page: of the most suspicious, so that disks are not filled.

        What cannot be drawn is told: the table is complete, and is to be summed up.
        """
        wanted, drawn = self._task.settings.overlays, dict[str, PagePicture]()
        if wanted == 0:  # no picture at all, nor of a start before this one
            shutil.rmtree(self._task.out / "overlays", ignore_errors=True)
            for name in (LEGEND, PICTURES):
                (self._task.out / name).unlink(missing_ok=True)
            return
        top: list[_Suspect] = []
        try:
            top = self._top(max(THUMBNAILS, 0 if wanted == "above" else wanted))
            count = LAYERS if wanted == "above" else wanted
            self._draw([suspect for suspect in top[:count] if wanted != "above" or suspect.above], drawn)
        except (OSError, ScrdFastError) as error:
            self._console.warn(f"overlays cannot be written: {reason_of(error)}")
        try:
            for picture in self._small([suspect for suspect in top[:THUMBNAILS] if suspect.sample_id not in drawn]):
                drawn[picture.sample_id] = picture
            write_pictures(self._task.out / PICTURES, drawn.values(), self._task.run_id, self._scale)
        except (OSError, ScrdFastError) as error:
            self._console.warn(f"pictures of the page cannot be written: {reason_of(error)}")

    def _draw(self, top: list[_Suspect], drawn: dict[str, PagePicture]) -> None:
        """Screen pictures once more, the most suspicious first, and draw them, into `drawn` too."""
        settings, out, calibration = self._task.settings, self._task.out, self._loaded[1]
        if calibration and calibration.map_scale:
            self._scale = calibration.map_scale
            if settings.overlays == "above":
                draw_colour_bar(out / LEGEND, *self._scale)
        if not top:
            return
        device = devices_of(settings)[0] if torch.cuda.is_available() else "cpu"
        shards = self._shards or Shards(self._task, device, self._loaded)
        self._shards, screener = shards, shards.screener
        screener.maps = True
        for rank, result in enumerate(screener.screen((s.source, s.frame) for s in top), start=1):
            if result.map is None or result.scores is None:  # gone since it was scored
                continue
            self._scale = self._scale or (0.0, max(result.scores["max"], 1e-6))  # of the first, where none is known
            name = top[result.number].sample_id
            if settings.overlays != "above":  # else they are there
                if not (out / LEGEND).exists():
                    draw_colour_bar(out / LEGEND, *self._scale)
                draw_overlay(out / "overlays" / f"{rank:03d}-{name}.png", result, self._scale)
            if len(drawn) < LAYERS:
                with suppress(OSError, ValueError):  # a picture that cannot be written is not shown
                    drawn[name] = _layered(name, result, screener.model.config.preprocessing, self._scale)

    def _small(self, top: list[_Suspect]) -> Iterator[PagePicture]:
        """Read pictures once more, in the order of the manifest: archives are unfolded but once."""
        settings, preprocessing = self._task.settings, self._loaded[0].config.preprocessing
        groups = [list(g) for _, g in itertools.groupby(sorted(top, key=attrgetter("place")), attrgetter("source"))]
        jobs = [Job(i, group[0].source, frozenset(s.frame for s in group)) for i, group in enumerate(groups)]
        if self._shards:
            given: AbstractContextManager[Reader] = nullcontext(self._shards.screener.reader)
        else:
            given = closing(Processes(preprocessing, settings.workers, settings.file_timeout))
        with given as reader:
            for job, found in reader.read(iter(jobs)):
                if isinstance(found, Frame):
                    name = next(s.sample_id for s in groups[job.number] if s.frame == found.index)
                    with suppress(OSError, ValueError):
                        yield PagePicture(name, thumbnail(found.pixels, found.about, preprocessing))

    def _top(self, count: int) -> list[_Suspect]:
        """The `count` most suspicious pictures."""
        columns = ["score", "path", "frame", "input_id", "decision"]
        scored = (
            (-row["score"], row["path"], row["frame"], number, row["input_id"], row["decision"] == "abnormal")
            for number in range(self._manifest.shards)
            for row in read_part(part_path(self._task.out, number), columns)
            if row["score"] is not None
        )
        best = heapq.nsmallest(count, scored)
        names: defaultdict[int, set[str]] = defaultdict(set)
        for *_, number, name, _ in best:
            names[number].add(name)
        entries: dict[str, tuple[int, Source]] = {}
        for number, wanted in names.items():
            for position, entry in enumerate(self._manifest.shard(number)):
                if (name := shown_id(entry, self._task.key)) in wanted:
                    entries[name] = (position, entry.source)
        found = []
        for _, _, frame, number, name, above in best:
            position, source = entries[name]
            found.append(_Suspect(source, frame, sample_id(name, frame), above, (number, position, frame)))
        return found


class _Suspect(NamedTuple):
    """A picture that is worth drawing."""

    source: Source
    frame: int
    sample_id: str
    above: bool  # the threshold
    place: tuple[int, int, int]  # shard, position in it, frame


def _layered(name: str, result: Screened, preprocessing: Preprocessing, scale: tuple[float, float]) -> PagePicture:
    assert result.image is not None  # for the type checker: the screener keeps maps
    assert result.map is not None
    assert result.about is not None
    small = thumbnail(result.image, result.about, preprocessing)
    return PagePicture(name, small, *layers(result.image, result.map, result.about, preprocessing, scale))


def _failed(part: Path) -> set[str]:
    """Inputs of a part that failed, wholly or with one of their pictures."""
    return {row["input_id"] for row in read_part(part, ["input_id", "status"]) if row["status"] == "failed"}


class _Progress:
    """Adds up what processes tell, and stops them where too many files fail."""

    def __init__(self, done: int, failed: int, limit: float | None) -> None:
        self._done, self._limit, self.failed, self.rows = done, limit, failed, 0
        self.advance: Advance = lambda done, text: None

    def __call__(self, inputs: int, rows: int, failed: int) -> None:
        self._done += inputs
        self.rows += rows
        self.failed += failed
        self.advance(self._done, f"{self.failed} failed" if self.failed else "")
        if self._limit is not None and failed > 0 and self.failed > self._limit:
            raise _TooManyFailedError(self.failed)


def _bottleneck(costs: dict[str, float]) -> str | None:
    """What the thread that runs the model spent most of its time on."""
    names = {"wait": "reading", "model": "model", "write": "writing"}
    own = {names[stage]: x for stage, x in costs.items() if stage in names}
    return max(own, key=lambda name: own[name]) if own else None
