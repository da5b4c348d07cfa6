# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from baseline_images import PREPROCESSING, random_teacher, textures, with_square
from scipy.ndimage import uniform_filter
from scipy.spatial.distance import cdist

from scrd_fast.baselines.patchcore import PatchCore, greedy_coreset, locally_aware_patches, nearest_distances


def naive_k_center(points: np.ndarray, count: int) -> list[int]:
    chosen = [0]
    while len(chosen) < count:
        to_chosen = cdist(points, points[chosen]).min(1)
        chosen.append(int(to_chosen.argmax()))
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_the_coreset_is_the_naive_one(seed: int) -> None:
    points = torch.randn(200, 7, generator=torch.Generator().manual_seed(seed)) + 100
    assert greedy_coreset(points, 40).tolist() == naive_k_center(points.double().numpy(), 40)


def test_a_coreset_never_takes_a_row_twice() -> None:
    points = torch.tensor([[1.0, 2.0]]).repeat(6, 1)
    assert sorted(greedy_coreset(points, 10).tolist()) == list(range(6))
    assert greedy_coreset(points[:0], 3).tolist() == []


def test_the_nearest_distance_is_scipys() -> None:
    generator = torch.Generator().manual_seed(0)
    # With so large a common mean, a product of matrices alone would leave nothing of the distances.
    bank, patches = (1000 + torch.randn(n, 20, generator=generator) for n in (50, 5000))
    patches[:50] = bank
    expected = cdist(patches.double().numpy(), bank.double().numpy()).min(1)
    found = nearest_distances(patches, bank)
    assert found[:50].max() == 0
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


def test_patches_are_means_of_their_neighbours_and_joined() -> None:
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(2, c, s, s, generator=generator) for c, s in ((3, 16), (4, 8), (5, 4))]
    patches = locally_aware_patches(features)
    assert patches.shape == (2, 9, 8, 8)
    # 3 x 3 means, with zeros outside.
    expected = uniform_filter(features[1].double().numpy(), size=(0, 0, 3, 3), mode="constant")
    np.testing.assert_allclose(patches[:, :4], expected, atol=1e-6)


def test_the_bank_is_bounded_and_consists_of_patches() -> None:
    teacher, normal = random_teacher(), textures(20, seed=0)
    baseline = PatchCore(teacher, PREPROCESSING, 0, bank_size=30, candidates=100)
    baseline.fit(normal.split(6))
    bank = baseline._bank
    assert bank is not None
    assert len(bank) == 30
    with torch.no_grad():
        patches = locally_aware_patches(baseline._features.of(normal)).permute(0, 2, 3, 1).flatten(0, 2)
    assert (cdist(bank.numpy(), patches.numpy()).min(1) < 1e-4).all()


def test_a_larger_bank_brings_normal_images_nearer() -> None:
    teacher, normal = random_teacher(), textures(40, seed=0)
    means = []
    for bank_size in (5, 50, 500):
        baseline = PatchCore(teacher, PREPROCESSING, 0, bank_size=bank_size)
        baseline.fit([normal])
        means.append(float(baseline.predict(textures(6, seed=1)).scores["mean"].mean()))
    assert means[0] > means[1] > means[2]


def test_a_patch_of_the_square_is_far() -> None:
    baseline = PatchCore(random_teacher(), PREPROCESSING, 0)
    baseline.fit([textures(40, seed=0)])
    images = textures(3, seed=1)
    higher = baseline.predict(with_square(images)).map - baseline.predict(images).map
    assert higher[:, :, 24:40, 16:32].mean() > 3 * higher[:, :, :, 48:].mean()
