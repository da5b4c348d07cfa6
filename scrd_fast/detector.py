# SPDX-License-Identifier: Apache-2.0
"""The method as an outlier detector of scikit-learn: `fit`, `score_samples`, `predict`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from scrd_fast.data.datasets import DataSet, Item, unlabelled_items
from scrd_fast.data.frames import Source
from scrd_fast.errors import DataError, MissingExtraError
from scrd_fast.screening.screener import Input, Screener, load
from scrd_fast.settings import TrainSettings
from scrd_fast.training import Interrupted, train

try:
    from sklearn.base import BaseEstimator, OutlierMixin
    from sklearn.utils import Tags
    from sklearn.utils.validation import check_is_fitted, check_random_state
except ImportError:
    raise MissingExtraError("scikit-learn", "model") from None

__all__ = ["Images", "SCRDDetector"]

# A folder; files; arrays [N, H, W] or [N, H, W, 3] in one; arrays [H, W] or [H, W, 3], of sizes of their own.
Images = str | Path | Sequence[str | Path] | Sequence[npt.NDArray[np.generic]] | npt.NDArray[np.generic]


class SCRDDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Train on normal images, then tell normal images (+1) from others (-1), by scikit-learn's conventions.

    `X` is an array [N, H, W] or [N, H, W, 3] of uint8, uint16, or float in [0, 1]; or a list of such images, [H, W] or
    [H, W, 3], of any sizes; or of files, each of one image; or a folder, with all the images below it. Labels are not
    used.

    `fit` holds a part of the images out (`calibration_fraction`, at least 20, at most half): their scores set
    `offset_`, so that of further normal images about the share `fpr` is called abnormal. Other parameters are those of
    `scrd-fast train`, but for `image_score` and `fit_mode`, there --score and --fit, which are methods here.
    `random_state` fixes weights, order and noise: an int gives the same model again, None draws a seed. The
    defaults are the paper's, hours of a GPU.

    Attributes: `model_` (`scrd_fast.SCRD`), `calibration_` (`scrd_fast.calibration.Calibration`), `offset_`.

    >>> import numpy as np
    >>> images = np.random.default_rng(0).integers(0, 200, (12, 40, 40), dtype=np.uint8)
    >>> detector = SCRDDetector("test_resnet", teacher_weights="random", size=32, iterations=2, batch_size=4)
    >>> detector.fit(images).predict(images).shape
    (12,)
    """

    def __init__(
        self,
        teacher: str = "wide_resnet50_2",
        *,
        teacher_weights: str = "pretrained",
        size: int = 256,
        iterations: int = 40_000,
        batch_size: int = 16,
        objective: str = "scrd",
        image_score: str = "combined",
        fpr: float = 0.05,
        calibration_fraction: float = 0.1,
        strength: float = 0.2,
        lr: float = 1e-3,
        fit_mode: str = "stretch",
        intensity: str = "auto",
        precision: str = "32",
        device: str = "auto",
        random_state: Any = 0,
    ) -> None:
        self.teacher = teacher
        self.teacher_weights = teacher_weights
        self.size = size
        self.iterations = iterations
        self.batch_size = batch_size
        self.objective = objective
        self.image_score = image_score
        self.fpr = fpr
        self.calibration_fraction = calibration_fraction
        self.strength = strength
        self.lr = lr
        self.fit_mode = fit_mode
        self.intensity = intensity
        self.precision = precision
        self.device = device
        self.random_state = random_state

    def fit(self, X: Images, y: object = None) -> SCRDDetector:
        """Train on normal images and calibrate on those held out. `y` is not used.

        Raises ValueError for parameters, shapes, files and pixels that are not as above, naming them; `ScrdFastError`
        for a teacher that cannot be had, or fewer than 3 held-out images for the score "combined".
        """
        del y
        if not 0 < self.fpr <= 0.5:
            raise ValueError(f"fpr must be above 0 and at most 0.5, got {self.fpr}")
        if not self.calibration_fraction > 0:
            raise ValueError(f"calibration_fraction must be above 0, got {self.calibration_fraction}")
        data = DataSet(Path("X"), _items(X), [])
        with tempfile.TemporaryDirectory(prefix="scrd_fast-") as name:
            run = Path(name) / "run"
            try:
                train(data, run, self._settings())
            except DataError as error:
                raise ValueError(str(error)) from None
            except Interrupted:  # what was saved goes with the folder
                raise KeyboardInterrupt from None
            model, calibration = load(run)
        assert calibration is not None  # for the type checker: of two images one is held out
        self._take(model, calibration.for_rate(self.fpr))
        return self

    def score_samples(self, X: Images) -> npt.NDArray[np.float64]:
        """[N]: the higher, the more normal; minus the anomaly score. Raises ValueError for an image that cannot be
        used, naming it."""
        check_is_fitted(self)
        return np.array([-s for s in self._scores(X)], dtype=np.float64)

    def decision_function(self, X: Images) -> npt.NDArray[np.float64]:
        """[N]: `score_samples` minus `offset_`; below 0 for what is called abnormal."""
        return np.asarray(self.score_samples(X) - self.offset_)

    def predict(self, X: Images) -> npt.NDArray[np.int64]:
        """[N]: +1 for normal, -1 for abnormal."""
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model and calibration as `train` does, for `scrd-fast screen` and for `from_pretrained`."""
        check_is_fitted(self)
        self.model_.save_pretrained(folder)
        self.calibration_.save(Path(folder) / "calibration.json")

    @classmethod
    def from_pretrained(cls, run: str | Path, *, device: str = "auto", batch_size: int = 16) -> SCRDDetector:
        """A fitted detector of a run's folder, or its `model/`. Raises ValueError where it has no calibration.

        Parameters that a model does not keep, as `iterations`, have their defaults.
        """
        model, calibration = load(Path(run))
        if calibration is None:
            raise ValueError(f"{run}: has no calibration; `scrd-fast calibrate` makes one")
        config = model.config
        detector = cls(
            config.teacher.name,
            teacher_weights=config.teacher.source,
            size=config.preprocessing.size,
            batch_size=batch_size,
            objective=config.objective,
            image_score=config.score,
            fpr=calibration.fpr,
            fit_mode=config.preprocessing.fit,
            intensity=config.preprocessing.intensity,
            device=device,
        )
        detector._take(model, calibration)
        return detector

    def _take(self, model: Any, calibration: Any) -> None:
        self.model_, self.calibration_ = model, calibration
        self.offset_ = -calibration.threshold
        self._screener = self._new_screener()

    def _new_screener(self) -> Screener:
        return Screener(
            self.model_,
            self.calibration_,
            device=self.device,
            precision=self.precision,  # type: ignore[arg-type]
            batch_size=self.batch_size,
            maps=False,
        )

    def _settings(self) -> TrainSettings:
        """Raises pydantic's ValidationError, a ValueError, that names the parameter."""
        own = {name: value for name, value in self.get_params().items() if name in TrainSettings.model_fields}
        seed = self.random_state
        seed = int(seed if isinstance(seed, Integral) else check_random_state(seed).randint(2**31))
        own |= {"score": self.image_score, "fit": self.fit_mode, "seed": seed, "checkpoint_every": self.iterations}
        return TrainSettings(**own)

    def _scores(self, X: Images) -> Iterator[float]:
        inputs: list[Input] = [_input(item) for item in _items(X)]
        for result in self._screener.screen(inputs):
            if result.scores is None:
                name = result.source or f"X[{result.number}]"
                raise ValueError(f"{name}: {result.error}")
            yield result.scores[self.calibration_.score]

    def __getstate__(self) -> dict[str, Any]:
        """Without what holds threads: a pickle has the model's tensors."""
        return {name: value for name, value in super().__getstate__().items() if name != "_screener"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if hasattr(self, "model_"):
            self._screener = self._new_screener()

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        tags.input_tags.string = True  # files
        return tags


def _items(X: Images) -> list[Item]:
    """Raises ValueError for what is none of the kinds of `Images`."""
    if isinstance(X, str | Path):
        try:
            return unlabelled_items(Path(X))
        except DataError as error:
            raise ValueError(str(error)) from None
    if isinstance(X, np.ndarray | Tensor) and X.ndim not in (1, 3, 4):
        raise ValueError(f"X must be images [N, H, W] or [N, H, W, 3], got an array of shape {list(X.shape)}")
    images = list(X)
    if not images:
        raise ValueError("X holds no images: 0 sample(s), a minimum of 1 is required")
    return [_item(number, image) for number, image in enumerate(images)]


def _item(number: int, image: object) -> Item:
    if isinstance(image, str | Path):
        return Item(Path(image), -1)
    pixels = np.asarray(image.cpu() if isinstance(image, Tensor) else image)
    if pixels.ndim not in (2, 3):
        raise ValueError(f"X[{number}] must be a file or an image [H, W] or [H, W, 3], got shape {list(pixels.shape)}")
    return Item(Path(f"X[{number}]"), -1, pixels=pixels)


def _input(item: Item) -> Input:
    return (Source(item.path), item.frame or 0) if item.pixels is None else item.pixels
