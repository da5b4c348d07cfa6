# SPDX-License-Identifier: Apache-2.0
"""Reading many images: all of them checked before work begins, as many as fit kept in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from scrd_fast.choices import Cache
from scrd_fast.config import Preprocessing
from scrd_fast.data.cache import TensorCache, place_for
from scrd_fast.data.reading import read_image
from scrd_fast.errors import DataError, ImageError

__all__ = ["ImageStore", "content_hashes", "split_calibration"]

THREADS = 4  # decoding and resizing release the interpreter's lock
CHUNK = 64  # images that a check holds at once, where they are not kept


class ImageStore:
    """Images by index, float32 [3, S, S] in [0, 1], read once and kept in memory or in a memory-mapped file.

    `cache`: memory, disk (a file in `folder`), auto (where they all fit, memory before disk), or off: then each is
    read anew, several at a time. Raises `ScrdFastError` where they do not fit into the place that is asked for.
    """

    def __init__(
        self, paths: Sequence[Path], preprocessing: Preprocessing, cache: Cache = "auto", folder: Path | None = None
    ) -> None:
        self.paths = list(paths)
        self.preprocessing = preprocessing
        self._pool = ThreadPoolExecutor(THREADS)
        shape = (3, preprocessing.size, preprocessing.size)
        place = place_for(4 * len(self.paths) * prod(shape), folder) if cache == "auto" else cache
        self._cache = None
        if place is not None and place != "off":
            self._cache = TensorCache(
                len(self.paths), [shape], torch.float32, place, what="pixels (--cache)", folder=folder
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.batch([index])[0]

    def batch(self, indices: Sequence[int]) -> Tensor:
        """[len(indices), 3, S, S]. One thread at a time. Raises `ImageError` that names the file."""
        if self._cache is None:
            return self._read(indices)
        return self._cache.batch(indices, lambda missing: [self._read(missing)])[0]

    def check(self, root: Path) -> None:
        """Read every image once. Raises `DataError` that lists all files that cannot be used."""
        problems = []
        for first in range(0, len(self), CHUNK):
            chunk = range(first, min(first + CHUNK, len(self)))
            found = dict(zip(chunk, self._pool.map(self._try, chunk), strict=True))
            good = {i: image for i, image in found.items() if isinstance(image, Tensor)}
            problems += [str(error) for error in found.values() if isinstance(error, ImageError)]
            if self._cache is not None and good:
                self._cache.batch(list(good), lambda missing, good=good: [torch.stack([good[i] for i in missing])])  # type: ignore[misc]
        if problems:
            raise DataError(root, problems)

    def _read(self, indices: Sequence[int]) -> Tensor:
        images = list(self._pool.map(self._try, indices))
        for image in images:
            if isinstance(image, ImageError):
                raise image
        return torch.stack(images)  # type: ignore[arg-type]

    def _try(self, index: int) -> Tensor | ImageError:
        try:
            return read_image(self.paths[index], self.preprocessing)
        except ImageError as error:
            return ImageError(error.code, f"{self.paths[index]}: {error}")


def content_hashes(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of each file's content; of its name, where it cannot be read (which reading it will report)."""

    def digest(path: Path) -> str:
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError:
            return hashlib.sha256(os.fsencode(path)).hexdigest()

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(digest, paths))


def split_calibration(hashes: Sequence[str], fraction: float, least: int = 20) -> tuple[list[int], list[int]]:
    """Indices to train on and to calibrate on, by each file's content hash.

    Names and order do not matter, and two copies of one image under different names fall on the same side: otherwise
    one would be trained on and calibrated with. At least `least` distinct images, but never more than half, go to
    calibration.

    >>> train, held_out = split_calibration([f"{i:064x}" for i in range(100)], 0.1)
    >>> len(train), len(held_out)
    (80, 20)
    """
    distinct = sorted(set(hashes), key=lambda h: hashlib.sha256(h.encode()).digest())
    count = min(max(round(fraction * len(distinct)), least), len(distinct) // 2) if fraction > 0 else 0
    chosen = set(distinct[:count])
    train = [i for i, h in enumerate(hashes) if h not in chosen]
    held_out: dict[str, int] = {}
    for i, h in enumerate(hashes):
        if h in chosen:
            held_out.setdefault(h, i)  # one copy is enough: repeats would count one image twice
    return train, sorted(held_out.values())
