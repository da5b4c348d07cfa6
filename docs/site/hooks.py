# SPDX-License-Identifier: Apache-2.0
"""What MkDocs does beyond its settings: pages from files outside docs/, links that leave it, and nothing from afar."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

__all__ = ["on_files", "on_page_markdown", "on_post_page", "on_post_template"]

ROOT = Path(__file__).parents[2]
# Each is written once, where GitHub and PyPI show it.
ELSEWHERE = {
    "install.md": "README.md",
    "native.md": "csrc/README.md",
    "emulation.md": "python_tests/emulation/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
PAGES = {source: page for page, source in ELSEWHERE.items()}
TABLE = re.compile(r"<!-- table of the README: (.+) -->")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s:]+)\)")  # neither a picture nor another site
AFAR, NEAR = "https://unpkg.com/iframe-worker/shim", "site/worker.js"  # what the offline plugin loads, and ours


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for page, source in ELSEWHERE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if source == "README.md":
            text = "# Install\n" + text.split("\n## Install\n")[1].split("\n## ")[0]
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """A link to a file of the repository leads to its page; where it has none, the text alone is left."""
    home = posixpath.dirname(ELSEWHERE.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def on_site(match: re.Match[str]) -> str:
        text, (target, _, anchor) = match[1], match[2].partition("#")
        path = posixpath.normpath(posixpath.join(home, target))
        if not target or not (ROOT / path).exists():
            return match[0]
        uri = PAGES.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(uri) is None:
            return text
        uri = posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")
        return f"[{text}]({uri}{'#' + anchor if anchor else ''})"

    return LINK.sub(on_site, TABLE.sub(lambda match: _table(match[1]), markdown))


def on_post_page(output: str, page: Page, **_: Any) -> str:
    return output.replace(AFAR, get_relative_url(NEAR, page.url))


def on_post_template(output_content: str, **_: Any) -> str:
    return output_content.replace(AFAR, NEAR)


def _table(first: str) -> str:
    """The README's table whose first column has that name."""
    after = (ROOT / "README.md").read_text(encoding="utf-8").split(f"\n| {first} |")[1]
    return f"| {first} |" + after.split("\n\n")[0]
