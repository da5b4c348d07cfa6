# SPDX-License-Identifier: Apache-2.0
r"""Synthetic anomalies: a patch of fractal simplex noise added to each image.

    out[n, c, top + i, left + j] = images[n, c, top + i, left + j] + strength * noise_n[c, i, j] / std[c]

`noise_n` is `simplex_noise(seeds[n], (C, height, width))`: coordinates count from the box's corner, and channel c
is the slice z = c (the synthesis of Li et al., ICLR 2025, which is that of RD++, Tien et al., CVPR 2023).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from scrd_fast.ops._checks import check_floating
from scrd_fast.ops._library import choose, define, define_triton
from scrd_fast.ops.simplex_noise import check_noise, simplex_noise

__all__ = ["check_anomalies", "synthesize_anomalies"]

_ARGUMENTS = (
    "Tensor boxes, Tensor seeds, float strength, Tensor? std, int octaves, float persistence, float frequency, "
    "str variant"
)
SCHEMA = f"synthesize_anomalies(Tensor images, {_ARGUMENTS}) -> Tensor"
INPLACE_SCHEMA = f"synthesize_anomalies_(Tensor(a!) images, {_ARGUMENTS}) -> ()"


def synthesize_anomalies(
    images: Tensor,  # [N, C, H, W]
    boxes: Tensor,  # int32 [N, 4]: top, left, height, width
    seeds: Tensor,  # int64 [N]
    *,
    strength: float = 0.2,
    std: Tensor | None = None,  # [C]
    octaves: int = 6,
    persistence: float = 0.6,
    frequency: float = 1 / 32,
    variant: str = "opensimplex",
    inplace: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Add one patch of noise to each image; pixels outside the boxes keep their bits.

    Images are float32, float16, bfloat16 or float64 in any memory layout, boxes in pixels, frequency in cycles
    per pixel. For images that were divided by a `std` per channel, give that `std`: the noise is divided by it
    too, as if it had been added before the normalisation. `inplace=True` writes into `images` and returns it
    (no gradient); otherwise the gradient passes through to the images unchanged, in reverse mode. An empty box adds
    nothing.

    Raises ValueError (shapes, devices, or, where the boxes are on the CPU, a box that leaves the image) or
    TypeError (dtypes). On a GPU a box is cut at the border instead, since reading it would stall the device.

    >>> import torch
    >>> from scrd_fast.ops import synthesize_anomalies
    >>> boxes, seeds = torch.tensor([[2, 3, 10, 12]], dtype=torch.int32), torch.tensor([7])
    >>> changed = synthesize_anomalies(torch.zeros(1, 3, 32, 32), boxes, seeds) != 0
    >>> bool(changed[:, :, 2:12, 3:15].any()), int(changed.sum()) <= 3 * 10 * 12
    (True, True)
    """
    check_anomalies(images, boxes, seeds, strength, std, inplace)
    check_noise(octaves, persistence, frequency, variant)
    std = None if std is None else std.detach().float()
    name = "synthesize_anomalies_" if inplace else "synthesize_anomalies"
    run = choose(name, backend, images.device, _reference_ if inplace else _reference)
    result: Tensor = run(images, boxes, seeds, strength, std, octaves, persistence, frequency, variant)
    return images if inplace else result


def check_anomalies(
    images: Tensor, boxes: Tensor, seeds: Tensor, strength: float, std: Tensor | None, inplace: bool
) -> None:
    """The arguments that every kind of anomaly has."""
    for name, value in (("images", images), ("boxes", boxes), ("seeds", seeds)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if images.dim() != 4:
        raise ValueError(f"images must be [N, C, H, W], got {list(images.shape)}")
    check_floating("images", images)
    n, c, height, width = images.shape
    if c * height * width >= 2**31:
        raise ValueError(f"images must have fewer than 2^31 values each, got {list(images.shape)}")
    if inplace and not torch.compiler.is_compiling() and _overlaps(images):
        raise ValueError("images must not share memory between their own elements with inplace=True; clone them first")
    if inplace and images.requires_grad and torch.is_grad_enabled():
        raise ValueError("images must not require a gradient with inplace=True; leave it out, or use torch.no_grad()")
    if boxes.dtype != torch.int32:
        raise TypeError(f"boxes must be int32, got {boxes.dtype}")
    if list(boxes.shape) != [n, 4]:
        raise ValueError(f"boxes must be [{n}, 4], a row per image, got {list(boxes.shape)}")
    if seeds.dtype != torch.int64:
        raise TypeError(f"seeds must be int64, got {seeds.dtype}")
    if list(seeds.shape) != [n]:
        raise ValueError(f"seeds must be [{n}], one per image, got {list(seeds.shape)}")
    if std is not None and list(std.shape) != [c]:
        raise ValueError(f"std must be [{c}], one value per channel, got {list(std.shape)}")
    if not 0 <= strength < float("inf"):
        raise ValueError(f"strength must be finite and not negative, got {strength}")
    for name, tensor in (("boxes", boxes), ("seeds", seeds), ("std", std)):
        if tensor is not None and tensor.device != images.device:
            raise ValueError(f"{name} must be on the images' device {images.device}, got {tensor.device}")
    if boxes.device.type == "cpu" and type(boxes) is Tensor and not torch.compiler.is_compiling():
        _check_inside(boxes, height, width)


def _overlaps(images: Tensor) -> bool:
    """Whether two elements may share memory."""
    reach = 0
    for stride, size in sorted(zip(images.stride(), images.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += (size - 1) * stride
    return False


def _check_inside(boxes: Tensor, height: int, width: int) -> None:
    top, left, h, w = boxes.to(torch.int64).unbind(1)
    outside = (boxes < 0).any(1) | (top + h > height) | (left + w > width)
    if outside.any():
        n = int(outside.nonzero()[0])
        raise ValueError(
            f"boxes[{n}] must lie inside the image of {height} x {width} pixels, "
            f"got (top, left, height, width) = {tuple(boxes[n].tolist())}"
        )


class _Cut(NamedTuple):
    """The part in [0, size) of a box's side: the image's pixels, and the noise's."""

    image: slice
    noise: slice

    @classmethod
    def of(cls, size: int, begin: int, length: int) -> _Cut:
        first, last = max(begin, 0), min(begin + length, size)
        last = max(first, last)
        return cls(slice(first, last), slice(first - begin, last - begin) if last > first else slice(0, 0))


def _add_patches(
    images: Tensor,
    boxes: Tensor,
    seeds: Tensor,
    strength: float,
    std: Tensor | None,
    noise: dict[str, Any],
) -> None:
    """Add the patches in place, cutting each box at the border."""
    c, height, width = images.shape[1:]
    cuts = [(_Cut.of(height, top, h), _Cut.of(width, left, w)) for top, left, h, w in boxes.tolist()]
    tallest = max((rows.noise.stop for rows, _ in cuts), default=0)
    widest = max((columns.noise.stop for _, columns in cuts), default=0)
    if images.numel() == 0 or tallest == 0 or widest == 0:
        return
    patches = strength * simplex_noise(seeds, (c, tallest, widest), backend="reference", **noise)
    if std is not None:
        patches = patches / std.to(patches)[:, None, None]
    for image, patch, (rows, columns) in zip(images, patches, cuts, strict=True):
        region, added = image[:, rows.image, columns.image], patch[:, rows.noise, columns.noise]
        if region.numel() > 0:
            region.copy_(region.to(torch.promote_types(image.dtype, added.dtype)) + added)


def _reference_(
    images: Tensor,
    boxes: Tensor,
    seeds: Tensor,
    strength: float,
    std: Tensor | None,
    octaves: int,
    persistence: float,
    frequency: float,
    variant: str,
) -> None:
    noise = {"octaves": octaves, "persistence": persistence, "frequency": frequency, "variant": variant}
    _add_patches(images, boxes, seeds, strength, std, noise)


def _reference(images: Tensor, *arguments: Any) -> Tensor:
    result = images.clone(memory_format=torch.preserve_format)
    _reference_(result, *arguments)
    return result


def _fake(images: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(images)


def _fake_(*_: Any) -> None:
    return None


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return grad, *[None] * 8


define(SCHEMA, _reference)
define(INPLACE_SCHEMA, _reference_)
torch.library.register_fake("scrd_fast::synthesize_anomalies", _fake)
torch.library.register_fake("scrd_fast::synthesize_anomalies_", _fake_)
torch.library.register_autograd("scrd_fast::synthesize_anomalies", _backward)
define_triton(SCHEMA, _fake, _backward)
define_triton(INPLACE_SCHEMA, _fake_)
