# SPDX-License-Identifier: Apache-2.0
"""What tests of screening look at: the folder of a run, and the processes that work on it."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scrd_fast.data.frames import Source
from scrd_fast.screening.inputs import list_inputs
from scrd_fast.screening.screener import Screened, Screener
from scrd_fast.screening.writers import read_part


def rows(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((out / "results").glob("part-*.parquet")) for row in read_part(path)]


def worklist(out: Path) -> list[dict[str, str]]:
    with (out / "worklist.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def loaded(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    return out.getvalue()


def below(pid: int) -> dict[int, str]:
    """Processes that were started by a process, also by way of others: their command lines."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            parents[int(path.parent.name)] = int(parent)
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {child: command(child) for child in found - {pid}}


def command(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def wait_for(what: Callable[[], Any], seconds: float) -> Any:
    """What it gives, once that is something."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def screened(run: Path, inputs: list[Path]) -> dict[tuple[str, int | None], Screened]:
    with_maps = Screener.from_pretrained(run, device="cpu")
    sources: list[Source] = [entry.source for entry in list_inputs(inputs) if entry.error is None]
    return {(str(result.source), result.frame): result for result in with_maps.screen(sources)}
