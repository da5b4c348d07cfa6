# SPDX-License-Identifier: Apache-2.0
"""What is stored beside a model's weights: `config.json`, versioned and checked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from scrd_fast.choices import Fit, Intensity, Objective, Precision, Score, SliceAxis

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "SCORES",
    "ModelConfig",
    "Moments",
    "Objective",
    "Precision",
    "Preprocessing",
    "Reference",
    "Score",
    "TeacherConfig",
    "check_map_weights",
]

SCORES: tuple[Score, ...] = ("mean", "max", "top1", "top5")  # that every map has
MAX_CANVAS = 4096  # pixels a side; a picture takes 200 MB, and several are under way
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def check_map_weights(map_weights: bool | None, objective: Objective) -> None:
    """Weights that no loss has trained would scale the map at random."""
    if map_weights and objective != "paper":
        raise ValueError(f"map weights need an objective that trains the scale weights: paper, got {objective}")


class Strict(BaseModel):
    """Unknown fields are errors: a file of a newer version is refused, never half understood."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Preprocessing(Strict):
    """How a file becomes the model's input; the one reading function follows it everywhere.

    `intensity`: "range" divides integers by their type's range; "percentile" takes each image's 0.5-99.5 % window;
    "auto" is "range" for 8-bit and "percentile" for 16-bit and float images. A volume has one window for all its
    slices.
    """

    size: Annotated[int, Field(ge=32, le=4096)] = 256  # pixels that the network sees at once, height and width
    tiles: Annotated[int, Field(ge=1, le=16)] = 1  # a side; a quarter of each lies over the next
    fit: Fit = "stretch"
    intensity: Intensity = "auto"
    slice_axis: SliceAxis = 2  # of a volume's array as it is stored: its slices are the pictures
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @model_validator(mode="after")
    def _whole_strides(self) -> Preprocessing:
        if self.size % 32:
            raise ValueError(f"size must be a multiple of 32 pixels, got {self.size}")
        if self.canvas > MAX_CANVAS:
            raise ValueError(f"size and tiles make {self.canvas} pixels a side, at most {MAX_CANVAS} are possible")
        return self

    @property
    def canvas(self) -> int:
        """Pixels of a picture as it is read, height and width: all of its tiles.

        >>> Preprocessing(size=256).canvas, Preprocessing(size=256, tiles=3).canvas
        (256, 640)
        """
        return self.size + (self.tiles - 1) * 3 * self.size // 4


class TeacherConfig(Strict):
    """Which teacher: a timm name, where its weights come from, and their SHA-256."""

    name: str = "wide_resnet50_2"
    source: Literal["pretrained", "random", "package", "path"] = "pretrained"
    sha256: str = ""

    @property
    def carried(self) -> bool:
        """Whether the weights lie in the model's own file, since nothing else could bring them back."""
        return self.source in ("random", "path")


Moments = tuple[float, Annotated[float, Field(gt=0)]]  # mean and standard deviation


class Reference(Strict):
    """What is usual among held-out normal images: moments of the logarithms of readings, see `model/reference.py`."""

    scales: tuple[Moments, Moments, Moments]  # of each scale's mean distance
    top1: Moments  # of the score


class ModelConfig(Strict):
    """All that is needed to build a model again; saved as `config.json`."""

    format_version: Literal[1] = 1
    teacher: TeacherConfig = TeacherConfig()
    preprocessing: Preprocessing = Preprocessing()
    objective: Objective = "scrd"
    map_weights: bool = False
    score: Score = "top5"
    sigma: float = 4.0  # of the blur, in pixels of the input size
    reference: Reference | None = None  # from held-out normal images, at the end of training

    @model_validator(mode="after")
    def _score_and_weights_exist(self) -> ModelConfig:
        check_map_weights(self.map_weights, self.objective)
        if self.score == "combined" and self.reference is None:
            raise ValueError("the score combined needs a reference, which training makes from held-out normal images")
        return self

    @property
    def scores(self) -> tuple[Score, ...]:
        """Names of the scores that the model gives."""
        return SCORES if self.reference is None else (*SCORES, "combined")
