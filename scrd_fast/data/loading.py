# SPDX-License-Identifier: Apache-2.0
"""Batches that are ready before they are asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["Prefetcher", "pinned"]

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Gives make(step) for one step after the other, made up to `depth` steps ahead in a thread of its own.

    What `make` raises is raised where its result would have come. `close`, or the end of a context, waits for the
    call under way and begins no other.

    >>> with Prefetcher(lambda step: step * step, range(4)) as squares:
    ...     list(squares)
    [0, 1, 4, 9]
    """

    def __init__(self, make: Callable[[int], T], steps: Iterable[int], depth: int = 2) -> None:
        self._make, self._steps, self._depth = make, iter(steps), depth
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._ahead: deque[Future[T]] = deque()

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        while len(self._ahead) <= self._depth and (step := next(self._steps, None)) is not None:
            self._ahead.append(self._thread.submit(self._make, step))
        if not self._ahead:
            raise StopIteration
        return self._ahead.popleft().result()


def pinned(batch: Tensor, device: torch.device) -> Tensor:
    """In memory that a GPU can copy from while the CPU goes on; for a CPU as it is. For a thread that loads."""
    return batch.pin_memory() if device.type == "cuda" else batch
