# SPDX-License-Identifier: Apache-2.0
"""Small sources in the layouts of the data sets that are known, and counts that fit them."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from conftest import texture
from PIL import Image

from scrd_fast.cli import main
from scrd_fast.data.known import KNOWN, Counts

COUNTS = {
    "rsna": Counts(6, 3, 4),
    "brain_tumor": Counts(6, 4, 4),
    "isic2018": Counts(5, 3, 4),
    "isic2018_val": Counts(5, 2, 3),
    "brats2021": Counts(5, 3, 4),
    "rsna_bmad": Counts(5, 2, 4, 1, 2),
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The known data sets, with few images."""
    for name, counts in COUNTS.items():
        monkeypatch.setitem(KNOWN, name, replace(KNOWN[name], counts=counts))


def run(name: str, source: Path, out: Path, *flags: str) -> int:
    return main(["data", "prepare", name, str(source), "--out", str(out), "-q", *flags])


def record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "dataset.json").read_text())
    return found


def picture(path: Path, seed: int) -> Path:
    """A texture that no other seed has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(texture(np.random.default_rng(seed))).save(path)
    return path


def uuid(number: int) -> str:
    return str(UUID(int=number + 2**100))


def listed(root: Path, counts: Counts, name: Any = "n_{:03d}.jpg".format) -> Path:
    """MedIAnomaly's images/ and data.json, with the bucket that is not used."""
    names = [name(i) for i in range(counts.train + counts.test_normal + counts.test_abnormal)]
    for i, file in enumerate(names):
        picture(root / "images" / file, i)
    a, b = counts.train, counts.train + counts.test_normal
    lists = {
        "train": {"0": names[:a], "unlabeled": {"0": ["no.jpg"], "1": ["such.jpg"]}},
        "test": {"0": names[a:b], "1": names[b:]},
    }
    (root / "data.json").write_text(json.dumps(lists))
    return root


def rsna(root: Path, normal: int = 12, opacity: int = 6, other: int = 3) -> Path:
    """The challenge: DICOM files, and a table in which patients are repeated."""
    from dicom_files import made, written

    images = root / "stage_2_train_images"
    images.mkdir(parents=True)
    rows = []
    classes = ["Normal"] * normal + ["Lung Opacity"] * opacity + ["No Lung Opacity / Not Normal"] * other
    for i, shown in enumerate(classes):
        pixels = np.random.default_rng(i).integers(0, 256, (48, 37), dtype=np.uint8)
        (images / f"{uuid(i)}.dcm").write_bytes(written(made(8, PixelData=pixels.tobytes())))
        rows += [f"{uuid(i)},{shown}"] * (2 if shown == "Lung Opacity" else 1)
    (root / "stage_2_detailed_class_info.csv").write_text("\n".join(["patientId,class", *rows, ""]))
    return root


def brain_tumor(root: Path, *, older: bool = False) -> Path:
    """Kaggle's folders. In the older edition the names repeat from folder to folder."""
    seed = 0
    for part, count in (("Training", 8), ("Testing", 4)):
        for kind in ("glioma", "meningioma", "notumor", "pituitary"):
            folder = {"notumor": "no_tumor"}.get(kind, f"{kind}_tumor") if older else kind
            for i in range(count):
                name = f"image({i}).jpg" if older else f"{part[:2]}-{kind[:2]}_{i:04d}.jpg"
                picture(root / part / folder / name, seed := seed + 1)
    return root


def isic(root: Path, *, ends: str = "\n", mark: str = "") -> Path:
    """The official folders and tables of all three parts."""
    seed = 0
    for part, naevi, others in (("Training", 5, 4), ("Validation", 2, 3), ("Test", 3, 4)):
        rows = ["image,MEL,NV,BCC"]
        for i in range(naevi + others):
            name = f"ISIC_{(seed := seed + 1):07d}"
            picture(root / f"ISIC2018_Task3_{part}_Input" / f"{name}.jpg", seed)
            rows.append(f"{name},{'0.0,1.0,0.0' if i < naevi else '1.0,0.0,0.0'}")
        table = root / f"ISIC2018_Task3_{part}_GroundTruth" / f"ISIC2018_Task3_{part}_GroundTruth.csv"
        table.parent.mkdir(parents=True)
        table.write_bytes((mark + ends.join([*rows, ""])).encode())
    return root


def brats(root: Path) -> Path:
    """MedIAnomaly's slices with masks."""
    for seed, (folder, count) in enumerate({"train": 5, "test/normal": 3, "test/tumor": 4}.items()):
        for i in range(count):
            name = f"BraTS2021_{seed}{i:04d}_flair_70.png"
            path = picture(root / folder / name, 10 * seed + i)
            if folder == "test/tumor":
                mask = np.zeros((64, 70), np.uint8)
                mask[20:40, 10:30] = 255
                target = root / "test/annotation" / path.name.replace("flair", "seg")
                target.parent.mkdir(exist_ok=True)
                Image.fromarray(mask).save(target)
    return root


def bmad(root: Path) -> Path:
    """Every folder of BMAD counts from the same number."""
    folders = {"train/good": 5, "valid/good": 1, "valid/Ungood": 2, "test/good": 2, "test/Ungood": 4}
    for k, (folder, count) in enumerate(folders.items()):
        for i in range(count):
            picture(root / folder / f"{i}.png", 10 * k + i)
    return root


def zipped(path: Path, root: Path, top: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in root.rglob("*") if p.is_file()):
            archive.write(file, f"{top}{file.relative_to(root)}")
    return path
