# SPDX-License-Identifier: Apache-2.0
"""How torch is to ask for memory. Imports nothing: it has to be said before torch is."""

from __future__ import annotations

from collections.abc import MutableMapping

__all__ = ["prefer_huge_pages"]


def prefer_huge_pages(environment: MutableMapping[str, str]) -> None:
    """Let torch ask the kernel for huge pages for what is large, unless the user has said how it should.

    A training step allocates gigabytes anew. In pages of 4 KB their first touches took a good part of its backward
    pass on a CPU.
    """
    environment.setdefault("THP_MEM_ALLOC_ENABLE", "1")
