# SPDX-License-Identifier: Apache-2.0
"""How much memory there is, and how this process asks for it. Imports nothing heavy: the build uses it too."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
from pathlib import Path

__all__ = [
    "free_memory",
    "give_back_freed_memory",
    "keep_freed_memory",
    "memory_limit",
    "process_bytes",
    "total_memory",
]

_GROUPS = Path("/sys/fs/cgroup")
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


def give_back_freed_memory() -> bool:
    """Let the C library return to the kernel what is free; whether it could be told so. For measurements."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    return trim is not None and bool(trim(0))


def free_memory() -> int:
    """Bytes that can still be had: of the machine, or of what control groups leave where that is less."""
    try:
        free = _of_machine("MemAvailable")
    except (OSError, KeyError, ValueError):  # no Linux
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return max(min([free, *(limit - used for limit, used in _of_groups())]), 0)


def total_memory() -> int:
    """Bytes of the machine. Raises OSError where the system does not say."""
    return _of_machine("MemTotal")


def memory_limit() -> int | None:
    """The least limit of this process's control groups, in bytes; None without."""
    return min((limit for limit, _ in _of_groups() if limit < 2**60), default=None)  # version 1 has a huge one for none


def _of_machine(field: str) -> int:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields[field].split()[0]) * 1024


def _of_groups() -> list[tuple[int, int]]:
    """Limit and use of this process's control groups, of both versions, and of those that they are in."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return []
    found = []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "memory" not in controllers.split(","):
            continue
        root = _GROUPS / "memory" if controllers else _GROUPS
        own = root / path.lstrip("/")
        folders = [own, *(parent for parent in own.parents if parent.is_relative_to(root))]
        found += [_of_group(folder, old=bool(controllers)) for folder in folders]
    return [group for group in found if group is not None]


def _of_group(folder: Path, *, old: bool) -> tuple[int, int] | None:
    """Without cached files, which make room when it is needed."""
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else ("memory.max", "memory.current")
    try:
        limit, used = (int((folder / name).read_text()) for name in names)
    except (OSError, ValueError):  # no such group, or "max"
        return None
    try:
        stat = (folder / "memory.stat").read_text()
    except OSError:
        return limit, used
    cached = re.search(r"^total_inactive_file (\d+)$" if old else r"^inactive_file (\d+)$", stat, re.MULTILINE)
    return limit, used - int(cached[1] if cached else 0)


def process_bytes(field: str, pid: int | str = "self", file: str = "status") -> int:
    """What the kernel says in a file of /proc/PID; 0 where there is none, as of a process that has just ended. `VmHWM`
    is the largest resident set since the process began; `ru_maxrss` would begin with that of the one that started it.

    >>> process_bytes("VmHWM") >= 0, process_bytes("VmHWM", pid="nobody")
    (True, 0)
    """
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0
