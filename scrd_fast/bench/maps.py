# SPDX-License-Identifier: Apache-2.0
"""Cases of `anomaly_map`: the features of a wide_resnet50_2 at 256 pixels, and who makes maps and scores of them.

Variants: `map` is the map with its mean, maximum and mean of the largest 5 %; `mean` is the mean of the map alone,
for which no map is needed; `map, mirror` is `map` with the other border, for rivals that have no choice; `read` is
nothing but a read of the same memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scrd_fast.bench.harness import Call, Case, Contender, Tolerance
from scrd_fast.bench.isa import ISAS, require_native
from scrd_fast.bench.map_rivals import (
    SHARE,
    SIGMA,
    SIZE,
    anomalib,
    authors,
    compiled,
    eager,
    largest_word,
    read,
    result,
)
from scrd_fast.bench.roofline import Work, map_work, read_work
from scrd_fast.ops._axis_matrix import axis_matrix

__all__ = ["CASES", "LAYOUTS", "LIMIT", "SCALES", "Features", "laid_out"]

SCALES = ((256, 64, 64), (512, 32, 32), (1024, 16, 16))  # C, H, W

LAYOUTS = {"NCHW": (0, 1, 2), "channels-last": (2, 0, 1)}  # where channels, rows and columns of an image lie
LIMIT = 2.0  # seconds of turns: plain PyTorch takes as much for one batch of 64, and there are many such rows
Build = Callable[[Case, torch.device], Callable[[Any], Call]]


class Features:
    """Of teacher and student, at all scales, and what is right for them. All lie in `memory`, and nothing else."""

    def __init__(self, teacher: list[Tensor], student: list[Tensor], memory: Tensor) -> None:
        self.teacher, self.student, self.memory = teacher, student, memory
        self._right: dict[str, Tensor] = {}
        self._distances: list[list[Tensor]] = []

    def right(self, border: str) -> Tensor:
        """Map, mean, maximum and mean of the largest of each image, one after the other: float64 [N, H W + 3]."""
        if border not in self._right:
            if not self._distances:  # of all borders; an image at a time, or float64 would fill the memory
                self._distances = [self._of_image(n) for n in range(len(self.teacher[0]))]
            maps = torch.stack([_blurred(distances, border) for distances in self._distances]).flatten(1)
            ranked = maps.sort(dim=1, descending=True).values
            scores = maps.mean(1), ranked[:, 0], ranked[:, : math.ceil(SHARE * maps.shape[1])].mean(1)
            self._right[border] = torch.cat([maps, torch.stack(scores, dim=1)], dim=1)
        return self._right[border]

    def _of_image(self, n: int) -> list[Tensor]:
        def exact(x: Tensor) -> Tensor:
            return x[n : n + 1].to("cpu", torch.float64)

        found = []
        for t, s in ((exact(t), exact(s)) for t, s in zip(self.teacher, self.student, strict=True)):
            norms = torch.linalg.vector_norm(t, dim=1) * torch.linalg.vector_norm(s, dim=1)  # above eps by far
            found.append(1 - torch.linalg.vecdot(t, s, dim=1) / norms)
        return found


def _blurred(distances: list[Tensor], border: str) -> Tensor:
    """Upsampled by torch and blurred by scipy, or by our own matrices where that is missing."""
    try:
        from scipy.ndimage import gaussian_filter
    except ImportError:
        total = torch.zeros(SIZE, dtype=torch.float64)
        for d in distances:
            rows, columns = (
                axis_matrix(source, target, SIGMA, border, torch.float64, d.device)
                for source, target in zip(d.shape[1:], SIZE, strict=True)
            )
            total += rows @ d[0] @ columns.T
        return total
    upsampled = [F.interpolate(d[None], size=SIZE, mode="bilinear", align_corners=True)[0, 0] for d in distances]
    total = torch.stack(upsampled).sum(0)
    return torch.from_numpy(np.asarray(gaussian_filter(total.numpy(), SIGMA, mode=border, truncate=4.0)))


def _oracle(inputs: Features, variant: str) -> Tensor:
    if variant == "read":
        return largest_word(inputs.memory).to("cpu", torch.float64)
    right = inputs.right("mirror" if variant == "map, mirror" else "reflect")
    return right[:, -3] if variant == "mean" else right


def _tolerance(variant: str) -> Tolerance:
    """Sums of up to 1,024 products in float32 lose sqrt(1024) * 2^-24 = 2e-6 of a norm where errors are independent,
    and the distances of three scales add. Features of bfloat16 are exact in float32, in which all contenders compute
    (rivals are given `x.float()`): the cosine of bfloat16 itself would be off by 9e-3."""
    del variant
    return Tolerance(1e-5, 1e-5)


def _operator(variant: str, backend: str, isa: str | None = None) -> Build:
    options: dict[str, Any] = {"return_map": False} if variant == "mean" else {"top": SHARE}

    def build(case: Case, device: torch.device) -> Callable[[Features], Call]:
        from scrd_fast.ops import anomaly_map

        if backend == "auto":
            require_native(case.kernels, device, isa)

        def bind(inputs: Features) -> Call:
            teacher, student = inputs.teacher, inputs.student
            return result(lambda: anomaly_map(teacher, student, None, SIZE, sigma=SIGMA, backend=backend, **options))

        return bind

    return build


def contenders(count: int) -> tuple[Contender, ...]:
    """Of a case with that many images."""
    found = []
    for variant in ("map", "mean"):
        found.append(Contender("scrd_fast", _operator(variant, "auto"), variant, "native"))
        if count <= 8:  # each has a process with inputs of its own: with more they would fill the memory
            found += [
                Contender(f"scrd_fast {isa}", _operator(variant, "auto", isa), variant, "native", isa) for isa in ISAS
            ]
        found.append(Contender("scrd_fast triton", _operator(variant, "triton"), variant, "triton"))
        if count <= 8:  # for more images it takes as much longer, and `eager` is there to say so
            found.append(Contender("reference", _operator(variant, "reference"), variant, "reference"))
        found.append(Contender("eager", eager(variant), variant, "torch", ours=False))
        options: dict[str, Any] = {"compiles": True, "ours": False, "slow": True}
        found.append(Contender("torch.compile", compiled(variant), variant, "torch", **options))
        # On a CPU it compiles the same loops: once is enough to see it.
        options["on_gpu"] = count != 8
        tuned = compiled(variant, "max-autotune-no-cudagraphs")
        found.append(Contender("torch.compile, max-autotune", tuned, variant, "torch", **options))
    found.append(Contender("read", read, "read", "torch", ours=False))
    found.append(Contender("authors", authors, "map", "scipy", ours=False))
    found.append(Contender("anomalib", anomalib, "map, mirror", "torch", environment="anomalib", ours=False))
    return tuple(found)


def draw(seed: int, count: int, dtype: torch.dtype, layout: str, device: torch.device) -> Features:
    """Positive numbers, as after a ReLU: one image's are drawn, moved about for the others, and mixed into the
    student's by a share of its own for each pixel. Drawing all would take longer than many a measurement."""
    generator = torch.Generator().manual_seed(seed)
    channels, rows, columns = LAYOUTS[layout]
    teacher, student = [], []
    memory, parts = laid_out(count, dtype, device, lists=2)
    for c, h, w in SCALES:
        first, other = (torch.rand((c, h, w), generator=generator).to(device) for _ in range(2))
        shares = torch.rand((count, 1, h, w), generator=generator).to(device)
        # As they lie in memory, so that nothing is copied across it.
        first, other = (x.movedim(0, channels).contiguous() for x in (first, other))
        shares = shares.movedim(1, 1 + channels)
        t, s = (next(parts)[: count * c * h * w].view(count, *first.shape) for _ in range(2))
        for n in range(count):
            moved = first.roll((n, n // h), (rows, columns))
            t[n] = moved
            s[n] = torch.lerp(other, moved, shares[n])
        teacher.append(t.movedim(1 + channels, 1))
        student.append(s.movedim(1 + channels, 1))
    return Features(teacher, student, memory)


def laid_out(count: int, dtype: torch.dtype, device: torch.device, lists: int) -> tuple[Tensor, Iterator[Tensor]]:
    """One memory, and its parts for each scale of so many lists of features, scale by scale. Between two lie a page
    and a line, as an allocator leaves them: a power of two apart they would be in each other's way in a cache."""
    gap = 4160 // dtype.itemsize
    sizes = [count * c * h * w + gap for c, h, w in SCALES for _ in range(lists)]
    rest = -sum(sizes) % 4096  # whole rows for every reader
    memory = torch.zeros(sum(sizes) + rest, dtype=dtype, device=device)
    return memory, iter(torch.split(memory, [*sizes, rest]))


def _case(count: int, dtype: torch.dtype, layout: str) -> Case:
    name = str(dtype).removeprefix("torch.")

    def work(seed: int, variant: str) -> Work:
        del seed
        if variant == "read":
            return read_work(count, 2 * count * sum(math.prod(scale) for scale in SCALES) * dtype.itemsize)
        return map_work(count, SCALES, SIZE, dtype.itemsize, SIGMA, return_map=variant != "mean")

    return Case(
        "anomaly_map",
        f"{count} {'image' if count == 1 else 'images'}, {name}, {layout}",
        (count, *SIZE),
        lambda seed, device: draw(seed, count, dtype, layout, device),
        _oracle,
        work,
        _tolerance,
        contenders(count),
        name,
        quick=(count, dtype, layout) in QUICK,
        unit="images",
        rivals=("read", "torch.compile", "eager", "authors", "anomalib", "reference"),
        parts=("cosine_distances", "anomaly_map"),
        most_sets=1 if count > 8 else None,  # 0.5 or 0.9 GB: more than any cache, and much memory
        limit=LIMIT,
    )


QUICK = ((1, torch.float32, "NCHW"), (8, torch.bfloat16, "channels-last"))
FIRST = (torch.float32, "NCHW")
OTHERS = ((torch.bfloat16, "channels-last"), (torch.bfloat16, "NCHW"), (torch.float32, "channels-last"))
# The first three, which a time limit may leave alone, have every batch size; the next three every type and layout.
CASES = (
    *(_case(count, *FIRST) for count in (1, 8, 64)),
    *(_case(8, *other) for other in OTHERS),
    *(_case(count, *other) for other in OTHERS for count in (1, 64)),
)
