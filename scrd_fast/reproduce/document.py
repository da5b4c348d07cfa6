# SPDX-License-Identifier: Apache-2.0
"""A report as data, and its two forms: Markdown, and one HTML file that carries its pictures."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scrd_fast.errors import MissingExtraError
from scrd_fast.files import write_atomically

__all__ = ["Figure", "Report", "Section", "Table", "write_report"]

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|!~$&])")


@dataclass(frozen=True)
class Table:
    """Cells are plain text. The first column names the row."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """A PNG file below the report's folder."""

    caption: str
    path: str


@dataclass
class Section:
    """One study. `command` makes it anew; `cost` says what that takes."""

    title: str
    command: str = ""
    cost: str = ""
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """The whole of it. `notices` come first."""

    title: str
    notices: Sequence[str]
    sections: Sequence[Section]


def write_report(report: Report, out: Path) -> None:
    """Write `out/report.md` and `out/report.html`. Raises `MissingExtraError` without Jinja2."""
    write_atomically(out / "report.md", _markdown(report).encode("utf-8", "replace"))
    write_atomically(out / "report.html", _html(report, out).encode("utf-8", "replace"))


def _markdown(report: Report) -> str:
    lines = ["<!-- SPDX-License-Identifier: Apache-2.0 -->", f"# {_plain(report.title)}", ""]
    lines += [f"> {_plain(notice)}\n" for notice in report.notices]
    for section in report.sections:
        lines += [f"## {_plain(section.title)}", ""]
        if section.command:
            lines += [f"`` {_one_line(section.command).replace('``', '` `')} ``", "", _plain(section.cost), ""]
        lines += [f"{_plain(text)}\n" for text in section.text]
        for table in section.tables:
            lines += [f"**{_plain(table.caption)}**", "", _row(table.header), "|---" * len(table.header) + "|"]
            lines += [*map(_row, table.rows), ""]
        for figure in section.figures:
            lines += [f"![{_plain(figure.caption)}]({figure.path})", "", f"*{_plain(figure.caption)}*", ""]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_plain, cells))} |"


def _one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, also where it holds a file's name."""
    return _SPECIAL.sub(r"\\\1", _one_line(text))


def _html(report: Report, out: Path) -> str:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("jinja2", "model") from error

    def data_uri(path: str) -> str:
        return "data:image/png;base64," + base64.b64encode((out / path).read_bytes()).decode()

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"data_uri": data_uri, "line": _one_line}
    return environment.get_template("report.html.jinja").render(report=report)
