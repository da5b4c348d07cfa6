# SPDX-License-Identifier: Apache-2.0
"""The screener: a saved model and its calibration, applied to a stream of pictures."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from scrd_fast.calibration import Calibration
from scrd_fast.config import Precision, Preprocessing
from scrd_fast.data.arrays import read_array
from scrd_fast.data.frames import About, Original, Source
from scrd_fast.data.loading import Prefetcher
from scrd_fast.data.reading import inner_box, read_frames
from scrd_fast.device import pick_device
from scrd_fast.errors import ImageError, ScrdFastError, UnavailableError
from scrd_fast.files import nearest
from scrd_fast.hub import located
from scrd_fast.model.inference import Predictor
from scrd_fast.model.prediction import Prediction
from scrd_fast.model.scrd import SCRD
from scrd_fast.screening.batches import Batch, Part, batches
from scrd_fast.screening.guard import Guard
from scrd_fast.screening.processes import Processes
from scrd_fast.screening.readers import Found, Job, Reader, Threads

__all__ = ["Input", "Screened", "Screener", "load", "model_folder", "stored_pixel"]

AHEAD = 2  # batches that are read while the model works
FILE_TIMEOUT = 60.0  # seconds

Input = str | Path | Source | tuple[Source, int | None] | npt.NDArray[np.generic] | Tensor


@dataclass(frozen=True)
class Screened:
    """What became of one picture, or of a file that could not be opened."""

    number: int  # of the input that it comes from
    source: Source | None  # None: it was given as pixels
    frame: int | None  # of the file, from 0; None: the file could not be opened
    error: ImageError | None  # None: screened
    about: About | None = None
    flags: tuple[str, ...] = ()
    scores: dict[str, float] | None = None  # every score
    scales: tuple[float, ...] = ()  # mean distance of each scale
    weights: tuple[float, ...] = ()  # of the scales
    peak: tuple[int, int] | None = None  # row and column of the largest value, in pixels of the stored picture
    percentile: float | None = None  # of the stored score among the calibration normals, 0 to 1
    abnormal: bool | None = None  # None without a calibration
    image: Tensor | None = None  # [3, S, S] in [0, 1], on the CPU
    map: Tensor | None = None  # float32 [S, S], on the CPU
    original: Original | None = None  # of DICOM, where it was asked for

    @property
    def status(self) -> str:
        if self.error is None:
            return "ok"
        return "refused" if self.error.refused else "failed"


class Screener:
    """Screens pictures in batches; memory use does not depend on how many there are.

    A score does not depend on the other pictures of its batch beyond rounding, which `combined` divides by its
    reference's spread, 0.001 at least. What cannot be read gives a result with its error; the others go on. With
    `workers=0` files are read by threads of this process. With more they are read by so many processes of their own, so
    that a file which crashes or hangs its decoder (for more than `file_timeout` seconds) costs that file alone; as
    always with processes, a script then keeps its own work below `if __name__ == "__main__"`. `maps=False` leaves out
    images and maps; `originals=True` keeps header and picture of DICOM, of which results in DICOM are made.
    """

    def __init__(
        self,
        model: SCRD,
        calibration: Calibration | None = None,
        *,
        device: str = "auto",
        precision: Precision = "32",
        batch_size: int = 16,
        compile: bool = False,  # noqa: A002
        workers: int = 0,
        file_timeout: float = FILE_TIMEOUT,
        guard: Guard | None = None,
        maps: bool = True,
        originals: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if precision not in ("32", "bf16"):
            raise ValueError(f"precision must be '32' or 'bf16', got {precision!r}")
        if workers < 0:
            raise ValueError(f"workers must be at least 0, got {workers}")
        if not file_timeout > 0:
            raise ValueError(f"file_timeout must be above 0 seconds, got {file_timeout}")
        _check_score(model, calibration)
        self.model, self.calibration, self.batch_size, self.maps = model, calibration, batch_size, maps
        self.device = pick_device(device)
        self.guard = guard or Guard(facts=calibration.inputs if calibration else None)
        self.seconds = {"wait": 0.0, "model": 0.0}  # what the thread that runs the model did
        self.largest = batch_size  # what the model is given at once; halved where memory is too little
        self._padded = compile
        self.predictor = Predictor(model, self.device, precision=precision, compile=compile)
        pre = model.config.preprocessing
        read = functools.partial(read_frames, originals=originals)
        self.reader: Reader = Processes(pre, workers, file_timeout, read) if workers else Threads(pre, read)

    @classmethod
    def from_pretrained(
        cls,
        name_or_run: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> Screener:
        """From a run's folder, from its `model/`, or from the hub, as `SCRD.from_pretrained`; options as above.

        Raises `ScrdFastError` where there is no finished model.
        """
        run = located(
            name_or_run, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        return cls(*load(run), **options)

    def __enter__(self) -> Screener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes that read, as the end of a context does; those of one that is forgotten end with ours."""
        self.reader.close()

    def screen(self, inputs: Iterable[Input]) -> Generator[Screened, None, None]:
        """Results in the order of the inputs, as they come; nothing is kept.

        Inputs are files, by path or `Source`, of which all frames are screened; (source, frame) for one frame; or
        pictures: tensors [3, H, W] or [H, W] and arrays [H, W, 3] or [H, W], of uint8, uint16, or float in [0, 1].
        """
        for _, result in self.run(self._found(enumerate(inputs))):
            yield result

    def run(self, found: Generator[Found, None, None]) -> Generator[tuple[Job, Screened], None, None]:
        """`screen` for what a reader finds, which is closed at the end."""
        made = batches(found, self.batch_size, self._empty, self.guard.check)
        with closing(found), closing(made), Prefetcher(lambda _: next(made, None), itertools.count(), AHEAD) as ahead:
            before: tuple[Batch, Prediction | None] | None = None
            try:
                while (batch := self._next(ahead)) is not None:
                    launched = batch, self._launch(batch.images)
                    if before is not None:  # while a GPU works on the new one
                        yield from self._results(*before)
                    before = launched
                if before is not None:
                    yield from self._results(*before)
            except KeyboardInterrupt:  # files that hang are not waited for
                self.reader.close()
                raise

    @contextmanager
    def _clock(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - start

    def _next(self, ahead: Prefetcher[Batch | None]) -> Batch | None:
        with self._clock("wait"):
            return next(ahead)

    def _found(self, inputs: Iterator[tuple[int, Input]]) -> Generator[Found, None, None]:
        for in_memory, group in itertools.groupby(inputs, key=lambda item: isinstance(item[1], Tensor | np.ndarray)):
            if in_memory:
                for number, pixels in group:
                    yield Job(number, None), read_array(pixels, self.model.config.preprocessing)  # type: ignore[arg-type]
            else:
                yield from self.reader.read(_job(number, given) for number, given in group)  # type: ignore[arg-type]

    def _empty(self) -> Tensor:
        size = self.model.config.preprocessing.canvas
        return torch.empty(self.batch_size, 3, size, size, pin_memory=self.device.type == "cuda")

    def _launch(self, images: Tensor) -> Prediction | None:
        """On a GPU this only begins. Where memory is too little the batch is halved, and so are those to come."""
        count = len(images)
        if not count:
            return None
        if self._padded and count < self.batch_size:  # what is compiled wants one size
            images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, self.batch_size - count))
        while True:
            try:
                with self._clock("model"):
                    return _joined([self.predictor(piece) for piece in torch.split(images, self.largest)], count)
            except torch.OutOfMemoryError as error:
                if self.largest == 1:
                    raise UnavailableError(f"{self.device}: too little memory for a single picture: {error}") from None
                self.largest = (self.largest + 1) // 2
            torch.cuda.empty_cache()

    def _results(self, batch: Batch, prediction: Prediction | None) -> Iterator[tuple[Job, Screened]]:
        with self._clock("model"):  # a GPU is waited for
            rows = iter([] if prediction is None else list(_rows(prediction, self.maps)))
        pictures = iter(batch.images)
        for part in batch.parts:
            number, source = part.job.number, part.job.source
            if part.error is None:
                yield part.job, self._judged(part, next(pictures), next(rows))
            else:
                yield part.job, Screened(number, source, part.frame, part.error, part.about, tuple(part.flags))

    def _judged(self, part: Part, image: Tensor, row: _Row) -> Screened:
        about, start = part.about, (part.job.number, part.job.source, part.frame)
        assert about is not None  # for the type checker: what has no error has pixels
        if not all(map(isfinite, row.scores.values())):
            return Screened(
                *start, ImageError("not-finite", "the model's score is not finite"), about, tuple(part.flags)
            )
        percentile, abnormal = self.judge(row.scores)
        return Screened(
            *start,
            error=None,
            about=about,
            flags=tuple(part.flags),
            scores=row.scores,
            scales=row.scales,
            weights=row.weights,
            peak=stored_pixel(row.peak, about, self.model.config.preprocessing),
            percentile=percentile,
            abnormal=abnormal,
            image=image if self.maps else None,
            map=row.map,
            original=part.original,
        )

    def judge(self, scores: dict[str, float]) -> tuple[float | None, bool | None]:
        """Percentile among normals, and whether the image is called abnormal."""
        if self.calibration is None:
            return None, None
        score = [scores[self.calibration.score]]
        return float(self.calibration.percentile(score)[0]), bool(self.calibration.decide(score)[0])


class _Row(NamedTuple):
    """What a prediction says of one picture."""

    scores: dict[str, float]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    peak: tuple[int, int]
    map: Tensor | None


def _rows(prediction: Prediction, maps: bool) -> Iterator[_Row]:
    names = list(prediction.scores)
    columns = zip(*(prediction.scores[name].tolist() for name in names), strict=True)
    others = (prediction.scales.tolist(), prediction.weights.tolist(), prediction.peak.tolist())
    pictures = prediction.map[:, 0].float().cpu() if maps else itertools.repeat(None)
    for scores, scales, weights, peak, picture in zip(columns, *others, pictures, strict=False):
        yield _Row(dict(zip(names, scores, strict=True)), tuple(scales), tuple(weights), (peak[0], peak[1]), picture)


def _joined(pieces: list[Prediction], count: int) -> Prediction:
    """One prediction of the first `count` pictures."""
    first = pieces[0]
    if len(pieces) == 1 and len(first.map) == count:
        return first
    return Prediction(
        torch.cat([p.map for p in pieces])[:count],
        {name: torch.cat([p.scores[name] for p in pieces])[:count] for name in first.scores},
        *(torch.cat([getattr(p, name) for p in pieces])[:count] for name in ("weights", "scales", "peak")),
    )


def _job(number: int, given: str | Path | Source | tuple[Source, int | None]) -> Job:
    if isinstance(given, tuple):
        return Job(number, *given)
    return Job(number, given if isinstance(given, Source) else Source(Path(given)))


def stored_pixel(peak: tuple[int, int], about: About, preprocessing: Preprocessing) -> tuple[int, int]:
    """Where a pixel of the model's picture lies in the stored one: the inverse of `resize`.

    >>> about = About(height=100, width=50, colour=False, low=0.0, high=1.0, mean=0.5)
    >>> stored_pixel((0, 63), about, Preprocessing(size=64))
    (0, 49)
    >>> stored_pixel((63, 20), about, Preprocessing(size=64, fit="pad"))
    (99, 7)
    """
    sides = (about.height, about.width)
    top, left, *inner = inner_box(about.height, about.width, preprocessing)
    row, column = (
        min(max(int((p - margin + 0.5) * stored / length), 0), stored - 1)
        for p, margin, stored, length in zip(peak, (top, left), sides, inner, strict=True)
    )
    return row, column


def load(run: Path) -> tuple[SCRD, Calibration | None]:
    """Model and calibration of a run's folder, or of its `model/`."""
    folder = model_folder(run)
    path = folder / "calibration.json"
    model, calibration = SCRD.from_pretrained(folder), Calibration.load(path) if path.is_file() else None
    _check_score(model, calibration)
    return model, calibration


def _check_score(model: SCRD, calibration: Calibration | None) -> None:
    if calibration is not None and calibration.score != model.config.score:
        raise ScrdFastError(
            f"the calibration is of the score {calibration.score}, the model's is {model.config.score}; "
            "`scrd-fast calibrate` makes one that fits"
        )


def model_folder(run: Path) -> Path:
    """`run/model` or `run` itself, whichever holds a model."""
    for folder in (run / "model", run):
        if (folder / "config.json").is_file():
            return folder
    if not run.exists():
        raise ScrdFastError(f"{run}: no such folder{nearest(run)}")
    hint = "; its training is not finished, repeat the train command" if (run / "checkpoints").is_dir() else ""
    raise ScrdFastError(f"{run}: no model there{hint}")
