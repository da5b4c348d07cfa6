# SPDX-License-Identifier: Apache-2.0
"""The check: an exported file is run, and must say what the screener says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from scrd_fast.errors import ScrdFastError
from scrd_fast.export.formats import Runner
from scrd_fast.screening.screener import Screened, Screener

__all__ = ["Differences", "bundled_batches", "compare"]

# Batch, height and width: smaller and larger than any canvas, long and flat, single and several.
SHAPES = ((1, 1, 1), (1, 7, 5), (5, 64, 64), (2, 300, 211), (1, 40, 333), (3, 128, 128))


@dataclass(frozen=True)
class Differences:
    """The largest differences between a file and the screener over a number of images."""

    images: int
    score: float  # of all scores
    map: float
    decisions: int  # that differ


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

    Raises `ScrdFastError` where percentile or decision do not follow from the file's own score, bit for bit.
    """
    count = decisions = 0
    scores, maps = [0.0], [0.0]
    for batch in batches:
        outputs = run(batch)
        _require_consistent(outputs, screener)
        for i, expected in enumerate(screener.screen(batch)):
            count += 1
            score, picture = _distances(outputs, i, expected)
            scores.append(score)
            maps.append(picture)
            decisions += bool(outputs["decision"][i]) != expected.abnormal
    return Differences(count, _largest(scores), _largest(maps), decisions)


def _largest(values: list[float]) -> float:
    """Of differences: not a number is none that could be let pass."""
    return float(torch.tensor(values).nan_to_num(nan=float("inf")).max())


def _distances(outputs: dict[str, Tensor], index: int, expected: Screened) -> tuple[float, float]:
    if expected.scores is None or expected.map is None:
        raise ScrdFastError(f"the model itself gives no score for a bundled image: {expected.error}")
    scores = [abs(float(outputs[f"score_{name}"][index]) - value) for name, value in expected.scores.items()]
    return _largest(scores), float((outputs["map"][index, 0].float() - expected.map).abs().max())


def _require_consistent(outputs: dict[str, Tensor], screener: Screener) -> None:
    calibration = screener.calibration
    assert calibration is not None  # for the type checker: without one nothing is exported
    scores = outputs["score"].double().numpy()
    percentile = torch.from_numpy(calibration.percentile(scores)).float()
    decision = torch.from_numpy(calibration.decide(scores))
    if not torch.equal(decision, outputs["decision"]) or not torch.allclose(percentile, outputs["percentile"]):
        raise ScrdFastError("percentile or decision of the exported file do not follow from its score")
