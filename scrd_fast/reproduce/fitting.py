# SPDX-License-Identifier: Apache-2.0
"""From a run to something that predicts, with its calibration: a model of ours, or a baseline."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scrd_fast.calibration import Calibration
from scrd_fast.config import SCORES, Preprocessing, Score
from scrd_fast.data.datasets import DataSet, Item
from scrd_fast.data.images import ImageStore, hashes_of, split_calibration
from scrd_fast.device import pick_device
from scrd_fast.errors import ImageError, ScrdFastError
from scrd_fast.labelled import Seen, see
from scrd_fast.model.inference import Predictor
from scrd_fast.model.prediction import Prediction
from scrd_fast.model.scrd import SCRD
from scrd_fast.model.teacher import Teacher
from scrd_fast.settings import TrainSettings
from scrd_fast.training import train

__all__ = ["Fitted", "calibration_of", "fit_baseline", "fit_trained", "parts_of"]


@dataclass
class Fitted:
    """`predict` takes images [N, 3, S, S] in [0, 1] on the CPU. Without held-out images there is no calibration."""

    predict: Callable[[Tensor], Prediction]
    calibration: Calibration | None
    preprocessing: Preprocessing
    scores: tuple[Score, ...] = SCORES  # that predictions have


def fit_trained(data: DataSet, folder: Path, settings: TrainSettings, log: Callable[[str], None]) -> Fitted:
    """Train in `folder`, or go on there; a finished model is loaded."""
    train(
        data,
        folder,
        settings,
        on_step=lambda i, loss, rate: log(f"iteration {i} of {settings.iterations}, loss {loss:.4f}"),
        log=log,
    )
    model = SCRD.from_pretrained(folder / "model")
    path = folder / "model" / "calibration.json"
    return Fitted(
        Predictor(model, pick_device(settings.device)),
        Calibration.load(path) if path.is_file() else None,
        model.config.preprocessing,
        model.config.scores,
    )


def fit_baseline(name: str, data: DataSet, settings: TrainSettings, *, calibrated: bool = True) -> Fitted:
    """Fit on the images that a trained method trains on, calibrate on those that it holds out."""
    from scrd_fast.baselines import make_baseline

    random.seed(settings.seed)
    np.random.seed(settings.seed)
    torch.manual_seed(settings.seed)  # also of a teacher with random weights: `train` does the same
    device, preprocessing = pick_device(settings.device), settings.preprocessing()
    if settings.tiles > 1:
        raise ScrdFastError(f"tiles: baselines look at whole images, so it must be 1, got {settings.tiles}")
    teacher = Teacher(settings.teacher, settings.teacher_weights).to(device)
    baseline = make_baseline(name, teacher, preprocessing, settings.seed)
    fitted_on, held_out = parts_of(data, settings)
    store = ImageStore(fitted_on, preprocessing)

    store.check(data.root)
    baseline.fit(images.to(device) for images in store.batches(settings.batch_size))
    fitted = Fitted(lambda images: baseline.predict(images.to(device)), None, preprocessing)
    if calibrated:
        seen = see(held_out, preprocessing, fitted.predict, settings.batch_size)
        fitted.calibration = calibration_of(seen, settings.score)
    return fitted


def parts_of(data: DataSet, settings: TrainSettings) -> tuple[list[Item], list[Item]]:
    """The normal images to fit on and to calibrate on: the very ones of `train`."""
    hashes = hashes_of(data.train)
    frames = [item.frame for item in data.train]
    fitted, held_out = split_calibration(hashes, settings.calibration_fraction, frames=frames)
    return [data.train[i] for i in fitted], [data.train[i] for i in held_out]


def calibration_of(seen: Iterable[Seen | ImageError], score: Score) -> Calibration | None:
    """From what is said of held-out normal images; None without any. Raises the error of an image."""
    rows = []
    for result in seen:
        if isinstance(result, ImageError):
            raise result
        rows.append(result.scores)
    peaks = [row["max"] for row in rows]
    return Calibration.fit([row[score] for row in rows], score, map_peaks=peaks) if rows else None
