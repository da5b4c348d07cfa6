# SPDX-License-Identifier: Apache-2.0
"""What is usual among normal images, and what follows from it: the combined score and weights of the scales.

Two things make an image suspicious: a texture that is off all over, which the mean distance of the finest scale tells
(diffuse), or a spot that stands out, which the largest 1 % of the map's pixels tell (focal). Each is compared with the
same reading of held-out normal images, in standard deviations of its logarithm; the larger of the two is the score
`combined`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scrd_fast.config import Moments, Reference

__all__ = ["LEAST", "combined_score", "fit_reference", "left_out_scores", "scale_weights"]

LEAST = 3  # images that a reference needs: each is compared with the others, whose spread must be known
FLOOR = 1e-12  # of a distance, before its logarithm
SPREAD = 1e-3  # least standard deviation of a logarithm: images that are all alike must not divide by zero


def fit_reference(scales: npt.ArrayLike, top1: npt.ArrayLike) -> Reference:
    """From the mean distances of the scales [N, 3] and the score `top1` [N] of normal images not trained on.

    Raises ValueError for fewer than `LEAST` images, or other shapes.

    >>> reference = fit_reference([[0.1, 0.2, 0.3], [0.2, 0.2, 0.3], [0.4, 0.2, 0.3]], [1.0, 2.0, 4.0])
    >>> [round(x, 3) for x in reference.top1], [round(x, 3) for x in reference.scales[1]]
    ([0.693, 0.693], [-1.609, 0.001])
    """
    columns = _logs(scales, top1)
    if len(columns[0]) < LEAST:
        raise ValueError(f"a reference needs at least {LEAST} images, got {len(columns[0])}")
    first, second, third, focal = (_moments(c.mean(), c.std(ddof=1)) for c in columns)
    return Reference(scales=(first, second, third), top1=focal)


def combined_score(reference: Reference, scales: Tensor, top1: Tensor) -> Tensor:
    """The larger of two standardised readings, [N], of mean distances [N, 3] and `top1` [N].

    0 is usual for a normal image, and every unit is a standard deviation.
    """
    return torch.maximum(_standard(scales[:, 0], reference.scales[0]), _standard(top1, reference.top1))


def scale_weights(reference: Reference, scales: Tensor) -> Tensor:
    """Softmax over the scales' standardised mean distances, [N, 3]: which scale is the least usual for a normal image.

    They follow the size of a lesion: the larger it is, the more the coarse scale stands out.

    >>> reference = fit_reference([[0.1, 0.2, 0.3], [0.2, 0.4, 0.6], [0.4, 0.8, 1.2]], [1.0, 2.0, 4.0])
    >>> scale_weights(reference, torch.tensor([[0.2, 0.4, 0.6], [0.2, 0.4, 2.4]])).round(decimals=2)
    tensor([[0.3300, 0.3300, 0.3300],
            [0.1100, 0.1100, 0.7900]])
    """
    units = [_standard(d, moments) for d, moments in zip(scales.unbind(1), reference.scales, strict=True)]
    return torch.stack(units, dim=1).softmax(1)


def left_out_scores(scales: npt.ArrayLike, top1: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Combined scores [N] of the images that make up a reference, each compared with the others alone.

    With itself among those it is compared with, an image would look more usual than a new one does.
    """
    diffuse, _, _, focal = _logs(scales, top1)
    return np.maximum(_left_out(diffuse), _left_out(focal))


def _logs(scales: npt.ArrayLike, top1: npt.ArrayLike) -> list[npt.NDArray[np.float64]]:
    rows, focal = np.asarray(scales, dtype=np.float64), np.asarray(top1, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != 3 or focal.shape != rows.shape[:1]:
        raise ValueError(f"scales and top1 must be [N, 3] and [N], got {list(rows.shape)} and {list(focal.shape)}")
    return [np.log(np.maximum(column, FLOOR)) for column in (*rows.T, focal)]


def _moments(mean: float, deviation: float) -> Moments:
    return float(mean), max(float(deviation), SPREAD)


def _standard(values: Tensor, moments: Moments) -> Tensor:
    mean, deviation = moments
    return (values.float().clamp_min(FLOOR).log() - mean) / deviation


def _left_out(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(x - mean) / deviation of each, mean and deviation being those of the others."""
    n, mean = len(values), values.mean()
    others = (n * mean - values) / (n - 1)
    squares = ((values - mean) ** 2).sum() - (values - mean) ** 2 * n / (n - 1)
    deviations = np.sqrt(np.maximum(squares, 0) / (n - 2))
    return np.asarray((values - others) / np.maximum(deviations, SPREAD))
