# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from baseline_images import PREPROCESSING, random_teacher, textures, with_square
from scipy.spatial.distance import mahalanobis

from scrd_fast.baselines.padim import SHRINKAGE, Gaussians, PaDiM


def rows(places: int, count: int, width: int, mean: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(places, width, width, generator=generator)
    return torch.randn(places, count, width, generator=generator) @ mix + mean


@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_mean_and_covariance_are_numpys_however_the_rows_are_batched(mean: float) -> None:
    x = rows(6, 50, 5, mean)
    for sizes in ([50], [1, 49], [7, 20, 23], [1] * 50):
        gaussians = Gaussians()
        for part in x.split(sizes, dim=1):
            gaussians.add(part)
        for place, of_place in enumerate(x.double().numpy()):
            np.testing.assert_allclose(gaussians.mean[place], of_place.mean(0), rtol=1e-12)
            np.testing.assert_allclose(gaussians.covariance()[place], np.cov(of_place, rowvar=False), atol=1e-9)


@pytest.mark.parametrize("count", [1, 3, 60])  # fewer than dimensions too
def test_whitening_gives_scipys_mahalanobis_distance(count: int) -> None:
    x = rows(4, count, 8)
    gaussians = Gaussians()
    gaussians.add(x)
    whitening = gaussians.whitening(SHRINKAGE)
    offset = torch.randn(8, generator=torch.Generator().manual_seed(1))
    for place, of_place in enumerate(x.double().numpy()):
        spread = np.cov(of_place, rowvar=False) if count > 1 else np.zeros((8, 8))
        inverse = np.linalg.inv(spread + 0.01 * np.eye(8))
        expected = mahalanobis(offset, np.zeros(8), inverse)
        assert float((whitening[place] @ offset).norm()) == pytest.approx(expected, rel=1e-4)


def test_the_map_is_the_distance_at_each_place() -> None:
    """The whole method, against numpy and scipy, from the features on."""
    normal, image = textures(30, seed=0), with_square(textures(1, seed=1))
    baseline = PaDiM(random_teacher(), PREPROCESSING, seed=0, channels=12)
    baseline.fit(normal.split(9))
    embeddings, embedding = (baseline._embedding(baseline._features.of(x)).double().numpy() for x in (normal, image))
    assert embeddings.shape == (30, 12, 16, 16)
    expected = np.empty((16, 16))
    for row, column in np.ndindex(16, 16):
        there = embeddings[:, :, row, column]
        inverse = np.linalg.inv(np.cov(there, rowvar=False) + 0.01 * np.eye(12))
        expected[row, column] = mahalanobis(embedding[0, :, row, column], there.mean(0), inverse)
    found = baseline.predict(image)
    assert float(found.scales[0, 0]) == pytest.approx(expected.mean(), rel=1e-4)
    hottest = np.unravel_index(expected.argmax(), expected.shape)
    assert np.abs(found.peak[0].numpy() / 4 - hottest).max() < 4


def test_the_channels_are_a_random_choice_and_all_where_there_are_few() -> None:
    features = random_teacher()(textures(2, seed=0))
    several = [PaDiM(random_teacher(), PREPROCESSING, seed)._embedding(features) for seed in (0, 0, 1)]
    assert several[0].shape == (2, 100, 16, 16)
    assert torch.equal(several[0], several[1])
    assert not torch.equal(several[0], several[2])
    everything = PaDiM(random_teacher(), PREPROCESSING, 0, channels=10_000)._embedding(features)
    assert everything.shape == (2, 64 + 128 + 256, 16, 16)
    assert torch.equal(everything[:, :64], features[0])
    assert torch.equal(everything[:, 64:192, ::2, ::2], features[1])


def test_images_of_another_size_are_refused() -> None:
    baseline = PaDiM(random_teacher(), PREPROCESSING, 0)
    baseline.fit([textures(4, seed=0)])
    with pytest.raises(ValueError, match="size fitted on, got \\[32, 32\\]"):
        baseline.predict(torch.rand(1, 3, 32, 32))
