# SPDX-License-Identifier: Apache-2.0
"""Reading many images: all of them checked before work begins, as many as fit kept in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from scrd_fast.config import Preprocessing
from scrd_fast.data.reading import read_image
from scrd_fast.errors import DataError, ImageError

__all__ = ["ImageStore", "content_hashes", "split_calibration"]

CACHE_BYTES = 2**32
THREADS = 4  # decoding and resizing release the interpreter's lock


class ImageStore:
    """Images by index, float32 [3, S, S] in [0, 1], read once and kept while they fit into `cache_bytes`."""

    def __init__(self, paths: Sequence[Path], preprocessing: Preprocessing, cache_bytes: int = CACHE_BYTES) -> None:
        self.paths = list(paths)
        self.preprocessing = preprocessing
        self._room = cache_bytes // (3 * preprocessing.size**2 * 4)
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = self._kept.get(index)
        if image is None:
            try:
                image = read_image(self.paths[index], self.preprocessing)
            except ImageError as error:
                raise ImageError(error.code, f"{self.paths[index]}: {error}") from None
            if len(self._kept) < self._room:
                self._kept[index] = image
        return image

    def batch(self, indices: Sequence[int]) -> Tensor:
        """[len(indices), 3, S, S]."""
        with ThreadPoolExecutor(THREADS) as pool:
            return torch.stack(list(pool.map(self.__getitem__, indices)))

    def check(self, root: Path) -> None:
        """Read every image once. Raises `DataError` that lists all files that cannot be used."""

        def problem(index: int) -> str | None:
            try:
                self[index]
            except ImageError as error:
                return str(error)
            return None

        with ThreadPoolExecutor(THREADS) as pool:
            problems = [p for p in pool.map(problem, range(len(self))) if p is not None]
        if problems:
            raise DataError(root, problems)


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
