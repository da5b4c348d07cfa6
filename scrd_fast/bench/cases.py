# SPDX-License-Identifier: Apache-2.0
"""All cases. An operator's cases stand in a module of their own and are joined here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from scrd_fast.bench import distances, maps, simplex
from scrd_fast.bench.harness import Case

__all__ = ["find", "operators", "select"]

CASES: tuple[Case, ...] = maps.CASES + distances.CASES + simplex.CASES


def operators() -> list[str]:
    return sorted({case.op for case in CASES})


def select(ops: Sequence[str] = (), quick: bool = False) -> list[Case]:
    """The cases of `ops` (all of them by default), or the few quick ones: the first one of every operator, then the
    second ones, so that a run that is short of time has some of each. ValueError for an unknown operator."""
    for op in ops:
        if op not in operators():
            raise ValueError(f"--op must be one of {', '.join(operators())}, got {op!r}")
    places: Counter[str] = Counter()
    found: list[tuple[int, Case]] = []
    for case in CASES:
        if (not ops or case.op in ops) and (case.quick or not quick):
            found.append((places[case.op], case))
            places[case.op] += 1
    return [case for _, case in sorted(found, key=lambda pair: pair[0])]


def find(op: str, name: str) -> Case:
    return next(case for case in CASES if (case.op, case.name) == (op, name))
