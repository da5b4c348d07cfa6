# SPDX-License-Identifier: Apache-2.0
"""How much a file may ask for: checked against what it announces, before memory is taken."""

from __future__ import annotations

import stat
from pathlib import Path

from scrd_fast.errors import ImageError

__all__ = [
    "MAX_BYTES",
    "MAX_FRAMES",
    "MAX_PIXELS",
    "MAX_VOXELS",
    "check_frames",
    "check_kind",
    "check_pixels",
    "check_size",
    "check_volume",
]

MAX_BYTES = 2 * 2**30  # of a file, of a member of an archive, and of what a compressed volume unfolds to
MAX_PIXELS = 100_000_000  # of one picture
MAX_VOXELS = 2**29  # of a volume
MAX_FRAMES = 100_000  # of a file


def check_size(source: Path | bytes) -> None:
    """Raises `ImageError`, and `OSError` where nothing is there."""
    size = len(source) if isinstance(source, bytes) else check_kind(source)
    if size > MAX_BYTES:
        raise ImageError("too-large", f"{size} bytes, at most {MAX_BYTES} are read", refused=True)


def check_kind(path: Path) -> int:
    """A file's bytes. Raises `ImageError` for what is none: a pipe would be waited for."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe, socket or device"
        raise ImageError("not-a-file", f"expected a file, got a {kind}")
    return status.st_size


def check_pixels(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ImageError("no-pixels", f"{width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise ImageError("too-large", f"{width} x {height} pixels, at most {MAX_PIXELS} are read", refused=True)


def check_frames(count: int) -> None:
    if count > MAX_FRAMES:
        raise ImageError("too-large", f"{count} images, at most {MAX_FRAMES} of a file are read", refused=True)


def check_volume(voxels: int, size: int) -> None:
    """`size`: bytes that are to be read, unfolded."""
    if voxels < 1:
        raise ImageError("no-pixels", "a volume without voxels")
    if voxels > MAX_VOXELS:
        raise ImageError("too-large", f"{voxels} voxels, at most {MAX_VOXELS} are read", refused=True)
    if size > MAX_BYTES:
        raise ImageError("too-large", f"{size} bytes of voxels, at most {MAX_BYTES} are read", refused=True)
