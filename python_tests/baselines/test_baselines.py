# SPDX-License-Identifier: Apache-2.0
"""What holds for every baseline."""

from __future__ import annotations

import pytest
import torch
from baseline_images import PREPROCESSING, SIZE, one_grid_teacher, quick, random_teacher, textures, with_square
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score
from torch import Tensor

from scrd_fast.baselines import METHODS, make_baseline
from scrd_fast.baselines.common import Sample, prediction_of_maps
from scrd_fast.baselines.nsa import NSA
from scrd_fast.errors import ScrdFastError
from scrd_fast.model.prediction import Prediction
from scrd_fast.model.teacher import Teacher

WITH_MAPS = ("patchcore", "padim", "nsa")
SCORES = ("mean", "max", "top1", "top5")


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return random_teacher()


def close(one: Prediction, other: Prediction) -> None:
    """Up to the rounding of float32: convolutions of batches of other sizes may sum in another order."""
    torch.testing.assert_close(one.map, other.map, rtol=1e-4, atol=1e-5)
    for name in SCORES:
        torch.testing.assert_close(one.scores[name], other.scores[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.scales, other.scales, rtol=1e-4, atol=1e-5)


def part(prediction: Prediction, rows: slice) -> Prediction:
    scores = {name: values[rows] for name, values in prediction.scores.items()}
    return prediction._replace(map=prediction.map[rows], scores=scores, scales=prediction.scales[rows])


@pytest.mark.parametrize("method", METHODS)
def test_a_bright_square_is_found(method: str, teacher: Teacher) -> None:
    baseline = make_baseline(method, teacher, PREPROCESSING, seed=0)
    if method == "nsa":
        baseline = NSA(teacher, PREPROCESSING, seed=0, iterations=150)
    baseline.fit(textures(60, seed=1).split(16))
    found = baseline.predict(torch.cat([textures(12, seed=2), with_square(textures(12, seed=3))]))
    labels = [0] * 12 + [1] * 12
    for name in SCORES:
        assert roc_auc_score(labels, found.scores[name]) > 0.9, name
    if method in WITH_MAPS:
        row, column = found.peak[12:].double().mean(0).tolist()
        assert 16 < row < 48
        assert 8 < column < 40


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [random_teacher, one_grid_teacher])
def test_a_prediction_has_its_shapes(method: str, make: type[Teacher]) -> None:
    baseline = quick(method, make())
    baseline.fit([textures(5, seed=0)])
    for count in (0, 1, 3):
        found = baseline.predict(textures(count, seed=1))
        assert found.map.shape == (count, 1, SIZE, SIZE)
        assert {name: tuple(values.shape) for name, values in found.scores.items()} == dict.fromkeys(SCORES, (count,))
        assert found.weights.shape == found.scales.shape == (count, 3)
        assert found.peak.shape == (count, 2)
        assert found.peak.dtype == torch.int64
        assert all(x.dtype == torch.float32 for x in (found.map, found.weights, found.scales, *found.scores.values()))
        assert not found.map.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bits_and_leaves_torchs_own_numbers_alone(method: str, teacher: Teacher) -> None:
    normal, images = textures(20, seed=0), with_square(textures(4, seed=1))
    results = []
    for own in (5, 6):
        torch.manual_seed(own)
        baseline = quick(method, teacher, seed=3)
        baseline.fit(normal.split(8))
        results.append(baseline.predict(images))
        state = torch.get_rng_state()
        torch.manual_seed(own)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(results[0].map, results[1].map)
    assert all(torch.equal(results[0].scores[name], results[1].scores[name]) for name in SCORES)


@pytest.mark.parametrize("method", ["padim", "nsa"])
def test_another_seed_gives_other_maps(method: str, teacher: Teacher) -> None:
    maps = []
    for seed in (0, 1):
        baseline = quick(method, teacher, seed)
        baseline.fit([textures(20, seed=0)])
        maps.append(baseline.predict(textures(2, seed=1)).map)
    assert not torch.allclose(*maps)


@pytest.mark.parametrize("method", METHODS)
def test_an_image_does_not_depend_on_its_batch(method: str, teacher: Teacher) -> None:
    baseline = quick(method, teacher)
    baseline.fit([textures(20, seed=0)])
    images = torch.cat([textures(3, seed=1), with_square(textures(3, seed=2))])
    whole = baseline.predict(images)
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        close(part(whole, rows), baseline.predict(images[rows]))


@pytest.mark.parametrize("method", ["patchcore", "padim", "knn", "mahalanobis"])
def test_fitting_does_not_depend_on_the_batches(method: str, teacher: Teacher) -> None:
    normal, images = textures(20, seed=0), with_square(textures(3, seed=1))
    results = []
    for batches in ([normal], [normal[:1], normal[:0], *normal[1:].split(7)]):
        baseline = quick(method, teacher)
        baseline.fit(iter(batches))
        results.append(baseline.predict(images))
    close(*results)


@pytest.mark.parametrize("method", METHODS)
def test_fitting_again_forgets(method: str, teacher: Teacher) -> None:
    once, twice = quick(method, teacher), quick(method, teacher)
    twice.fit([textures(9, seed=8) * 0.3])
    for baseline in (once, twice):
        baseline.fit([textures(12, seed=0)])
    images = textures(2, seed=1)
    close(once.predict(images), twice.predict(images))


@pytest.mark.parametrize("method", [m for m in METHODS if m != "mahalanobis"])
def test_one_normal_image_is_enough(method: str, teacher: Teacher) -> None:
    baseline = quick(method, teacher)
    baseline.fit([textures(1, seed=0)])
    found = baseline.predict(with_square(textures(2, seed=1)))
    assert found.map.isfinite().all()
    if method != "nsa":
        itself = baseline.predict(textures(1, seed=0))
        assert itself.scores["max"] < 1e-3 * found.scores["max"].min()


def test_a_covariance_needs_two(teacher: Teacher) -> None:
    baseline = make_baseline("mahalanobis", teacher, PREPROCESSING, 0)
    with pytest.raises(ScrdFastError, match="at least 2 images"):
        baseline.fit([textures(1, seed=0)])


@pytest.mark.parametrize("method", ["knn", "mahalanobis"])
def test_without_a_map_there_is_one_number(method: str, teacher: Teacher) -> None:
    baseline = make_baseline(method, teacher, PREPROCESSING, 0)
    baseline.fit([textures(8, seed=0)])
    found = baseline.predict(with_square(textures(2, seed=1)))
    for name in SCORES:
        assert torch.equal(found.scores[name], found.scores["mean"])
    assert torch.equal(found.map, found.scores["mean"][:, None, None, None].expand_as(found.map))


def test_an_unknown_method_is_named(teacher: Teacher) -> None:
    with pytest.raises(ScrdFastError, match="patchcore, padim, knn, mahalanobis, nsa, got 'padin'"):
        make_baseline("padin", teacher, PREPROCESSING, 0)


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_fitted_or_predicted_is_refused(method: str, teacher: Teacher) -> None:
    baseline, images = quick(method, teacher), textures(4, seed=0)
    with pytest.raises(ScrdFastError, match=f"{method}: predict needs fit"):
        baseline.predict(images)
    empty: list[list[Tensor]] = [[], [images[:0]]]
    for batches in empty:
        with pytest.raises(ScrdFastError, match=f"{method}: no images"):
            baseline.fit(batches)
    bad = images.clone()
    bad[2, 1, 5, 5] = torch.nan
    with pytest.raises(ScrdFastError, match=f"{method}: .* not finite"):
        baseline.fit([images, bad])
    baseline.fit([images])
    with pytest.raises(ScrdFastError, match=f"{method}: .* not finite"):
        baseline.predict(bad)
    with pytest.raises(ValueError, match="images must be"):
        baseline.predict(images[0])


def test_maps_are_upsampled_and_blurred_as_torch_and_scipy_do() -> None:
    maps = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    found = prediction_of_maps(maps, (SIZE, SIZE))
    up = torch.nn.functional.interpolate(maps[:, None], size=(SIZE, SIZE), mode="bilinear", align_corners=True)
    for got, large in zip(found.map[:, 0], up[:, 0], strict=True):
        expected = torch.from_numpy(gaussian_filter(large.double().numpy(), 4.0, mode="reflect", truncate=4)).float()
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.scores["max"], found.map.amax((1, 2, 3)))
    torch.testing.assert_close(found.scales, maps.mean((1, 2))[:, None].expand(2, 3))


def test_a_sample_is_uniform_and_the_same_however_it_is_batched() -> None:
    rows = torch.arange(40.0)[:, None]
    counts = torch.zeros(40)
    for seed in range(400):
        kept = []
        for size in (40, 7):
            sample = Sample(10, seed)
            for batch in rows.split(size):
                sample.add(batch)
            kept.append(sample.rows())
        assert torch.equal(*kept)
        assert len(kept[0].unique()) == 10
        counts[kept[0].long()] += 1
    # Of 400 samples a row is in 100, with a standard deviation of sqrt(400 / 4 * 3 / 4) = 8.7.
    assert counts.min() > 100 - 5 * 8.7
    assert counts.max() < 100 + 5 * 8.7


def test_a_sample_of_few_rows_has_them_all() -> None:
    sample = Sample(10, 0)
    sample.add(torch.arange(3.0)[:, None])
    assert sorted(sample.rows()[:, 0].tolist()) == [0, 1, 2]
