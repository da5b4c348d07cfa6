# SPDX-License-Identifier: Apache-2.0
"""Which device computes."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

from scrd_fast.errors import UnavailableError

__all__ = ["SLOW_BFLOAT16", "bfloat16_is_slow", "device_name", "pick_device", "usable_cores"]

SLOW_BFLOAT16 = "this CPU has no instructions for bfloat16: --precision 32 is several times faster here"


def pick_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one. Raises `UnavailableError` for a GPU that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        why = "no GPU is seen" if torch.version.cuda else f"torch {torch.__version__} is built without CUDA"
        raise UnavailableError(f"device cuda: {why}")
    return device


def device_name(device: torch.device) -> str:
    """With the GPU's model.

    >>> device_name(torch.device("cpu"))
    'cpu'
    """
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def bfloat16_is_slow(device: str) -> bool:
    """Whether torch only imitates bfloat16 on a device of that type: on CPUs with AVX2 and no AVX-512."""
    return device == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"


def usable_cores() -> int:
    """Cores that this process may use: of its affinity, and no more than a control group's quota pays for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such group, or "max"
        return cores
