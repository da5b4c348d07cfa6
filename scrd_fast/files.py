# SPDX-License-Identifier: Apache-2.0
"""Writing files so that a reader never sees half of one, and reading those that may be half."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["nearest", "read_record", "replacing", "write_atomically"]

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


def write_atomically(path: str | Path, data: bytes | memoryview) -> None:
    """Write `data` to `path`: after a crash the file holds all of it, or what it held before.

    The bytes go to a hidden file beside the target, are forced to the disk, and the file is then renamed.
    The folder must exist. The file's permissions follow the umask, as with `open`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     target = Path(folder) / "a.json"
    ...     write_atomically(target, b"{}")
    ...     target.read_bytes()
    b'{}'
    """
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: str | Path, *, first_wins: bool = False, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends, whole as with `write_atomically`; for large ones.

    After an error in the block `path` is what it was. With `first_wins` a file that is there by then stays: of several
    writers the first wins. `mode` is that of a new file, before the umask.
    """
    path = Path(path)
    # A name of its own per call: two writers of one target must not share a temporary file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with os.fdopen(os.open(temporary, _NEW, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not first_wins or not _named_too(temporary, path):
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _named_too(temporary: Path, path: Path) -> bool:
    """Give a file a second name, unless another has it; False where neither can be."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return True
    except OSError:  # no hard links there; in the instant after this line the last of several writers wins
        return path.exists()
    return True


def _sync_folder(folder: Path) -> None:
    """Force a rename to the disk, where the platform lets a folder be opened (Windows does not)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        # Some network file systems refuse to sync a folder; the file itself is already complete and synced.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def nearest(path: Path) -> str:
    """What an error about a missing path adds: the most similar name beside it, or nothing.

    >>> nearest(Path("/no/such/folder/file"))
    ''
    """
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def read_record(path: Path) -> dict[str, Any]:
    """A JSON object. Nothing where there is no file, or where it holds something else."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
