# SPDX-License-Identifier: Apache-2.0
"""The documentation site: it builds without a warning, shows every public name, and asks no other server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import scrd_fast
from scrd_fast import errors, ops

pytest.importorskip("mkdocs", reason="needs the extra [docs]")
ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.xdist_group("site")


def build(settings: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Not with -q, which hides warnings from the check for them too."""
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(settings), "-d", str(out)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", out)
    assert done.returncode == 0, done.stderr
    return out


def test_every_page_is_there(site: Path) -> None:
    written = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in ROOT.glob("docs/**/*.md")}
    elsewhere = {Path(f"{name}.html") for name in ("install", "native", "emulation", "contributing", "changelog")}
    there = {path.relative_to(site) for path in site.rglob("*.html")}
    assert written | elsewhere | {Path("404.html")} == there


def test_the_reference_has_every_public_name_with_its_example(site: Path) -> None:
    text = "".join(path.read_text() for path in site.glob("reference/*.html"))
    shown = set(re.findall(r'id="(scrd_fast[\w.]*)"', text))
    classes = [name for name in errors.__all__ if isinstance(getattr(errors, name), type)]
    wanted = {f"scrd_fast.{name}" for name in scrd_fast.__all__ if name not in ("__version__", "ops")}
    wanted |= {f"scrd_fast.ops.{function_home(name)}.{name}" for name in ops.__all__}
    assert wanted | {f"scrd_fast.errors.{name}" for name in classes} <= shown
    assert "<blockquote" not in text  # a `>>>` that is no code


def function_home(name: str) -> str:
    return str(getattr(ops, name).__module__).rpartition(".")[2]


def test_shapes_beside_arguments_are_shown(site: Path) -> None:
    text = re.sub(r"<[^>]+>", "", (site / "reference" / "ops.html").read_text())
    assert "boxes: int32 [N, 4]: top, left, height, width" in text
    assert "returns float32 [N, D, H, W]" in text


def test_a_table_of_the_readme_is_shown(site: Path) -> None:
    assert "no C++ compiler that works" in (site / "faq.html").read_text()


def test_nothing_is_loaded_from_another_server(site: Path) -> None:
    for path in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|link|iframe)[^>]*?(?:src|href)=\"([^\"]+)\"", path.read_text())
        assert loaded
        assert [target for target in loaded if target.startswith(("http", "//"))] == []


def test_links_that_lead_nowhere_stop_the_build(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs" / "site", tmp_path / "docs" / "site")
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "csrc/README.md", "python_tests/emulation/README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("# Page\n\n## Install\n\ntext\n")
    settings = (ROOT / "mkdocs.yml").read_text()
    (tmp_path / "mkdocs.yml").write_text(re.sub(r"\nnav:\n(?:  .*\n)+", "\n", settings))
    (tmp_path / "docs" / "index.md").write_text("# Page\n\n[a](#page) [b](gone.md) [c](#gone) [d](../csrc/gone.h)\n")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "out")
    assert done.returncode != 0
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert [next(name for name in ("gone.md", "gone.h", "#gone") if name in line) for line in warnings] == [
        "gone.md",
        "gone.h",
        "#gone",
    ]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs chromium on PATH")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as started:
        yield started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


def test_pages_load_without_an_error_or_a_request_elsewhere_and_fit_a_phone(site: Path, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None)
    for path in sorted(site.rglob("*.html")):
        if path.name == "404.html":  # its links count from the root of a server
            continue
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0 && i.alt)"), path
        assert not wrong, path


def test_the_search_works_from_a_folder_of_files(site: Path, browser: Any) -> None:
    page = browser.new_page()
    page.goto((site / "index.html").as_uri())
    page.locator("input.md-search__input").click()
    page.keyboard.type("hash-paths")
    found = page.locator(".md-search-result__link")
    found.first.wait_for()
    assert any("security.html" in link.get_attribute("href") for link in found.all())
