# SPDX-License-Identifier: Apache-2.0
"""Cases of `simplex_noise` and `synthesize_anomalies`: the shapes of training, and who computes them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scrd_fast.bench.harness import Call, Case, Contender, Tolerance
from scrd_fast.bench.hashed_noise import hashed_noise
from scrd_fast.bench.isa import ISAS, require_native
from scrd_fast.bench.roofline import Work, simplex_work, synthesize_work
from scrd_fast.synthesis import draw_anomalies

__all__ = ["CASES"]

VARIANTS = ("opensimplex", "hashed")
OCTAVES, PERSISTENCE, FREQUENCY, STRENGTH = 6, 0.6, 1 / 32, 0.2  # the operators' defaults
UNIT, RIVALS = "octave samples", ("opensimplex+numba", "reference")
LIMIT = 2.0  # seconds of turns in the largest cases, which plain PyTorch and one thread of numba would fill for minutes
Array = np.ndarray[Any, np.dtype[Any]]
Build = Callable[[Case, torch.device], Callable[[Any], Call]]


class Noise(NamedTuple):
    seeds: Tensor  # int64 [N]
    size: tuple[int, int, int]


class Batch(NamedTuple):
    images: Tensor  # [N, C, H, W]
    boxes: Tensor  # int32 [N, 4]
    seeds: Tensor  # int64 [N]
    inplace: bool


# What is computed -----------------------------------------------------------------------------------------------


def _noise(options: dict[str, Any]) -> Callable[[Noise], Call]:
    from scrd_fast.ops import simplex_noise

    return lambda inputs: lambda: simplex_noise(inputs.seeds, inputs.size, **options)


def _synthesis(options: dict[str, Any]) -> Callable[[Batch], Call]:
    from scrd_fast.ops import synthesize_anomalies

    def bind(inputs: Batch) -> Call:
        images, boxes, seeds, inplace = inputs
        if inplace:
            return _InPlace(images, lambda work: synthesize_anomalies(work, boxes, seeds, inplace=True, **options))
        return lambda: synthesize_anomalies(images, boxes, seeds, **options)

    return bind


class _InPlace:
    """Adds to the same images at every call, as nothing else is rewritten; a call's result is what one call adds, on
    average since `restart`. Few calls lie between two of those, so that rounding and faults stay visible. The replay
    of a graph adds too: `replayed` counts it."""

    def __init__(self, images: Tensor, add: Callable[[Tensor], object]) -> None:
        self._images, self._add = images, add
        self._work, self.count = images.clone(), 0

    def restart(self) -> None:
        self._work.copy_(self._images)
        self.count = 0

    def replayed(self) -> None:
        self.count += 1

    def __call__(self) -> Callable[[], Tensor]:
        self._add(self._work)
        self.count += 1
        return self._result

    def _result(self) -> Tensor:
        return self._images.double() + (self._work.double() - self._images.double()) / self.count


FUNCTIONS: dict[str, Callable[[dict[str, Any]], Callable[[Any], Call]]] = {
    "simplex_noise": _noise,
    "synthesize_anomalies": _synthesis,
}


def _operator(variant: str, backend: str, isa: str | None = None) -> Build:
    def build(case: Case, device: torch.device) -> Callable[[Any], Call]:
        if backend == "auto":
            require_native(case.kernels, device, isa)
        return FUNCTIONS[case.op]({"variant": variant, "backend": backend})

    return build


def _compiled(variant: str) -> Build:
    def build(case: Case, device: torch.device) -> Callable[[Any], Call]:
        del device
        _leave_the_shuffle_alone()
        bind = FUNCTIONS[case.op]({"variant": variant, "backend": "reference"})
        return lambda inputs: torch.compile(bind(inputs), dynamic=False)

    return build


def _leave_the_shuffle_alone() -> None:
    """Unrolled, its 256 dependent steps alone would take the compiler minutes and gain nothing: it stays eager, in
    this process, and the compiler has the arithmetic."""
    module = importlib.import_module("scrd_fast.ops.simplex_noise")
    if shuffle := getattr(module, "_permutations", None):
        module._permutations = torch.compiler.disable(shuffle)  # type: ignore[attr-defined, no-untyped-call]


def _octaves(noise: Any, size: tuple[int, ...]) -> Array:
    """The sum of octaves by the published package's array interface, float64 [D, H, W]."""
    z, y, x = (np.arange(n, dtype=np.float64) for n in size)
    total = np.zeros(size)
    for octave in range(OCTAVES):
        f = FREQUENCY * 2**octave
        total += PERSISTENCE**octave * noise.noise3array(x * f, y * f, z * f)
    return total


def _published(threads: int | None = None) -> Build:
    """The package `opensimplex`, its loops compiled by numba. Noise objects stand outside the timing for
    simplex_noise; synthesize_anomalies makes one per patch, as the method's authors do."""

    def build(case: Case, device: torch.device) -> Callable[[Any], Call]:
        del device
        import numba
        import opensimplex

        count = threads or min(torch.get_num_threads(), int(numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]

        def noise(inputs: Noise) -> Call:
            objects = [opensimplex.OpenSimplex(seed) for seed in inputs.seeds.tolist()]

            def run() -> Array:
                numba.set_num_threads(count)
                return np.stack([_octaves(one, inputs.size) for one in objects]).astype(np.float32)

            return run

        def synthesis(inputs: Batch) -> Call:
            images, boxes, seeds = inputs.images.cpu(), inputs.boxes.tolist(), inputs.seeds.tolist()

            def add(work: Tensor) -> Tensor:
                numba.set_num_threads(count)
                for image, (top, left, h, w), seed in zip(work.numpy(), boxes, seeds, strict=True):
                    patch = _octaves(opensimplex.OpenSimplex(seed), (images.shape[1], h, w))
                    image[:, top : top + h, left : left + w] += (STRENGTH * patch).astype(np.float32)
                return work

            return _InPlace(images, add) if inputs.inplace else lambda: add(images.clone())

        return noise if case.op == "simplex_noise" else synthesis

    return build


def contenders() -> tuple[Contender, ...]:
    """All of them; the CPU's instruction sets are left out on a GPU by the run."""
    found = []
    for variant in VARIANTS:
        found += [Contender("scrd_fast", _operator(variant, "auto"), variant, "native")]
        found += [
            Contender(f"scrd_fast {isa}", _operator(variant, "auto", isa), variant, "native", isa) for isa in ISAS
        ]
        found += [
            Contender("scrd_fast triton", _operator(variant, "triton"), variant, "triton"),
            Contender("reference", _operator(variant, "reference"), variant, "reference"),
            Contender("torch.compile", _compiled(variant), variant, "reference", compiles=True, ours=False, slow=True),
        ]
    threads = {"opensimplex+numba": None, "opensimplex+numba, 1 thread": 1}
    for name, count in threads.items():
        found.append(Contender(name, _published(count), "opensimplex", "numba", on_cpu=True, ours=False))
    return tuple(found)


# Right answers --------------------------------------------------------------------------------------------------


def _blocks(seeds: Tensor, size: tuple[int, int, int], variant: str) -> Tensor:
    """Float64 noise [N, D, H, W]: the published package's, or after the definition; the reference's where there is no
    such package."""
    if variant == "hashed":
        return hashed_noise(seeds, size, OCTAVES, PERSISTENCE, FREQUENCY).cpu()
    try:
        import opensimplex
    except ImportError:
        from scrd_fast.ops import simplex_noise

        return simplex_noise(seeds.cpu(), size, variant=variant, backend="reference").double()
    return torch.from_numpy(np.stack([_octaves(opensimplex.OpenSimplex(s), size) for s in seeds.tolist()]))


def _noise_oracle(inputs: Noise, variant: str) -> Tensor:
    return _blocks(inputs.seeds, inputs.size, variant)


def _synthesis_oracle(inputs: Batch, variant: str) -> Tensor:
    result = inputs.images.to("cpu", torch.float64)
    channels = result.shape[1]
    for n, (top, left, h, w) in enumerate(inputs.boxes.tolist()):
        patch = _blocks(inputs.seeds[n : n + 1], (channels, h, w), variant)[0]
        result[n, :, top : top + h, left : left + w] += STRENGTH * patch
    return result


def _noise_tolerance(variant: str) -> Tolerance:
    # Vertices are float32: six octaves of 24 products each, of a sum below 2.4, lose sqrt(144) * 2^-24 * 2.4.
    del variant
    return Tolerance(0.0, 3e-6)


def _synthesis_tolerance(variant: str) -> Tolerance:
    # The sum of pixel and noise is rounded to float32; in place, sums grow until their own rounding counts.
    del variant
    return Tolerance(2.0**-23, 3e-6)


# Cases ----------------------------------------------------------------------------------------------------------


def _noise_case(name: str, count: int, size: tuple[int, int, int], **options: Any) -> Case:
    def inputs(seed: int, device: torch.device) -> Noise:
        generator = torch.Generator().manual_seed(seed)
        return Noise(torch.randint(-(2**62), 2**62, (count,), generator=generator).to(device), size)

    return Case(
        "simplex_noise",
        name,
        (count, *size),
        inputs,
        _noise_oracle,
        lambda seed, variant: simplex_work(count, size, OCTAVES, FREQUENCY, variant),
        _noise_tolerance,
        contenders(),
        unit=UNIT,
        rivals=RIVALS,
        **options,
    )


def _synthesis_case(
    name: str, count: int, size: tuple[int, int] = (256, 256), inplace: bool = False, quick: bool = False
) -> Case:
    shape = (count, 3, *size)

    def inputs(seed: int, device: torch.device) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        images = torch.rand(shape, generator=generator)
        boxes, seeds = draw_anomalies(count, min(size), generator)
        return Batch(images.to(device), boxes.to(device), seeds.to(device), inplace)

    def work(seed: int, variant: str) -> Work:
        boxes = inputs(seed, torch.device("cpu")).boxes.tolist()
        return synthesize_work(shape, boxes, variant=variant, inplace=inplace)

    return Case(
        "synthesize_anomalies",
        name,
        shape,
        inputs,
        _synthesis_oracle,
        work,
        _synthesis_tolerance,
        contenders(),
        quick=quick,
        unit=UNIT,
        rivals=RIVALS,
        parts=("synthesize_anomalies_",) if inplace else (),
    )


CASES = (
    _noise_case("1 small patch", 1, (3, 16, 16), quick=True),
    _noise_case("16 patches", 16, (3, 32, 32), quick=True),
    _noise_case("64 patches", 64, (3, 32, 32)),
    _noise_case("256 patches", 256, (3, 32, 32), most_sets=1, limit=LIMIT),
    _noise_case("odd patches", 5, (3, 31, 29)),
    _noise_case("1 field", 1, (1, 512, 512)),
    _noise_case("1 large field", 1, (1, 2048, 2048), on_gpu=True, most_sets=1, limit=LIMIT),
    _noise_case("1 field, 3 slices", 1, (3, 256, 256)),
    _synthesis_case("16 images in place", 16, inplace=True, quick=True),
    _synthesis_case("16 images", 16),
    _synthesis_case("64 images", 64),
    _synthesis_case("odd images", 5, (231, 177)),
)
