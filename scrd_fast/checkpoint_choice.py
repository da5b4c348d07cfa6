# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint becomes the model, where unlabelled images choose it: the one of the largest AUCp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from scrd_fast.aucp import aucp
from scrd_fast.config import SCORES, Score
from scrd_fast.data.datasets import Item
from scrd_fast.data.facts import PictureFacts
from scrd_fast.data.frames import About
from scrd_fast.data.images import ImageStore
from scrd_fast.errors import ScrdFastError
from scrd_fast.model.reference import combined_score, fit_reference, left_out_scores
from scrd_fast.model.scrd import SCRD
from scrd_fast.runs import Checkpoints
from scrd_fast.settings import TrainSettings

__all__ = ["choose_checkpoint", "readings"]


class Readings(NamedTuple):
    """What a model says of images, and what they look like."""

    columns: dict[str, list[float]]  # every score that is read from the map, each [N]
    scales: list[list[float]]  # mean distances [N, 3]
    pictures: PictureFacts


def choose_checkpoint(
    model: SCRD,
    checkpoints: Checkpoints,
    normals: list[Item],
    unlabelled: list[Item],
    settings: TrainSettings,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Give `model` the weights of the checkpoint whose AUCp of `settings.score` is the largest, of equals the newest.

    `normals` were held out from training. Returns facts of the choice for the run's record.
    """
    device = next(model.parameters()).device
    found: dict[int, float] = {}
    best: dict[str, Any] = {}
    for state in checkpoints.states(device):
        model.load_state_dict(state["model"], strict=False)  # the teacher is not in it
        normal, other = (readings(model, items, settings.batch_size) for items in (normals, unlabelled))
        value = _aucp(normal, other, settings.score)
        if value > max(found.values(), default=-1.0):
            best = state
        found[state["iteration"]] = value
        log(f"iteration {state['iteration']}: AUCp {value:.3f}")
    if not best:
        raise ScrdFastError(f"{checkpoints.folder}: no checkpoint there can be read, so that none can be chosen")
    model.load_state_dict(best["model"], strict=False)
    log(f"the checkpoint of iteration {best['iteration']} becomes the model, of the largest AUCp")
    return {"checkpoint": f"iteration {best['iteration']}, by AUCp", "aucp_by_iteration": dict(sorted(found.items()))}


def _aucp(normal: Readings, other: Readings, score: Score) -> float:
    if score != "combined":
        return aucp(normal.columns[score], other.columns[score])
    top1 = normal.columns["top1"]
    reference = fit_reference(normal.scales, top1)
    compared = combined_score(reference, torch.tensor(other.scales), torch.tensor(other.columns["top1"]))
    return aucp(left_out_scores(normal.scales, top1), compared)


def readings(model: SCRD, items: list[Item], batch_size: int) -> Readings:
    """In order, `batch_size` at a time."""
    store = ImageStore(items, model.config.preprocessing, cache="off")  # read anew, as in screening: it is timed
    columns: dict[str, list[float]] = {name: [] for name in SCORES}
    scales: list[list[float]] = []
    abouts: list[About] = []
    for frames in store.frames(batch_size):
        found = model.predict(torch.stack([frame.pixels for frame in frames]))
        abouts += [frame.about for frame in frames]
        for name in SCORES:
            columns[name] += found.scores[name].tolist()
        scales += found.scales.tolist()
    return Readings(columns, scales, PictureFacts.of(abouts))
