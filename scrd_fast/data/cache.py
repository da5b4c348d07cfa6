# SPDX-License-Identifier: Apache-2.0
"""Tensors that are worked out once and kept, in memory or in a memory-mapped file, where they fit."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from scrd_fast.choices import CachePlace
from scrd_fast.errors import ScrdFastError
from scrd_fast.memory import free_memory

__all__ = ["TensorCache", "free_bytes", "place_for"]

SHARE = {"memory": 0.75, "disk": 0.95}  # of what is free: others need some too


class TensorCache:
    """`count` entries, each of one tensor a shape, that are filled as they are asked for.

    `place` is memory or disk; a file lies in `folder` and goes with the process, however it ends. `what` names the
    entries in errors. With `channels_last` shapes are (C, H, W), kept and given in that layout. One thread at a
    time. Raises `ScrdFastError` where the entries do not fit.

    >>> cache = TensorCache(10, [(2,)], torch.float32, "memory", what="pairs")
    >>> cache.batch([3, 3], lambda missing: [torch.full((len(missing), 2), 7.0)])
    [tensor([[7., 7.],
            [7., 7.]])]
    """

    def __init__(
        self,
        count: int,
        shapes: Sequence[tuple[int, ...]],
        dtype: torch.dtype,
        place: CachePlace,
        *,
        what: str,
        folder: Path | None = None,
        channels_last: bool = False,
    ) -> None:
        self._permute = (0, 3, 1, 2) if channels_last else None
        shapes = [(h, w, c) for c, h, w in shapes] if channels_last else list(shapes)  # type: ignore[misc]
        needed = sum(count * prod(shape) * dtype.itemsize for shape in shapes)
        free = free_bytes(place, folder)
        if needed > SHARE[place] * free:
            raise ScrdFastError(
                f"the {what} of {count} images need {_size(needed)} of {place}, and {_size(free)} are free, of which "
                f"{SHARE[place]:.0%} may be used; choose another place for them, or off"
            )
        try:
            self._kept = [_allocate((count, *shape), dtype, None if place == "memory" else folder) for shape in shapes]
        except OSError as error:  # a quota, or another that was faster
            raise ScrdFastError(
                f"{folder}: the {what} of {count} images need {_size(needed)} of disk, which could not be had "
                f"({error.strerror or error}); choose another place for them, or off"
            ) from None
        self._filled = torch.zeros(count, dtype=torch.bool)

    def batch(self, indices: Sequence[int], fill: Callable[[list[int]], Sequence[Tensor]]) -> list[Tensor]:
        """For each shape [len(indices), *shape], in the cache's dtype, in CPU memory (pinned where there is a GPU).

        `fill` is asked once for all that are missing, and gives a tensor [len(missing), *shape] for each shape. The
        first time and ever after the values are those that were kept, rounded to the cache's dtype.
        """
        missing = [i for i in dict.fromkeys(indices) if not self._filled[i]]
        if missing:
            at = torch.tensor(missing)
            for kept, new in zip(self._kept, fill(missing), strict=True):
                rows = new.detach() if self._permute is None else new.detach().permute(0, 2, 3, 1)
                kept.index_copy_(0, at, rows.to("cpu", kept.dtype))
            self._filled[at] = True  # last: a fill that fails leaves them missing
        return [self._gathered(kept, torch.tensor(list(indices))) for kept in self._kept]

    def _gathered(self, kept: Tensor, at: Tensor) -> Tensor:
        out = torch.empty((len(at), *kept.shape[1:]), dtype=kept.dtype, pin_memory=torch.cuda.is_available())
        torch.index_select(kept, 0, at, out=out)
        return out if self._permute is None else out.permute(self._permute)


def place_for(needed: int, folder: Path | None) -> CachePlace | None:
    """Where so many bytes fit, memory before the folder's disk; None: nowhere."""
    places: tuple[CachePlace, ...] = ("memory",) if folder is None else ("memory", "disk")
    return next((place for place in places if needed <= SHARE[place] * free_bytes(place, folder)), None)


def free_bytes(place: CachePlace, folder: Path | None) -> int:
    """What is free on the folder's disk, or of memory: in a container what its limit leaves."""
    if place == "disk":
        if folder is None:
            raise ValueError("folder must be given for a cache on disk, got None")
        return shutil.disk_usage(folder).free
    return free_memory()


def _allocate(shape: tuple[int, ...], dtype: torch.dtype, folder: Path | None) -> Tensor:
    if folder is None:
        return torch.empty(shape, dtype=dtype)
    handle, name = tempfile.mkstemp(".cache", ".scrd-fast-", folder)
    try:
        # Reserved at once: where a mapped file has no room, writing to it kills the process without a word.
        os.posix_fallocate(handle, 0, max(prod(shape) * dtype.itemsize, 1))
        flat = torch.from_file(name, shared=True, size=prod(shape), dtype=dtype)
    finally:
        os.close(handle)
        Path(name).unlink()  # the mapping stays, and the disk has its space back when the process ends
    return flat.view(shape)


def _size(count: int) -> str:
    """
    >>> _size(2_500_000_000), _size(3_400_000)
    ('2.5 GB', '3.4 MB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
