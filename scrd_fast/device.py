# SPDX-License-Identifier: Apache-2.0
"""Which device computes."""

from __future__ import annotations

import torch

from scrd_fast.errors import UnavailableError

__all__ = ["pick_device"]


def pick_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one. Raises `UnavailableError` for a GPU that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        why = "no GPU is seen" if torch.version.cuda else f"torch {torch.__version__} is built without CUDA"
        raise UnavailableError(f"device cuda: {why}")
    return device
