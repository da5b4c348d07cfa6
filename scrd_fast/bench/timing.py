# SPDX-License-Identifier: Apache-2.0
"""One turn of one contender: the same synchronisation, eviction and rotation of inputs for all of them."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

__all__ = [
    "Captured",
    "Clock",
    "CpuClock",
    "CudaClock",
    "Rotation",
    "Samples",
    "Summary",
    "cache_bytes",
    "clock_for",
    "cores",
]

MIB = 2**20
LONG_CALL = 0.05  # seconds; such a call warms the caches itself, so that its first run counts
SHORTEST_SAMPLE = 1e-3  # seconds; shorter calls are timed several at once, far above the timer's own cost
LARGEST_INNER = 1000
LARGEST_BUFFER = 2**30
MOST_PILED_UP = 200  # calls in place between two of their new beginnings on a GPU, where a turn has thousands

Samples = dict[str, list[float]]  # seconds by column: wall_warm, wall_cold, device_warm, device_cold


@dataclass(frozen=True)
class Summary:
    """Median, 20th and 80th percentile of n samples, in seconds."""

    median: float
    p20: float
    p80: float
    n: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Summary:
        """Percentiles are interpolated linearly between ranks, as numpy does.

        >>> Summary.of([4.0, 1.0, 3.0, 2.0, 5.0])
        Summary(median=3.0, p20=1.8, p80=4.2, n=5)
        """
        if not samples or not all(math.isfinite(s) and s >= 0 for s in samples):
            raise ValueError(f"samples must be finite times, at least one, got {list(samples)!r}")
        ranked = sorted(samples)

        def at(share: float) -> float:
            place = share * (len(ranked) - 1)
            low = math.floor(place)
            high = min(low + 1, len(ranked) - 1)
            return round(ranked[low] + (place - low) * (ranked[high] - ranked[low]), 12)

        return cls(at(0.5), at(0.2), at(0.8), len(ranked))


class Rotation:
    """Calls the same function on one set of inputs after the other, and keeps each set's last result for the check.

    A call in place has a `count` of what it has piled up, which `restart` undoes and `replayed` raises by one: the
    replay of a graph runs what a call launched, not the call.
    """

    def __init__(self, calls: Sequence[Callable[[], Any]]) -> None:
        self.calls = list(calls)
        self.last: list[Any] = [None] * len(self.calls)
        self._turn = 0

    def restart(self) -> None:
        """Undo what calls in place have piled up; not timed. What those have left behind is gone with it: a slow one
        may not have its turn again before the check."""
        for i, call in enumerate(self.calls):
            if (restart := getattr(call, "restart", None)) is not None:
                restart()
                self.last[i] = None

    def relieve(self, most: int) -> None:
        """Restart, with a call each, if one in place has piled up more than `most`: sums of many lose digits."""
        if any(getattr(call, "count", 0) > most for call in self.calls):
            self.restart()
            for _ in self.calls:
                self()

    def replayed(self) -> None:
        for call in self.calls:
            if (replayed := getattr(call, "replayed", None)) is not None:
                replayed()

    def __call__(self) -> None:
        turn = self._turn
        self._turn = (turn + 1) % len(self.calls)
        self.last[turn] = self.calls[turn]()


@dataclass(frozen=True)
class Captured:
    """All calls of a rotation in a graph. `results` are the calls' own: nothing is in them before a replay, and what
    the last replay computed after it."""

    replay: Callable[[], Any]
    results: list[Any]


class Clock(Protocol):
    """Times calls on one kind of device. `capture` may return what replays all calls of a rotation."""

    how: str
    threads: int

    def synchronize(self) -> None: ...

    def capture(self, rotation: Rotation) -> Captured | None: ...

    def sample(self, rotation: Rotation, graph: Captured | None, slot: float) -> Samples:
        """Warm and cold samples for about `slot` seconds each; at least one of each."""
        ...


def cores() -> list[int]:
    """The processors that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def cache_bytes(system: Path = Path("/sys/devices/system/cpu")) -> int:
    """All data caches of these processors, a shared one once; 64 MiB where the system does not say."""
    found: dict[tuple[str, ...], int] = {}
    for core in cores():
        for cache in system.glob(f"cpu{core}/cache/index*"):
            try:
                level, kind, shared, size = (
                    (cache / name).read_text().strip() for name in ("level", "type", "shared_cpu_list", "size")
                )
            except OSError:
                continue
            number = re.fullmatch(r"(\d+)([KM])", size)
            if number and kind != "Instruction":
                found[level, kind, shared] = int(number[1]) * {"K": 1024, "M": MIB}[number[2]]
    return sum(found.values()) or 64 * MIB


class CpuClock:
    """Wall time. Cold means that a buffer of twice all caches was written since the call before."""

    how = "wall"

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._buffer = torch.zeros(min(2 * cache_bytes(), LARGEST_BUFFER) // 4)

    def synchronize(self) -> None:
        return None

    def capture(self, rotation: Rotation) -> None:
        del rotation

    def sample(self, rotation: Rotation, graph: Captured | None, slot: float) -> Samples:
        del graph
        begin = time.perf_counter()
        first = self._time(rotation, 1)
        warm = [first] if first > LONG_CALL else []
        inner = min(max(1, math.ceil(SHORTEST_SAMPLE / max(first, 1e-9))), LARGEST_INNER)
        while not warm or time.perf_counter() - begin < slot:
            warm.append(self._time(rotation, inner))
        cold: list[float] = []
        begin = time.perf_counter()
        while not cold or time.perf_counter() - begin < slot:
            self._buffer.add_(1.0)
            cold.append(self._time(rotation, 1))
        return {"wall_warm": warm, "wall_cold": cold}

    def _time(self, rotation: Rotation, inner: int) -> float:
        start = time.perf_counter()
        for _ in range(inner):
            rotation()
        return (time.perf_counter() - start) / inner


class CudaClock:
    """Wall time of a call up to its synchronisation, and device time between events, apart from each other.

    Warm device time comes from the replay of a CUDA graph of all calls where they can be captured, which leaves
    the launches out; otherwise from events around calls in a row. Cold means that a buffer of four times the L2
    cache was written just before, on the same stream: while it is written the call is launched, so that the
    events see the device's work and not the launch.
    """

    how = "events"

    def __init__(self, device: torch.device, threads: int) -> None:
        self._device, self.threads = device, threads
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self._buffer = torch.zeros(max(4 * cache, 256 * MIB) // 4, device=device)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)

    def capture(self, rotation: Rotation) -> Captured | None:
        """The rotation's own results stay those of calls that ran: nothing runs while a graph is captured."""
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(2 * len(rotation.calls)):
                rotation()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        self.synchronize()
        if self._waits(rotation):
            rotation.relieve(0)
            return None
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                results = [call() for call in rotation.calls]
        except RuntimeError:  # something else that a graph cannot hold
            self.synchronize()
            rotation.relieve(0)  # of the calls that were counted and did not run
            return None
        return Captured(graph.replay, results)

    def _waits(self, rotation: Rotation) -> bool:
        """Whether a call waits for the device. Found out before a capture, which a wait would break off midway."""
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            rotation()
        except RuntimeError:
            return True
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return False

    def sample(self, rotation: Rotation, graph: Captured | None, slot: float) -> Samples:
        samples: Samples = {"wall_warm": [], "wall_cold": [], "device_warm": [], "device_cold": []}
        rotation()
        begin = time.perf_counter()
        while not samples["wall_warm"] or time.perf_counter() - begin < slot:
            rotation.relieve(MOST_PILED_UP)
            samples["device_warm"].append(self._device_warm(rotation, graph))
            samples["wall_warm"].append(self._wall(rotation))
        begin = time.perf_counter()
        while not samples["wall_cold"] or time.perf_counter() - begin < slot:
            rotation.relieve(MOST_PILED_UP)
            samples["device_cold"].append(self._between_events(rotation, flush=True))
            self._buffer.add_(1.0)
            samples["wall_cold"].append(self._wall(rotation))
        return samples

    def _wall(self, rotation: Rotation) -> float:
        self.synchronize()
        start = time.perf_counter()
        rotation()
        self.synchronize()
        return time.perf_counter() - start

    def _device_warm(self, rotation: Rotation, graph: Captured | None) -> float:
        count = len(rotation.calls)

        def all_calls() -> None:
            for _ in range(count):
                rotation()

        if graph is None:
            return self._between_events(all_calls) / count
        seconds = self._between_events(graph.replay) / count
        rotation.replayed()
        return seconds

    def _between_events(self, run: Callable[[], Any], flush: bool = False) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        if flush:
            self._buffer.add_(1.0)
        begin.record()
        run()
        end.record()
        self.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


def clock_for(device: torch.device, threads: int) -> Clock:
    return CudaClock(device, threads) if device.type == "cuda" else CpuClock(threads)
