# SPDX-License-Identifier: Apache-2.0
"""What the documentation says must be true: its blocks run, its paths exist."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from scrd_fast.cli import main

ROOT = Path(__file__).parents[1]
DOCS = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    ROOT / "csrc" / "README.md",
    ROOT / "python_tests" / "emulation" / "README.md",
]
FOLDERS = ("csrc", "scrd_fast", "python_tests", "examples", "docs", "benchmarks", "configs")


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), flags=re.M | re.S)


@pytest.fixture
def workplace(tree: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the `data` and `run` that the README speaks of."""
    shutil.copytree(tree, tmp_path / "data")
    shutil.copytree(tree / "test" / "good", tmp_path / "normals_of_my_site")
    shutil.copytree(trained, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("workplace")
def test_the_commands_of_the_readme_run() -> None:
    lines = [line for block in blocks(ROOT / "README.md", "bash") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("scrd-fast")]
    assert {c[0] for c in commands} == {"train", "evaluate", "screen", "calibrate", "report", "drift"}
    for command in commands:
        # Training with the paper's settings takes hours: here only its flags are checked.
        assert main([*command, "--print-config"] if command[0] == "train" else [*command, "-q"]) == 0


@pytest.mark.usefixtures("workplace")
def test_the_python_of_the_readme_and_the_docs_runs() -> None:
    found = blocks(ROOT / "README.md", "python") + blocks(ROOT / "docs" / "screening.md", "python")
    assert len(found) == 3
    for block in found:
        exec(compile(block, "README.md", "exec"), {})


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
