# SPDX-License-Identifier: Apache-2.0
"""Batch-norms of a frozen network, folded into the convolutions before them.

In eval mode a batch-norm is a scale and a shift per channel. Where it follows a convolution, both can be part of that
convolution's weights: the network computes the same, up to rounding, without reading and writing each map once more.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

__all__ = ["TOLERANCE", "fast_form", "fold_batch_norms"]

TOLERANCE = 1e-4  # of the largest value of a feature map

Convolution = nn.Conv2d | nn.ConvTranspose2d


@torch.no_grad()
def fold_batch_norms(encoder: nn.Module, size: int = 64) -> nn.Module | None:
    """A copy of `encoder`, in eval mode, with every batch-norm folded that directly follows a convolution.

    `encoder` maps images [N, 3, S, S] to a list of feature maps. Which batch-norm follows which convolution, plain or
    transposed, is seen as an image of `size` pixels goes through. None where there is nothing to fold, and where the
    copy's features differ by more than `TOLERANCE` of their largest value: the network is then not what it seems.
    """
    folded = copy.deepcopy(encoder).eval()
    images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)) * 4 - 2
    images = images.to(next(encoder.parameters()).device)
    expected: Sequence[Tensor] = folded(images)
    pairs = _pairs(folded, images)
    for name, (convolution, norm) in pairs.items():
        assert norm.running_mean is not None  # for the type checker: `_pairs` looked
        assert norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
            transpose=isinstance(convolution, nn.ConvTranspose2d),
        )
        convolution.weight, convolution.bias = weight.requires_grad_(False), bias.requires_grad_(False)
        folded.set_submodule(name, _rest(norm))
    return folded if pairs and _equal(folded(images), expected) else None


def fast_form(network: nn.Module, bf16: bool, multiple: int = 32) -> tuple[nn.Module, torch.dtype | None]:
    """A copy of `network` without batch-norms, and the dtype it computes in; None: whatever autocast chooses.

    It takes images whose sides are multiples of `multiple` pixels.

    With batch-norms left, bfloat16 would round their statistics. Without, rounding the weights once is what autocast
    would do in each call. Where nothing can be folded it is `network` itself.
    """
    folded = fold_batch_norms(network, max(multiple, 64))
    if folded is None:
        return network, None if bf16 else torch.float32
    if bf16 and any(isinstance(m, nn.BatchNorm2d) for m in folded.modules()):
        return folded, None
    dtype = torch.bfloat16 if bf16 else torch.float32
    return folded.to(dtype, memory_format=torch.channels_last), dtype  # type: ignore[call-overload]


def _pairs(encoder: nn.Module, images: Tensor) -> dict[str, tuple[Convolution, nn.BatchNorm2d]]:
    """By the batch-norm's name: it, and the convolution whose output it is given as it is."""
    made: dict[int, tuple[Convolution, Tensor]] = {}  # the tensor is kept, or its number could be another's
    found: dict[str, tuple[Convolution, nn.BatchNorm2d]] = {}
    hooks: list[Any] = []

    def after(module: nn.Module, _: Any, output: Tensor) -> None:
        made[id(output)] = (cast("Convolution", module), output)

    def before(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        source = made.pop(id(inputs[0]), None)
        if source is not None and cast("nn.BatchNorm2d", module).running_mean is not None:
            found[name] = (source[0], cast("nn.BatchNorm2d", module))

    for name, module in encoder.named_modules():
        # Weights of a transposed convolution with groups lie otherwise than `fuse_conv_bn_weights` thinks.
        if isinstance(module, nn.Conv2d) or (isinstance(module, nn.ConvTranspose2d) and module.groups == 1):
            hooks.append(module.register_forward_hook(after))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(lambda m, x, name=name: before(name, m, x)))  # type: ignore[misc]
    encoder(images)
    for hook in hooks:
        hook.remove()
    return found


def _rest(norm: nn.BatchNorm2d) -> nn.Module:
    """What a batch-norm does beside the norm: timm's have an activation."""
    activation = getattr(norm, "act", None)
    return activation if isinstance(activation, nn.Module) else nn.Identity()


def _equal(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    pairs = list(zip(actual, expected, strict=True))
    return all(bool((a - e).abs().max() <= TOLERANCE * e.abs().max()) for a, e in pairs)
