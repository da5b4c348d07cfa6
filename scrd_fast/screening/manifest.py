# SPDX-License-Identifier: Apache-2.0
"""What is to be screened: a list of distinct files in a fixed order, and its hash."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from scrd_fast.data.reading import EXTENSIONS
from scrd_fast.errors import ScrdFastError

__all__ = ["input_id", "list_inputs", "manifest_hash"]


def list_inputs(inputs: Sequence[Path]) -> list[Path]:
    """Files as they are named, folders as the images below them, sorted; each path once.

    A file that is named stays, whatever it is: it ends as a row, if need be as a failed one. In a folder only
    files with an image's extension count. Raises `ScrdFastError` for an input that does not exist or a folder
    without images.
    """
    found: dict[Path, None] = {}
    for given in inputs:
        if given.is_dir():
            files = _walk(given)
            if not files:
                raise ScrdFastError(f"{given}: no images there (known are {', '.join(EXTENSIONS)})")
            found.update(dict.fromkeys(files))
        elif given.exists():
            found[given] = None
        else:
            raise ScrdFastError(f"{given}: no such file or folder{_near(given)}")
    return list(found)


def _walk(folder: Path) -> list[Path]:
    files = []
    for root, folders, names in os.walk(folder):
        folders.sort()
        files += [Path(root, name) for name in sorted(names) if name.lower().endswith(EXTENSIONS)]
    return files


def _near(path: Path) -> str:
    import difflib

    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def input_id(path: Path) -> str:
    """Sixteen hex digits of the path's hash: the same input has the same id in every run."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def manifest_hash(paths: Sequence[Path]) -> str:
    """SHA-256 of the list."""
    return hashlib.sha256(b"\0".join(os.fsencode(p) for p in paths)).hexdigest()
