# SPDX-License-Identifier: Apache-2.0
"""Other ways to an anomaly map: plain PyTorch, the same compiled, the method's authors' way, and anomalib's. And the
floor of all, a read of the features."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from scrd_fast.bench.harness import Call, Case
from scrd_fast.bench.roofline import best_seconds

if TYPE_CHECKING:
    from scrd_fast.bench.maps import Features

__all__ = ["anomalib", "authors", "authors_map", "compiled", "eager", "largest_word", "read", "result"]

SIZE, SIGMA, SHARE = (256, 256), 4.0, 0.05
RADIUS = int(4 * SIGMA + 0.5)
LARGEST = math.ceil(SHARE * SIZE[0] * SIZE[1])
Found = Sequence[Tensor | None]
Build = Callable[[Case, torch.device], Callable[[Any], Call]]


def result(compute: Callable[[], Found]) -> Call:
    """A call whose results, those that are there, are joined for the comparison outside of the timing."""

    def call() -> Callable[[], Tensor]:
        with torch.inference_mode():
            found = compute()
        return lambda: _joined([x for x in found if x is not None])

    return call


def _joined(found: list[Tensor]) -> Tensor:
    if len(found) == 1:  # the mean alone
        return found[0]
    return torch.cat([x.reshape(len(x), -1) for x in found], dim=1)


def _upsampled(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """The sum over scales, [N, 1, H, W]. In float32: the cosine of bfloat16 would be off by 9e-3."""
    total = None
    for t, s in zip(teacher, student, strict=True):
        distance = 1 - F.cosine_similarity(t.float(), s.float())
        scale = F.interpolate(distance[:, None], size=SIZE, mode="bilinear", align_corners=True)
        total = scale if total is None else total + scale
    assert total is not None
    return total


def _padded(x: Tensor, dim: int) -> Tensor:
    """d c b a | a b c d | d c b a, which no padding of torch is."""
    begin, end = x.narrow(dim, 0, RADIUS), x.narrow(dim, x.shape[dim] - RADIUS, RADIUS)
    return torch.cat([begin.flip(dim), x, end.flip(dim)], dim)


def _scored(full: Tensor) -> Found:
    pixels = full.flatten(1)
    return full, pixels.mean(1), pixels.amax(1), pixels.topk(LARGEST).values.mean(1)


def _plain(variant: str, device: torch.device) -> Callable[[list[Tensor], list[Tensor]], Found]:
    """The obvious PyTorch code. The blur keeps the mean, so that the mean alone needs none."""
    offsets = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    kernel = (kernel / kernel.sum()).float().to(device)

    def with_map(teacher: list[Tensor], student: list[Tensor]) -> Found:
        full = _padded(_upsampled(teacher, student), 2)
        full = _padded(F.conv2d(full, kernel[None, None, :, None]), 3)
        return _scored(F.conv2d(full, kernel[None, None, None, :]))

    def mean(teacher: list[Tensor], student: list[Tensor]) -> Found:
        return [_upsampled(teacher, student).mean((1, 2, 3))]

    return mean if variant == "mean" else with_map


def eager(variant: str) -> Build:
    def build(case: Case, device: torch.device) -> Callable[[Features], Call]:
        del case
        compute = _plain(variant, device)
        return lambda inputs: result(lambda: compute(inputs.teacher, inputs.student))

    return build


def compiled(variant: str, mode: str | None = None) -> Build:
    def build(case: Case, device: torch.device) -> Callable[[Features], Call]:
        del case
        compute = torch.compile(_plain(variant, device), dynamic=False, mode=mode)
        return lambda inputs: result(lambda: compute(inputs.teacher, inputs.student))

    return build


def authors_map(teacher: Sequence[Tensor], student: Sequence[Tensor], size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Of one image whose features are [1, C_k, H_k, W_k]: [H, W]."""
    from scipy.ndimage import gaussian_filter

    total = np.zeros(size)
    for t, s in zip(teacher, student, strict=True):
        distance = 1 - F.cosine_similarity(t.float(), s.float())
        scale = F.interpolate(distance[:, None], size=size, mode="bilinear", align_corners=True)
        total += scale[0, 0].cpu().numpy()
    return np.asarray(gaussian_filter(total, sigma=SIGMA))


def authors(case: Case, device: torch.device) -> Callable[[Features], Call]:
    """Image by image, as the published evaluation does: distances where the features are, map and blur in numpy and
    scipy. The mean alone is made of a map, too."""
    del case, device

    def one(teacher: list[Tensor], student: list[Tensor]) -> tuple[Any, ...]:
        full = authors_map(teacher, student, SIZE)
        return full, full.mean(), full.max(), np.partition(full.ravel(), -LARGEST)[-LARGEST:].mean()

    def bind(inputs: Features) -> Call:
        def compute() -> Found:
            found = [
                one([t[n : n + 1] for t in inputs.teacher], [s[n : n + 1] for s in inputs.student])
                for n in range(len(inputs.teacher[0]))
            ]
            return [torch.from_numpy(np.stack(column)) for column in zip(*found, strict=True)]

        return result(compute)

    return bind


def anomalib(case: Case, device: torch.device) -> Callable[[Features], Call]:
    """Its generator for reverse distillation, which builds its blur anew in each call, with the same scores after it.
    It pads with torch's `reflect`, which is scipy's `mirror`: its maps have a right answer of their own."""
    del case, device
    from anomalib.models.image.reverse_distillation.anomaly_map import (  # type: ignore[import-not-found]
        AnomalyMapGenerationMode,
        AnomalyMapGenerator,
    )

    generator = AnomalyMapGenerator(image_size=SIZE, sigma=int(SIGMA), mode=AnomalyMapGenerationMode.ADD)

    def bind(inputs: Features) -> Call:
        def compute() -> Found:
            return _scored(generator([s.float() for s in inputs.student], [t.float() for t in inputs.teacher]))

        return result(compute)

    return bind


def largest_word(memory: Tensor, row: int = 0) -> Tensor:
    """The largest of its 32-bit words, [1]; by way of each row's where `row` is given."""
    words = memory.view(torch.int32)
    return (words.view(-1, row).amax(1) if row else words).amax()[None]


def read(case: Case, device: torch.device) -> Callable[[Features], Call]:
    """The fastest of several plain readers, which is looked for on the first set of inputs."""
    del case
    found: list[int] = []

    def seconds(memory: Tensor, row: int) -> float:
        return best_seconds(lambda: largest_word(memory, row), device, repeats=5)

    def bind(inputs: Features) -> Call:
        if not found:
            found.append(min((0, 2**8, 2**10, 2**11), key=lambda row: seconds(inputs.memory, row)))
        return result(lambda: [largest_word(inputs.memory, found[0])])

    return bind
