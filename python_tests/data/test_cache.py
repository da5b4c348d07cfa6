# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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


def test_room_on_the_disk_is_reserved_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is lacking that is an error then, and not the end of the process in the middle of a run."""
    allocate, reserved = os.posix_fallocate, []

    def counted(handle: int, offset: int, size: int) -> None:
        allocate(handle, offset, size)
        reserved.append(size)

    monkeypatch.setattr(os, "posix_fallocate", counted)
    TensorCache(10, SHAPES, torch.bfloat16, "disk", what="features", folder=tmp_path)
    assert reserved == [10 * 60 * 2, 10 * 14 * 2]

    def full(*_: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "posix_fallocate", full)
    text = r"the features of 10 images need 0\.0 MB of disk, which could not be had \(Disk quota exceeded\)"
    with pytest.raises(ScrdFastError, match=text):
        TensorCache(10, SHAPES, torch.bfloat16, "disk", what="features", folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_two_threads_use_a_cache_each(tmp_path: Path) -> None:
    """As the loader's, for images, and the main one, for features."""
    caches = [TensorCache(50, SHAPES, torch.float32, "disk", what="features", folder=tmp_path) for _ in range(2)]

    def used(cache: TensorCache) -> None:
        for _ in range(2):
            for start in range(0, 50, 5):
                indices = list(range(start, start + 5))
                for got, expected in zip(cache.batch(indices, features), features(indices), strict=True):
                    assert torch.equal(got, expected)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(used, caches))


def test_memory_comes_before_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda place, folder: {"memory": 1000, "disk": 2000}[place])
    assert [place_for(n, tmp_path) for n in (750, 751, 1900, 1901)] == ["memory", "disk", "disk", None]
    assert place_for(751, None) is None


def stand_in_files(monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    def read(path: Path) -> str:
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read)


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [
        ("max", 1_000_000, 8_192_000),
        (5_000_000, 1_000_000, 4_000_000),
        (90_000_000, 1_000_000, 8_192_000),  # more than the machine has
        (5_000_000, 6_000_000, 0),
    ],
)
def test_a_container_has_what_its_limit_leaves(
    limit: Any, used: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = {"/proc/meminfo": "MemTotal: 16000 kB\nMemAvailable:    8000 kB\n"}
    machine["/proc/self/cgroup"] = "0::/\n"
    group = {"/sys/fs/cgroup/memory.max": f"{limit}\n", "/sys/fs/cgroup/memory.current": f"{used}\n"}
    stand_in_files(monkeypatch, machine | group)
    assert free_bytes("memory", None) == expected
    stand_in_files(monkeypatch, machine)
    assert free_bytes("memory", None) == 8_192_000


def test_half_of_all_memory_counts_as_free_where_nothing_says_more(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_files(monkeypatch, {})
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert free_bytes("memory", None) == 2_048_000


def test_what_is_free_is_looked_up(tmp_path: Path) -> None:
    assert 2**20 < free_bytes("memory", None) < 2**50
    assert 0 < free_bytes("disk", tmp_path) < 2**60
    with pytest.raises(ValueError, match="folder must be given"):
        free_bytes("disk", None)
