# SPDX-License-Identifier: Apache-2.0
"""Large images in overlapping tiles, which the network looks at one after the other.

A canvas of P x P pixels is cut into T x T tiles of S x S, each beginning 3 S / 4 after the one before. Its map is the
sum of theirs, weighted by smooth ramps over the overlaps. Memory follows from P and the batch, never from the size of
the picture that was read.

Where a tile begins or ends, the map's step differs from that of the tile beside it by the weight of the outermost
pixel times the difference of the two tiles' maps. Half a cosine makes that weight 0.02 % for tiles of 256 pixels,
0.24 % for 64 and 0.96 % for 32, whatever the network (a linear ramp: 0.8 %, 3.1 % and 6.3 %). On constant images,
black, grey and white, these seams were at most 0.20 % of the range of a tile's map with 64 pixels, 0.05 % with 128 and
0.02 % with 256 (linear: 2.6 %, 1.3 % and 0.65 %; tiles side by side without a ramp: 28 % to 82 %). Measured with
untrained students of resnet18 (random) and of efficientnet_lite0 (random and pretrained).

What no ramp removes: convolutions pad with zeros, and that reaches far into a tile. In the overlaps the map of a
constant image differs from that of a network that looks at the whole canvas at once, by 5 % to 10 % of the range on
average with 256 pixels (42 % at worst), by 11 % to 41 % with 64. Not to use the outer sixteenth of each tile hardly
changed that.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from scrd_fast.config import ModelConfig, Preprocessing
from scrd_fast.model.prediction import TOP, Prediction, compared, peak_of

__all__ = ["cut_tiles", "predict_tiles", "tile_weights"]


def predict_tiles(canvases: Tensor, config: ModelConfig, predict: Callable[[Tensor], Prediction]) -> Prediction:
    """The prediction of canvases [N, 3, P, P], from those of their tiles [N, 3, S, S], which `predict` gives.

    Scores and peak are those of the whole map [N, 1, P, P], weights and scales means over the tiles. Raises
    ValueError for canvases of another size.
    """
    preprocessing = config.preprocessing
    if preprocessing.tiles == 1:
        return predict(canvases)
    side, size = preprocessing.canvas, preprocessing.size
    if canvases.shape[2:] != (side, side):
        raise ValueError(f"images must be [N, 3, {side}, {side}], the canvas of the model, got {list(canvases.shape)}")
    ramps = _weights_on(preprocessing, canvases.device)
    count = canvases.shape[0]  # `len` would be a constant of an exported graph
    maps = torch.zeros(count, 1, side, side, device=canvases.device)
    weights, scales = (torch.zeros(count, 3, device=canvases.device) for _ in range(2))
    for i, top in enumerate(_starts(preprocessing)):
        for j, left in enumerate(_starts(preprocessing)):
            tile = (..., slice(top, top + size), slice(left, left + size))
            part = predict(canvases[tile])
            maps[tile] += ramps[i][:, None] * ramps[j] * part.map
            weights += part.weights
            scales += part.scales
    tiles = preprocessing.tiles**2
    whole = Prediction(maps, _scores(maps), weights / tiles, scales / tiles, peak_of(maps))
    return compared(config, whole)


def cut_tiles(canvases: Tensor, places: Tensor, preprocessing: Preprocessing) -> Tensor:
    """One tile of each canvas, [N, 3, S, S]; `places` are their rows and columns in the grid, int64 [N, 2]."""
    starts, size = _starts(preprocessing), preprocessing.size
    corners = [(starts[i], starts[j]) for i, j in places.tolist()]
    return torch.stack([c[:, y : y + size, x : x + size] for c, (y, x) in zip(canvases, corners, strict=True)])


def tile_weights(preprocessing: Preprocessing) -> Tensor:
    """Of the tiles of one axis, float32 [T, S]: for each pixel of the canvas they sum to 1.

    >>> tile_weights(Preprocessing(size=32, tiles=2))[:, [0, 31]].round(decimals=4)
    tensor([[1.0000, 0.0096],
            [0.0096, 1.0000]])
    """
    overlap = preprocessing.size // 4
    up = (1 - torch.cos(torch.pi * (torch.arange(overlap, dtype=torch.float64) + 0.5) / overlap)) / 2
    weights = torch.ones(preprocessing.tiles, preprocessing.size, dtype=torch.float64)
    weights[1:, :overlap] = up
    weights[:-1, -overlap:] = up.flip(0)
    return weights.float()


@functools.lru_cache(maxsize=8)
def _weights_on(preprocessing: Preprocessing, device: torch.device) -> Tensor:
    return tile_weights(preprocessing).to(device)


def _starts(preprocessing: Preprocessing) -> range:
    """Where the tiles of one axis begin."""
    return range(0, preprocessing.canvas - preprocessing.size + 1, 3 * preprocessing.size // 4)


def _scores(maps: Tensor) -> dict[str, Tensor]:
    pixels = maps.flatten(1)
    top1, top5 = (pixels.topk(math.ceil(share * pixels.shape[1])).values.mean(1) for share in TOP)
    return {"mean": pixels.mean(1), "max": pixels.amax(1), "top1": top1, "top5": top5}
