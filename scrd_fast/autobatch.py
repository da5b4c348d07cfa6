# SPDX-License-Identifier: Apache-2.0
"""The largest batch that a GPU's memory holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from scrd_fast.budget import Budget
from scrd_fast.device import pick_device
from scrd_fast.distributed import launch
from scrd_fast.errors import ScrdFastError
from scrd_fast.model.scrd import SCRD
from scrd_fast.settings import TrainSettings
from scrd_fast.step import Step

__all__ = ["fitting_batch_size", "largest"]

MOST = 1024
SHARE = 0.9  # of the memory: what a later step needs beyond the first


def fitting_batch_size(settings: TrainSettings, new_model: Callable[[], SCRD], out: Path) -> int:
    """The batch size of the run that `out` holds, or else the largest power of two with which a step fits.

    Raises `ScrdFastError` where the device is no GPU, and where not even two images fit.
    """
    if (known := _of_run(out)) is not None:
        return known
    device = pick_device(settings.device)
    if device.type != "cuda":
        raise ScrdFastError(f"--batch-size auto needs a CUDA device, got {device}; give a number")

    def fits(size: int) -> bool:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            fabric = launch(device, settings.precision)
            step = Step(fabric, new_model(), settings, None, Budget(device))
            step(0, torch.zeros(size, 3, settings.size, settings.size, device=fabric.device), list(range(size)))
        except torch.OutOfMemoryError:
            return False
        total = torch.cuda.get_device_properties(device).total_memory
        return torch.cuda.max_memory_reserved() <= SHARE * total

    found = largest(fits)
    if found is None:
        raise ScrdFastError(f"--batch-size auto: not even 2 images of {settings.size} pixels fit into {device}")
    return found


def largest(fits: Callable[[int], bool]) -> int | None:
    """The largest power of two from 2 to `MOST` that fits, where all smaller ones do; None if 2 does not.

    >>> largest(lambda size: size <= 100), largest(lambda size: False)
    (64, None)
    """
    best, size = None, 2
    while size <= MOST and fits(size):
        best, size = size, 2 * size
    return best


def _of_run(out: Path) -> int | None:
    path = out / "run.json"
    if not path.is_file():
        return None
    return int(json.loads(path.read_text())["identity"]["settings"]["batch_size"])
