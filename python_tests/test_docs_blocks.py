# SPDX-License-Identifier: Apache-2.0
"""Every block of code of every page does what it says: it is run, or has a reason here why not.

The blocks of a page are run in their order, in a folder with the `data`, `run` and normal images that pages speak of.
All pages share it, and a command that several have is run once.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from scrd_fast.cli import app, main

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
    *(ROOT / folder / "README.md" for folder in ("csrc", "python_tests/emulation", "benchmarks/results")),
]
FENCE = re.compile(r"^( *)```([\w-]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
OUTPUT = ("", "text")  # what is printed, drawn or laid out
SHELL = ("bash", "sh")

# Verbs that are not run: their flags are read, and what they would do is printed.
FLAGS_ONLY = {
    "README.md": {"train": "days"},
    "docs/guide.md": {"train": "days"},
    "docs/data.md": {"prepare": "wants a download; python_tests/data/test_prepare.py", "train": "days"},
    "docs/reproduce.md": {"reproduce": "minutes; python_tests/reproduce"},
    "docs/results.md": {"reproduce": "hours; python_tests/reproduce"},
    "docs/training.md": {"train": "several processes; python_tests/distributed"},
}
# Commands of others, by how a line begins.
NOT_RUN = {
    "README.md": {
        "uv ": "python_tests/packaging/test_installs.py",
        "poetry ": "python_tests/packaging/test_installs.py",
        "cd my_project": "python_tests/packaging/test_installs.py",
    },
    "docs/getting-started.md": {"pip install ": "python_tests/packaging/test_installs.py, install_matrix.py"},
    "docs/benchmarks.md": {
        "python -m venv ANOMALIB": "two gigabytes of packages",
        "ANOMALIB/bin/pip install anomalib": "two gigabytes of packages",
    },
}
# What reads a page's YAML.
YAML = {
    "docs/guide.md": "train --config page.yaml --print-config",
    "docs/reproduce.md": "reproduce page.yaml --out reproduced --dry-run",
}
# Pages whose blocks a test of their own runs.
ELSEWHERE = {
    "docs/anomalib.md": "python_tests/integrations/with_anomalib.py",
    "docs/export.md": "python_tests/export/test_exported_files.py",
    "docs/hub.md": "python_tests/test_hub.py",
    "docs/routing.md": "python_tests/examples/routed.py",
    "docs/serving.md": "python_tests/serving/test_serve_command.py",
    "docs/sklearn.md": "python_tests/test_detector.py",
    "python_tests/emulation/README.md": "python_tests/emulation/test_documented_driver.py",
}


class Block(NamedTuple):
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(match[2], match[3]) for match in FENCE.finditer(page.read_text())]


def lines_of(block: Block) -> list[str]:
    return [line for line in block.text.replace("\\\n", " ").splitlines() if line.strip()]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


pytestmark = pytest.mark.xdist_group("docs")
TO_RUN = [
    page
    for page in PAGES
    if name_of(page) not in ELSEWHERE and any(block.language not in OUTPUT for block in blocks(page))
]


@pytest.fixture(scope="module")
def workplace(tree: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[set[str]]:
    """The commands that were run in what is the current folder."""
    folder = tmp_path_factory.mktemp("workplace") / "here"
    shutil.copytree(tree, folder / "data")
    (folder.parent / "brain_tumor_mri").symlink_to(tree)
    shutil.copytree(tree / "test" / "good", folder / "normals_of_my_site")
    shutil.copytree(trained, folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield set()


@pytest.mark.parametrize("page", TO_RUN, ids=name_of)
def test_the_code_of_a_page_runs(page: Path, workplace: set[str]) -> None:
    for block in blocks(page):
        if block.language in SHELL:
            for line in lines_of(block):
                if line not in workplace:
                    run_line(name_of(page), line)
                    workplace.add(line)
        elif block.language == "python":
            # What stands below `if __name__ == "__main__"` takes minutes: it is compiled alone.
            exec(compile(block.text, name_of(page), "exec"), {"__name__": "of the page"})
        elif block.language == "yaml":
            Path("page.yaml").write_text(block.text)
            assert main(YAML[name_of(page)].split()) == 0
        elif block.language == "json":
            json.loads(block.text)
        else:
            assert block.language in OUTPUT, f"{page}: {block.language} is not known here"
            assert not re.search(r"^(\$ |scrd-fast |python |pip )", block.text, flags=re.MULTILINE), block.text


def run_line(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    skipped = FLAGS_ONLY.get(page, {})
    verbs = [word for word in words if word in skipped]
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), line
    elif verbs and "--iterations" not in words:
        assert main([*words[begin_of(words) :], "--print-config"]) == 0, line
    elif words[0] == "scrd-fast":
        assert main([*words[1:], *([] if "--json" in words else ["-q"])]) == 0, line
    else:
        assert any(line.startswith(start) for start in NOT_RUN.get(page, {})), f"{page}: neither run nor listed: {line}"


def begin_of(words: list[str]) -> int:
    """Where the verb is, which torchrun and others have options of their own before."""
    return next(i for i, word in enumerate(words) if word in ("train", "data", "reproduce"))


def test_what_is_listed_as_not_run_is_still_there() -> None:
    for page, starts in NOT_RUN.items():
        shell = [line for block in blocks(ROOT / page) if block.language in SHELL for line in lines_of(block)]
        assert all(any(line.startswith(start) for line in shell) for start in starts), page
    for page, verbs in FLAGS_ONLY.items():
        words = [word for block in blocks(ROOT / page) if block.language in SHELL for word in block.text.split()]
        assert verbs.keys() <= set(words), page
    for page, test in ELSEWHERE.items():
        assert blocks(ROOT / page), page
        assert Path(page).name in (ROOT / test).read_text(), page


def test_no_fence_is_overlooked() -> None:
    for page in PAGES:
        fences = re.findall(r"^ *(?:```|~~~)", page.read_text(), flags=re.MULTILINE)
        assert len(fences) == 2 * len(blocks(page)), page


def named() -> Iterator[tuple[str, str]]:
    """The commands of this package within sentences and tables."""
    for page in PAGES:
        text = FENCE.sub("", page.read_text())
        for command in re.findall(r"`(scrd-fast [^`]+)`", text):
            yield name_of(page), " ".join(command.split())


def test_every_verb_and_flag_that_a_sentence_names_exists() -> None:
    root = typer.main.get_command(app)
    found = list(named())
    assert len(found) > 50
    for page, command in found:
        verb, words = root, command.split()[1:]
        while words and hasattr(verb, "commands") and not words[0].startswith("-"):
            assert words[0] in verb.commands or words[0].isupper(), f"{page}: {command}"
            verb = verb.commands.get(words.pop(0), verb)
        known = {flag for parameter in verb.params for flag in parameter.opts} | {"--help", "--debug"}
        flags = {word.split("=")[0].rstrip(",.") for word in words if word.startswith("-")}
        assert flags <= known, f"{page}: {command}"


@pytest.mark.parametrize("line", ["scrd-fast screen run --no-such-flag", "rm -rf data", "make no-such-target"])
@pytest.mark.usefixtures("workplace")
def test_a_line_that_is_wrong_or_unknown_fails(line: str) -> None:
    with pytest.raises(AssertionError):
        run_line("README.md", line)
