# SPDX-License-Identifier: Apache-2.0
"""Our side of a run by anomalib: pictures and weights out, scores and maps back. The other side is `rival`."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from scrd_fast.bench.processes import environment
from scrd_fast.calibration import Calibration
from scrd_fast.config import SCORES, Preprocessing
from scrd_fast.data.datasets import DataSet, Item
from scrd_fast.data.images import ImageStore
from scrd_fast.device import pick_device
from scrd_fast.errors import ScrdFastError
from scrd_fast.labelled import Seen
from scrd_fast.model.teacher import Teacher
from scrd_fast.reproduce.fitting import parts_of
from scrd_fast.settings import TrainSettings

__all__ = ["Scored", "run_rival"]


class Scored:
    """What a rival said: its calibration by held-out normals, its results on the test images, and facts of the run."""

    def __init__(self, job: Path, settings: TrainSettings, test: Sequence[Item]) -> None:
        self.facts: dict[str, Any] = json.loads((job / "done.json").read_text())
        held_out = _scores(job / "held_out.csv")
        self.calibration = Calibration.fit(held_out, settings.score, map_peaks=held_out) if held_out else None
        self._scores = _scores(job / "test.csv")
        path = job / "test_maps.npy"
        self._maps = np.load(path, mmap_mode="r") if path.is_file() else None
        self._store = ImageStore(test, settings.preprocessing(), cache="off")

    def seen(self) -> Iterator[Seen]:
        """Its own score stands for every reading of a map; a rival without maps has flat ones."""
        for i, score in enumerate(self._scores):
            image = self._store[i]
            flat = torch.zeros(image.shape[1:])
            heat = flat if self._maps is None else torch.from_numpy(np.array(self._maps[i], np.float32))
            yield Seen(image, heat, dict.fromkeys(SCORES, score))


def run_rival(model: str, python: str, data: DataSet, job: Path, settings: TrainSettings) -> Scored:
    """Fit anomalib's `model` with the interpreter `python`, by the images of a trained method, in the folder `job`."""
    shutil.rmtree(job, ignore_errors=True)
    preprocessing = settings.preprocessing()
    fitted_on, held_out = parts_of(data, settings)
    for name, items in (("train", fitted_on), ("held_out", held_out), ("test", data.test)):
        _write_pictures(job / name, items, preprocessing)
    torch.manual_seed(settings.seed)
    encoder = Teacher(settings.teacher, settings.teacher_weights).encoder
    save_file({k: v.contiguous() for k, v in encoder.state_dict().items()}, job / "backbone.safetensors")
    setup = {
        "model": model,
        "backbone": settings.teacher,
        "layers": encoder.feature_info.module_name(),
        "threads": torch.get_num_threads(),
        "device": pick_device(settings.device).type,
        **{name: getattr(settings, name) for name in ("size", "seed", "batch_size", "iterations")},
    }
    (job / "job.json").write_text(json.dumps(setup))
    command = [python, "-m", "scrd_fast.reproduce.rival", str(job)]
    done = subprocess.run(
        command, env=environment(torch.get_num_threads()), capture_output=True, text=True, check=False, cwd=job
    )
    if done.returncode != 0 or not (job / "done.json").is_file():
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise ScrdFastError(f"anomalib's {model}: exit code {done.returncode}: {last[:500]}")
    return Scored(job, settings, data.test)


def _write_pictures(folder: Path, items: Sequence[Item], preprocessing: Preprocessing) -> None:
    folder.mkdir(parents=True)
    store = ImageStore(items, preprocessing, cache="off")
    for i in range(len(items)):
        pixels = (store[i].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:06d}.png")


def _scores(path: Path) -> list[float]:
    """In the order of the pictures."""
    with path.open(newline="") as file:
        rows = {row["name"]: float(row["score"]) for row in csv.DictReader(file)}
    return [rows[name] for name in sorted(rows)]
