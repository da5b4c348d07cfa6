# SPDX-License-Identifier: Apache-2.0
"""Cases of `contrastive_distance`: the features of a wide_resnet50_2 at 256 pixels, of clean and noisy teacher and of
the student.

Variants: `forward` is both distances of every sample and scale; `backward` is the student's gradient alone, from what
the forward pass has kept; `gradient` is both passes, as a training step has them. `read` is nothing but a read of the
same memory, `copy` reads as much and writes a third of it: the traffic of `backward`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scrd_fast.bench.harness import Call, Case, Contender, Tolerance
from scrd_fast.bench.isa import ISAS, require_native
from scrd_fast.bench.map_rivals import largest_word, read, result
from scrd_fast.bench.maps import LAYOUTS, LIMIT, SCALES, laid_out
from scrd_fast.bench.roofline import Work, read_work

__all__ = ["CASES", "Contrast"]

EPS = 1e-8
PULL, PUSH = 1.0, -0.5  # the gradients of every clean and of every noisy distance
Distances = Callable[[list[Tensor], list[Tensor], list[Tensor]], tuple[Tensor, Tensor | None]]
Build = Callable[[Case, torch.device], Callable[[Any], Call]]


class Contrast:
    """Features of clean and noisy teacher and of the student, at all scales. All lie in `memory`, and nothing else."""

    def __init__(self, clean: list[Tensor], noisy: list[Tensor], student: list[Tensor], memory: Tensor) -> None:
        self.clean, self.noisy, self.student, self.memory = clean, noisy, student, memory
        self._right: tuple[Tensor, Tensor] | None = None

    def right(self) -> tuple[Tensor, Tensor]:
        """In float64, once for all variants: the student's gradients [N, C H W of all scales], the distances
        [N, 2 K]."""
        if self._right is None:
            grads, distances = _exact(self)
            self._right = torch.cat(grads, dim=1), distances
        return self._right

    @property
    def thirds(self) -> list[Tensor]:
        """Of the memory, whatever lies there."""
        length = self.memory.numel() // 3
        return [self.memory[i * length : (i + 1) * length] for i in range(3)]


def _exact(contrast: Contrast) -> tuple[list[Tensor], Tensor]:
    """In float64, a scale at a time: the gradients of the student's features, and the distances [N, 2 K]."""
    grads: list[Tensor] = []
    pulls: list[Tensor] = []
    pushes: list[Tensor] = []
    for maps in zip(contrast.clean, contrast.noisy, contrast.student, strict=True):
        clean, noisy, student = (x.to("cpu", torch.float64).contiguous().flatten(1) for x in maps)
        length = torch.linalg.vector_norm(student, dim=1)
        grad = torch.zeros_like(student)
        for teacher, found, slope in ((clean, pulls, PULL), (noisy, pushes, PUSH)):
            cosine = torch.linalg.vecdot(teacher, student) / torch.linalg.vector_norm(teacher, dim=1) / length
            found.append(1 - cosine)
            # The cosine's derivative is the teacher's direction without its part along the student's, over |D|.
            direction = F.normalize(teacher, dim=1) - (cosine / length)[:, None] * student
            grad -= slope * direction / length[:, None]
        grads.append(grad)
    return grads, torch.stack([*pulls, *pushes], dim=1)


def _oracle(inputs: Contrast, variant: str) -> Tensor:
    if variant == "read":
        return largest_word(inputs.memory).to("cpu", torch.float64)
    if variant == "copy":
        first, second, third = (x.to("cpu", torch.float64) for x in inputs.thirds)
        return first + second * third
    gradients, distances = inputs.right()
    return distances if variant == "forward" else gradients


def _tolerance(variant: str, dtype: torch.dtype) -> Tolerance:
    """Gradients are 1e-5 at most, and rounded to their dtype. All sums are float32's."""
    rounding = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-24
    if variant in ("forward", "read"):
        return Tolerance(0.0, 1e-5)
    return Tolerance(1.1 * rounding, 1e-6) if variant == "copy" else Tolerance(1.1 * rounding + 1e-5, 1e-10)


def _loose(variant: str, dtype: torch.dtype) -> Tolerance:
    """Of plain PyTorch, whose `cosine_similarity` adds a million squares one after the other, and which rounds the
    gradients of both distances to bfloat16 before it adds them."""
    if variant == "forward":
        return Tolerance(0.0, 1e-3)
    return Tolerance(1e-2, 1e-7 if dtype == torch.bfloat16 else 1e-8)


def _total(distances: Distances, inputs: Contrast) -> tuple[Tensor, list[Tensor]]:
    """What is differentiated, and with respect to what."""
    leaves = [s.detach().requires_grad_() for s in inputs.student]
    pull, push = distances(inputs.clean, inputs.noisy, leaves)
    assert push is not None
    return PULL * pull.sum() + PUSH * push.sum(), leaves


def _call(distances: Distances, variant: str, inputs: Contrast) -> Call:
    def forward() -> list[Tensor]:
        return [torch.cat([*distances(inputs.clean, inputs.noisy, inputs.student)], dim=1)]  # type: ignore[list-item]

    def gradient() -> list[Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            return list(torch.autograd.grad(*_total(distances, inputs)))

    return result(forward if variant == "forward" else gradient)


def _operator(variant: str, backend: str, isa: str | None = None) -> Build:
    def build(case: Case, device: torch.device) -> Callable[[Contrast], Call]:
        from scrd_fast.ops import contrastive_distance

        if backend == "auto":
            require_native(case.kernels, device, isa)
        if variant == "backward":
            return lambda inputs: _backward(inputs, backend, device)
        return lambda inputs: _call(lambda *maps: contrastive_distance(*maps, backend=backend), variant, inputs)

    return build


def _backward(inputs: Contrast, backend: str, device: torch.device) -> Call:
    """The operator's own, as autograd calls it, with the sums that the forward pass has kept."""
    from scrd_fast.ops._library import choose
    from scrd_fast.ops.contrastive_distance import _reference_backward

    maps = inputs.clean, inputs.noisy, inputs.student
    d_clean, d_noisy, dots = torch.ops.scrd_fast.contrastive_distance(*maps, EPS)
    slopes = torch.full_like(d_clean, PULL), torch.full_like(d_noisy, PUSH)
    run = choose("contrastive_distance_backward", backend, device, _reference_backward)
    return result(lambda: run(*slopes, dots, *maps, EPS, False)[2])


def _plain(clean: list[Tensor], noisy: list[Tensor], student: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The obvious PyTorch code. In float32, in which all contenders compute."""

    def to(teacher: list[Tensor]) -> Tensor:
        pairs = zip(teacher, student, strict=True)
        columns = [1 - F.cosine_similarity(t.float().flatten(1), s.float().flatten(1)) for t, s in pairs]
        return torch.stack(columns, dim=1)

    return to(clean), to(noisy)


def _eager(variant: str) -> Build:
    return lambda case, device: lambda inputs: _call(_plain, variant, inputs)


def _eager_backward(case: Case, device: torch.device) -> Callable[[Contrast], Call]:
    """Through a graph that is built once, before the timing, and kept."""
    del case, device

    def bind(inputs: Contrast) -> Call:
        with torch.enable_grad():
            total, leaves = _total(_plain, inputs)
        return result(lambda: torch.autograd.grad(total, leaves, retain_graph=True))

    return bind


def _compiled(variant: str, mode: str | None = None) -> Build:
    def build(case: Case, device: torch.device) -> Callable[[Contrast], Call]:
        del case, device
        compute = torch.compile(_plain, dynamic=False, mode=mode)
        return lambda inputs: _call(compute, variant, inputs)

    return build


def _copy(case: Case, device: torch.device) -> Callable[[Contrast], Call]:
    del case, device

    def bind(inputs: Contrast) -> Call:
        thirds = inputs.thirds
        out = torch.empty_like(thirds[0])
        return result(lambda: [torch.addcmul(*thirds, out=out)])

    return bind


def contenders(count: int, dtype: torch.dtype) -> tuple[Contender, ...]:
    """Of a case with that many samples."""
    found = [
        Contender("read", read, "read", "torch", ours=False),
        Contender("copy", _copy, "copy", "torch", ours=False),
    ]
    for variant in ("forward", "backward", "gradient"):
        found.append(Contender("scrd_fast", _operator(variant, "auto"), variant, "native"))
        if count <= 8:  # each has a process with inputs of its own
            found += [
                Contender(f"scrd_fast {isa}", _operator(variant, "auto", isa), variant, "native", isa) for isa in ISAS
            ]
        found.append(Contender("scrd_fast triton", _operator(variant, "triton"), variant, "triton"))
        found.append(Contender("reference", _operator(variant, "reference"), variant, "reference"))
        options: dict[str, Any] = {"ours": False, "tolerance": _loose(variant, dtype)}
        eager = _eager_backward if variant == "backward" else _eager(variant)
        found.append(Contender("eager", eager, variant, "torch", **options))
        if variant == "backward":  # a compiled graph is used up by its backward pass
            continue
        options |= {"compiles": True, "slow": True}
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
        # So far from each other that no sample passes for another, and no teacher for the other one.
        places = (torch.arange(count) + torch.rand((2, count), generator=generator) / 2) / count
        shares = torch.zeros(count), 0.6 + 0.3 * places[0], 0.2 + 0.3 * places[1]
        for i, own in enumerate(drawn):
            x = next(parts)[: count * c * h * w].view(count, *own.shape)
            for n in range(count):
                x[n] = torch.lerp(drawn[0], own, float(shares[i][n])).roll((n, n // h), (rows, columns))
            lists[i].append(x.movedim(1 + channels, 1))
    return Contrast(*lists, memory)


# Of every value: how often it is read or written, and multiply-adds.
PASSES = {"read": 3, "copy": 4, "forward": 3, "backward": 4, "gradient": 7}
FUSED = {"copy": 1, "forward": 5, "backward": 3, "gradient": 8}


def work_of(count: int, itemsize: int, variant: str) -> Work:
    """Three reads of every feature, and for a gradient three more and one write. Five products each, and three."""
    values = count * sum(math.prod(scale) for scale in SCALES)
    moved = PASSES[variant] * values * itemsize
    if variant == "read":
        return read_work(count, moved)
    converted = float(PASSES[variant] * values if itemsize < 4 else 0)
    fused = float(FUSED[variant] * values)
    return Work(count, 2 * fused, 0.0, converted, 0.0, moved, fused, reads=True)


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
        contenders(count, dtype),
        name,
        quick=(count, dtype, layout) in QUICK,
        unit="images",
        rivals=("read", "copy", "torch.compile", "eager", "reference"),
        parts=("contrastive_distance", "contrastive_distance_backward"),
        most_sets=1 if count > 8 else None,
        limit=LIMIT,
    )


QUICK = ((1, torch.float32, "NCHW"), (1, torch.bfloat16, "channels-last"))
KINDS = tuple((dtype, layout) for layout in ("channels-last", "NCHW") for dtype in (torch.float32, torch.bfloat16))
CASES = tuple(_case(count, *kind) for count in (8, 1, 16) for kind in KINDS)
