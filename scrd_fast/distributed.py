# SPDX-License-Identifier: Apache-2.0
"""Training by several processes, one a device, that together do what one process would.

They are started by `torchrun` or `fabric run`. Each has a share of every batch. What the loss and the batch-norms
need of the whole batch is exchanged, so that the number of processes changes nothing but the order of sums.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from scrd_fast.config import Precision
from scrd_fast.errors import MissingExtraError

__all__ = ["SharedBatchNorm", "gather", "is_first", "launch", "share_batch_norms"]

# `fabric run` leaves its flags here, and would have them obeyed to the letter. How many processes there are and who
# this one is stands in torchrun's variables, which it sets too.
_FABRIC_FLAGS = ("LT_CLI_USED", "LT_ACCELERATOR", "LT_STRATEGY", "LT_DEVICES", "LT_NUM_NODES", "LT_PRECISION")


def is_first() -> bool:
    """Whether this process is the only one, or the one that writes."""
    return os.environ.get("RANK", "0") == "0"


def launch(device: torch.device, precision: Precision) -> Any:
    """A launched `lightning_fabric.Fabric` for this process. Raises `MissingExtraError` without lightning-fabric."""
    try:
        fabric_module = importlib.import_module("lightning_fabric")
    except ImportError:
        raise MissingExtraError("lightning-fabric", "model") from None
    for flag in _FABRIC_FLAGS:
        os.environ.pop(flag, None)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    fabric = fabric_module.Fabric(
        accelerator=device.type,
        devices=here,
        num_nodes=world // here,
        strategy="ddp" if world > 1 else "auto",
        precision={"32": "32-true", "bf16": "bf16-mixed"}[precision],
    )
    fabric.launch()
    return fabric


def gather(fabric: Any, share: Tensor) -> Tensor:
    """Every process's share [n, ...] of a batch, one after the other: [processes * n, ...]; differentiable.

    Each process's gradient is that of its own share times the number of processes, which is what averaging
    gradients over processes undoes.
    """
    if fabric.world_size == 1:
        return share
    everything: Tensor = fabric.all_gather(share, sync_grads=True)
    return everything.flatten(0, 1)


def share_batch_norms(module: nn.Module) -> None:
    """Let the batch-norms in `module` see the whole batch, of all processes. Names and weights stay."""
    for name, child in list(module.named_modules()):
        if type(child) is nn.BatchNorm2d:
            on_gpu = child.weight.device.type == "cuda"
            synced = nn.SyncBatchNorm.convert_sync_batchnorm  # of torch, for GPUs only
            shared = synced(child) if on_gpu else SharedBatchNorm.of(child)  # type: ignore[no-untyped-call]
            module.set_submodule(name, shared)


class SharedBatchNorm(nn.BatchNorm2d):
    """`torch.nn.SyncBatchNorm` for CPUs, which torch has for GPUs only. Shares are equally large."""

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> SharedBatchNorm:
        shared = cls(norm.num_features, norm.eps, norm.momentum)
        shared.to(norm.weight.device, norm.weight.dtype).load_state_dict(norm.state_dict())
        return shared

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        # Whatever autocast says: sums of squares need float32.
        own_var, own_mean = torch.var_mean(x.to(self.weight.dtype), (0, 2, 3), correction=0)
        moments = _mean_over_processes(torch.stack([own_mean, own_var + own_mean.square()]))
        mean, var = moments[0], moments[1] - moments[0].square()
        self._follow(mean.detach(), var.detach(), x.numel() // x.shape[1] * dist.get_world_size())
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        return (x * scale[:, None, None] + shift[:, None, None]).to(x.dtype)

    def _follow(self, mean: Tensor, var: Tensor, count: int) -> None:
        assert self.running_mean is not None  # for the type checker: `of` keeps them
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * count / max(count - 1, 1), self.momentum)
        self.num_batches_tracked += 1


def _mean_over_processes(x: Tensor) -> Tensor:
    """Differentiable; its gradient is averaged over the processes again."""
    from torch.distributed.nn.functional import all_reduce

    total: Tensor = all_reduce(x)  # type: ignore[no-untyped-call]
    return total / dist.get_world_size()
