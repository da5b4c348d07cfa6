# SPDX-License-Identifier: Apache-2.0
"""Synthetic anomalies: where they go, and what they are. All on the device, without a host synchronisation."""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor

from scrd_fast.choices import Noise
from scrd_fast.noises import BLOB_REACH, blobs, gaussian, perlin, uniform
from scrd_fast.ops import synthesize_anomalies
from scrd_fast.ops.synthesize_anomalies import check_anomalies

__all__ = ["add_anomalies", "box_range", "draw_anomalies"]


def box_range(size: int) -> tuple[int, int]:
    """Lowest height or width of a patch and the bound it stays below, in pixels, for images of `size` pixels.

    [10, size / 8); below 88 px, where that range is (almost) empty, the lower bound shrinks.

    >>> box_range(256), box_range(128), box_range(64), box_range(32)
    ((10, 32), (10, 16), (7, 8), (3, 4))
    """
    bound = max(size // 8, 3)
    return (10 if size >= 88 else max(2, min(10, size // 8 - 1))), bound


def draw_anomalies(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A box and a noise seed per image, on the generator's device.

    Boxes are int32 [count, 4] (top, left, height, width), wholly inside an image of size x size pixels, height and
    width uniform in `box_range(size)`, the position uniform; seeds are int64 [count], fresh for each image
    (Li et al., ICLR 2025, anomaly synthesis).
    """
    low, high = box_range(size)
    device = generator.device
    extent = torch.randint(low, high, (count, 2), generator=generator, device=device)
    place = torch.rand((count, 2), generator=generator, device=device, dtype=torch.float64)
    corner = (place * (size - extent + 1)).floor().to(torch.int64)
    seeds = torch.randint(-(2**62), 2**62, (count,), generator=generator, device=device)
    return torch.cat([corner, extent], dim=1).to(torch.int32), seeds


@torch.no_grad()
def add_anomalies(
    noise: Noise,
    images: Tensor,  # [N, C, H, W]
    boxes: Tensor,  # int32 [N, 4]: top, left, height, width
    seeds: Tensor,  # int64 [N]
    *,
    strength: float = 0.2,
    std: Tensor | None = None,  # [C]
) -> Tensor:
    """Images with an anomaly each, which follows from its own image, box and seed alone; without a gradient.

    - `opensimplex`, `hashed`: fractal simplex noise in the box, see `scrd_fast.ops.synthesize_anomalies`.
    - `perlin`: fractal Perlin noise in the box, with the same octaves.
    - `gaussian`: white Gaussian noise in the box, as strong.
    - `blobs`: a smooth blob, brighter or darker, up to three quarters of the box's longer side around its middle.
    - `cutpaste`: a copy of another place of the same image in the box (CutPaste, Li et al., CVPR 2021, without
      jitter; size and place are the box's). It has no strength, except that 0 leaves the images as they are.

    Noise and blobs are added times `strength`, divided by `std` where the images are already normalised. Pixels
    outside keep their bits. Boxes have the sizes of `box_range`; a larger one raises ValueError on the CPU and is cut
    on a GPU, where reading it would stall the device. Raises ValueError and TypeError as
    `scrd_fast.ops.synthesize_anomalies` does.

    >>> images, seeds = torch.zeros(1, 3, 64, 64), torch.tensor([7])
    >>> boxes = torch.tensor([[20, 30, 7, 7]], dtype=torch.int32)
    >>> changed = add_anomalies("perlin", images, boxes, seeds) != 0
    >>> bool(changed[:, :, 20:27, 30:37].all()), int(changed.sum()) == 3 * 7 * 7
    (True, True)
    """
    if noise not in get_args(Noise):
        raise ValueError(f"noise must be one of {', '.join(get_args(Noise))}, got {noise!r}")
    if noise in ("opensimplex", "hashed"):
        return synthesize_anomalies(images, boxes, seeds, strength=strength, std=std, variant=noise)
    check_anomalies(images, boxes, seeds, strength, std, inplace=False)
    _check_size(images, boxes)
    result = images.clone(memory_format=torch.preserve_format)
    if strength == 0 or images.numel() == 0:
        return result
    top, left, height, width = (x[:, None] for x in boxes.long().unbind(1))
    reach = (BLOB_REACH if noise == "blobs" else 1) * max(_largest(size) for size in images.shape[2:])
    rows, columns = _window(top, height, images.shape[2], reach), _window(left, width, images.shape[3], reach)
    own = torch.arange(len(images), device=images.device)[:, None, None]
    place = (own, slice(None), rows[:, :, None], columns[:, None, :])  # [N, K, K, C]: torch puts a slice last
    y, x = rows - top, columns - left
    inside = (((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :])[..., None]
    before = result[place]
    if noise == "cutpaste":
        source = (own, slice(None), *_source(seeds, y, x, boxes, images))
        result[place] = torch.where(inside, images[source], before)
        return result
    if noise == "blobs":
        added = blobs(seeds, y, x, boxes[:, 2:])
        inside = added.permute(0, 2, 3, 1) != 0
    else:
        added = {"perlin": perlin, "gaussian": gaussian}[noise](seeds, y, x, images.shape[1])
    added = strength * added.permute(0, 2, 3, 1)
    if std is not None:
        added = added / std.to(added)
    result[place] = torch.where(inside, (before + added).to(images.dtype), before)
    return result


def _largest(size: int) -> int:
    """Largest height or width of a box in images of `size` pixels."""
    return min(box_range(size)[1] - 1, size)


def _check_size(images: Tensor, boxes: Tensor) -> None:
    if boxes.device.type != "cpu" or type(boxes) is not Tensor:
        return
    for axis, size in ((2, images.shape[2]), (3, images.shape[3])):
        too_large = boxes[:, axis] > _largest(size)
        if too_large.any():
            n = int(too_large.nonzero()[0])
            raise ValueError(
                f"boxes[{n}] must be at most {_largest(size)} pixels long on {size}, got {boxes[n].tolist()}"
            )


def _window(begin: Tensor, length: Tensor, size: int, reach: float) -> Tensor:
    """Of one axis: rows [N, K] of the image, of which the box lies in the middle where the image allows it.

    K follows from the image's size alone, since a box's lies on the device.
    """
    count = min(math.ceil(reach) + 2, size)
    first = (begin - (count - length) // 2).clamp(0, size - count)
    return first + torch.arange(count, device=begin.device)


def _source(seeds: Tensor, y: Tensor, x: Tensor, boxes: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [N, K, 1] and columns [N, 1, K] that a patch is copied from, its place uniform in the image."""
    sizes = images.shape[2:]
    corners = [
        (uniform(seeds, i).double() * (size - extent + 1)).floor().long()
        for i, (size, extent) in enumerate(zip(sizes, boxes[:, 2:].unbind(1), strict=True))
    ]
    rows, columns = (
        (corner[:, None] + offset).clamp(0, size - 1)
        for corner, offset, size in zip(corners, (y, x), sizes, strict=True)
    )
    return rows[:, :, None], columns[:, None, :]
