# SPDX-License-Identifier: Apache-2.0
"""Bottleneck, student and scale adaptation.

For a teacher of the ResNet family the blocks are those of RD4AD (Deng & Li, CVPR 2022): the teacher's own residual
block, mirrored. For any other CNN the student is mirrored from its channel counts with basic residual blocks. For a
ViT, whose maps have one grid, nothing is resampled: the bottleneck narrows by leaving a third of the channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scrd_fast.model.teacher import Teacher

__all__ = ["Architecture", "Bottleneck", "ScaleAdaptation", "Student"]


@dataclass(frozen=True)
class Architecture:
    """What the trainable part needs to know of its teacher. Stages run from fine to coarse."""

    channels: tuple[int, int, int]  # of the teacher's features
    depth: tuple[int, int, int]  # residual blocks of a stage
    expansion: int  # output channels of a residual block over its planes: 4 with a 1x1-3x3-1x1 block, else 1
    base_width: int  # width of the 3x3 convolution at 64 planes
    cardinality: int  # groups of the 3x3 convolution
    signed: bool  # whether the teacher's features can be negative
    one_grid: bool = False  # whether the teacher's maps have one size

    @classmethod
    def of(cls, teacher: Teacher) -> Architecture:
        first, second, third = teacher.channels
        stages = [getattr(teacher.encoder, f"layer{i}", None) for i in (1, 2, 3)]
        if any(s is None for s in stages) or not hasattr(stages[0][0], "expansion"):  # type: ignore[index]
            return cls((first, second, third), (2, 2, 2), 1, 64, 1, signed=True, one_grid=teacher.one_grid)
        block: Any = stages[0][0]  # type: ignore[index]
        deep = block.expansion > 1
        groups = block.conv2.groups
        width = block.conv2.out_channels // groups if deep else 64
        depth = tuple(len(s) for s in stages)  # type: ignore[arg-type]
        return cls((first, second, third), depth, block.expansion, width, groups, signed=False)  # type: ignore[arg-type]

    @property
    def embedding(self) -> int:
        """Channels of the bottleneck's output, at stride 32 or on the one grid."""
        return self.channels[2] if self.one_grid else 2 * self.channels[2]

    def resampling(self, direction: str) -> str | None:
        """How a block goes `direction`, up or down, between two scales."""
        return None if self.one_grid else direction


def _conv3x3(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, groups=groups, bias=False)


def _up2x2(inputs: int, outputs: int, groups: int = 1) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 2, stride=2, groups=groups, bias=False)


def _conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


class Residual(nn.Module):
    """A ResNet block that keeps its size, halves it (`resample="down"`) or doubles it (`resample="up"`)."""

    def __init__(self, inputs: int, outputs: int, arch: Architecture, resample: str | None = None) -> None:
        super().__init__()
        planes = outputs // arch.expansion
        if arch.expansion > 1:
            width = int(planes * arch.base_width / 64) * arch.cardinality
            middle = self._resampling(width, width, resample, arch.cardinality)
            layers = [_conv1x1(inputs, width), middle, _conv1x1(width, outputs)]
            widths = [width, width, outputs]
        else:
            layers = [self._resampling(inputs, planes, resample), _conv3x3(planes, outputs)]
            widths = [planes, outputs]
        modules: list[nn.Module] = []
        for layer, channels in zip(layers, widths, strict=True):
            modules += [layer, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*modules[:-1])
        self.shortcut: nn.Module = nn.Identity()
        if resample is not None or inputs != outputs:
            projection = {"up": _up2x2(inputs, outputs), "down": _conv1x1(inputs, outputs, 2)}
            layer = projection[resample] if resample else _conv1x1(inputs, outputs)
            self.shortcut = nn.Sequential(layer, nn.BatchNorm2d(outputs))
        self.activation = nn.ReLU(inplace=True)

    @staticmethod
    def _resampling(inputs: int, outputs: int, resample: str | None, groups: int = 1) -> nn.Module:
        if resample == "up":
            return _up2x2(inputs, outputs, groups)
        return _conv3x3(inputs, outputs, 2 if resample == "down" else 1, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.body(x) + self.shortcut(x))  # type: ignore[no-any-return]


def _stage(inputs: int, outputs: int, depth: int, arch: Architecture, resample: str | None) -> nn.Sequential:
    first = Residual(inputs, outputs, arch, resample)
    return nn.Sequential(first, *[Residual(outputs, outputs, arch) for _ in range(depth - 1)])


def _initialise(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):  # transposed convolutions keep torch's default, as in RD4AD
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


class Bottleneck(nn.Module):
    """Multi-scale fusion and one-class embedding: three teacher maps -> [N, 2 C_3, H_3 / 2, W_3 / 2].

    Of maps of one grid: -> [N, C_3, H_3, W_3].
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        first, second, third = arch.channels

        def halve(inputs: int, outputs: int) -> list[nn.Module]:
            return [_conv3x3(inputs, outputs, 2), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

        grid = arch.one_grid
        self.from_stride_4 = nn.Sequential(*([] if grid else halve(first, second) + halve(second, third)))
        self.from_stride_8 = nn.Sequential(*([] if grid else halve(second, third)))
        self.embed = _stage(3 * third, arch.embedding, arch.depth[0], arch, arch.resampling("down"))
        _initialise(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        first, second, third = features
        fused = torch.cat([self.from_stride_4(first), self.from_stride_8(second), third], dim=1)
        return self.embed(fused)  # type: ignore[no-any-return]


class Student(nn.Module):
    """The encoder mirrored: bottleneck output -> maps like the teacher's, in its order."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        widths = [arch.embedding, *reversed(arch.channels)]
        # As in RD4AD the depths are not mirrored: the coarsest stage has the depth of the teacher's first.
        self.stages = nn.ModuleList(
            _stage(widths[i], widths[i + 1], depth, arch, arch.resampling("up")) for i, depth in enumerate(arch.depth)
        )
        # A stage ends in a ReLU; a teacher whose features can be negative needs a linear layer to reach them.
        self.heads = nn.ModuleList(
            nn.Conv2d(c, c, 1) if arch.signed else nn.Identity() for c in reversed(arch.channels)
        )
        _initialise(self)

    def forward(self, embedding: Tensor) -> list[Tensor]:
        outputs = []
        x = embedding
        for stage, head in zip(self.stages, self.heads, strict=True):
            x = stage(x)
            outputs.append(head(x))
        return outputs[::-1]


class ScaleAdaptation(nn.Module):
    """Global max pool of the bottleneck's output -> linear -> softmax: a weight per scale, [N, 3], float32."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.linear = nn.Linear(arch.embedding, 3)

    def forward(self, embedding: Tensor) -> Tensor:
        return self.linear(embedding.amax((2, 3))).float().softmax(1)  # type: ignore[no-any-return]
