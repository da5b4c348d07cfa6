# SPDX-License-Identifier: Apache-2.0
"""The blocks of code of a page of the documentation, for the tests that run them."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


def blocks_of(page: str, language: str) -> list[str]:
    """Of docs/`page`, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), flags=re.M | re.S)
