# SPDX-License-Identifier: Apache-2.0
"""Data sets on disk: a MedIAnomaly folder, a folder tree, or ISIC's ground-truth CSV.

- MedIAnomaly: `images/` and `data.json` = {"train": {"0": [...]}, "test": {"0": [...], "1": [...]}}; other buckets
  are ignored.
- Folder tree: `train/good`, `test/good`, `test/<defect>` and, for pixel metrics, `ground_truth/<defect>` with
  `<stem>.png` or `<stem>_mask.png`; `normal` may stand for `good`.
- ISIC 2018 task 3: `*GroundTruth*.csv` with the columns `image` and `NV`, images beside it or in a folder; files
  named by a `*Training*` table are for training (NV alone), those of a `*Test*` table for testing.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from scrd_fast.data.reading import EXTENSIONS
from scrd_fast.errors import DataError

__all__ = ["DataSet", "Item", "open_dataset"]

_NORMAL_NAMES = ("good", "normal")


@dataclass(frozen=True)
class Item:
    """One image: its file, 0 for normal or 1 for abnormal, and a mask where there is one."""

    path: Path
    label: int
    mask: Path | None = None


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
        files = [p for item in wanted for p in (item.path, item.mask) if p is not None]
        problems += [f"{path}: no such file" for path in files if not path.is_file()]
        if problems:
            raise DataError(self.root, problems)

    def _shared(self) -> list[Path]:
        trained = {item.path.resolve() for item in self.train}
        return [item.path for item in self.test if item.path.resolve() in trained]


def open_dataset(root: str | Path) -> DataSet:
    """Recognise and list a data set. Nothing is decoded. Raises `DataError` where the layout is none of the known."""
    root = Path(root)
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
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and p.name[0] != "." and p.is_file())


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
                problems.append(f"{path}: no mask {path.stem}.png or {path.stem}_mask.png in {masks}")
            test.append(Item(path, 1, mask))
    return DataSet(root, train, test, test_problems=problems)


def _mask_of(image: Path, masks: Path) -> Path | None:
    for stem in (image.stem, f"{image.stem}_mask"):
        for extension in (".png", image.suffix, ".bmp", ".tif"):
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
