# SPDX-License-Identifier: Apache-2.0
"""Data sets on disk: a MedIAnomaly folder, a folder tree, or ISIC's ground-truth CSV.

- MedIAnomaly: `images/` and `data.json` = {"train": {"0": [...]}, "test": {"0": [...], "1": [...]}}; other buckets
  are ignored.
- Folder tree: `train/good`, `test/good`, `test/<defect>` and, for pixel metrics, `ground_truth/<defect>` with
  `<stem>.png` or `<stem>_mask.png`, for volumes `<stem>.nii.gz` of as many slices; `normal` may stand for `good`.
- ISIC 2018 task 3: `*GroundTruth*.csv` with the columns `image` and `NV`, images beside it or in a folder; files
  named by a `*Training*` table are for training (NV alone), those of a `*Test*` table for testing.

A file of several images, as DICOM, NIfTI and TIFF can be, stands for all of them.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from scrd_fast.data.dicom import is_unnamed_dicom, may_be_dicom
from scrd_fast.data.reading import EXTENSIONS, count_frames, is_image_name
from scrd_fast.errors import DataError, ImageError

__all__ = ["DataSet", "Item", "open_dataset", "unlabelled_items"]

_NORMAL_NAMES = ("good", "normal")
_ONE_IMAGE = (".png", ".jpg", ".jpeg", ".bmp")  # not asked how many they hold: reading refuses the odd one


@dataclass(frozen=True)
class Item:
    """One image: its file, label, a mask where there is one, its number in the file; or its pixels in memory."""

    path: Path  # of pixels in memory: what errors call them
    label: int  # 0 for normal, 1 for abnormal, -1 where nobody says
    mask: Path | None = None
    frame: int | None = None  # of the mask too; None: the file's only one
    pixels: npt.NDArray[np.generic] | None = field(
        default=None, compare=False, repr=False
    )  # as `read_array` takes them


@dataclass
class DataSet:
    """Training normals and labelled test images, sorted as the data set lists them."""

    root: Path
    train: list[Item]
    test: list[Item]
    train_problems: list[str] = field(default_factory=list)
    test_problems: list[str] = field(default_factory=list)

    def require(self, *, train: bool, test: bool) -> None:
        """Raise `DataError` with every problem of the parts that are needed: missing files, an empty class, overlap."""
        problems = (self.train_problems if train else []) + (self.test_problems if test else [])
        if train and not self.train:
            problems.append("no normal training images")
        if test:
            present = Counter(item.label for item in self.test)
            problems += [f"no {n} test images" for label, n in enumerate(("normal", "abnormal")) if not present[label]]
        problems += [f"{path}: in both train and test" for path in self._shared()]
        wanted = (self.train if train else []) + (self.test if test else [])
        files = [p for item in wanted if item.pixels is None for p in (item.path, item.mask) if p is not None]
        problems += [f"{path}: no such file" for path in dict.fromkeys(files) if not path.is_file()]
        if problems:
            raise DataError(self.root, problems)

    def _shared(self) -> list[Path]:
        trained = {item.path.resolve() for item in self.train}
        return [path for path in dict.fromkeys(item.path for item in self.test) if path.resolve() in trained]


def open_dataset(root: str | Path, slice_axis: int = 2) -> DataSet:
    """Recognise and list a data set. Nothing is decoded. Raises `DataError` where the layout is none of the known.

    `slice_axis`: of NIfTI volumes, as in `Preprocessing`.
    """
    data = _listed(Path(root))
    data.train = [one for item in data.train for one in _frames_of(item, slice_axis, data.train_problems)]
    data.test = [one for item in data.test for one in _frames_of(item, slice_axis, data.test_problems)]
    return data


def unlabelled_items(folder: Path, slice_axis: int = 2) -> list[Item]:
    """All images below a folder, without labels. Raises `DataError` where there is none."""
    problems: list[str] = []
    found = [one for path in _images(folder) for one in _frames_of(Item(path, -1), slice_axis, problems)]
    if not found:
        raise DataError(folder, ["no images there" if folder.is_dir() else "no such folder"])
    return found


def _frames_of(item: Item, slice_axis: int, problems: list[str]) -> list[Item]:
    """The item itself, or one for each image of its file."""
    if item.path.name.lower().endswith(_ONE_IMAGE):
        return [item]
    try:
        count = count_frames(item.path, slice_axis)
        if item.mask is not None and count > 1 and (masks := count_frames(item.mask, slice_axis)) != count:
            problems.append(f"{item.mask}: holds {masks} images, expected {count} as in {item.path.name}")
    except ImageError:  # reading reports it
        return [item]
    return [item] if count == 1 else [replace(item, frame=frame) for frame in range(count)]


def _listed(root: Path) -> DataSet:
    if not root.exists():
        near = sorted(p.name for p in root.parent.iterdir() if p.is_dir())[:8] if root.parent.is_dir() else []
        beside = f"; beside it are {', '.join(near)}" if near else ""
        raise DataError(root, [f"no such folder{beside}"])
    if (root / "data.json").is_file():
        return _medianomaly(root)
    if (root / "test").is_dir() or (root / "train").is_dir():
        return _tree(root)
    tables = sorted(root.rglob("*GroundTruth*.csv"))
    if tables:
        return _isic(root, tables)
    raise DataError(
        root,
        ["not a data set: expected data.json with images/, or train/good and test/, or an ISIC *GroundTruth*.csv"],
    )


def _medianomaly(root: Path) -> DataSet:
    try:
        listed = json.loads((root / "data.json").read_text(encoding="utf-8"))
        buckets = {
            (part, label): [str(name) for name in listed.get(part, {}).get(label, [])]
            for part, label in (("train", "0"), ("test", "0"), ("test", "1"))
        }
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(root / "data.json", [f'expected {{"train": {{"0": [names]}}, ...}}: {error}']) from None

    def items(part: str, label: str) -> list[Item]:
        return [Item(root / "images" / name, int(label)) for name in buckets[part, label]]

    def repeats(part: str, label: str) -> list[str]:
        counts = Counter(buckets[part, label])
        return [f"{name}: listed {times} times in {part} {label}" for name, times in counts.items() if times > 1]

    test = items("test", "0") + items("test", "1")
    return DataSet(root, items("train", "0"), test, repeats("train", "0"), repeats("test", "0") + repeats("test", "1"))


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.rglob("*") if p.is_file() and _is_image(p))


def _is_image(path: Path) -> bool:
    """By its name; where that is no image's by its content, for DICOM."""
    if is_image_name(path.name):
        return True
    if not may_be_dicom(path.name):
        return False
    try:
        with path.open("rb") as file:
            return is_unnamed_dicom(path.name, file.read(132))
    except OSError:  # not ours to read
        return False


def _parts(path: Path) -> tuple[str, str]:
    """Stem and ending, which for `.nii.gz` is no suffix."""
    ending = next((path.name[-len(e) :] for e in reversed(EXTENSIONS) if path.name.lower().endswith(e)), "")
    return path.name.removesuffix(ending), ending


def _tree(root: Path) -> DataSet:
    train = [Item(p, 0) for name in _NORMAL_NAMES for p in _images(root / "train" / name)]
    test = [Item(p, 0) for name in _NORMAL_NAMES for p in _images(root / "test" / name)]
    problems = []
    defects = (root / "test").iterdir() if (root / "test").is_dir() else ()
    for folder in sorted(p for p in defects if p.is_dir() and p.name not in _NORMAL_NAMES):
        masks = root / "ground_truth" / folder.name
        for path in _images(folder):
            mask = _mask_of(path, masks)
            if mask is None and masks.is_dir():
                stem, _ = _parts(path)
                problems.append(f"{path}: no mask {stem}.png or {stem}_mask.png in {masks}")
            test.append(Item(path, 1, mask))
    return DataSet(root, train, test, test_problems=problems)


def _mask_of(image: Path, masks: Path) -> Path | None:
    name, ending = _parts(image)
    for stem in (name, f"{name}_mask"):
        for extension in (".png", ending, ".bmp", ".tif", ".nii.gz", ".nii"):
            if (masks / f"{stem}{extension}").is_file():
                return masks / f"{stem}{extension}"
    return None


def _isic(root: Path, tables: Iterable[Path]) -> DataSet:
    found = {p.stem: p for p in _images(root)}
    data = DataSet(root, [], [])
    for table in tables:
        with table.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if not {"image", "NV"} <= set(rows.fieldnames or ()):
                part = data.train_problems if "train" in table.name.lower() else data.test_problems
                part.append(f"{table}: expected the columns image and NV, got {rows.fieldnames}")
                continue
            for row in rows:
                path = found.get(row["image"], table.parent / f"{row['image']}.jpg")
                label = 0 if float(row["NV"]) == 1 else 1
                if "train" in table.name.lower():
                    if label == 0:
                        data.train.append(Item(path, 0))
                elif "test" in table.name.lower():
                    data.test.append(Item(path, label))
    return data
