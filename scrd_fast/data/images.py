# SPDX-License-Identifier: Apache-2.0
"""Reading many images: all of them checked before work begins, as many as fit kept in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scrd_fast.choices import Cache
from scrd_fast.config import Preprocessing
from scrd_fast.data.arrays import read_array
from scrd_fast.data.cache import TensorCache, place_for
from scrd_fast.data.datasets import Item
from scrd_fast.data.frames import Frame
from scrd_fast.data.reading import read_frame, read_frames
from scrd_fast.errors import DataError, ImageError

__all__ = ["ImageStore", "content_hashes", "hashes_of", "split_calibration"]

THREADS = 4  # decoding and resizing release the interpreter's lock
CHUNK = 64  # images of one tile that a check holds at once, where they are not kept


class ImageStore:
    """Images by index, float32 [3, P, P] in [0, 1], P = `preprocessing.canvas`.

    They are read once and kept in memory or in a memory-mapped file.

    `cache`: memory, disk (a file in `folder`), auto (where they all fit, memory before disk), or off: then each is
    read anew, several at a time. Raises `ScrdFastError` where they do not fit into the place that is asked for.
    """

    def __init__(
        self, items: Sequence[Item], preprocessing: Preprocessing, cache: Cache = "auto", folder: Path | None = None
    ) -> None:
        self.items = list(items)
        self.preprocessing = preprocessing
        self._pool = ThreadPoolExecutor(THREADS)
        shape = (3, preprocessing.canvas, preprocessing.canvas)
        place = place_for(4 * len(self.items) * prod(shape), folder) if cache == "auto" else cache
        self._cache = None
        if place is not None and place != "off":
            self._cache = TensorCache(
                len(self.items), [shape], torch.float32, place, what="pixels (--cache)", folder=folder
            )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor:
        return self.batch([index])[0]

    def batch(self, indices: Sequence[int]) -> Tensor:
        """[len(indices), 3, P, P]. One thread at a time. Raises `ImageError` that names the file."""
        if self._cache is None:
            return self._read(indices)
        return self._cache.batch(indices, lambda missing: [self._read(missing)])[0]

    def batches(self, size: int) -> Iterator[Tensor]:
        """All images in order, `size` at a time, the last batch perhaps smaller. Raises as `batch` does."""
        for start in range(0, len(self), size):
            yield self.batch(range(start, min(start + size, len(self))))

    def check(self, root: Path) -> None:
        """Read every image once. Raises `DataError` that lists all files that cannot be used."""
        problems: dict[str, None] = {}  # each once, also where it is that of many images of one file
        chunk = max(THREADS, CHUNK // self.preprocessing.tiles**2)
        for first in range(0, len(self), chunk):
            found = self._read_all(range(first, min(first + chunk, len(self))))
            good = {i: frame.pixels for i, frame in found.items() if isinstance(frame, Frame)}
            problems.update({str(error): None for error in found.values() if isinstance(error, ImageError)})
            if self._cache is not None and good:
                self._cache.batch(list(good), lambda missing, good=good: [torch.stack([good[i] for i in missing])])  # type: ignore[misc]
        if problems:
            raise DataError(root, list(problems))

    def frames(self, size: int) -> Iterator[list[Frame]]:
        """All images as `batches` has them, with what is known of each; read anew."""
        for start in range(0, len(self), size):
            yield self._frames(range(start, min(start + size, len(self))))

    def _read(self, indices: Sequence[int]) -> Tensor:
        return torch.stack([frame.pixels for frame in self._frames(indices)])

    def _frames(self, indices: Sequence[int]) -> list[Frame]:
        found = self._read_all(indices)
        for frame in found.values():
            if isinstance(frame, ImageError):
                raise frame
        return [found[i] for i in indices]  # type: ignore[misc]

    def _read_all(self, indices: Sequence[int]) -> dict[int, Frame | ImageError]:
        """Each file is opened once for all of its images that are asked for."""
        by_file: dict[Path, list[int]] = {}
        for i in dict.fromkeys(indices):
            by_file.setdefault(self.items[i].path, []).append(i)
        return {i: frame for part in self._pool.map(self._read_file, by_file.values()) for i, frame in part.items()}

    def _read_file(self, indices: Sequence[int]) -> dict[int, Frame | ImageError]:
        item = self.items[indices[0]]
        if item.pixels is not None:
            read = read_array(item.pixels, self.preprocessing)
            return {
                i: ImageError(read.code, f"{item.path}: {read}") if isinstance(read, ImageError) else read
                for i in indices
            }
        path, wanted = item.path, {self.items[i].frame for i in indices}
        found: dict[int | None, Frame] = {}
        lost = ImageError("no-frame", "holds fewer images than it announced")
        try:
            if None in wanted:
                found[None] = read_frame(path, self.preprocessing)
            if numbers := wanted - {None}:
                found |= {frame.index: frame for frame in read_frames(path, self.preprocessing, numbers)}  # type: ignore[arg-type]
        except ImageError as error:
            lost = error
        named = ImageError(lost.code, f"{path}: {lost}")
        return {i: found.get(self.items[i].frame, named) for i in indices}


def content_hashes(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of each file's content; of its name, where it cannot be read (which reading it will report)."""

    def digest(path: Path) -> str:
        hashed = hashlib.sha256()
        try:
            with path.open("rb") as file:
                while part := file.read(2**20):
                    hashed.update(part)
        except OSError:
            return hashlib.sha256(os.fsencode(path)).hexdigest()
        return hashed.hexdigest()

    distinct = list(dict.fromkeys(paths))  # a file of many images is read once
    with ThreadPoolExecutor(THREADS) as pool:
        known = dict(zip(distinct, pool.map(digest, distinct), strict=True))
    return [known[path] for path in paths]


def hashes_of(items: Sequence[Item]) -> list[str]:
    """`content_hashes` of the items' files, and the same of pixels in memory."""

    def digest(pixels: npt.NDArray[np.generic]) -> str:
        return hashlib.sha256(f"{pixels.dtype.str} {pixels.shape} ".encode() + pixels.tobytes()).hexdigest()

    on_disk = iter(content_hashes([item.path for item in items if item.pixels is None]))
    return [next(on_disk) if item.pixels is None else digest(item.pixels) for item in items]


def split_calibration(
    hashes: Sequence[str], fraction: float, least: int = 20, *, frames: Sequence[int | None] | None = None
) -> tuple[list[int], list[int]]:
    """Indices to train on and to calibrate on, by each file's content hash; `frames`: the images' numbers in the files.

    Names and order do not matter. Two copies of one image under different names fall on the same side, and so do all
    images of one file: otherwise one would be trained on and calibrated with. About `fraction` of the distinct images
    and at least `least`, but never more than half, go to calibration.

    >>> train, held_out = split_calibration([f"{i:064x}" for i in range(100)], 0.1)
    >>> len(train), len(held_out)
    (80, 20)
    """
    images: dict[str, dict[int | None, int]] = {}  # by file: one copy is enough, repeats would count one image twice
    for i, (h, frame) in enumerate(zip(hashes, frames or [None] * len(hashes), strict=True)):
        images.setdefault(h, {}).setdefault(frame, i)
    total = sum(map(len, images.values()))
    wanted = min(max(round(fraction * total), least), total // 2) if fraction > 0 else 0
    held_out: list[int] = []
    chosen = set()
    for h in sorted(images, key=lambda h: hashlib.sha256(h.encode()).digest()):
        if len(held_out) < wanted and len(held_out) + len(images[h]) <= total // 2:
            chosen.add(h)
            held_out += images[h].values()
    return [i for i, h in enumerate(hashes) if h not in chosen], sorted(held_out)
