# SPDX-License-Identifier: Apache-2.0
"""What the commands print: the result on stdout, the log and one progress bar on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Console"]

QUIET_INTERVAL = 30.0  # seconds between two progress lines where there is no terminal

Advance = Callable[[int, str], None]  # how many are done, a short text of what is worth seeing


@dataclass(frozen=True)
class Console:
    """How loud, and in which form."""

    quiet: bool = False
    verbose: bool = False
    json: bool = False  # the result as JSON instead of a path
    log_json: bool = False  # each line of the log as a JSON object

    def log(self, text: str, level: str = "info") -> None:
        if self.quiet and level == "info":
            return
        if self.log_json:
            text = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "level": level, "text": text})
        print(text, file=sys.stderr, flush=True)

    def detail(self, text: str) -> None:
        if self.verbose:
            self.log(text)

    def warn(self, text: str) -> None:
        self.log(text if self.log_json else f"warning: {text}", "warning")

    def error(self, text: str) -> None:
        self.log(text if self.log_json else f"error: {text}", "error")

    def result(self, path: Path | str, content: dict[str, Any]) -> None:
        print(json.dumps(content, indent=2) if self.json else path, flush=True)

    @contextmanager
    def progress(self, total: int, unit: str) -> Iterator[Advance]:
        """A bar with rate and ETA; without a terminal a line every 30 seconds."""
        if self.quiet:
            yield lambda done, text: None
        elif sys.stderr.isatty() and not self.log_json:
            with _bar(total, unit) as advance:
                yield advance
        else:
            yield self._lines(total, unit)

    def _lines(self, total: int, unit: str) -> Advance:
        start = last = time.monotonic()
        first: int | None = None  # a run that goes on does not begin at 0

        def advance(done: int, text: str) -> None:
            nonlocal last, first
            now = time.monotonic()
            first = done - 1 if first is None else first
            if now - last < QUIET_INTERVAL and done < total:
                return
            last = now
            rate = (done - first) / max(now - start, 1e-9)
            left = (total - done) / rate if rate else 0
            self.log(f"{done}/{total} {unit}, {rate:.1f}/s, {left:.0f} s left {text}".rstrip())

        return advance


@contextmanager
def _bar(total: int, unit: str) -> Iterator[Advance]:
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(unit),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} {task.fields[text]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=RichConsole(stderr=True)) as progress:
        task = progress.add_task(unit, total=total, text="", rate="")

        def advance(done: int, text: str) -> None:
            speed = progress.tasks[0].speed
            rate = f"{speed:.1f}/s" if speed else ""
            progress.update(task, completed=done, text=text, rate=rate)

        yield advance
