# SPDX-License-Identifier: Apache-2.0
"""A file of experiments that tests share, and how they read what came of it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import yaml

TRAIN: dict[str, Any] = {
    "teacher": "resnet18", "teacher_weights": "random", "size": 64, "batch_size": 4, "iterations": 4,
    "log_every": 1, "device": "cpu",
}  # fmt: skip
METHODS: dict[str, Any] = {"plain": {"objective": "rd4ad"}, "scales": {"objective": "paper", "score": "max"}}


def content(tree: Path, **changes: Any) -> dict[str, Any]:
    """What such a file holds."""
    whole = {
        "title": "Trial",
        "data": {"textures": str(tree)},
        "seeds": [0, 1],
        "train": TRAIN,
        "methods": METHODS,
        "studies": {"main": {"compare": "scales"}},
    }
    return whole | changes


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def read_scores(folder: Path, score: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Labels and one reading of a run's table, by the csv module alone."""
    with (folder / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return np.array([int(row["label"]) for row in rows]), np.array([float(row[score]) for row in rows])
