# SPDX-License-Identifier: Apache-2.0
"""Skips the tests marked `cuda` where there is no GPU. Its place here also lets tests import `tolerances`."""

from __future__ import annotations

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
