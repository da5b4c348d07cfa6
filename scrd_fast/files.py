# SPDX-License-Identifier: Apache-2.0
"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import difflib
import os
import secrets
from pathlib import Path

__all__ = ["nearest", "write_atomically"]


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
    path = Path(path)
    # A name of its own per call: two writers of one target must not share a temporary file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


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
