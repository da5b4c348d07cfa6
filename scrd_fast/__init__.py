# SPDX-License-Identifier: Apache-2.0
"""Unsupervised medical anomaly detection by scale-aware contrastive reverse distillation.

Importing the package imports nothing else, not even torch: every public name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scrd_fast import ops as ops
    from scrd_fast.detector import SCRDDetector as SCRDDetector
    from scrd_fast.model.scrd import SCRD as SCRD
    from scrd_fast.screening.screener import Screener as Screener

__version__ = "0.1.0"
__all__ = ["SCRD", "SCRDDetector", "Screener", "__version__", "ops"]

_HOME = {
    "SCRD": "scrd_fast.model.scrd",
    "SCRDDetector": "scrd_fast.detector",
    "Screener": "scrd_fast.screening.screener",
}


def __getattr__(name: str) -> Any:
    if name == "ops":
        return importlib.import_module("scrd_fast.ops")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'scrd_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
