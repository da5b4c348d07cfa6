# SPDX-License-Identifier: Apache-2.0
"""What a benchmark of screening needs and does not have to be trained or collected for: a run, images, the command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from scrd_fast.calibration import Calibration
from scrd_fast.choices import Precision
from scrd_fast.model.scrd import SCRD

__all__ = ["Setup", "link_images", "make_images", "make_run", "screen_command"]


@dataclass(frozen=True)
class Setup:
    """`rounds` processes for each contender; `bank` is the number of features in the memory of PatchCore."""

    teacher: str = "wide_resnet50_2"
    size: int = 256
    batch_size: int = 16
    device: str = "cpu"
    images: int = 64
    rounds: int = 2
    threads: int = 2
    bank: int = 2400
    seed: int = 0


def make_run(folder: Path, setup: Setup) -> Path:
    """A run as `train` leaves it, of an untrained model: its scores mean nothing, its speed is the same."""
    torch.manual_seed(setup.seed)
    model = SCRD.create(setup.teacher, weights="random", size=setup.size)
    model.save_pretrained(folder / "model")
    scores = np.linspace(0.5, 1.5, 40)
    calibration = Calibration.fit(scores, model.config.score, map_peaks=scores)
    calibration.save(folder / "model" / "calibration.json")
    return folder


def make_images(folder: Path, count: int, side: int = 512, seed: int = 0) -> Path:
    """Gray textures with some grain, 8-bit PNG, each its own."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for i in range(count):
        coarse = Image.fromarray(generator.integers(40, 200, (8, 8), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
        pixels = smooth + generator.normal(0, 3, smooth.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:05d}.png")
    return folder


def link_images(folder: Path, files: Sequence[Path], count: int) -> Path:
    """So many names for those files."""
    folder.mkdir(parents=True)
    for i in range(count):
        os.link(files[i % len(files)], folder / f"{i:06d}{files[i % len(files)].suffix}")
    return folder


def screen_command(run: Path, inputs: Path, out: Path, setup: Setup, precision: Precision, *options: str) -> list[str]:
    flags = {"out": out, "batch-size": setup.batch_size, "precision": precision, "device": setup.device}
    given = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "scrd_fast", "screen", str(run), str(inputs), *given, "-q", *options]
