# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scrd_fast.config import Preprocessing
from scrd_fast.data.datasets import Item, open_dataset
from scrd_fast.data.frames import Frame
from scrd_fast.data.images import ImageStore, content_hashes, split_calibration
from scrd_fast.data.reading import read_frame, read_frames, read_image
from scrd_fast.errors import DataError, ImageError, ScrdFastError


def image(path: Path, level: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (40, 40), level).save(path)
    return path


def items(paths: list[Path]) -> list[Item]:
    return [Item(path, 0) for path in paths]


def medianomaly(root: Path, buckets: dict[str, dict[str, list[str]]]) -> Path:
    for part in buckets.values():
        for names in part.values():
            for level, name in enumerate(names):
                image(root / "images" / name, level)
    (root / "data.json").write_text(json.dumps(buckets))
    return root


def test_medianomaly(tmp_path: Path) -> None:
    buckets = {
        "train": {"0": ["a.png", "b.png"], "unlabeled": ["u.png"]},
        "test": {"0": ["c.png"], "1": ["d.png"]},
    }
    data = open_dataset(medianomaly(tmp_path, buckets))
    assert [i.path.name for i in data.train] == ["a.png", "b.png"]
    assert [(i.path.name, i.label) for i in data.test] == [("c.png", 0), ("d.png", 1)]
    data.require(train=True, test=True)


def test_a_tree_with_masks(tree: Path) -> None:
    data = open_dataset(tree)
    assert len(data.train) == 24
    assert Counter((i.label, i.mask is not None) for i in data.test) == {(0, False): 6, (1, True): 6}
    assert all(i.mask is None or i.mask.stem == f"{i.path.stem}_mask" for i in data.test)
    data.require(train=True, test=True)


def test_a_tree_may_say_normal(tmp_path: Path) -> None:
    for part in ("train/normal/a.png", "test/normal/b.png", "test/tumour/deep/c.png"):
        image(tmp_path / part)
    data = open_dataset(tmp_path)
    assert [i.label for i in data.test] == [0, 1]
    data.require(train=True, test=True)


def test_a_defect_without_its_mask_is_a_problem(tmp_path: Path) -> None:
    for part in (
        "train/good/a.png",
        "test/good/b.png",
        "test/cut/c.png",
        "test/cut/d.png",
        "ground_truth/cut/c.png",
    ):
        image(tmp_path / part)
    with pytest.raises(DataError, match=r"cut/d.png: no mask d.png or d_mask.png"):
        open_dataset(tmp_path).require(train=True, test=True)


def test_isic(tmp_path: Path) -> None:
    for name in ("T1", "T2", "E1", "E2"):
        image(tmp_path / "input" / f"ISIC_{name}.jpg")
    header = "image,MEL,NV,BCC\n"
    folder = tmp_path / "truth"
    folder.mkdir()
    (folder / "ISIC2018_Task3_Training_GroundTruth.csv").write_text(
        header + "ISIC_T1,0.0,1.0,0.0\nISIC_T2,1.0,0.0,0.0\n"
    )
    (folder / "ISIC2018_Task3_Test_GroundTruth.csv").write_text(header + "ISIC_E1,0,1,0\nISIC_E2,0,0,1\n")
    data = open_dataset(tmp_path)
    assert [i.path.stem for i in data.train] == ["ISIC_T1"]
    assert [(i.path.stem, i.label) for i in data.test] == [("ISIC_E1", 0), ("ISIC_E2", 1)]
    data.require(train=True, test=True)
    (folder / "ISIC2018_Task3_Test_GroundTruth.csv").write_text("image,label\nISIC_E1,1\n")
    with pytest.raises(DataError, match="expected the columns image and NV"):
        open_dataset(tmp_path).require(train=False, test=True)
    open_dataset(tmp_path).require(train=True, test=False)


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    buckets = {
        "train": {"0": ["a.png", "b.png", "same.png"]},
        "test": {"0": ["same.png", "gone.png"], "1": []},
    }
    root = medianomaly(tmp_path, buckets)
    (root / "images" / "gone.png").unlink()
    (root / "images" / "b.png").unlink()
    with pytest.raises(DataError) as caught:
        open_dataset(root).require(train=True, test=True)
    text = str(caught.value)
    assert len(caught.value.problems) == 4
    for part in (
        "no abnormal test images",
        "same.png: in both train and test",
        "gone.png: no such file",
        "b.png: no such file",
    ):
        assert part in text


def test_only_the_needed_part_is_asked_for(tmp_path: Path) -> None:
    data = open_dataset(medianomaly(tmp_path, {"test": {"0": ["c.png"], "1": ["d.png"]}}))
    data.require(train=False, test=True)
    with pytest.raises(DataError, match="no normal training images"):
        data.require(train=True, test=False)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "expected"),
        ("[1]", "expected"),
        ('{"train": {"0": ["a.png", "a.png"]}}', "a.png: listed 2 times in train 0"),
    ],
)
def test_a_bad_table_is_explained(tmp_path: Path, content: str, text: str) -> None:
    image(tmp_path / "images" / "a.png")
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(DataError, match=text):
        open_dataset(tmp_path).require(train=True, test=False)


def test_unknown_layouts_and_missing_folders_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a data set: expected data\.json"):
        open_dataset(tmp_path)
    (tmp_path / "brain").mkdir()
    with pytest.raises(DataError, match="no such folder; beside it are brain"):
        open_dataset(tmp_path / "brian")


def test_the_store_lists_every_unreadable_file(tmp_path: Path) -> None:
    paths = [image(tmp_path / "a.png"), tmp_path / "b.png", tmp_path / "c.png"]
    paths[1].write_bytes(b"not an image")
    store = ImageStore(items(paths), Preprocessing(size=32))
    with pytest.raises(DataError) as caught:
        store.check(tmp_path)
    assert len(caught.value.problems) == 2
    with pytest.raises(ImageError):
        store[2]


@pytest.mark.parametrize("cache", ["auto", "memory", "disk", "off"])
def test_the_store_reads_once_what_it_keeps(cache: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [image(tmp_path / f"{i}.png", level=i) for i in range(5)]
    read: list[Path] = []

    def counted(path: Path, preprocessing: Preprocessing) -> Frame:
        read.append(path)
        return read_frame(path, preprocessing)

    monkeypatch.setattr("scrd_fast.data.images.read_frame", counted)
    store = ImageStore(items(paths), Preprocessing(size=32), cache, tmp_path)
    store.check(tmp_path)
    assert sorted(read) == sorted(paths)
    batch = store.batch([3, 0, 3])
    for got, i in zip(batch, (3, 0, 3), strict=True):
        assert torch.equal(got, read_image(paths[i], Preprocessing(size=32)))
    assert len(read) == (7 if cache == "off" else 5)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".png"] * 5  # a file in the way of nobody


def test_the_store_says_where_images_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [image(tmp_path / f"{i}.png", level=i) for i in range(2)]
    needed = 2 * 3 * 32 * 32 * 4
    free = {"memory": needed, "disk": 2 * needed}  # not all that is free may be used
    monkeypatch.setattr("scrd_fast.data.cache.free_bytes", lambda place, folder: free[place])
    with pytest.raises(
        ScrdFastError, match=r"the pixels \(--cache\) of 2 images need 0\.0 MB of memory, and 0\.0 MB are free"
    ):
        ImageStore(items(paths), Preprocessing(size=32), "memory", tmp_path)
    stores = [ImageStore(items(paths), Preprocessing(size=32), "auto", folder) for folder in (tmp_path, None)]
    paths[0].unlink()
    paths[1].unlink()
    assert [store._cache is None for store in stores] == [False, True]


def test_the_split_follows_the_content_alone(tmp_path: Path) -> None:
    paths = [image(tmp_path / f"{i}.png", level=i) for i in range(100)]
    copies = [image(tmp_path / f"copy-{i}.png", level=i) for i in range(30)]
    hashes = content_hashes([*paths, *copies])
    train, held_out = split_calibration(hashes, 0.3)
    assert len(held_out) == 30
    assert not {hashes[i] for i in train} & {hashes[i] for i in held_out}
    again_train, again = split_calibration(hashes[::-1], 0.3)
    assert {hashes[i] for i in held_out} == {hashes[::-1][i] for i in again}
    assert len(again_train) == len(train)


def test_small_sets_give_at_most_half_to_calibration() -> None:
    for count, expected in ((0, 0), (1, 0), (10, 5), (30, 15), (50, 20), (1000, 100)):
        train, held_out = split_calibration([f"{i:x}" for i in range(count)], 0.1)
        assert (len(train), len(held_out)) == (count - expected, expected)
    assert split_calibration(["a", "b"], 0.0) == ([0, 1], [])


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "counts"),
    [("brain_tumor_mri", (998, 150, 150)), ("chest_xray", (300, 80, 80)), ("isic2018", (1500, 200, 200))],
)
def test_the_real_data_sets_are_listed(real_data: Path, name: str, counts: tuple[int, int, int]) -> None:
    data = open_dataset(real_data / name)
    labels = Counter(item.label for item in data.test)
    assert (len(data.train), labels[0], labels[1]) == counts
    data.require(train=True, test=True)


def volume(path: Path, slices: int, level: int = 0) -> Path:
    nibabel = pytest.importorskip("nibabel")
    values = np.random.default_rng(level).integers(0, 200, (40, 36, slices)).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    return path


def test_a_file_of_several_images_stands_for_all_of_them(tmp_path: Path) -> None:
    volume(tmp_path / "train/good/a.nii.gz", 5)
    image(tmp_path / "train/good/b.png")
    stack = image(tmp_path / "train/good/c.tif")
    with Image.open(stack) as page:
        page.save(stack, save_all=True, append_images=[page, page])
    image(tmp_path / "test/good/a.png")
    volume(tmp_path / "test/cut/v.nii.gz", 4)
    volume(tmp_path / "ground_truth/cut/v.nii.gz", 4)
    data = open_dataset(tmp_path)
    assert [(i.path.name, i.frame) for i in data.train] == [
        *(("a.nii.gz", k) for k in range(5)), ("b.png", None), *(("c.tif", k) for k in range(3)),
    ]  # fmt: skip
    assert [(i.mask.name if i.mask else None, i.frame) for i in data.test] == [
        (None, None), *(("v.nii.gz", k) for k in range(4)),
    ]  # fmt: skip
    data.require(train=True, test=True)
    assert len(open_dataset(tmp_path, slice_axis=0).train) == 40 + 1 + 3
    volume(tmp_path / "ground_truth/cut/v.nii.gz", 3)
    with pytest.raises(DataError, match=r"v.nii.gz: holds 3 images, expected 4 as in v.nii.gz"):
        open_dataset(tmp_path).require(train=False, test=True)


def test_dicom_counts_with_another_ending_or_none(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    from dicom_files import made, stacked, written

    folder = tmp_path / "train/good"
    folder.mkdir(parents=True)
    (folder / "IM0001").write_bytes(written(made()))
    (folder / "1.2.840.7").write_bytes(written(stacked(np.ones((2, 40, 33)))))
    (folder / "scan.IMA").write_bytes(written(made()))
    (folder / "notes").write_text("no image")
    (folder / "notes.IMA").write_text("no image")
    (folder / "notes.txt").write_text("no image")
    items = open_dataset(tmp_path).train
    assert [(i.path.name, i.frame) for i in items] == [
        ("1.2.840.7", 0),
        ("1.2.840.7", 1),
        ("IM0001", None),
        ("scan.IMA", None),
    ]


@pytest.mark.parametrize("cache", ["memory", "off"])
def test_the_store_opens_a_file_once_for_its_images(
    cache: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = volume(tmp_path / "train/good/a.nii.gz", 6)
    image(tmp_path / "train/good/b.png")
    opened: list[Any] = []

    def counted(source: Path, preprocessing: Preprocessing, only: Any) -> Any:
        opened.append(only)
        return read_frames(source, preprocessing, only)

    monkeypatch.setattr("scrd_fast.data.images.read_frames", counted)
    store = ImageStore(open_dataset(tmp_path).train, Preprocessing(size=32), cache)
    store.check(tmp_path)
    assert opened == [set(range(6))]
    batch = store.batch([3, 6, 0, 3])
    assert torch.equal(batch[0], read_image(path, Preprocessing(size=32), 3))
    assert torch.equal(batch[1], read_image(tmp_path / "train/good/b.png", Preprocessing(size=32)))
    assert torch.equal(batch[2], read_image(path, Preprocessing(size=32), 0))
    assert torch.equal(batch[3], batch[0])


def test_a_broken_volume_is_one_problem(tmp_path: Path) -> None:
    path = volume(tmp_path / "a.nii", 6)
    broken = ImageStore([Item(path, 0, frame=k) for k in range(6)], Preprocessing(size=32))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError) as caught:
        broken.check(tmp_path)
    assert len(caught.value.problems) == 1
    fewer = ImageStore([Item(volume(path, 2), 0, frame=k) for k in range(3)], Preprocessing(size=32))
    with pytest.raises(DataError, match="fewer images than it announced"):
        fewer.check(tmp_path)


@pytest.mark.parametrize("slices", [1, 7, 30])
def test_the_images_of_a_file_fall_on_one_side(tmp_path: Path, slices: int) -> None:
    """Else neighbouring slices would calibrate what was trained on them."""
    files = [volume(tmp_path / f"train/good/{k}.nii", slices, level=k) for k in range(24)]
    volume(tmp_path / "train/good/copy.nii", slices, level=3)
    data = open_dataset(tmp_path).train
    hashes = content_hashes([item.path for item in data])
    train, held_out = split_calibration(hashes, 0.2, frames=[item.frame for item in data])
    assert not {hashes[i] for i in train} & {hashes[i] for i in held_out}
    chosen = {data[i].path for i in held_out}
    assert len(held_out) == slices * len(chosen)  # all images of a file, and a copy's not once more
    wanted = max(0.2 * len(files) * slices, 20)
    assert min(wanted, len(files) * slices / 2) <= len(held_out) < wanted + slices


def test_one_volume_alone_is_trained_on(tmp_path: Path) -> None:
    path = volume(tmp_path / "train/good/a.nii", 40)
    hashes = content_hashes([path] * 40)
    assert split_calibration(hashes, 0.1, frames=range(40)) == (list(range(40)), [])
