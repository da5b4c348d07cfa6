# SPDX-License-Identifier: Apache-2.0
"""The anomaly map of anomalib's reverse distillation, by this package's operators."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from scrd_fast.ops import anomaly_map
from scrd_fast.ops._checks import check_choice

__all__ = ["AnomalyMapGenerator"]


class AnomalyMapGenerator(nn.Module):
    """As `anomalib.models.image.reverse_distillation.anomaly_map.AnomalyMapGenerator`: arguments, defaults and result.

    `image_size` is (height, width) of the map in pixels, `sigma` the blur's standard deviation in pixels with a radius
    of int(4 sigma + 0.5), `mode` "add" or "multiply", which anomalib's enumeration equals. The border is not repeated
    (d c b | a b c d | c b a); where it is wider than the map it is mirrored again, which anomalib's refuses.

    Raises ValueError for another mode, and as `scrd_fast.ops.anomaly_map` does.

    >>> import torch
    >>> generator = AnomalyMapGenerator((64, 64), mode="add")
    >>> features = [torch.ones(2, 8, 16, 16), torch.ones(2, 16, 8, 8)]
    >>> found = generator([-x for x in features], features)
    >>> found.shape, found.mean().round(decimals=4)
    (torch.Size([2, 1, 64, 64]), tensor(4.))
    """

    def __init__(self, image_size: Iterable[int], sigma: float = 4, mode: str = "multiply") -> None:
        super().__init__()
        check_choice("mode", mode, ("add", "multiply"))
        height, width = image_size
        self.image_size = (int(height), int(width))
        self.sigma = sigma
        self.mode = mode

    def forward(self, student_features: list[Tensor], teacher_features: list[Tensor]) -> Tensor:
        """The map [N, 1, H, W], float32, of features [N, C_k, H_k, W_k]; float64 of float64 features."""
        found = anomaly_map(
            teacher_features,
            student_features,
            None,
            self.image_size,
            sigma=self.sigma,
            border="mirror",
            combine=self.mode,
        )
        assert found.map is not None  # for the type checker: it was asked for
        return found.map
