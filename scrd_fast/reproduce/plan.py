# SPDX-License-Identifier: Apache-2.0
"""Which runs an experiment file asks for. Each is known by the hash of all that its result depends on.

DIR/runs/<data>-<method>-<seed>-<hash>/
    run.json                          what it is, its status, its seconds and memory
    scores.csv, metrics.json, plots   as `scrd-fast evaluate` writes them
    train/                            of a trained method with the first seed: as `train` writes it
    training.jsonl                    of one with another seed: its losses
    log.txt                           what its process said
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from scrd_fast.data.datasets import DataSet, Item, open_dataset
from scrd_fast.data.images import content_hashes
from scrd_fast.data.known import split_name
from scrd_fast.errors import DataError, ScrdFastError
from scrd_fast.files import read_record
from scrd_fast.reproduce.config import Experiments, Method, data_folder

__all__ = ["Data", "Run", "data_of", "runs_of"]

FORMAT_VERSION = 1  # of what a run leaves in its folder


@dataclass(frozen=True)
class Data:
    """A data set that is there. `split`: name and split, where it was prepared by this package; empty without."""

    name: str
    root: Path
    sha256: str
    train: int
    normal: int
    abnormal: int
    split: str


@dataclass(frozen=True)
class Run:
    """One method on one data set with one seed. `keeps_model`: pictures and times are made with the first seed's."""

    data: Data
    method: Method
    seed: int
    keeps_model: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        method = self.method.identity(self.seed)
        weights = Path(self.method.settings.teacher_weights)
        if weights.is_file():
            method["teacher_sha256"] = _sha256(weights, weights.stat().st_mtime_ns)
        return {"format_version": FORMAT_VERSION, "data_sha256": self.data.sha256, **method}

    @property
    def id(self) -> str:
        return short_hash(self.identity)

    def folder(self, out: Path) -> Path:
        """Where it is, or where it will be: a run that another method's name or study made is the same run."""
        made = sorted((out / "runs").glob(f"*-{self.id}"))
        return made[0] if made else out / "runs" / f"{self.data.name}-{self.method.name}-{self.seed}-{self.id}"

    def is_finished(self, out: Path) -> bool:
        """Also where it was made by another file: a model that was removed and is needed now must be made again."""
        folder = self.folder(out)
        finished = read_record(folder / "run.json").get("status") == "finished"
        return finished and (not self.keeps_model or (folder / "train" / "model" / "config.json").is_file())

    def __str__(self) -> str:
        return f"{self.data.name}, {self.method.name}, seed {self.seed}"


@lru_cache
def _sha256(path: Path, changed: int) -> str:  # noqa: ARG001 - a file that was changed is hashed again
    return content_hashes([path])[0]


def short_hash(identity: dict[str, Any]) -> str:
    """Twelve hexadecimal digits."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def data_of(path: Path, experiments: Experiments, skip_missing: bool) -> tuple[list[Data], dict[str, str]]:
    """The data sets of the file `path`, and why others cannot be used. Without `skip_missing` the first is raised."""
    found: list[Data] = []
    missing: dict[str, str] = {}
    for name, folder in experiments.data.items():
        try:
            root = data_folder(path, name, folder)
            data = open_dataset(root)
            data.require(train=True, test=True)
            found.append(_data(name, data))
        except ScrdFastError as error:
            if not skip_missing:
                raise
            missing[name] = str(error)
    if not found:
        raise DataError(path, [f"no data set is there: {text}" for text in missing.values()])
    return found, missing


def _data(name: str, data: DataSet) -> Data:
    """The list, labels and contents of all images and masks are hashed: a changed file is another data set."""
    items = data.train + data.test
    files = [item.path for item in items] + [item.mask for item in items if item.mask]
    contents = dict(zip(files, content_hashes(files), strict=True))

    def line(item: Item) -> list[Any]:
        path = item.path.relative_to(data.root) if item.path.is_relative_to(data.root) else item.path
        return [str(path), item.label, item.frame, contents[item.path], item.mask and contents[item.mask]]

    listed = json.dumps([[line(item) for item in part] for part in (data.train, data.test)])
    labels = [item.label for item in data.test]
    sha256 = hashlib.sha256(listed.encode()).hexdigest()
    split = split_name(data.root) or ""
    return Data(name, data.root, sha256, len(data.train), labels.count(0), labels.count(1), split)


def runs_of(experiments: Experiments, data: Sequence[Data], studies: Sequence[str]) -> list[Run]:
    """Each run once, whichever studies need it: first all methods with the first seed, then with the next."""
    methods = [method for study in studies for method in experiments.methods_of(study)]
    found: dict[str, Run] = {}
    for seed in experiments.seeds:
        for method in (method for method in methods if seed in method.seeds):
            for one in data:
                run = Run(one, method, seed, method.kind == "trained" and seed == experiments.seeds[0])
                found.setdefault(run.id, run)
    return list(found.values())
