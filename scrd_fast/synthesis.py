# SPDX-License-Identifier: Apache-2.0
"""Where synthetic anomalies go: boxes and seeds, drawn on the device without a host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["box_range", "draw_anomalies"]


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
