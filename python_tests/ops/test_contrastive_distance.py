# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from contrast_maps import AS_THEY_LIE, BACKENDS, DEVICES, DTYPES, LAYOUTS, Shape, independent, need, three
from tolerances import TOLERANCES
from torch import Tensor

from scrd_fast.ops import contrastive_distance

SHAPES: list[list[Shape]] = [
    [(2, 3, 5, 4)],
    [(1, 1, 1, 1)],
    [(3, 8, 7, 7), (3, 16, 3, 3), (3, 32, 1, 2)],
    [(0, 4, 3, 3)],
    [(1, 43, 127, 3), (1, 64, 16, 16), (1, 5, 29, 113), (1, 40, 40, 25)],  # around a chunk's 16,384 values, and more
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_equals_cosine_similarity_of_flattened_maps(
    shapes: list[Shape], layout: str, dtype: torch.dtype, device: str, backend: str
) -> None:
    need(backend, device)
    torch.manual_seed(0)
    clean, noisy, student = three(shapes, layout, dtype, device)
    d_clean, d_noisy = contrastive_distance(clean, noisy, student, backend=backend)
    tolerance = TOLERANCES["contrastive_distance", dtype]._asdict()
    assert d_noisy is not None
    torch.testing.assert_close(d_clean.double(), independent(clean, student), **tolerance)
    torch.testing.assert_close(d_noisy.double(), independent(noisy, student), **tolerance)
    alone, none = contrastive_distance(clean, None, student, backend=backend)
    assert none is None
    torch.testing.assert_close(alone.double(), independent(clean, student), **tolerance)


@pytest.mark.parametrize("with_noise", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_sums_are_kept(dtype: torch.dtype, with_noise: bool) -> None:
    torch.manual_seed(6)
    lists = three([(2, 5, 61, 61), (2, 3, 5, 4)], "contiguous", dtype)
    clean, noisy, student = lists
    dots = torch.ops.scrd_fast.contrastive_distance(clean, noisy if with_noise else [], student, 1e-8)[2]
    c, n, s = ([x.double().flatten(1) for x in some] for some in lists)
    pairs = ((c, s), (n, s), (c, c), (n, n), (s, s))
    expected = torch.stack([torch.stack([(x * y).sum(1) for x, y in zip(*p, strict=True)], 1) for p in pairs], 2)
    if not with_noise:
        expected[:, :, [1, 3]] = 0
    assert dots.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = TOLERANCES["contrastive_distance", dtype]
    longest = expected[:, :, 2:].max(dim=2, keepdim=True).values  # products of the maps are up to their squares
    torch.testing.assert_close(dots / longest, expected / longest, **tolerance._asdict(), check_dtype=False)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_maps_in_different_orders_are_copied(layout: str) -> None:
    need("native")
    clean, noisy, student = three([(3, 4, 5, 6)], layout, torch.bfloat16)
    with torch.profiler.profile(acc_events=True) as profile:
        _, _, dots = torch.ops.scrd_fast.contrastive_distance(clean, noisy, student, 1e-8)
        grads = torch.ones(2, 3, 1)
        torch.ops.scrd_fast.contrastive_distance_backward(*grads, dots, clean, noisy, student, 1e-8, True)
    copied = any(event.name == "aten::copy_" for event in profile.events())
    assert copied == (layout not in AS_THEY_LIE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_a_sample_has_the_same_bits_in_any_batch(dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(4)
    lists = three([(5, 7, 51, 47), (5, 64, 3, 3)], "channels_last", dtype, device)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(bits_of(lists))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for r in results[1:] for a, b in zip(r, results[0], strict=True))
    for some in (slice(0, 1), slice(1, 2), slice(4, 5), slice(1, 4), slice(None, None, 2)):
        alone = bits_of([[x[some] for x in maps] for maps in lists])
        assert all(torch.equal(a, b[some]) for a, b in zip(alone, results[0], strict=True))


def bits_of(lists: list[list[Tensor]]) -> list[Tensor]:
    leaves = [[x.detach().requires_grad_() for x in maps] for maps in lists]
    d_clean, d_noisy = contrastive_distance(*leaves)
    assert d_noisy is not None
    grads = torch.autograd.grad(d_clean.sum() - 0.3 * d_noisy.sum(), [x for maps in leaves for x in maps])
    return [d_clean.detach(), d_noisy.detach(), *grads]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "student channels_last"])
@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_opcheck(noisy: bool, grad: bool, layout: str) -> None:
    lists = three([(2, 3, 5, 4), (2, 4, 3, 3)], layout, torch.float32)
    clean, noise, student = ([x.requires_grad_(grad) for x in maps] for maps in lists)
    arguments = (clean, noise if noisy else [], student, 1e-8)
    torch.library.opcheck(torch.ops.scrd_fast.contrastive_distance, arguments)


@pytest.mark.parametrize("with_noise", [True, False])
def test_compiles_into_one_graph(with_noise: bool) -> None:
    clean, noisy, student = three([(2, 3, 4, 4)], "channels_last", torch.float32)
    student[0].requires_grad_()

    def loss(clean: list[Tensor], noisy: list[Tensor] | None, student: list[Tensor]) -> Tensor:
        d_clean, d_noisy = contrastive_distance(clean, noisy, student)
        return d_clean.sum() if d_noisy is None else d_clean.sum() / d_noisy.sum()

    found = []
    for run in (torch.compile(loss, fullgraph=True, backend="aot_eager"), loss):
        value = run(clean, noisy if with_noise else None, student)
        found.append((value, *torch.autograd.grad(value, student)))
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_halves_do_not_overflow(backend: str) -> None:
    need(backend)
    big = [torch.full((1, 64, 16, 16), 6e4, dtype=torch.float16)]
    student = [big[0].clone().requires_grad_()]
    d_clean, d_noisy = contrastive_distance(big, [-big[0]], student, backend=backend)
    assert d_noisy is not None
    torch.testing.assert_close(d_clean, torch.zeros(1, 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(d_noisy, torch.full((1, 1), 2.0), rtol=0, atol=1e-5)
    (grad,) = torch.autograd.grad(d_clean.sum() + d_noisy.sum(), student)
    assert grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["clean", "noisy", "student"])
def test_bad_values_stay_in_their_sample(place: str, bad: float, backend: str) -> None:
    """And show there: a gradient that looks right would be taken."""
    need(backend)
    torch.manual_seed(7)
    lists = three([(3, 2, 4, 4)], "contiguous", torch.float32)
    results = []
    for value in (0.5, bad):
        lists[["clean", "noisy", "student"].index(place)][0][1, 1, 2, 3] = value
        student = [lists[2][0].detach().requires_grad_()]
        d_clean, d_noisy = contrastive_distance(lists[0], lists[1], student, backend=backend)
        assert d_noisy is not None
        results.append((d_clean, d_noisy, *torch.autograd.grad(d_clean.sum() + d_noisy.sum(), student)))
    for i, (before, after) in enumerate(zip(*results, strict=True)):
        assert torch.equal(before[[0, 2]], after[[0, 2]])
        reached = place == "student" or i == 2 or i == ["clean", "noisy"].index(place)
        assert after[1].isnan().all() if reached else torch.equal(before[1], after[1])


@pytest.mark.parametrize(
    ("clean", "noisy", "student", "error", "text"),
    [
        ([], None, [], ValueError, "student must hold at least one"),
        (
            [torch.ones(1, 2, 3, 3)] * 2,
            None,
            [torch.ones(1, 2, 3, 3)],
            ValueError,
            "equally many maps, got 1 and 2",
        ),
        (
            [torch.ones(1, 2, 3, 3)],
            None,
            [torch.ones(1, 2, 3, 4)],
            ValueError,
            r"got \[1, 2, 3, 4\] and \[1, 2, 3, 3\]",
        ),
        ([torch.ones(2, 3)], None, [torch.ones(2, 3)], ValueError, r"student\[0\] must be \[N, C, H, W\]"),
        ([torch.ones(1, 2, 3, 3).int()], None, [torch.ones(1, 2, 3, 3).int()], TypeError, "got torch.int32"),
        (
            [torch.ones(1, 2, 3, 3)],
            None,
            [torch.ones(1, 2, 3, 3).double()],
            ValueError,
            "one dtype and device",
        ),
        ([torch.ones(1, 2, 3, 3)], [], [torch.ones(1, 2, 3, 3)], ValueError, "student and noisy"),
        (
            [torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 3).double()],
            None,
            [torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 3).double()],
            TypeError,
            "student must be float64 at every scale or at none",
        ),
    ],
)
def test_bad_input_is_named(
    clean: list[Tensor], noisy: list[Tensor] | None, student: list[Tensor], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        contrastive_distance(clean, noisy, student)


def test_eps_and_backend_are_checked() -> None:
    x = [torch.ones(1, 2, 3, 3)]
    with pytest.raises(ValueError, match="eps must be greater than 0, got 0"):
        contrastive_distance(x, None, x, eps=0)
    with pytest.raises(ValueError, match="backend must be one of"):
        contrastive_distance(x, None, x, backend="fast")
