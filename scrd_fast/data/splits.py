# SPDX-License-Identifier: Apache-2.0
"""Which image of a source goes where: by a published list of names, or drawn by hash where there is none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from scrd_fast.data.frames import Source
from scrd_fast.data.known import Counts
from scrd_fast.data.listing import Found, shortened
from scrd_fast.errors import DataError

__all__ = ["BY_HASH", "Bucket", "Parts", "Plan", "by_names", "by_stem", "counted", "draw", "read_list"]

BY_HASH = "by hash; not MedIAnomaly's, numbers are not comparable"

Bucket = tuple[str, str]  # part and label, as in data.json
Parts = dict[Bucket, list[Found]]
BUCKETS: tuple[Bucket, ...] = (("train", "0"), ("test", "0"), ("test", "1"))
VALIDATION: tuple[Bucket, ...] = (("valid", "0"), ("valid", "1"))


@dataclass
class Plan:
    """What is taken from a source, by which rule."""

    layout: str
    split: str
    parts: Parts
    masks: dict[str, Found] = field(default_factory=dict)  # by the name of the image's file


def counted(parts: Mapping[Bucket, Iterable[object]]) -> Counts:
    return Counts(*(len(list(parts.get(bucket, ()))) for bucket in (*BUCKETS, *VALIDATION)))


def read_list(file: Found) -> dict[Bucket, list[str]]:
    """Names in the buckets of a data.json that are used. Raises `DataError` for what is none, and for unsafe names."""
    try:
        listed = json.loads(file.text())
        buckets = {(part, label): listed.get(part, {}).get(label, []) for part, label in BUCKETS}
        if not all(isinstance(names, list) and all(isinstance(n, str) for n in names) for names in buckets.values()):
            raise TypeError("a bucket that is no list of names")
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(file.source, [f'expected {{"train": {{"0": [names]}}, "test": ...}}: {error}']) from None
    unsafe = [f"{name!r}: leads out of images/" for names in buckets.values() for name in names if not _is_safe(name)]
    if unsafe:
        raise DataError(file.source, shortened(unsafe))
    return buckets


def _is_safe(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    unsafe = path.is_absolute() or ".." in path.parts or name[1:2] == ":" or not path.parts
    return not unsafe and name.isprintable()


def by_stem(images: Iterable[Found], of: str | Path) -> dict[str, Found]:
    """Raises `DataError` where two files have one stem: which is meant is not known."""
    found: dict[str, Found] = {}
    problems = []
    for image in images:
        first = found.setdefault(image.path.stem, image)
        if first is not image:
            problems.append(f"{image.name}: has the name of {first.name}, which of them is meant is not known")
    if problems:
        raise DataError(of, shortened(problems))
    return found


def by_names(buckets: Mapping[Bucket, list[str]], found: Mapping[str, Found], of: Source | Path) -> Parts:
    """The files of a list, by the keys of `found`. Raises `DataError` with what is missing or listed twice."""
    first: dict[str, Bucket] = {}
    missing, repeated = [], []
    for bucket, names in buckets.items():
        for name in names:
            if name in first:
                repeated.append(f"{name}: listed in {' '.join(first[name])} and again in {' '.join(bucket)}")
            first.setdefault(name, bucket)
            if name not in found:
                missing.append(f"{name}: listed in {' '.join(bucket)}, not in the source")
    if missing or repeated:
        raise DataError(of, shortened(repeated) + shortened(missing))
    return {bucket: [found[name] for name in names] for bucket, names in buckets.items()}


def draw(
    classes: Mapping[str, list[tuple[str, Found]]], normal: str, counts: Counts, of: Path, *, scaled: bool
) -> Parts:
    """A split of those counts: the same whatever the files' order, names and place. Raises `DataError` for too few.

    `classes`: of each class the images, each with the key of its group (a patient, or the content's hash): a group
    is never split. The abnormal test images are taken from all other classes alike. `scaled`: where there are too few,
    take fewer of each part, in the same proportions.
    """
    abnormal = sorted(set(classes) - {normal})
    wanted = {name: counts.test_abnormal // len(abnormal) for name in abnormal}
    wanted[normal] = counts.train + counts.test_normal
    few = [f"{len(classes[n])} images of {n}, expected {w} or more" for n, w in wanted.items() if len(classes[n]) < w]
    if few and not scaled:
        raise DataError(of, few)
    share = min(1.0, *(len(classes[name]) / count for name, count in wanted.items()))

    def scaled_to(count: int) -> int:
        return max(1, round(share * count))

    keys = {file.name: key for images in classes.values() for key, file in images}
    test_abnormal = [f for name in abnormal for f in _take(classes[name], scaled_to(wanted[name]), set())]
    test_normal = _take(classes[normal], scaled_to(counts.test_normal), set())
    tested = {keys[file.name] for file in (*test_abnormal, *test_normal)}
    train = _take(classes[normal], scaled_to(counts.train), tested)
    return {("train", "0"): train, ("test", "0"): test_normal, ("test", "1"): test_abnormal}


def _take(images: list[tuple[str, Found]], count: int, without: set[str]) -> list[Found]:
    """Whole groups in the order of their keys' hashes, as long as they fit."""
    groups: dict[str, list[Found]] = {}
    for key, file in images:
        groups.setdefault(key, []).append(file)
    taken: list[Found] = []
    for key in sorted(groups, key=lambda key: hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()):
        if key not in without and len(taken) + len(groups[key]) <= count:
            taken += sorted(groups[key], key=lambda file: file.name)
    return taken
