# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import opensimplex
import pytest
import torch
from tolerances import TOLERANCES
from torch import Tensor

from scrd_fast.ops import simplex_noise

TOLERANCE = TOLERANCES["simplex_noise", torch.float32]
SEEDS = [0, 7, -1, -123456789, 2**62 + 12345, 2**63 - 1, -(2**63)]
# A pixel, an odd row, primes, and more rows than one thread takes at a time.
SIZES = [(1, 1, 1), (3, 1, 17), (2, 7, 13), (5, 31, 29), (3, 40, 64)]
# Powers of two put many points exactly between two regions; 1/3 and 0.37 do not meet the grid.
FREQUENCIES = [1 / 32, 0.25, 1.0, 1 / 3, 0.37]
HERE = ["reference", "native"]
VARIANTS = ["opensimplex", "hashed"]


def published(seed: int, size: tuple[int, int, int], octaves: int, persistence: float, frequency: float) -> Tensor:
    """The float64 sum of the octaves of the package `opensimplex`, [D, H, W]."""
    noise = opensimplex.OpenSimplex(seed)
    z, y, x = (np.arange(length, dtype=np.float64) for length in size)
    total = np.zeros(size)
    for octave in range(octaves):
        f = frequency * 2**octave
        total += persistence**octave * noise.noise3array(x * f, y * f, z * f)
    return torch.from_numpy(total)


def assert_published(actual: Tensor, seeds: list[int], octaves: int, persistence: float, frequency: float) -> None:
    assert actual.dtype == torch.float32
    size = actual.shape[1], actual.shape[2], actual.shape[3]
    expected = torch.stack([published(seed, size, octaves, persistence, frequency) for seed in seeds])
    torch.testing.assert_close(actual.cpu().double(), expected, **TOLERANCE._asdict())


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_published_package_for_every_seed(size: tuple[int, int, int], backend: str) -> None:
    actual = simplex_noise(torch.tensor(SEEDS), size, backend=backend)
    assert_published(actual, SEEDS, octaves=6, persistence=0.6, frequency=1 / 32)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("frequency", FREQUENCIES)
def test_equals_the_published_package_at_every_frequency(frequency: float, backend: str) -> None:
    options: dict[str, Any] = {"octaves": 3, "persistence": 0.9, "frequency": frequency}
    actual = simplex_noise(torch.tensor([3, -3]), (12, 24, 25), backend=backend, **options)
    assert_published(actual, [3, -3], **options)


@pytest.mark.cuda
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_cuda_equals_the_published_package(size: tuple[int, int, int]) -> None:
    for frequency in FREQUENCIES:
        actual = simplex_noise(torch.tensor(SEEDS, device="cuda"), size, frequency=frequency, backend="native")
        assert_published(actual, SEEDS, octaves=6, persistence=0.6, frequency=frequency)


@pytest.mark.cuda
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [*SIZES, (2, 1031, 1033)], ids=str)
def test_cuda_equals_the_cpu(size: tuple[int, int, int], variant: str) -> None:
    seeds = torch.tensor(SEEDS)
    actual = simplex_noise(seeds.cuda(), size, variant=variant, backend="native").cpu()
    torch.testing.assert_close(actual, simplex_noise(seeds, size, variant=variant), **TOLERANCE._asdict())


@pytest.mark.cuda
@pytest.mark.parametrize("variant", VARIANTS)
def test_cuda_takes_more_samples_than_a_grid_has_rows(variant: str) -> None:
    seeds = torch.arange(70_000)
    actual = simplex_noise(seeds.cuda(), (1, 2, 3), octaves=1, variant=variant, backend="native").cpu()
    expected = simplex_noise(seeds, (1, 2, 3), octaves=1, variant=variant)
    torch.testing.assert_close(actual, expected, **TOLERANCE._asdict())


@pytest.mark.cuda
@pytest.mark.parametrize("variant", VARIANTS)
def test_cuda_runs_on_the_current_stream_inside_a_graph(variant: str) -> None:
    seeds = torch.tensor([1, 2], device="cuda")
    simplex_noise(seeds, (3, 8, 8), variant=variant)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = simplex_noise(seeds, (3, 8, 8), variant=variant)
    seeds.copy_(torch.tensor([3, 4]))
    graph.replay()
    again = torch.tensor([3, 4], device="cuda")
    assert torch.equal(captured, simplex_noise(again, (3, 8, 8), variant=variant))


@pytest.mark.cuda
@pytest.mark.parametrize("variant", VARIANTS)
def test_cuda_never_waits_for_the_device(variant: str) -> None:
    seeds = torch.tensor([1, 2], device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        simplex_noise(seeds, (3, 8, 8), variant=variant)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_auto_is_the_native_kernel_where_it_is_loaded() -> None:
    seeds = torch.tensor([5])
    assert torch.equal(simplex_noise(seeds, (2, 9, 9)), simplex_noise(seeds, (2, 9, 9), backend="native"))


@pytest.mark.parametrize("backend", HERE)
def test_empty_batch(backend: str) -> None:
    assert simplex_noise(torch.empty(0, dtype=torch.int64), (3, 4, 5), backend=backend).shape == (0, 3, 4, 5)


@pytest.mark.parametrize("backend", HERE)
def test_seeds_need_not_be_contiguous(backend: str) -> None:
    table = torch.arange(12).reshape(4, 3)
    actual = simplex_noise(table[:, 1], (2, 5, 6), backend=backend)
    assert torch.equal(actual, simplex_noise(torch.tensor([1, 4, 7, 10]), (2, 5, 6), backend=backend))


@pytest.mark.parametrize("backend", HERE)
def test_a_sample_does_not_depend_on_its_batch(backend: str) -> None:
    seeds = torch.tensor([11, -4, 99, 11])
    batch = simplex_noise(seeds, (3, 13, 17), backend=backend)
    assert torch.equal(batch[0], batch[3])
    assert torch.equal(batch.flip(0), simplex_noise(seeds.flip(0), (3, 13, 17), backend=backend))
    for n in range(4):
        assert torch.equal(batch[n : n + 1], simplex_noise(seeds[n : n + 1], (3, 13, 17), backend=backend))


@pytest.mark.parametrize("frequency", [1 / 32, 1 / 8, 0.37, 17.3])
def test_seeds_that_share_work_are_as_if_alone(frequency: float) -> None:
    """Blocks of 64 points with few and with many lattice points, near to each other and, where a row ends, far away."""
    seeds, size = torch.arange(20) * 7919, (2, 3, 1000)
    together = simplex_noise(seeds, size, frequency=frequency, octaves=4, backend="native")
    for n in (0, 15, 16, 19):
        alone = simplex_noise(seeds[n : n + 1], size, frequency=frequency, octaves=4, backend="native")
        assert torch.equal(together[n : n + 1], alone)
    assert_published(together[:2], seeds[:2].tolist(), octaves=4, persistence=0.6, frequency=frequency)


@pytest.fixture
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.usefixtures("_threads_restored")
def test_bits_do_not_depend_on_the_number_of_threads(backend: str) -> None:
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(simplex_noise(torch.arange(5), (3, 37, 41), octaves=2, backend=backend))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_block_is_the_corner_of_a_larger_one() -> None:
    small = simplex_noise(torch.tensor([8]), (2, 11, 12))
    large = simplex_noise(torch.tensor([8]), (3, 20, 30))
    assert torch.equal(small, large[:, :2, :11, :12])


@pytest.mark.parametrize("n", [0, 3])
def test_opcheck(n: int) -> None:
    torch.library.opcheck(
        torch.ops.scrd_fast.simplex_noise.default, (torch.arange(n), (2, 3, 5), 2, 0.6, 1 / 32, "opensimplex")
    )


@pytest.mark.parametrize("backend", ["auto", "native"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(dynamic: bool, backend: str) -> None:
    torch.compiler.reset()

    def scaled(seeds: Tensor, height: int) -> Tensor:
        return simplex_noise(seeds, (3, height, 6), octaves=2, backend=backend) * 0.2

    compiled = torch.compile(scaled, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for n, height in ((2, 7), (5, 9)):
        assert torch.equal(compiled(torch.arange(n), height), scaled(torch.arange(n), height))


def test_exports_with_a_dynamic_batch() -> None:
    class Module(torch.nn.Module):
        def forward(self, seeds: Tensor) -> Tensor:
            return simplex_noise(seeds, (1, 4, 5))

    batch = torch.export.Dim("batch")
    program = torch.export.export(Module(), (torch.arange(3),), dynamic_shapes=({0: batch},))
    assert "scrd_fast.simplex_noise" in program.graph_module.code
    assert torch.equal(program.module()(torch.arange(7)), simplex_noise(torch.arange(7), (1, 4, 5)))


def test_meta_tensors_give_the_shape() -> None:
    noise = simplex_noise(torch.empty(4, dtype=torch.int64, device="meta"), (2, 3, 4))
    assert noise.shape == (4, 2, 3, 4)
    assert noise.dtype == torch.float32
    assert noise.is_meta


GOOD: dict[str, Any] = {"seeds": torch.tensor([1]), "size": (1, 2, 3)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seeds": [1]}, TypeError, "seeds must be a tensor, got list"),
        ({"seeds": torch.tensor([1.0])}, TypeError, "seeds must be int64, got torch.float32"),
        ({"seeds": torch.tensor([[1]])}, ValueError, "seeds must be [N], got [1, 1]"),
        ({"size": (1, 2)}, ValueError, "size must be three positive integers (D, H, W), got (1, 2)"),
        ({"size": ()}, ValueError, "size must be three positive integers (D, H, W), got ()"),
        ({"size": (1, 0, 3)}, ValueError, "size must be three positive integers (D, H, W), got (1, 0, 3)"),
        ({"size": (1, 2.5, 3)}, TypeError, "size must be three integers (D, H, W), got (1, 2.5, 3)"),
        ({"octaves": 0}, ValueError, "octaves must be 1 to 32, got 0"),
        ({"octaves": 2.0}, TypeError, "octaves must be an integer, got 2.0"),
        ({"persistence": float("nan")}, ValueError, "persistence must be finite, got nan"),
        ({"frequency": 0.0}, ValueError, "frequency must be positive and"),
        ({"frequency": 2.0**12}, ValueError, "frequency * 2^octaves below 2^16, got 4096.0"),
        ({"frequency": float("inf")}, ValueError, "got inf"),
        ({"variant": "perlin"}, ValueError, "variant must be one of opensimplex, hashed, got 'perlin'"),
        ({"backend": "cuda"}, ValueError, "one of auto, reference, native, triton, got 'cuda'"),
        ({"size": (2**11, 2**10, 2**10)}, ValueError, "size must have fewer than 2^31 elements"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_mistake_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        simplex_noise(**(GOOD | change))
    assert message in str(caught.value)


def test_the_kernel_itself_protects_memory() -> None:
    kernel = torch.ops.scrd_fast.simplex_noise
    with pytest.raises(RuntimeError, match="seeds must be int64"):
        kernel(torch.ones(2), (1, 2, 3), 1, 0.5, 0.1, "opensimplex")
    with pytest.raises(RuntimeError, match="size must be"):
        kernel(torch.arange(2), (2, 3), 1, 0.5, 0.1, "opensimplex")
    with pytest.raises(RuntimeError, match="variant must be opensimplex or hashed"):
        kernel(torch.arange(2), (1, 2, 3), 1, 0.5, 0.1, "perlin")
