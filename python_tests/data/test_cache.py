# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scrd_fast.data import cache as module
from scrd_fast.data.cache import TensorCache, free_bytes, place_for
from scrd_fast.errors import ScrdFastError

SHAPES = [(3, 4, 5), (7, 2, 1)]


def features(indices: Sequence[int]) -> list[Tensor]:
    """Not to be had in bfloat16 exactly."""
    return [torch.stack([torch.arange(float(torch.Size(s).numel())).view(s) / 3 + i for i in indices]) for s in SHAPES]


@pytest.mark.parametrize("place", ["memory", "disk"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_same_bits_come_first_and_later(place: Any, channels_last: bool, tmp_path: Path) -> None:
    cache = TensorCache(6, SHAPES, torch.bfloat16, place, what="features", folder=tmp_path, channels_last=channels_last)
    asked: list[list[int]] = []

    def fill(missing: list[int]) -> list[Tensor]:
        asked.append(missing)
        return features(missing)

    first = cache.batch([4, 1, 4], fill)
    second = cache.batch([1, 4, 5], fill)
    assert asked == [[4, 1], [5]]
    for k, expected in enumerate(features([4, 1, 4])):
        assert torch.equal(first[k], expected.to(torch.bfloat16))
        assert torch.equal(second[k][:2], first[k][[1, 0]])
        assert first[k].is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert not list(tmp_path.iterdir())  # so that nothing is left, however the process ends


def test_what_a_fill_could_not_give_is_asked_for_again() -> None:
    cache = TensorCache(3, [(2,)], torch.float32, "memory", what="pairs")

    def fails(_: list[int]) -> list[Tensor]:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        cache.batch([0], fails)
    (found,) = cache.batch([0], lambda missing: [torch.ones(len(missing), 2)])
    assert torch.equal(found, torch.ones(1, 2))


@pytest.mark.parametrize(("place", "may"), [("memory", "75%"), ("disk", "95%")])
def test_what_does_not_fit_is_refused(place: Any, may: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda place, folder: 10**9)
    text = rf"the features of 1000 images need 4\.0 GB of {place}, and 1\.0 GB are free, of which {may} may be used"
    with pytest.raises(ScrdFastError, match=text):
        TensorCache(1000, [(10**6,)], torch.float32, place, what="features", folder=tmp_path)


def test_memory_comes_before_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda place, folder: {"memory": 1000, "disk": 2000}[place])
    assert [place_for(n, tmp_path) for n in (750, 751, 1900, 1901)] == ["memory", "disk", "disk", None]
    assert place_for(751, None) is None


def test_what_is_free_is_looked_up(tmp_path: Path) -> None:
    assert 2**20 < free_bytes("memory", None) < 2**50
    assert 0 < free_bytes("disk", tmp_path) < 2**60
    with pytest.raises(ValueError, match="folder must be given"):
        free_bytes("disk", None)
