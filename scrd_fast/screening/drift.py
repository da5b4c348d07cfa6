# SPDX-License-Identifier: Apache-2.0
"""Whether the pictures of a screening run are like those of its calibration, from its table alone.

OUT/results/part-*.parquet   read
OUT/calibration.json         read, where no other run is named
OUT/drift.json               every quantity with its distance, interval, test and verdict; the alarm and its reasons
OUT/drift.png                distributions of the run and of its reference
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from scrd_fast.calibration import Calibration
from scrd_fast.console import Console
from scrd_fast.data.facts import PIXELS, TAGS
from scrd_fast.errors import ScrdFastError
from scrd_fast.files import write_atomically
from scrd_fast.plots import draw_shifts
from scrd_fast.screening.report import load_json, tables
from scrd_fast.shifts import LEAST, Shift, adjusted, compare_counts, compare_numbers

__all__ = ["SAMPLE", "Pictures", "Quantity", "compare", "drift"]

SAMPLE = 10_000  # pictures of a run that are compared; of more, those whose ids have the smallest hashes
LEVEL = 0.05  # of all tests together
NUMBERS = ("score", "score_low", *PIXELS)
_COLUMNS = ["sample_id", "status", "score", *PIXELS, *TAGS]
_UNKNOWN = "not known of the {}"
_FEW = f"fewer than {LEAST} pictures"
_Numbers = npt.NDArray[np.float64]
_Counts = dict[str, int]


@dataclass(frozen=True)
class Pictures:
    """Some pictures: by name their score and pixel statistics, [N] each, and how often each word of a tag was seen.

    A tag that a picture lacks is counted as "". `model` is the fingerprint of the model that scored them, None where it
    is not known; `about` says where they are from.
    """

    numbers: Mapping[str, _Numbers]
    tags: Mapping[str, _Counts]
    model: str | None = None
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Quantity:
    """One quantity of a run and its reference: `columns` are what was compared, None where that was not possible."""

    name: str
    columns: tuple[_Numbers, _Numbers] | tuple[_Counts, _Counts] | None = None
    shift: Shift | None = None
    p_adjusted: float | None = None  # None: it cannot raise the alarm
    verdict: str = "not-compared"  # or shifted, alike, undecided
    note: str | None = None

    def told(self) -> dict[str, Any]:
        values = {"name": self.name, "verdict": self.verdict}
        values |= asdict(self.shift) if self.shift else {}
        return values | {k: v for k, v in (("p_adjusted", self.p_adjusted), ("note", self.note)) if v is not None}


def drift(console: Console, out: Path, reference: Path | None, bound: float) -> int:
    """Compare the run in `out` with its calibration, or with another run. Returns the exit code: 1 for an alarm."""
    run = _of_run(out)
    known = _of_calibration(out) if reference is None else _of_run(reference)
    quantities = compare(run, known, bound)
    reasons = [_text(q) for q in quantities if q.verdict == "shifted" and q.p_adjusted is not None]
    content = {
        "alarm": bool(reasons),
        "reasons": reasons,
        "bound": bound,
        "run": run.about,
        "reference": known.about,
        "quantities": [q.told() for q in quantities],
    }
    write_atomically(out / "drift.json", (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    draw_shifts(out / "drift.png", [(f"{q.name}: {q.verdict}", *q.columns) for q in quantities if q.columns])
    if load_json(out / "run.json").get("status") == "running":
        console.warn(f"the run is not finished: {run.about['pictures']} pictures so far")
    for whose, pictures in (("table", run), ("reference", known)):
        if PIXELS[0] not in pictures.numbers:
            console.warn(
                f"the {whose} was made by an earlier version, without pixel statistics: scores alone are compared"
            )
    if all(q.shift is None for q in quantities):
        console.warn("nothing could be compared")
    for line in _table(quantities):
        console.log(line)
    for text in reasons:
        console.warn(text)
    if (out / "report.html").exists():
        console.log(f"report.html says so once `scrd-fast report {out}` has written it anew")
    console.result(out / "drift.json", content)
    return int(bool(reasons))


def _of_run(out: Path) -> Pictures:
    """The pictures of a run that were scored; of more than `SAMPLE` a sample, which no order of rows changes."""
    kept, total = None, 0
    for table in tables(out, _COLUMNS, newer=(*PIXELS, *TAGS)):
        scored = table.filter(pc.equal(table["status"], "ok"))
        total += len(scored)
        keys = [hashlib.sha256(name.encode()).digest()[:8] for name in scored["sample_id"].to_pylist()]
        scored = scored.append_column("key", pa.array(keys, pa.binary(8)))
        kept = scored if kept is None else pa.concat_tables([kept, scored])
        kept = kept.sort_by("key").slice(0, SAMPLE).combine_chunks()
    assert kept is not None  # for the type checker: there is a part
    numbers = {name: kept[name].to_numpy() for name in ("score", *PIXELS) if name in kept.column_names}
    tags = {name: _counted(kept[name]) for name in TAGS if name in kept.column_names}
    model = load_json(out / "run.json").get("identity", {}).get("model_sha256")
    return Pictures(numbers, tags, model, {"kind": "run", "pictures": total, "compared": len(kept)})


def _counted(column: pa.ChunkedArray) -> dict[str, int]:
    return {pair["values"]: pair["counts"] for pair in column.fill_null("").value_counts().to_pylist()}


def _of_calibration(out: Path) -> Pictures:
    path = out / "calibration.json"
    if not path.is_file():
        raise ScrdFastError(f"{out} has no calibration to be compared with; --reference names another run")
    found = Calibration.load(path)
    numbers, tags = {"score": np.array(found.scores)}, dict[str, _Counts]()
    if found.pictures is not None:
        numbers |= {name: np.array(values) for name, values in found.pictures.pixels.items()}
        tags.update(found.pictures.tags.items())
    about = {"kind": "calibration", "id": found.id, "pictures": found.count, "compared": found.count}
    return Pictures(numbers, tags, found.model_sha256, about)


def compare(run: Pictures, reference: Pictures, bound: float) -> list[Quantity]:
    """Each quantity compared, and judged together with the others.

    `shifted`: the whole interval of the distance lies above `bound`, and the test finds it at 5 %, adjusted by Holm for
    the number of quantities; `alike`: the whole interval lies at or below `bound`; else `undecided`. Scores of abnormal
    pictures lie high, so that the `score` tells first how many these are: it raises no alarm, its lower half does,
    `score_low`, in which all scores above the reference's median are one.
    """
    found = [_numbers(name, run, reference) for name in NUMBERS] + [_words(name, run, reference) for name in TAGS]
    chances = {q.name: q.shift.p for q in found if q.shift and q.name != "score"}
    together = dict(zip(chances, adjusted(list(chances.values())), strict=True))
    return [_judged(q, together.get(q.name), bound) for q in found]


def _numbers(name: str, run: Pictures, reference: Pictures) -> Quantity:
    if name.startswith("score") and run.model and reference.model and run.model != reference.model:
        return Quantity(name, note="scored by two models")
    stored = "score" if name == "score_low" else name
    new, old = run.numbers.get(stored), reference.numbers.get(stored)
    if new is None or old is None:
        return Quantity(name, note=_UNKNOWN.format("run" if new is None else "reference"))
    if min(len(new), len(old)) < LEAST:
        return Quantity(name, note=_FEW)
    if name == "score_low":
        middle = np.median(old)
        new, old = np.minimum(new, middle), np.minimum(old, middle)
    return Quantity(name, (new, old), compare_numbers(new, old))


def _words(name: str, run: Pictures, reference: Pictures) -> Quantity:
    new, old = run.tags.get(name), reference.tags.get(name)
    if new is None or old is None:
        return Quantity(name, note=_UNKNOWN.format("run" if new is None else "reference"))
    silent = [whose for whose, counts in (("run", new), ("reference", old)) if not {*counts} - {""}]
    if silent:
        return Quantity(name, note=f"no picture of the {' and the '.join(silent)} has it")
    if min(sum(new.values()), sum(old.values())) < LEAST:
        return Quantity(name, note=_FEW)
    return Quantity(name, (new, old), compare_counts(new, old))


def _judged(quantity: Quantity, p_adjusted: float | None, bound: float) -> Quantity:
    shift = quantity.shift
    if shift is None:
        return quantity
    p = shift.p if p_adjusted is None else p_adjusted
    verdict = "alike" if shift.high <= bound else "undecided"
    if shift.low > bound and p < LEVEL:
        verdict = "shifted"
    note = "moved by abnormal pictures too: raises no alarm" if p_adjusted is None else None
    return replace(quantity, p_adjusted=p_adjusted, verdict=verdict, note=note)


def _text(quantity: Quantity) -> str:
    """A sentence of what has shifted."""
    shift = quantity.shift
    assert shift is not None  # for the type checker: it was judged
    assert quantity.columns is not None
    new, old = quantity.columns
    if isinstance(new, dict) and isinstance(old, dict):
        shares = {
            word: (100 * new.get(word, 0) / shift.n, 100 * old.get(word, 0) / shift.n_reference) for word in new | old
        }
        word = max(shares, key=lambda w: (abs(shares[w][0] - shares[w][1]), w))
        seen = "{} in {:.3g} % of the pictures, {:.3g} % of the reference's".format(word or "none", *shares[word])
    elif quantity.name == "score_low":
        below = [100 * float(np.mean(values < np.max(old))) for values in (new, old)]  # type: ignore[operator,arg-type]
        seen = "{:.3g} % of the scores lie below the reference's median, {:.3g} % of its own".format(*below)
    else:
        seen = f"median {np.median(new):.3g}, the reference's {np.median(old):.3g}"  # type: ignore[arg-type]  # both are numbers
    return f"{quantity.name} has shifted: {seen} (distance {_interval(shift)})"


def _interval(shift: Shift) -> str:
    return f"{shift.effect:.2f}, 95 % interval {shift.low:.2f} to {shift.high:.2f}"


def _table(quantities: list[Quantity]) -> list[str]:
    lines = [f"{'quantity':<14} {'n':>6} {'n ref':>6} {'distance (95 %)':<18} {'p':>8} {'PSI (chance)':<13} verdict"]
    for q in quantities:
        if q.shift is None:
            lines.append(f"{q.name:<14} {q.verdict}: {q.note}")
            continue
        s = q.shift
        distance, psi = f"{s.effect:.2f} ({s.low:.2f}-{s.high:.2f})", f"{s.psi:.2f} ({s.psi_chance:.2f})"
        p = s.p if q.p_adjusted is None else q.p_adjusted
        note = f" ({q.note})" if q.note else ""
        lines.append(f"{q.name:<14} {s.n:>6} {s.n_reference:>6} {distance:<18} {p:>8.2g} {psi:<13} {q.verdict}{note}")
    return lines
