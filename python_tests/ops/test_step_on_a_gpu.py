# SPDX-License-Identifier: Apache-2.0
"""The training step on a GPU. It lies beside the operators because the GPU script runs what lies here; it needs more
packages than those, and says so where they are missing."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.cuda


def settings(**changes: Any) -> Any:
    for name in ("lightning_fabric", "pydantic", "timm"):
        pytest.importorskip(name)
    from scrd_fast.settings import TrainSettings

    base = {"teacher": "resnet18", "teacher_weights": "random", "size": 64, "batch_size": 4, "device": "cuda"}
    return TrainSettings(**(base | changes))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_never_waits_for_the_gpu(compiled: bool) -> None:
    asked = settings(compile=compiled)
    from scrd_fast.budget import Budget
    from scrd_fast.distributed import launch
    from scrd_fast.step import Step
    from scrd_fast.training import new_model

    device = torch.device("cuda")
    model = new_model(asked)
    step = Step(launch(device, asked.precision), model, asked, None, Budget(device))
    model.train()
    batch = torch.rand(4, 3, 64, 64, device=device)
    for iteration in range(4):  # kernels are compiled and chosen, graphs are recorded, memory is allocated
        step(iteration, batch, list(range(4)))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(4, batch, list(range(4)))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_largest_batch_that_fits_is_found(tmp_path: Path) -> None:
    asked = settings(size=32)
    from scrd_fast.autobatch import fitting_batch_size
    from scrd_fast.errors import ScrdFastError
    from scrd_fast.training import new_model

    assert fitting_batch_size(asked, partial(new_model, asked), tmp_path) >= 64
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        with pytest.raises(ScrdFastError, match="not even 2 images"):
            fitting_batch_size(asked, partial(new_model, asked), tmp_path)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_batch_for_the_gpu_is_pinned() -> None:
    from scrd_fast.data.loading import pinned

    batch = torch.rand(2, 3)
    found = pinned(batch, torch.device("cuda"))
    assert found.is_pinned()
    assert torch.equal(found, batch)
