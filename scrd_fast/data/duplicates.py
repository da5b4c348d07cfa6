# SPDX-License-Identifier: Apache-2.0
"""Test images that are training images too: byte for byte, or the same picture stored otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from scrd_fast.config import Preprocessing
from scrd_fast.data.images import THREADS
from scrd_fast.data.listing import shortened
from scrd_fast.data.reading import read_image
from scrd_fast.errors import DataError, ImageError, MissingExtraError

__all__ = ["NEAR", "Duplicates", "find_duplicates", "imagehash_library", "perceptual_hashes"]

SIDE = 16  # bits of a perceptual hash, height and width
NEAR = 40  # of its 256 bits may differ: docs/data.md says how that was chosen
_ROWS = 256  # test images compared at once: 8000 training images then take 8 MB


@dataclass(frozen=True)
class Duplicates:
    """Of a test image's number the numbers of the training images that it is a duplicate of, nearest first."""

    exact: dict[int, list[int]]
    near: dict[int, list[tuple[int, int]]]  # with the distance, in bits; exact ones are not among them

    @property
    def tested(self) -> set[int]:
        return set(self.exact) | set(self.near)

    @property
    def trained(self) -> set[int]:
        exact = {j for found in self.exact.values() for j in found}
        return exact | {j for found in self.near.values() for j, _ in found}


def imagehash_library() -> Any:
    """Raises `MissingExtraError`."""
    try:
        import imagehash
    except ImportError:
        raise MissingExtraError("ImageHash", "model") from None
    return imagehash


def perceptual_hashes(
    paths: Sequence[Path], root: Path, advance: Callable[[int], None] = lambda done: None
) -> npt.NDArray[np.bool_]:
    """[N, 256]: signs of an image's lowest spatial frequencies, about their median (`phash` of the package ImageHash).

    Files are read as for training, so that DICOM counts as well. Raises `DataError` that lists all that cannot be.
    """
    library = imagehash_library()
    preprocessing = Preprocessing(size=4 * SIDE)  # what `phash` would resize to: its factor for high frequencies is 4

    def of(path: Path) -> npt.NDArray[np.bool_] | str:
        try:
            gray = read_image(path, preprocessing).mean(0)
        except ImageError as error:
            return f"{path.relative_to(root)}: {error}"
        pixels = (255 * gray).round().byte().numpy()
        return np.asarray(library.phash(Image.fromarray(pixels), hash_size=SIDE).hash, dtype=np.bool_).ravel()

    hashes = np.zeros((len(paths), SIDE * SIDE), np.bool_)
    problems = []
    with ThreadPoolExecutor(THREADS) as pool:
        for i, found in enumerate(pool.map(of, paths)):
            if isinstance(found, str):
                problems.append(found)
            else:
                hashes[i] = found
            advance(i + 1)
    if problems:
        raise DataError(root, shortened(problems))
    return hashes


def find_duplicates(
    train: Sequence[str], test: Sequence[str], train_bits: npt.NDArray[np.bool_], test_bits: npt.NDArray[np.bool_]
) -> Duplicates:
    """By the hashes of contents (`train`, `test`) and perceptual hashes ([N, 256], [M, 256])."""
    by_content: dict[str, list[int]] = {}
    for j, content in enumerate(train):
        by_content.setdefault(content, []).append(j)
    exact = {i: by_content[content] for i, content in enumerate(test) if content in by_content}
    near: dict[int, list[tuple[int, int]]] = {}
    signs = np.where(train_bits, 1, -1).astype(np.float32)
    for start in range(0, len(test), _ROWS):
        part = np.where(test_bits[start : start + _ROWS], 1, -1).astype(np.float32)
        distances = (train_bits.shape[1] - part @ signs.T) / 2  # of two vectors of signs: how many differ
        for row, j in zip(*np.nonzero(distances <= NEAR), strict=True):
            i = start + int(row)
            if test[i] != train[j]:
                near.setdefault(i, []).append((int(j), int(distances[row, j])))
    for found in near.values():
        found.sort(key=lambda pair: (pair[1], pair[0]))
    return Duplicates(exact, near)
