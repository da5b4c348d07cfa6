# SPDX-License-Identifier: Apache-2.0
"""The settings of a training run, as `scrd-fast train` takes them and `run.json` keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from scrd_fast.choices import Cache, Device, FeatureCache, Fit, Intensity, Noise, Objective, Precision, Score, SliceAxis
from scrd_fast.config import Preprocessing, Strict, check_map_weights

__all__ = ["TrainSettings"]


class TrainSettings(Strict):
    """Defaults are the paper's: Adam, 1e-3, batch 16, 256 px, 40,000 iterations, noise strength 0.2."""

    teacher: str = "wide_resnet50_2"
    teacher_weights: str = "pretrained"  # pretrained, random, package, or a file
    objective: Objective = "scrd"
    score: Score = "combined"
    map_weights: bool | None = None  # None: on exactly where the objective trains the scale weights
    size: Annotated[int, Field(ge=32, le=4096, multiple_of=32)] = 256  # pixels
    tiles: Annotated[int, Field(ge=1, le=16)] = 1  # a side; images are then larger than `size`
    fit: Fit = "stretch"
    intensity: Intensity = "auto"
    slice_axis: SliceAxis = 2
    batch_size: Annotated[int, Field(ge=2)] = 16  # batch-norm needs two
    iterations: Annotated[int, Field(ge=1)] = 40_000
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    strength: Annotated[float, Field(ge=0, le=10)] = 0.2
    noise: Noise = "opensimplex"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    precision: Precision = "32"
    compile: bool = False
    cache: Cache = "auto"  # where decoded images are kept
    cache_features: FeatureCache = "off"  # where the teacher's features of the clean images are kept, in bfloat16
    accumulate: Annotated[int, Field(ge=1)] = 1  # parts that a batch goes through the model in, one after the other
    device: Device = "auto"
    calibration_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    log_every: Annotated[int, Field(ge=1)] = 10  # iterations
    checkpoint_every: Annotated[int, Field(ge=1)] = 500  # iterations
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    unlabelled: Path | None = None  # a folder of images that choose among the checkpoints kept

    @model_validator(mode="after")
    def _weights_are_trained(self) -> TrainSettings:
        check_map_weights(self.map_weights, self.objective)
        return self

    @model_validator(mode="after")
    def _combined_has_normals(self) -> TrainSettings:
        if self.score == "combined" and not self.calibration_fraction:
            raise ValueError("--score combined compares with held-out normals: --calibration-fraction must be above 0")
        return self

    @model_validator(mode="after")
    def _choice_has_normals(self) -> TrainSettings:
        if self.unlabelled and not self.calibration_fraction:
            raise ValueError("--unlabelled is compared with held-out normals: --calibration-fraction must be above 0")
        return self

    @model_validator(mode="after")
    def _cached_features_are_used_again(self) -> TrainSettings:
        if self.tiles > 1 and self.cache_features != "off":
            raise ValueError(
                f"--cache-features {self.cache_features} needs --tiles 1: of an image with tiles each step takes "
                f"another one, got --tiles {self.tiles}"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """All that a run's result depends on."""
        unused = set() if self.unlabelled else {"unlabelled"}  # runs without are what they were before there was any
        return self.model_dump(mode="json", exclude={"cache"} | unused)

    def preprocessing(self) -> Preprocessing:
        return Preprocessing(
            size=self.size, tiles=self.tiles, fit=self.fit, intensity=self.intensity, slice_axis=self.slice_axis
        )
