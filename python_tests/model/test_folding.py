# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scrd_fast.model.folding import fold_batch_norms
from scrd_fast.model.teacher import Teacher


def with_statistics(module: nn.Module) -> nn.Module:
    """As after training: new batch-norms do next to nothing."""
    generator = torch.Generator().manual_seed(1)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.3, generator=generator)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2, generator=generator)  # type: ignore[union-attr]
            norm.weight.data.uniform_(0.5, 1.5, generator=generator)
            norm.bias.data.normal_(0, 0.2, generator=generator)
    return module


def norms(module: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())


@pytest.mark.parametrize(
    ("name", "left"), [("resnet18", 0), ("tf_efficientnet_lite0", 0), ("regnety_004", 0), ("densenet121", 44)]
)
@torch.no_grad()
def test_features_stay(name: str, left: int) -> None:
    """densenet's other batch-norms stand before convolutions."""
    teacher = Teacher(name, "random")
    with_statistics(teacher)
    before = {k: v.clone() for k, v in teacher.encoder.state_dict().items()}
    folded = fold_batch_norms(teacher.encoder)
    assert folded is not None
    assert norms(folded) == left
    images = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(2))
    for actual, expected in zip(folded(images), teacher(images), strict=True):
        assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()
    after = teacher.encoder.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(v, after[k]) for k, v in before.items())


class Net(nn.Module):
    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.first, self.between, self.norm = nn.Conv2d(3, 4, 3), between, nn.BatchNorm2d(4)
        self.uses_both = False

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.between(self.first(x))
        return [self.norm(y) + y if self.uses_both else self.norm(y)]


def test_only_what_follows_directly_is_folded() -> None:
    assert fold_batch_norms(with_statistics(Net(nn.ReLU()))) is None
    folded: Any = fold_batch_norms(with_statistics(Net(nn.Identity())))
    assert folded is not None
    assert norms(folded) == 0


def test_a_convolution_that_is_used_twice_is_left() -> None:
    net = Net(nn.Identity())
    net.uses_both = True
    assert fold_batch_norms(with_statistics(net)) is None


def test_without_batch_norms_there_is_nothing_to_fold() -> None:
    assert fold_batch_norms(Teacher("convnext_tiny", "random").encoder) is None
