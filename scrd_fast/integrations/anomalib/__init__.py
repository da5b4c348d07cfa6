# SPDX-License-Identifier: Apache-2.0
"""anomalib: `Scrd`, a model for its `Engine`, and `AnomalyMapGenerator`, in the place of the one of its own model.

The generator needs torch alone. `Scrd` needs anomalib, which no extra of this package brings, since it brings much
itself: where it is missing, asking for `Scrd` raises `UnavailableError`, which says so.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from scrd_fast.errors import UnavailableError
from scrd_fast.integrations.anomalib.anomaly_map import AnomalyMapGenerator

if TYPE_CHECKING:
    from scrd_fast.integrations.anomalib.model import Scrd as Scrd

__all__ = ["AnomalyMapGenerator", "Scrd"]


def __getattr__(name: str) -> Any:
    if name != "Scrd":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if importlib.util.find_spec("anomalib") is None:
        raise UnavailableError("anomalib is not installed; type: pip install anomalib")
    return importlib.import_module(f"{__name__}.model").Scrd
