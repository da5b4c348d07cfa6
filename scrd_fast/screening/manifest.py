# SPDX-License-Identifier: Apache-2.0
"""What is to be screened: a list of distinct files in a fixed order, and its hash."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from scrd_fast.data.reading import EXTENSIONS
from scrd_fast.errors import ScrdFastError
from scrd_fast.files import nearest

__all__ = ["input_id", "list_inputs", "manifest_hash"]


def list_inputs(inputs: Sequence[Path], out: Path | None = None) -> list[Path]:
    """Files as they are named, folders as the images below them, sorted; each path once.

    Hidden files and what lies in `out`, a run's own results, are passed over.

    A file that is named stays, whatever it is: it ends as a row, if need be as a failed one. In a folder only
    files with an image's extension count. Raises `ScrdFastError` for an input that does not exist or a folder
    without images.
    """
    found: dict[Path, None] = {}
    for given in inputs:
        if given.is_dir():
            files = _walk(given, out)
            if not files:
                raise ScrdFastError(f"{given}: no images there (known are {', '.join(EXTENSIONS)})")
            found.update(dict.fromkeys(files))
        elif given.exists():
            found[given] = None
        else:
            raise ScrdFastError(f"{given}: no such file or folder{nearest(given)}")
    return list(found)


def _walk(folder: Path, out: Path | None) -> list[Path]:
    own = None if out is None else out.resolve()
    files = []
    for root, folders, names in os.walk(folder, followlinks=False):
        folders[:] = sorted(f for f in folders if f[0] != "." and (own is None or Path(root, f).resolve() != own))
        files += [Path(root, name) for name in sorted(names) if name.lower().endswith(EXTENSIONS) and name[0] != "."]
    return files


def input_id(path: Path) -> str:
    """Sixteen hex digits of the path's hash: the same input has the same id in every run."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def manifest_hash(paths: Sequence[Path]) -> str:
    """SHA-256 of the list."""
    return hashlib.sha256(b"\0".join(os.fsencode(p) for p in paths)).hexdigest()
