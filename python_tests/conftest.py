# SPDX-License-Identifier: Apache-2.0
"""Skips what this machine cannot run, and makes the small data set and the trained run that many tests share.

Its place here also lets tests import `tolerances`.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before the kernels are imported: they run on the CPU then

TRAIN_FLAGS = [
    "--teacher", "resnet18", "--teacher-weights", "random", "--size", "64", "--batch-size", "4",
    "--iterations", "6", "--log-every", "1", "--device", "cpu", "--seed", "3",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {
        "cuda": None if torch.cuda.is_available() else "needs an NVIDIA GPU",
        "data": None if os.environ.get("SCRD_FAST_DATA") else "needs SCRD_FAST_DATA, the folder of the real images",
    }
    for item in items:
        for marker, reason in missing.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """For tests marked `data`."""
    return Path(os.environ["SCRD_FAST_DATA"]).resolve()


def texture(generator: np.random.Generator, size: int = 70) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """A smooth gray image of its own, 8 bit."""
    coarse = generator.integers(40, 160, (6, 6), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size - 6), Image.Resampling.BICUBIC))


def make_tree(root: Path, train: int = 24, test: int = 6) -> Path:
    """A data set as a folder tree: gray textures, abnormal ones with a bright square and its mask."""
    generator = np.random.default_rng(0)
    for part, count in (("train/good", train), ("test/good", test), ("test/square", test)):
        folder = root / part
        folder.mkdir(parents=True)
        for i in range(count):
            pixels = texture(generator).copy()
            if part == "test/square":
                pixels[20:40, 10:30] = 250
                mask = np.zeros_like(pixels)
                mask[20:40, 10:30] = 255
                masks = root / "ground_truth" / "square"
                masks.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(masks / f"{i:03d}_mask.png")
            Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return root


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("data") / "tree")


@pytest.fixture(scope="session")
def trained(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, made by the command line; not to be changed."""
    from scrd_fast.cli import main

    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", str(tree), "--out", str(out), *TRAIN_FLAGS, "-q"]) == 0
    return out


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
