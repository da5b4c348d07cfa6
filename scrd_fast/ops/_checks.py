# SPDX-License-Identifier: Apache-2.0
"""Checks that several operators share. Each names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["check_choice", "check_floating", "check_same_maps"]

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_floating(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{name} must be float32, float16, bfloat16 or float64, got {tensor.dtype}")


def check_same_maps(names: tuple[str, str], first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
    """Two lists of [N, C_k, H_k, W_k], alike in length and, pair by pair, in shape, dtype and device."""
    a, b = names
    if len(first) == 0:
        raise ValueError(f"{a} must hold at least one feature map, got an empty list")
    if len(first) != len(second):
        raise ValueError(f"{a} and {b} must hold equally many maps, got {len(first)} and {len(second)}")
    for k, (x, y) in enumerate(zip(first, second, strict=True)):
        for name, z in ((a, x), (b, y)):
            if not isinstance(z, Tensor):
                raise TypeError(f"{name}[{k}] must be a tensor, got {type(z).__name__}")
        if x.dim() != 4 or min(x.shape[1:]) == 0:
            raise ValueError(f"{a}[{k}] must be [N, C, H, W] with C, H, W > 0, got {list(x.shape)}")
        check_floating(f"{a}[{k}]", x)
        if x.shape != y.shape:
            raise ValueError(f"{a}[{k}] and {b}[{k}] must have one shape, got {list(x.shape)} and {list(y.shape)}")
        if x.dtype != y.dtype or x.device != y.device:
            raise ValueError(
                f"{a}[{k}] and {b}[{k}] must have one dtype and device, "
                f"got {x.dtype} on {x.device} and {y.dtype} on {y.device}"
            )
        if x.shape[0] != first[0].shape[0] or x.device != first[0].device:
            raise ValueError(
                f"{a}[{k}] must have the batch size and device of {a}[0], got {x.shape[0]} on {x.device} "
                f"against {first[0].shape[0]} on {first[0].device}"
            )
