# SPDX-License-Identifier: Apache-2.0
"""Frames become batches, which follow from the files and their order alone."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import NamedTuple

from torch import Tensor

from scrd_fast.data.frames import About, Frame, Original
from scrd_fast.errors import ImageError
from scrd_fast.screening.readers import Found, Job

__all__ = ["Batch", "Check", "Part", "batches"]

PARTS = 4  # times as many files or frames, with errors, as a batch has pictures

Check = Callable[[About], tuple[list[str], ImageError | None]]  # flags, and why a picture is refused


class Part(NamedTuple):
    """What came of a file or frame before the model has seen it."""

    job: Job
    frame: int | None  # None: the file could not be opened
    about: About | None
    flags: list[str]
    error: ImageError | None  # None: its picture is the next of the batch
    original: Original | None = None


class Batch(NamedTuple):
    """Pictures for the model, and everything that belongs before and between them."""

    images: Tensor  # [n, 3, P, P] in [0, 1]
    parts: list[Part]


def batches(
    found: Iterable[Found], size: int, empty: Callable[[], Tensor], check: Check
) -> Generator[Batch, None, None]:
    """Batches of `size` pictures, of fewer at the end of a group and among errors.

    `empty` gives memory [size, 3, P, P] for one.
    """
    images, count, parts = empty(), 0, list[Part]()
    for job, item in found:
        if parts and parts[-1].job.group != job.group:
            yield Batch(images[:count], parts)
            images, count, parts = empty(), 0, []
        part = _part(job, item, check)
        parts.append(part)
        if part.error is None and isinstance(item, Frame):
            images[count] = item.pixels
            count += 1
        if count == size or len(parts) == PARTS * size:  # errors need not wait for pictures that may never come
            yield Batch(images[:count], parts)
            images, count, parts = empty(), 0, []
    if parts:
        yield Batch(images[:count], parts)


def _part(job: Job, item: Frame | ImageError, check: Check) -> Part:
    if isinstance(item, ImageError):
        return Part(job, None, None, [], item)
    flags, error = check(item.about)
    return Part(job, item.index, item.about, flags, error, item.original)
