# SPDX-License-Identifier: Apache-2.0
"""What the documentation says must be true: its paths and targets exist. test_docs_blocks.py runs its code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    ROOT / "csrc" / "README.md",
    ROOT / "python_tests" / "emulation" / "README.md",
]
FOLDERS = ("csrc", "scrd_fast", "python_tests", "examples", "docs", "benchmarks", "configs")


@pytest.mark.parametrize("path", DOCS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_path_that_is_named_exists(path: Path) -> None:
    text = path.read_text()
    named = set(re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`", text))
    links = {t.split("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in t}
    missing = [n for n in named if not (ROOT / n).exists()]
    missing += [t for t in links if not (path.parent / t).exists()]
    assert not missing


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    for path in DOCS:
        assert set(re.findall(r"`make ([\w-]+)", path.read_text())) <= targets


def test_files_stay_below_400_lines() -> None:
    sources = [
        p for f in ("csrc", "scrd_fast", "python_tests", "examples", "benchmarks") for p in (ROOT / f).rglob("*")
    ]
    long = [
        p for p in sources if p.suffix in (".py", ".cpp", ".cu", ".cuh", ".h") and len(p.read_text().splitlines()) > 400
    ]
    assert not long


def test_no_two_files_of_tests_have_one_name() -> None:
    """The second would not be collected, and `conftest` is what all import the data set from."""
    names = [path.name for path in (ROOT / "python_tests").rglob("*.py")]
    assert sorted(names) == sorted(set(names))
