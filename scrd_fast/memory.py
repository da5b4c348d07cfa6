# SPDX-License-Identifier: Apache-2.0
"""How this process asks for memory. Imports nothing heavy."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed for the next allocation; whether it could be told so.

    A training step on a CPU allocates and frees gigabytes. By default large pieces go back to the kernel at once, and
    come anew as pages that are filled with zeros when they are first touched: a quarter of a step's time. For programs
    that own their process, not for libraries.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not every C library has it
    return mallopt is not None and bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
