# SPDX-License-Identifier: Apache-2.0
"""Whether the weights of the scales follow the size of a lesion: made lesions of known size in normal images."""

from __future__ import annotations

import torch
from torch import Tensor

from scrd_fast.data.datasets import open_dataset
from scrd_fast.data.images import ImageStore
from scrd_fast.model.scrd import SCRD
from scrd_fast.reproduce.fitting import parts_of
from scrd_fast.reproduce.results import Result

__all__ = ["DIAMETERS", "add_discs", "weights_by_diameter"]

DIAMETERS = (0, 3, 6, 12, 24, 48)  # pixels; 0 adds nothing
CONTRAST = 0.35  # of the range of an image
EDGE = 0.7  # pixels over which a disc fades
MARGIN = 0.3  # of the side: no lesion's centre lies closer to the border


def weights_by_diameter(result: Result, *, seed: int = 0) -> dict[float, list[float]]:
    """Mean scale weights [3] of a trained method on its held-out normal images, by the diameter of a disc in them."""
    settings = result.run.method.settings
    model = SCRD.from_pretrained(result.folder / "train" / "model")
    _, items = parts_of(open_dataset(result.run.data.root, settings.slice_axis), settings)
    store = ImageStore(items, settings.preprocessing(), cache="off")
    generators = {d: torch.Generator().manual_seed(seed) for d in DIAMETERS}  # the same places and signs for all
    found: dict[float, list[Tensor]] = {d: [] for d in DIAMETERS}
    for images in store.batches(settings.batch_size):
        for diameter, generator in generators.items():
            found[diameter].append(model.predict(add_discs(images, diameter, generator)).weights)
    return {diameter: torch.cat(weights).mean(0).tolist() for diameter, weights in found.items()}


def add_discs(images: Tensor, diameter: float, generator: torch.Generator) -> Tensor:
    """Images [N, 3, S, S] in [0, 1], each with a disc of `diameter` pixels, at random bright or dark.

    >>> discs = add_discs(torch.full((2, 3, 64, 64), 0.5), 10, torch.Generator().manual_seed(0))
    >>> areas = ((discs - 0.5).abs() > 0.17).float().mean(1).sum((1, 2))
    >>> bool(((areas - 78.5).abs() < 8).all())
    True
    """
    count, side = len(images), images.shape[-1]
    places = side * (MARGIN + (1 - 2 * MARGIN) * torch.rand(count, 2, 1, 1, generator=generator))
    signs = 2 * torch.randint(2, (count, 1, 1, 1), generator=generator) - 1
    if not diameter:
        return images
    rows, columns = torch.arange(side)[:, None], torch.arange(side)
    distance = torch.hypot(rows - places[:, 0], columns - places[:, 1])
    disc = torch.sigmoid((diameter / 2 - distance) / EDGE)[:, None]
    return (images + CONTRAST * signs * disc).clamp(0, 1)
