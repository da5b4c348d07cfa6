# SPDX-License-Identifier: Apache-2.0
"""Where the tests run Triton's kernels: on a GPU where there is one, else on the CPU in Triton's interpreter (see
conftest.py). On a GPU these tests are marked `cuda`, and so among those that `-m cuda` selects."""

from __future__ import annotations

import pytest
import torch

__all__ = ["DEVICE", "MARKS"]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MARKS = [pytest.mark.cuda] if DEVICE == "cuda" else []
