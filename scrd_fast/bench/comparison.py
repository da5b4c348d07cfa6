# SPDX-License-Identifier: Apache-2.0
"""What changed from one run's JSON to another's, and whether anything got worse."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scrd_fast.bench.results import COLUMNS, KEY, Results, seconds, unfinished
from scrd_fast.errors import ScrdFastError

__all__ = ["Change", "Comparison", "Lost", "compare"]

SHOWN = 8  # names of cases in one note


@dataclass(frozen=True)
class Change:
    """Of a median by more than the tolerance. `factor` is new by old: above 1 it takes longer."""

    row: dict[str, str]  # what names it: results.KEY
    column: str
    before_s: float
    after_s: float
    factor: float

    def __str__(self) -> str:
        slower = self.factor > 1
        how = f"{self.factor:.3g} times as long" if slower else f"{1 / self.factor:.3g} times as fast"
        times = f"{seconds(self.before_s)} -> {seconds(self.after_s)}"
        return f"{'worse' if slower else 'better'}: {_name(self.row)}: {self.column} {times}, {how}"


@dataclass(frozen=True)
class Lost:
    """A row that was ok and is no longer."""

    row: dict[str, str]
    reason: str

    def __str__(self) -> str:
        return f"worse: {_name(self.row)}: was ok, is {self.reason}"


@dataclass(frozen=True)
class Comparison:
    tolerance: float
    compared: int  # rows that are ok in both
    notes: list[str]  # what makes the two hard to compare
    lost: list[Lost]
    changes: list[Change]  # the largest factor first

    @property
    def worse(self) -> bool:
        return bool(self.lost) or any(change.factor > 1 for change in self.changes)

    def __str__(self) -> str:
        slower = len({tuple(c.row.values()) for c in self.changes if c.factor > 1})
        faster = len({tuple(c.row.values()) for c in self.changes if c.factor < 1})
        last = f"{self.compared} rows compared: {slower} slower and {faster} faster by more than {self.tolerance:.0%}"
        last += f", {len(self.lost)} lost" if self.lost else ""
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([*notes, *map(str, self.lost), *map(str, self.changes), last])

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"worse": self.worse} | dataclasses.asdict(self)


def _name(row: dict[str, str]) -> str:
    return ", ".join(part for part in row.values() if part)


def compare(before: Results, after: Results, tolerance: float) -> Comparison:
    """`tolerance` is a share of the median. Worse is a time that grew by more, and a row that was ok and is no longer;
    cases that the new run does not have are noted. ScrdFastError where no case is in both."""
    old, new = _by_key(before), _by_key(after)
    if not _cases(old) & _cases(new):
        raise ScrdFastError("the two results have no case in common: nothing to compare")
    lost, changes, compared, left_out = [], [], 0, 0
    for key, row in old.items():
        if row["status"] != "ok" or key[:2] not in _cases(new):
            continue
        name, found = dict(zip(KEY, key, strict=True)), new.get(key)
        if found is None and before["quick"] != after["quick"]:
            left_out += 1
        elif found is None:
            lost.append(Lost(name, "absent"))
        elif found["status"] != "ok":
            lost.append(Lost(name, f"{found['status']} ({found['reason']})"))
        else:
            compared += 1
            changes += _changes(name, row["times"], found["times"], tolerance)
    notes = _differences(before, after) + _only_in("old", old, new) + _only_in("new", new, old)
    if left_out:
        notes.append(f"{left_out} rows of the old run are in no {_kind(after)} one")
    return Comparison(tolerance, compared, notes, lost, sorted(changes, key=lambda change: -change.factor))


def _changes(name: dict[str, str], old: dict[str, Any], new: dict[str, Any], tolerance: float) -> list[Change]:
    pairs = [(c, old[c]["median"], new[c]["median"]) for c in COLUMNS if c in old and c in new]
    return [
        Change(name, column, a, b, b / max(a, 1e-12))
        for column, a, b in pairs
        if b > a * (1 + tolerance) or b * (1 + tolerance) < a
    ]


def _by_key(results: Results) -> dict[tuple[str, ...], dict[str, Any]]:
    return {tuple(row[name] for name in KEY): row for row in results["rows"]}


def _cases(rows: dict[tuple[str, ...], Any]) -> set[tuple[str, ...]]:
    return {key[:2] for key in rows}


def _only_in(which: str, rows: dict[tuple[str, ...], Any], others: dict[tuple[str, ...], Any]) -> list[str]:
    names = [": ".join(case) for case in dict.fromkeys(key[:2] for key in rows) if case not in _cases(others)]
    more = [f"{len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return [f"only the {which} run has {', '.join(names[:SHOWN] + more)}"] if names else []


def _differences(before: Results, after: Results) -> list[str]:
    runs = ("old", before), ("new", after)
    notes = [f"the {name} run was not finished" for name, run in runs if unfinished(run)]
    facts: Sequence[tuple[str, Any, Any]] = (
        ("processor", before["machine"]["cpu"], after["machine"]["cpu"]),
        ("flags of the processor", before["machine"].get("flags"), after["machine"].get("flags")),
        ("GPU", before["machine"]["gpu"], after["machine"]["gpu"]),
        ("threads", before["threads"], after["threads"]),
        ("kinds of run", _kind(before), _kind(after)),
    )
    notes += [f"different {title}: {_shown(a)} and {_shown(b)}" for title, a, b in facts if a != b]
    a, b = before["versions"], after["versions"]
    changed = [f"{name} {a.get(name)} and {b.get(name)}" for name in {**a, **b} if a.get(name) != b.get(name)]
    return notes + ([f"different versions: {', '.join(changed)}"] if changed else [])


def _shown(fact: Any) -> str:
    if isinstance(fact, list):
        return " ".join(fact)
    return str(fact.get("name", fact) if isinstance(fact, dict) else fact or "none")


def _kind(run: Results) -> str:
    return "quick" if run["quick"] else "full"
