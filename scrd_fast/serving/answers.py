# SPDX-License-Identifier: Apache-2.0
"""What the service answers: the fields of `scrd-fast screen`'s table, as JSON."""

from __future__ import annotations

import base64
import io
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from scrd_fast.plots import overlay
from scrd_fast.screening.screener import Screened
from scrd_fast.serving.batching import Status

__all__ = ["Answer", "Health", "Problem", "Scored", "scored"]


class _Schema(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class Scored(_Schema):
    """One image of an upload."""

    frame: int | None = Field(description="Number in the file, from 0; null where the file ends in an error.")
    status: Literal["ok", "failed", "refused"]
    score: float | None = Field(description="The stored score: the higher, the less normal.")
    scores: dict[str, float] | None = Field(description="Every score that the model gives.")
    percentile: float | None = Field(description="Share of the calibration's normal images at or below it, 0 to 1.")
    decision: Literal["normal", "abnormal"] | None = Field(description="abnormal: the score is above the threshold.")
    peak: tuple[int, int] | None = Field(description="Row and column of the map's maximum, in pixels of the image.")
    height: int | None
    width: int | None
    flags: list[str] = Field(description="What makes the image doubtful, a fixed word each.")
    error: str | None
    overlay: str | None = Field(description="The image with its map, a PNG in base64, where it was asked for.")


class Answer(_Schema):
    """Of one upload."""

    model_sha256: str
    calibration: str | None = Field(description="Its id; null where the model has none: then there is no decision.")
    score_name: str
    threshold: float | None
    expected_fpr: float | None = Field(description="Rate of normal images that is to be expected above it.")
    map_scale: tuple[float, float] | None = Field(description="Map values of the first and last colour of overlays.")
    images: list[Scored]


class Health(_Schema):
    status: Status
    version: str
    model_sha256: str
    calibration: str | None


class Problem(_Schema):
    """Why there is no answer."""

    code: str = Field(description="A fixed word.")
    detail: str


def scored(result: Screened, score: str, scale: tuple[float, float] | None) -> Scored:
    """`scale`: draw an overlay on it."""
    about, found = result.about, result.scores
    decision = None if result.abnormal is None else "abnormal" if result.abnormal else "normal"
    return Scored(
        frame=result.frame,
        status=result.status,  # type: ignore[arg-type]
        score=found[score] if found else None,
        scores=found,
        percentile=result.percentile,
        decision=decision,  # type: ignore[arg-type]
        peak=result.peak,
        height=about.height if about else None,
        width=about.width if about else None,
        flags=list(result.flags),
        error=str(result.error) if result.error else None,
        overlay=_overlay(result, scale) if scale and result.map is not None else None,
    )


def _overlay(result: Screened, scale: tuple[float, float]) -> str:
    assert result.image is not None  # for the type checker: the screener keeps both
    assert result.map is not None
    pixels = overlay(result.image.permute(1, 2, 0).numpy(), result.map.numpy(), *scale)
    out = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(out, "png", compress_level=1)
    return base64.b64encode(out.getvalue()).decode()
