# SPDX-License-Identifier: Apache-2.0
"""Stands for torch.cuda on a CPU: what is launched while a graph is captured runs when the graph is replayed only."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from scrd_fast.bench import timing

Kernel = Callable[[], object]


class FakeCuda:
    def __init__(self) -> None:
        self.recorded: list[Kernel] | None = None  # where launches go while a graph is captured
        self._mode: Any = "default"

    def launch(self, kernel: Kernel) -> None:
        if self.recorded is None:
            kernel()
        else:
            self.recorded.append(kernel)

    def filled(self, compute: Callable[[], Tensor], like: Tensor) -> Tensor:
        """What an operator returns at once, NaN until its kernel runs."""
        out = torch.full_like(like, torch.nan)
        self.launch(lambda: out.copy_(compute()))
        return out

    def wait(self) -> None:
        if self._mode == "error" or self.recorded is not None:
            raise RuntimeError("called a synchronizing CUDA operation")

    @contextlib.contextmanager
    def graph(self, graph: Any) -> Iterator[None]:
        self.recorded = graph.kernels
        try:
            yield
        finally:
            self.recorded = None

    def set_sync_debug_mode(self, mode: Any) -> None:
        self._mode = mode


class Graph:
    def __init__(self) -> None:
        self.kernels: list[Kernel] = []

    def replay(self) -> None:
        for kernel in self.kernels:
            kernel()


class Event:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.at - self.at)


def install(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """In place of what `CudaClock` takes from torch.cuda; its buffer becomes small."""
    cuda = FakeCuda()
    stream = SimpleNamespace(wait_stream=lambda other: None)
    stand_ins = {
        "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=1024),
        "synchronize": lambda device: None,
        "Stream": lambda device: stream,
        "current_stream": lambda device: stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "get_sync_debug_mode": lambda: cuda._mode,
        "set_sync_debug_mode": cuda.set_sync_debug_mode,
        "CUDAGraph": Graph,
        "graph": cuda.graph,
        "Event": Event,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(timing, "MIB", 16)
    return cuda
