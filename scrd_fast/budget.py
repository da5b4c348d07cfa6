# SPDX-License-Identifier: Apache-2.0
"""Where the time of a training step goes, and the most memory that it took."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["PARTS", "Budget", "peak_bytes"]

PARTS = ("load", "noise", "teacher", "student", "loss", "backward", "optimizer")


class Budget:
    """Seconds by part. On a GPU they lie between events, which are looked at in `settle`: nothing waits before."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.steps = 0
        self._open: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        if self._on_gpu and part != "load":  # which the CPU waits for, and no kernel
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            yield
            end.record()
            self._open.append((part, begin, end))
            return
        clock = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - clock

    def settle(self) -> None:
        """Waits for what is under way; to be called where something else waits for it too."""
        if self._open:
            self._open[-1][2].synchronize()
        for part, begin, end in self._open:
            self.seconds[part] += begin.elapsed_time(end) / 1e3
        self._open.clear()

    def text(self) -> str:
        """For people: the mean step, and each part's share of it.

        >>> budget = Budget(torch.device("cpu"))
        >>> budget.seconds |= {"load": 0.1, "teacher": 0.9}
        >>> budget.steps = 2
        >>> budget.text()
        'a step took 0.5 s: load 10 %, teacher 90 %'
        """
        total = sum(self.seconds.values())
        shares = ", ".join(f"{part} {100 * x / total:.0f} %" for part, x in self.seconds.items() if x)
        return f"a step took {total / max(self.steps, 1):.3g} s: {shares}"


def peak_bytes(device: torch.device) -> int:
    """The most memory there was: of the GPU's tensors, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
