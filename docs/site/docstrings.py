# SPDX-License-Identifier: Apache-2.0
"""Docstrings as the reference shows them: examples as code, and the comments beside arguments and fields, which hold
shapes and units."""

from __future__ import annotations

import re
from typing import Any

from griffe import Attribute, Class, Docstring, Extension, Function, Object

__all__ = ["Comments"]

EXAMPLE = re.compile(r"(?:^>>> .*\n?)(?:^.+\n?)*", re.MULTILINE)
ARGUMENT = re.compile(r"^\s*(\w+)\s*:.*?  # (?!noqa)(.+)$")
RESULT = re.compile(r"^\s*\).*:  # (?!noqa)(.+)$")


class Comments(Extension):
    def on_object(self, *, obj: Object, **_: Any) -> None:
        comments = [line for line in obj.lines if "  # " in line]
        if isinstance(obj, Attribute) and obj.docstring is None and comments and isinstance(obj.parent, Class):
            obj.docstring = Docstring(_capital(comments[0].split("  # ")[1]), parent=obj)
        if obj.docstring is None:
            return
        text = EXAMPLE.sub(lambda example: f"```pycon\n{example[0].rstrip()}\n```\n", obj.docstring.value)
        if isinstance(obj, Function):
            text += _arguments(obj)
        obj.docstring.value = text


def _arguments(function: Function) -> str:
    found = []
    for line in function.lines:
        if '"""' in line:
            break
        if argument := ARGUMENT.match(line):
            found.append(f"- `{argument[1]}`: {argument[2]}")
        elif result := RESULT.match(line):
            found.append(f"- returns {result[1]}")
    return "\n\n" + "\n".join(found) if found else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
