# SPDX-License-Identifier: Apache-2.0
"""The check: an exported file is run, and must say what the screener says."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from scrd_fast.calibration import Calibration
from scrd_fast.choices import ExportPrecision
from scrd_fast.errors import ScrdFastError
from scrd_fast.export.formats import Runner
from scrd_fast.screening.screener import Screener

__all__ = ["Differences", "MismatchError", "bundled_batches", "compare", "require_agreement"]

EXACT = 1e-4  # difference of any score or map that is let pass in float32
SPREADS = {"bf16": 0.1, "int8": 1.0}  # of the stored score, in standard deviations of the calibration's
DECISIONS = 0.05  # share that may differ where rounding moves what lies close to the threshold

# Batch, height and width: smaller and larger than any canvas, long and flat, single and several.
SHAPES = ((1, 1, 1), (1, 7, 5), (5, 64, 64), (2, 300, 211), (1, 40, 333), (3, 128, 128))


class MismatchError(ScrdFastError):
    """An exported file does not say what the model says; it is not kept."""

    exit_code = 1


@dataclass(frozen=True)
class Differences:
    """The largest differences between a file and the screener over a number of images."""

    images: int
    score: float  # the stored one
    scores: float  # any of them
    map: float
    decisions: int  # that differ

    def __str__(self) -> str:
        return (
            f"on {self.images} images the score differs by {self.score:.2g} at most, any score by {self.scores:.2g}, "
            f"a map by {self.map:.2g}, and {self.decisions} decisions differ"
        )


def bundled_batches(canvas: int) -> Iterator[Tensor]:
    """Batches [N, 3, H, W] in [0, 1] of several sizes, always the same: gray and coloured textures from coarse to
    fine, dark, bright and blank ones."""
    generator = torch.Generator().manual_seed(0)
    for count, height, width in (*SHAPES, (2, canvas, canvas)):
        yield torch.stack([_texture(i, height, width, generator) for i in range(count)])


def _texture(kind: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    cells = 2 + 3 * kind
    coarse = torch.rand(1, 3 if kind % 2 else 1, cells, cells, generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)[0].expand(3, -1, -1)
    grain = torch.rand(3, height, width, generator=generator)
    contrast = (1.0, 0.3, 0.0)[kind % 3]
    return (0.2 + contrast * (0.7 * smooth + 0.1 * grain)).clamp(0, 1)


def compare(run: Runner, screener: Screener, batches: Iterable[Tensor]) -> Differences:
    """Run a file on batches of images in [0, 1], and the screener on the same images.

    Raises `MismatchError` where percentile or decision do not follow from the file's own score, or that is not finite.
    """
    count = decisions = 0
    stored = screener.model.config.score
    largest = {"score": 0.0, "scores": 0.0, "map": 0.0}
    for batch in batches:
        outputs = run(batch)
        _require_consistent(outputs, screener)
        for i, expected in enumerate(screener.screen(batch)):
            if expected.scores is None or expected.map is None:
                raise ScrdFastError(f"the model itself gives no score for an image: {expected.error}")
            count += 1
            found = {
                "score": _difference(outputs["score"][i], expected.scores[stored]),
                "scores": max(_difference(outputs[f"score_{name}"][i], x) for name, x in expected.scores.items()),
                "map": _difference(outputs["map"][i, 0], expected.map),
            }
            largest = {name: max(value, found[name]) for name, value in largest.items()}
            decisions += bool(outputs["decision"][i]) != expected.abnormal
    return Differences(count, **largest, decisions=decisions)


def require_agreement(found: Differences, precision: ExportPrecision, calibration: Calibration) -> None:
    """Raises `MismatchError` unless a file of that precision agrees with the model.

    Of "32" every score and map within `EXACT`, and each decision; of the others the stored score within their share of
    the standard deviation of the calibration's scores, and all but `DECISIONS` of the decisions.
    """
    if precision == "32":
        agrees, allowed = max(found.scores, found.map) <= EXACT and not found.decisions, f"{EXACT:g} and no decision"
    else:
        limit = SPREADS[precision] * statistics.pstdev(calibration.scores)
        agrees = found.score <= limit and found.decisions <= DECISIONS * found.images
        allowed = f"{limit:.2g} of the score and {DECISIONS:.0%} of the decisions"
    if not agrees:
        raise MismatchError(f"the exported file differs from the model and was not kept: {found} (allowed: {allowed})")


def _difference(actual: Tensor, expected: Tensor | float) -> float:
    """The largest one; what is not a number differs from all."""
    return float((actual.double() - expected).abs().nan_to_num(nan=float("inf"), posinf=float("inf")).max())


def _require_consistent(outputs: dict[str, Tensor], screener: Screener) -> None:
    calibration = screener.calibration
    assert calibration is not None  # for the type checker: without one nothing is exported
    scores = outputs["score"].double()
    if not bool(scores.isfinite().all()):
        raise MismatchError("a score of the exported file is not finite; it was not kept")
    percentile = torch.from_numpy(calibration.percentile(scores.numpy())).float()
    decision = torch.from_numpy(calibration.decide(scores.numpy()))
    if not torch.equal(decision, outputs["decision"]) or not torch.allclose(percentile, outputs["percentile"]):
        raise MismatchError("percentile or decision of the exported file do not follow from its score; it was not kept")
