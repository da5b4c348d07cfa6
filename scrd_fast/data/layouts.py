# SPDX-License-Identifier: Apache-2.0
"""How each known data set lies on the disk: as its makers give it out, and as MedIAnomaly and BMAD do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from scrd_fast.data.frames import Source
from scrd_fast.data.known import Known, known
from scrd_fast.data.listing import Found, shortened
from scrd_fast.data.splits import BY_HASH, Bucket, Parts, Plan, by_names, by_stem, draw, read_list
from scrd_fast.errors import DataError

__all__ = ["Request", "plan"]

_RSNA_CLASSES = {"normal": "Normal", "lungopacity": "Lung Opacity", "nolungopacity/notnormal": None}  # None: not used
_BRAIN_CLASSES = {
    "notumor": "notumor",
    "no": "notumor",  # no_tumor, of the older edition
    "glioma": "glioma",
    "meningioma": "meningioma",
    "pituitary": None,
}
_FOLDERS: Mapping[str, Mapping[str, Bucket]] = {
    "brats2021": {"train": ("train", "0"), "test/normal": ("test", "0"), "test/tumor": ("test", "1")},
    "rsna_bmad": {
        "train/good": ("train", "0"),
        "test/good": ("test", "0"),
        "test/Ungood": ("test", "1"),
        "valid/good": ("valid", "0"),
        "valid/Ungood": ("valid", "1"),
    },
}


@dataclass(frozen=True)
class Request:
    """What is to be read, and how strictly."""

    name: str
    source: Path
    split: Path | None = None  # a data.json
    other_counts: bool = False  # counts that differ from the published ones are wanted

    @property
    def known(self) -> Known:
        """Raises `ScrdFastError` for a name that is none."""
        return known(self.name)


def plan(request: Request, files: list[Found]) -> Plan:
    """Recognise the layout of a source and split it. Raises `DataError` for a layout that is none of the known."""
    if request.name in _FOLDERS:
        return _of_folders(request, files)
    if request.split is None and request.known.listed:
        lists = [file for file in files if file.path.name == "data.json"]
        if lists:
            return _of_list(request, _only(request, lists), files)
    if request.name.startswith("isic2018"):
        return _isic(request, files)
    return _labelled(request, files)


def _only(request: Request, files: list[Found]) -> Found:
    if len(files) > 1:
        names = ", ".join(shortened([file.name for file in files]))
        raise DataError(request.source, [f"holds {len(files)} of what must be there once ({names}); name one's folder"])
    return files[0]


def _of_list(request: Request, listed: Found, files: list[Found]) -> Plan:
    images = listed.path.parent / "images"
    found = {str(f.path.relative_to(images)): f for f in files if f.path.is_relative_to(images)}
    parts = by_names(read_list(listed), found, listed.source)
    return Plan("data.json and images/", f"{request.known.split}, by the data.json of the source", parts)


def _labelled(request: Request, files: list[Found]) -> Plan:
    """A source whose images have classes and no split: that of a list, or one drawn by hash."""
    plain = [file for file in files if file.is_image and file.path.parent.name == "images"]
    if request.split is not None and plain:
        return _of_given_list(request, request.split, plain, "images/")
    layout, classes = (_rsna if request.name == "rsna" else _brain_tumor)(request, files)
    if request.split is not None:
        images = [file for found in classes.values() for file in found]
        chosen = _of_given_list(request, request.split, images, layout)
        _check_labels(request.split, chosen.parts, classes)
        return chosen
    empty = [f"no images of {name}" for name in classes if not classes[name]]
    if empty:
        raise DataError(request.source, empty)
    patients = request.known.patient is not None
    keyed = {n: [(f.path.stem if patients else f.digest(), f) for f in found] for n, found in classes.items()}
    normal = next(iter(classes))
    parts = draw(keyed, normal, request.known.counts, request.source, scaled=request.other_counts)
    return Plan(layout, BY_HASH, parts)


def _of_given_list(request: Request, split: Path, images: list[Found], layout: str) -> Plan:
    """By stems: DICOM files and PNGs made from them have one list."""
    listed = read_list(Found(split.name, Source(split)))
    stems = {bucket: [PurePosixPath(name).stem for name in names] for bucket, names in listed.items()}
    parts = by_names(stems, by_stem(images, request.source), split)
    return Plan(layout, f"{request.known.split}, by the list {split.name}", parts)


def _check_labels(split: Path, parts: Parts, classes: Mapping[str, list[Found]]) -> None:
    """Of `classes` the first is the normal one."""
    normal = {file.name for file in next(iter(classes.values()))}
    wrong = [
        f"{file.name}: listed as {bucket[1]} ({bucket[0]}), which is not its class in the source"
        for bucket, found in parts.items()
        for file in found
        if (bucket[1] == "0") != (file.name in normal)
    ]
    if wrong:
        raise DataError(split, shortened(wrong))


def _rsna(request: Request, files: list[Found]) -> tuple[str, dict[str, list[Found]]]:
    tables = [file for file in files if file.path.name == "stage_2_detailed_class_info.csv"]
    scans = [file for file in files if file.path.parent.name == "stage_2_train_images" and file.is_image]
    if not tables or not scans:
        raise _unknown(request, "stage_2_train_images/*.dcm with stage_2_detailed_class_info.csv")
    table, images = _only(request, tables), by_stem(scans, request.source)
    by_patient: dict[str, str] = {}
    problems, missing = [], []
    for line, (patient, shown) in table.rows("patientId", "class"):
        found = "".join(shown.lower().split())
        if found not in _RSNA_CLASSES:
            problems.append(f"line {line}: expected one of the classes of the challenge, got {shown!r}")
        elif by_patient.setdefault(patient, found) != found:
            problems.append(f"line {line}: patient {patient} has two classes")
    classes: dict[str, list[Found]] = {"Normal": [], "Lung Opacity": []}
    for patient, found in by_patient.items():
        name = _RSNA_CLASSES[found]
        if patient not in images:
            missing.append(f"{patient}.dcm: in the table, not in stage_2_train_images")
        elif name is not None:
            classes[name].append(images[patient])
    if problems or missing:
        raise DataError(table.source, shortened(problems) + shortened(missing))
    return "RSNA Pneumonia Detection Challenge", classes


def _brain_tumor(request: Request, files: list[Found]) -> tuple[str, dict[str, list[Found]]]:
    classes: dict[str, list[Found]] = {"notumor": [], "glioma": [], "meningioma": []}
    unknown = []
    for file in files:
        parts = [part.lower() for part in file.path.parts]
        if not file.is_image or len(parts) < 3 or parts[-3] not in ("training", "testing"):
            continue
        name = parts[-2].removesuffix("_tumor")
        if name not in _BRAIN_CLASSES:
            unknown.append(f"{file.path.parent}: a folder that is none of the classes")
        elif (found := _BRAIN_CLASSES[name]) is not None:
            classes[found].append(file)
    if unknown:
        raise DataError(request.source, shortened(list(dict.fromkeys(unknown))))
    if not any(classes.values()):
        raise _unknown(request, "Training/ and Testing/ with the folders notumor, glioma, meningioma")
    return "Brain Tumor MRI Dataset", classes


def _isic(request: Request, files: list[Found]) -> Plan:
    tested = "validation" if request.name == "isic2018_val" else "test"
    tables = {
        part: [f for f in files if re.search(rf"task3_{part}_groundtruth\.csv$", f.path.name, re.IGNORECASE)]
        for part in ("training", tested)
    }
    if not all(tables.values()):
        raise _unknown(request, f"ISIC2018_Task3_*_GroundTruth.csv of Training and {tested.capitalize()}")
    buckets: dict[Bucket, list[str]] = {("train", "0"): [], ("test", "0"): [], ("test", "1"): []}
    for part, found in tables.items():
        table = _only(request, found)
        for line, (image, nv) in table.rows("image", "NV"):
            if nv not in ("0", "1", "0.0", "1.0"):
                raise DataError(table.source, [f"line {line}: expected 0 or 1 in the column NV, got {nv!r}"])
            naevus = float(nv) == 1
            if part != "training":
                buckets["test", "0" if naevus else "1"].append(image)
            elif naevus:
                buckets["train", "0"].append(image)
    images = by_stem((f for f in files if f.is_image), request.source)
    return Plan("ISIC 2018 task 3", request.known.split, by_names(buckets, images, request.source))


def _of_folders(request: Request, files: list[Found]) -> Plan:
    folders = _FOLDERS[request.name]
    roots = {root for f in files if f.is_image and (root := _root(f.path, folders)) is not None}
    if len(roots) != 1:
        found = f"; found {len(roots)} such trees" if roots else ""
        raise _unknown(request, f"the folders {', '.join(folders)}{found}")
    root = roots.pop()
    parts: Parts = {bucket: [] for bucket in folders.values()}
    masks: dict[str, Found] = {}
    for file in files:
        if not file.is_image or not file.path.is_relative_to(root):
            continue
        below = file.path.relative_to(root)
        if below.is_relative_to("test/annotation"):
            masks[below.name] = file
        for folder, bucket in folders.items():
            if below.is_relative_to(folder):
                parts[bucket].append(file)
    if request.name == "rsna_bmad":
        return Plan("BMAD", request.known.split, parts)
    return Plan("MedIAnomaly's BraTS2021", request.known.split, parts, _paired(request, parts["test", "1"], masks))


def _root(path: PurePosixPath, folders: Iterable[str]) -> PurePosixPath | None:
    """What a test folder of that tree lies in."""
    for folder in folders:
        depth = len(PurePosixPath(folder).parts)
        for parent in path.parents:
            if folder.startswith("test/") and parent.parts[-depth:] == PurePosixPath(folder).parts:
                return PurePosixPath(*parent.parts[:-depth])
    return None


def _paired(request: Request, images: list[Found], masks: Mapping[str, Found]) -> dict[str, Found]:
    """MedIAnomaly names a mask as its image, with seg for flair."""
    names = {image.name: image.path.name.replace("flair", "seg") for image in images}
    missing = [
        f"test/annotation/{mask}: no such mask, of {image}" for image, mask in names.items() if mask not in masks
    ]
    if missing:
        raise DataError(request.source, shortened(missing))
    return {image: masks[mask] for image, mask in names.items()}


def _unknown(request: Request, expected: str) -> DataError:
    lists = ", or data.json with images/" if request.known.listed else ""
    return DataError(request.source, [f"not a source of {request.name}: expected {expected}{lists}"])
