# SPDX-License-Identifier: Apache-2.0
"""The screener: a saved model and its calibration, applied to a stream of files."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from scrd_fast.calibration import Calibration
from scrd_fast.config import Precision
from scrd_fast.data.reading import read_image
from scrd_fast.device import pick_device
from scrd_fast.errors import ImageError, ScrdFastError
from scrd_fast.files import nearest
from scrd_fast.model.scrd import SCRD

__all__ = ["Screened", "Screener", "model_folder"]

READERS = 4  # threads; decoding and resizing release the interpreter's lock
AHEAD = 2  # batches that are read while the model works


@dataclass(frozen=True)
class Screened:
    """What became of one file."""

    path: Path
    error: ImageError | None  # None: screened
    scores: dict[str, float]  # every score, empty after an error
    percentile: float | None  # of the stored score among the calibration normals, 0 to 1
    abnormal: bool | None  # None without a calibration
    image: Tensor | None  # [3, S, S] in [0, 1], on the CPU
    map: Tensor | None  # [S, S], on the CPU

    @property
    def status(self) -> str:
        return "failed" if self.error else "ok"


class Screener:
    """Screens files in batches; memory use does not depend on how many there are.

    A score does not depend on the other files of its batch beyond rounding. A file that cannot be read gives a result
    with its error; the others go on.
    """

    def __init__(
        self,
        model: SCRD,
        calibration: Calibration | None = None,
        *,
        device: str = "auto",
        precision: Precision = "32",
        batch_size: int = 16,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if precision not in ("32", "bf16"):
            raise ValueError(f"precision must be '32' or 'bf16', got {precision!r}")
        self.device = pick_device(device)
        self.model = model.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.calibration, self.precision, self.batch_size = calibration, precision, batch_size

    @classmethod
    def from_pretrained(
        cls, run: str | Path, *, device: str = "auto", precision: Precision = "32", batch_size: int = 16
    ) -> Screener:
        """From a run's folder, or from its `model/`. Raises `ScrdFastError` where there is no finished model."""
        folder = model_folder(Path(run))
        model = SCRD.from_pretrained(folder)
        path = folder / "calibration.json"
        calibration = Calibration.load(path) if path.is_file() else None
        return cls(model, calibration, device=device, precision=precision, batch_size=batch_size)

    def __call__(self, paths: Iterable[str | Path]) -> Iterator[Screened]:
        """Results in the order of the paths, as they come; nothing is kept."""
        remaining = (Path(p) for p in paths)
        with ThreadPoolExecutor(READERS) as pool:
            pending: deque[list[tuple[Path, Future[Tensor]]]] = deque()

            def read_on() -> bool:
                batch = list(islice(remaining, self.batch_size))
                preprocessing = self.model.config.preprocessing
                if batch:
                    pending.append([(p, pool.submit(read_image, p, preprocessing)) for p in batch])
                return bool(batch)

            for _ in range(AHEAD):
                read_on()
            try:
                while pending:
                    batch = pending.popleft()
                    read_on()
                    yield from self._screen(batch)
            finally:  # left early: files that nobody waits for are not read
                for _, future in (entry for batch in pending for entry in batch):
                    future.cancel()

    def _screen(self, batch: Sequence[tuple[Path, Future[Tensor]]]) -> Iterator[Screened]:
        images: dict[Path, Tensor] = {}
        errors: dict[Path, ImageError] = {}
        for path, future in batch:
            try:
                images[path] = future.result()
            except ImageError as error:
                errors[path] = error
        results = self.predict(list(images.values())) if images else []
        done = dict(zip(images, results, strict=True))
        for path, _ in batch:
            if path in errors:
                yield Screened(path, errors[path], {}, None, None, None, None)
            else:
                scores, anomaly_map = done[path]
                if not all(map(isfinite, scores.values())):
                    broken = ImageError("not-finite", "the model's score is not finite")
                    yield Screened(path, broken, {}, None, None, None, None)
                    continue
                percentile, abnormal = self.judge(scores)
                yield Screened(path, None, scores, percentile, abnormal, images[path], anomaly_map)

    def predict(self, images: Sequence[Tensor]) -> list[tuple[dict[str, float], Tensor]]:
        """Scores and map [S, S] of each image [3, S, S] in [0, 1]."""
        prediction = self.model.predict(torch.stack(list(images)), precision=self.precision)
        columns = {name: values.tolist() for name, values in prediction.scores.items()}
        maps = prediction.map[:, 0].float().cpu()
        return [({name: c[i] for name, c in columns.items()}, maps[i]) for i in range(len(images))]

    def judge(self, scores: dict[str, float]) -> tuple[float | None, bool | None]:
        """Percentile among normals, and whether the image is called abnormal."""
        if self.calibration is None:
            return None, None
        score = [scores[self.calibration.score]]
        return float(self.calibration.percentile(score)[0]), bool(self.calibration.decide(score)[0])


def model_folder(run: Path) -> Path:
    """`run/model` or `run` itself, whichever holds a model."""
    for folder in (run / "model", run):
        if (folder / "config.json").is_file():
            return folder
    if not run.exists():
        raise ScrdFastError(f"{run}: no such folder{nearest(run)}")
    hint = "; its training is not finished, repeat the train command" if (run / "checkpoints").is_dir() else ""
    raise ScrdFastError(f"{run}: no model there{hint}")
