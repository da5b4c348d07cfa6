# SPDX-License-Identifier: Apache-2.0
"""Cases of `contrastive_distance`: the features of a wide_resnet50_2 at 256 pixels, of clean and noisy teacher and of
the student.

Variants: `forward` is both distances of every sample and scale; `gradient` is the gradient of the ratio of their sums
with respect to the student's features, forward pass and all; `read` is nothing but a read of the same memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scrd_fast.bench.harness import Call, Case, Contender, Tolerance
from scrd_fast.bench.isa import ISAS, require_native
from scrd_fast.bench.map_rivals import largest_word, read, result
from scrd_fast.bench.maps import LAYOUTS, LIMIT, SCALES, laid_out
from scrd_fast.bench.roofline import Work

__all__ = ["CASES", "Contrast"]

Distances = Callable[[list[Tensor], list[Tensor], list[Tensor]], tuple[Tensor, Tensor | None]]
Build = Callable[[Case, torch.device], Callable[[Any], Call]]


class Contrast:
    """Features of clean and noisy teacher and of the student, at all scales. All lie in `memory`."""

    def __init__(self, clean: list[Tensor], noisy: list[Tensor], student: list[Tensor], memory: Tensor) -> None:
        self.clean, self.noisy, self.student, self.memory = clean, noisy, student, memory


def _exact(contrast: Contrast) -> tuple[list[Tensor], Tensor]:
    """In float64, a scale at a time: the gradients of the student's features, and the distances [2, N, K]."""
    sums, distances = [], []
    for c, n, s in zip(contrast.clean, contrast.noisy, contrast.student, strict=True):
        flat = [x.to("cpu", torch.float64).flatten(1) for x in (c, n, s)]
        dots = [torch.linalg.vecdot(flat[i], flat[j]) for i, j in ((0, 2), (1, 2), (0, 0), (1, 1), (2, 2))]
        sums.append(dots)
        distances.append([1 - dots[i] / (dots[2 + i] * dots[4]).sqrt() for i in range(2)])
    both = torch.stack([torch.stack([d[i] for d in distances], dim=1) for i in range(2)])
    pull, push = both[0].sum(), both[1].sum()
    factors = 1 / push, -pull / push**2
    grads = []
    for c, n, s, (cs, ns, cc, nn, ss) in zip(contrast.clean, contrast.noisy, contrast.student, sums, strict=True):
        total = torch.zeros(s.shape, dtype=torch.float64)
        for factor, teacher, product, square in ((factors[0], c, cs, cc), (factors[1], n, ns, nn)):
            norms = (square * ss).sqrt()
            total -= (factor / norms)[:, None, None, None] * teacher.to("cpu", torch.float64)
            total += (factor * product / norms / ss)[:, None, None, None] * s.to("cpu", torch.float64)
        grads.append(total)
    return grads, both


def _oracle(inputs: Contrast, variant: str) -> Tensor:
    if variant == "read":
        return largest_word(inputs.memory).double()
    grads, both = _exact(inputs)
    return torch.cat([g.flatten(1) for g in grads], dim=1) if variant == "gradient" else torch.cat([*both], dim=1)


def _tolerance(variant: str, dtype: torch.dtype) -> Tolerance:
    """Wide enough for eager PyTorch, whose `cosine_similarity` adds a million squares one after the other: it is off by
    up to 2e-4, and gradients that follow from it by a hundredth of the largest, which is about 3e-5."""
    if variant != "gradient":
        return Tolerance(5e-4, 5e-4)
    return Tolerance(2**-6 if dtype == torch.bfloat16 else 1e-2, 3e-7)


def _call(distances: Distances, variant: str, inputs: Contrast) -> Call:
    def forward() -> list[Tensor | None]:
        return [torch.cat([*distances(inputs.clean, inputs.noisy, inputs.student)], dim=1)]  # type: ignore[list-item]

    def gradient() -> list[Tensor | None]:
        with torch.inference_mode(False), torch.enable_grad():
            leaves = [s.detach().requires_grad_() for s in inputs.student]
            pull, push = distances(inputs.clean, inputs.noisy, leaves)
            assert push is not None
            grads = torch.autograd.grad(pull.sum() / push.sum(), leaves)
        return list(grads)

    if variant == "forward":
        return result(forward)
    return result(gradient)


def _operator(variant: str, backend: str, isa: str | None = None) -> Build:
    def build(case: Case, device: torch.device) -> Callable[[Contrast], Call]:
        from scrd_fast.ops import contrastive_distance

        if backend == "auto":
            require_native(case.kernels, device, isa)
        return lambda inputs: _call(lambda *maps: contrastive_distance(*maps, backend=backend), variant, inputs)

    return build


def _plain(clean: list[Tensor], noisy: list[Tensor], student: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The obvious PyTorch code. In float32, in which all contenders compute."""

    def to(teacher: list[Tensor]) -> Tensor:
        pairs = zip(teacher, student, strict=True)
        columns = [1 - F.cosine_similarity(t.float().flatten(1), s.float().flatten(1)) for t, s in pairs]
        return torch.stack(columns, dim=1)

    return to(clean), to(noisy)


def _eager(variant: str) -> Build:
    return lambda case, device: lambda inputs: _call(_plain, variant, inputs)


def _compiled(variant: str, mode: str | None = None) -> Build:
    def build(case: Case, device: torch.device) -> Callable[[Contrast], Call]:
        del case, device
        compute = torch.compile(_plain, dynamic=False, mode=mode)
        return lambda inputs: _call(compute, variant, inputs)

    return build


def contenders(count: int) -> tuple[Contender, ...]:
    """Of a case with that many samples."""
    found = [Contender("read", read, "read", "torch", ours=False)]
    for variant in ("forward", "gradient"):
        found.append(Contender("scrd_fast", _operator(variant, "auto"), variant, "native"))
        if count <= 8:  # each has a process with inputs of its own
            found += [
                Contender(f"scrd_fast {isa}", _operator(variant, "auto", isa), variant, "native", isa) for isa in ISAS
            ]
        found.append(Contender("scrd_fast triton", _operator(variant, "triton"), variant, "triton"))
        found.append(Contender("reference", _operator(variant, "reference"), variant, "reference"))
        found.append(Contender("eager", _eager(variant), variant, "torch", ours=False))
        options: dict[str, Any] = {"compiles": True, "ours": False, "slow": True}
        found.append(Contender("torch.compile", _compiled(variant), variant, "torch", **options))
        options["on_gpu"] = True
        tuned = _compiled(variant, "max-autotune-no-cudagraphs")
        found.append(Contender("torch.compile, max-autotune", tuned, variant, "torch", **options))
    return tuple(found)


def draw(seed: int, count: int, dtype: torch.dtype, layout: str, device: torch.device) -> Contrast:
    """Positive numbers, as after a ReLU. One sample's are drawn, moved about for the others; the noisy teacher's and
    the student's are the clean teacher's, mixed with numbers of their own by a share for each sample."""
    generator = torch.Generator().manual_seed(seed)
    channels, rows, columns = LAYOUTS[layout]
    memory, parts = laid_out(count, dtype, device, lists=3)
    lists: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for c, h, w in SCALES:
        drawn = [torch.rand((c, h, w), generator=generator).to(device).movedim(0, channels) for _ in range(3)]
        shares = torch.rand((3, count), generator=generator).to(device)
        shares[0] = 0  # of the clean teacher
        for i, own in enumerate(drawn):
            x = next(parts)[: count * c * h * w].view(count, *own.shape)
            for n in range(count):
                x[n] = torch.lerp(drawn[0], own, shares[i, n]).roll((n, n // h), (rows, columns))
            lists[i].append(x.movedim(1 + channels, 1))
    return Contrast(*lists, memory)


def work_of(count: int, itemsize: int, variant: str) -> Work:
    """Three reads of every feature, and for the gradient three more and one write. Five products each, and three."""
    values = count * sum(c * h * w for c, h, w in SCALES)
    passes, fused = (7, 8) if variant == "gradient" else (3, 5)
    widened = values * (passes if itemsize < 4 else 0)
    moved = passes * values * itemsize
    return Work(count, float(2 * fused * values), 0.0, float(widened), 0.0, moved, float(fused * values), reads=True)


def _case(count: int, dtype: torch.dtype, layout: str) -> Case:
    name = str(dtype).removeprefix("torch.")
    return Case(
        "contrastive_distance",
        f"{count} {'sample' if count == 1 else 'samples'}, {name}, {layout}",
        (count, len(SCALES)),
        lambda seed, device: draw(seed, count, dtype, layout, device),
        _oracle,
        lambda seed, variant: work_of(count, dtype.itemsize, variant),
        lambda variant: _tolerance(variant, dtype),
        contenders(count),
        name,
        quick=(count, dtype, layout) == (8, torch.bfloat16, "channels-last"),
        unit="images",
        rivals=("read", "torch.compile", "eager", "reference"),
        most_sets=1 if count > 8 else None,
        limit=LIMIT,
    )


KINDS = ((torch.float32, "channels-last"), (torch.bfloat16, "channels-last"), (torch.float32, "NCHW"))
CASES = tuple(_case(count, *kind) for count in (8, 1, 16) for kind in KINDS)
