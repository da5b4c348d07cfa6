# SPDX-License-Identifier: Apache-2.0
"""All cases. An operator's cases stand in a module of their own and are joined here."""

from __future__ import annotations

from collections.abc import Sequence

from scrd_fast.bench import distances, maps, simplex
from scrd_fast.bench.harness import Case

__all__ = ["find", "operators", "select"]

CASES: tuple[Case, ...] = distances.CASES + maps.CASES + simplex.CASES


def operators() -> list[str]:
    return sorted({case.op for case in CASES})


def select(ops: Sequence[str] = (), quick: bool = False) -> list[Case]:
    """The cases of `ops` (all of them by default), or the few quick ones. ValueError for an unknown operator."""
    for op in ops:
        if op not in operators():
            raise ValueError(f"--op must be one of {', '.join(operators())}, got {op!r}")
    return [c for c in CASES if (not ops or c.op in ops) and (c.quick or not quick)]


def find(op: str, name: str) -> Case:
    return next(case for case in CASES if (case.op, case.name) == (op, name))
