# SPDX-License-Identifier: Apache-2.0
"""From what was downloaded to a data set that every command reads, with a record of what it is.

    OUT/dataset.json        name, split in words, counts, hashes, duplicates, licence, citation
    OUT/images/, data.json  the images and their list; where there are masks instead
    OUT/train/good, test/good, test/tumor, ground_truth/tumor

Files are linked or copied, never decoded and written anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from scrd_fast.console import Console
from scrd_fast.data.datasets import open_dataset
from scrd_fast.data.duplicates import NEAR, Duplicates, find_duplicates, imagehash_library, perceptual_hashes
from scrd_fast.data.images import content_hashes
from scrd_fast.data.known import RECORD
from scrd_fast.data.layouts import Request, plan
from scrd_fast.data.listing import Found, list_files
from scrd_fast.data.splits import Bucket, Plan, counted
from scrd_fast.errors import DataError, ScrdFastError
from scrd_fast.files import write_atomically

__all__ = ["prepare"]

FORMAT_VERSION = 1
_TREE = {("train", "0"): "train/good", ("test", "0"): "test/good", ("test", "1"): "test/tumor"}


@dataclass(frozen=True)
class _Placed:
    """A file of the source, and where it goes below OUT."""

    file: Found
    target: str


def prepare(console: Console, request: Request, out: Path, *, drop_duplicates: bool = False) -> dict[str, Any]:
    """Make `out`, or nothing at all. Returns the content of its `dataset.json`.

    Raises `DataError` for a source that cannot be used, `ScrdFastError` where `out` holds something else.
    """
    _check(request, out)
    files = list_files(request.source)
    console.log(f"{len(files)} files in {request.source}")
    chosen = plan(request, files)
    _check_counts(request, chosen)
    with _staging(out) as folder:
        placed = _place(chosen, request.source)
        _put(console, folder, files, placed, chosen)
        with _blaming(request.source, folder):
            told, duplicates = _duplicates(console, folder, placed)
        dropped = _drop(folder, placed, duplicates) if drop_duplicates else []
        if not chosen.masks:
            _write_list(folder, placed)
        record = _record(request, chosen, placed, folder)
        record["duplicates"] = told | {"dropped_from_train": dropped}
        if dropped:
            record["split"] += f"; {len(dropped)} training images dropped that are duplicates of test images"
        with _blaming(request.source, folder):
            open_dataset(folder).require(train=True, test=True)
        _warn(console, record)
        _finish(console, folder, out, record)
    return record


def _check(request: Request, out: Path) -> None:
    """What can be said before anything is read."""
    imagehash_library()
    if request.split is not None and not request.known.listed:
        raise ScrdFastError(f"--split: the split of {request.name} is no list, expected none")
    if out.resolve().is_relative_to(request.source.resolve()):
        raise ScrdFastError(f"--out {out} lies in the source {request.source}; choose a folder outside of it")
    if out.exists() and not (out / RECORD).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ScrdFastError(f"{out} is not empty and holds no data set of this command; choose a new folder")


def _check_counts(request: Request, chosen: Plan) -> None:
    expected, found = request.known.counts, counted(chosen.parts)
    if found == expected:
        return
    if not request.other_counts:
        raise DataError(
            request.source,
            [f"expected {expected}; found {found}; --allow-other-counts takes it as it is, as a split of its own"],
        )
    chosen.split = f"other counts than published ({found}; published {expected}); {chosen.split}"


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`, that is gone in the end, unless it has become `out`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.absolute().with_name(f".{out.absolute().name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _blaming(source: Path, folder: Path) -> Iterator[None]:
    """What is wrong with files in the hidden folder is told of the source."""
    try:
        yield
    except DataError as error:
        raise DataError(source, [problem.replace(f"{folder}{os.sep}", "") for problem in error.problems]) from None


def _place(chosen: Plan, source: Path) -> dict[Bucket, list[_Placed]]:
    """Under its own name, or where files of several folders share one, with its folders."""
    names = Counter(file.path.name.casefold() for found in chosen.parts.values() for file in found)

    def target(bucket: Bucket, file: Found) -> str:
        if chosen.masks:
            return f"{_TREE[bucket]}/{file.path.name}"
        return f"images/{file.path.name if names[file.path.name.casefold()] == 1 else file.name}"

    placed = {bucket: [_Placed(f, target(bucket, f)) for f in found] for bucket, found in chosen.parts.items()}
    twice = Counter(one.target.casefold() for found in placed.values() for one in found)
    problems = [f"{name}: {count} files would have this name" for name, count in twice.items() if count > 1]
    if problems:
        raise DataError(source, problems)
    return placed


def _put(console: Console, folder: Path, files: list[Found], placed: dict[Bucket, list[_Placed]], chosen: Plan) -> None:
    """In the order of the source: an archive is read once, forwards."""
    todo = {one.file.name: one.target for found in placed.values() for one in found}
    for image, mask in chosen.masks.items():
        target = PurePosixPath(todo[image])
        todo[mask.name] = f"ground_truth/{target.parent.name}/{target.stem}_mask{mask.path.suffix}"
    with console.progress(len(todo), "files") as advance:
        for done, file in enumerate((file for file in files if file.name in todo), start=1):
            file.put(folder / todo[file.name])
            advance(done, "")


def _duplicates(
    console: Console, folder: Path, placed: dict[Bucket, list[_Placed]]
) -> tuple[dict[str, Any], Duplicates]:
    """What the record says of them, and they themselves."""
    train = [one.target for one in placed["train", "0"]]
    test = [one.target for label in "01" for one in placed["test", label]]
    paths = [folder / target for target in (*train, *test)]
    contents = content_hashes(paths)
    with console.progress(len(paths), "images") as advance:
        bits = perceptual_hashes(paths, folder, lambda done: advance(done, ""))
    n = len(train)
    found = find_duplicates(contents[:n], contents[n:], bits[:n], bits[n:])
    return _told(found, train, test, len(placed["test", "0"])), found


def _drop(folder: Path, placed: dict[Bucket, list[_Placed]], duplicates: Duplicates) -> list[str]:
    train = placed["train", "0"]
    copied = duplicates.trained
    placed["train", "0"] = [one for j, one in enumerate(train) if j not in copied]
    dropped = [train[j].target for j in sorted(copied)]
    for target in dropped:
        (folder / target).unlink()
    return dropped


def _write_list(folder: Path, placed: dict[Bucket, list[_Placed]]) -> None:
    listed: dict[str, dict[str, list[str]]] = {}
    for (part, label), found in placed.items():
        listed.setdefault(part, {})[label] = [one.target.removeprefix("images/") for one in found]
    write_atomically(folder / "data.json", (json.dumps(listed, indent=1) + "\n").encode())


def _record(request: Request, chosen: Plan, placed: dict[Bucket, list[_Placed]], folder: Path) -> dict[str, Any]:
    about = request.known
    return {
        "format_version": FORMAT_VERSION,
        "name": request.name,
        "title": about.title,
        "split": chosen.split,
        "layout": chosen.layout,
        "counts": asdict(counted(placed)),
        "published_counts": asdict(about.counts),
        "list_sha256": _list_sha256(placed),
        "content_sha256": _content_sha256(folder),
        "patients_in_train_and_test": _straddling(about.patient, placed),
        "source": about.source,
        "licence": about.licence,
        "citation": about.citation,
    }


def _list_sha256(placed: dict[Bucket, list[_Placed]]) -> str:
    """Of the stems of every bucket: the same for DICOM files and PNGs made from them, and for any order."""
    lines = sorted(f"{' '.join(bucket)} {one.file.path.stem}\n" for bucket, found in placed.items() for one in found)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _content_sha256(folder: Path) -> str:
    """Of every file's name and content, but for the record itself."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / RECORD)
    names = [p.relative_to(folder).as_posix() for p in paths]
    lines = [f"{content} {name}\n" for content, name in zip(content_hashes(paths), names, strict=True)]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _straddling(patient: str | None, placed: dict[Bucket, list[_Placed]]) -> int | None:
    """How many patients are in train and test; None where the files' names do not say who is who."""
    if patient is None:
        return None
    of: dict[str, set[str]] = {"train": set(), "test": set(), "valid": set()}
    for (part, _), found in placed.items():
        of[part] |= {match[0] for one in found if (match := re.search(patient, one.file.path.stem))}
    return len(of["train"] & of["test"]) if of["train"] and of["test"] else None


def _told(duplicates: Duplicates, train: list[str], test: list[str], normal: int) -> dict[str, Any]:
    """By the paths below OUT; of each test image the nearest training image. The first `normal` ones are normal."""
    exact = [{"test": test[i], "train": train[j[0]], "train_images": len(j)} for i, j in duplicates.exact.items()]
    near = [
        {"test": test[i], "train": train[found[0][0]], "distance": found[0][1], "train_images": len(found)}
        for i, found in duplicates.near.items()
        if i not in duplicates.exact
    ]
    return {
        "test_normal": sum(i < normal for i in duplicates.tested),
        "test_abnormal": sum(i >= normal for i in duplicates.tested),
        "train": len(duplicates.trained),
        "near_distance": NEAR,
        "exact": exact,
        "near": near,
    }


def _warn(console: Console, record: dict[str, Any]) -> None:
    found = record["duplicates"]
    if found["train"]:
        done = "these were dropped" if found["dropped_from_train"] else "results will flatter"
        console.warn(
            f"{found['test_normal']} normal and {found['test_abnormal']} abnormal test images are in train too: "
            f"{len(found['exact'])} byte for byte, {len(found['near'])} as the same picture stored otherwise; "
            f"{found['train']} training images are such, {done}"
        )
    if record["patients_in_train_and_test"]:
        console.warn(f"{record['patients_in_train_and_test']} patients are in both train and test")
    console.log(f"{record['name']}: {record['split']}; licence: {record['licence']}")


def _finish(console: Console, folder: Path, out: Path, record: dict[str, Any]) -> None:
    if (out / RECORD).is_file():
        _compare(out, record)
        console.log(f"{out} is done already")
        return
    write_atomically(folder / RECORD, (json.dumps(record, indent=2) + "\n").encode())
    if out.is_dir():
        out.rmdir()  # an empty one; what came there meanwhile stays, and this fails
    folder.rename(out)


def _compare(out: Path, record: dict[str, Any]) -> None:
    try:
        there = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except ValueError:
        there = {}
    different = [key for key, value in record.items() if not isinstance(there, dict) or there.get(key) != value]
    if not different and _content_sha256(out) != record["content_sha256"]:
        different = ["the files themselves"]
    if different:
        raise ScrdFastError(f"{out} holds another data set (it differs in {', '.join(different)}); choose a new folder")
