# SPDX-License-Identifier: Apache-2.0
"""Test images that are in train too."""

from __future__ import annotations

import shutil
from pathlib import Path

import imagehash
import numpy as np
import pytest
from conftest import texture
from data_sources import COUNTS, listed, record, run, small
from PIL import Image, ImageEnhance

from scrd_fast.config import Preprocessing
from scrd_fast.data.datasets import open_dataset
from scrd_fast.data.duplicates import NEAR, find_duplicates, perceptual_hashes
from scrd_fast.data.images import content_hashes
from scrd_fast.data.reading import read_image
from scrd_fast.errors import DataError

_ = small  # a fixture


def test_the_hash_is_that_of_imagehash(tmp_path: Path) -> None:
    """Of 64 x 64 pixels it makes no smaller picture of its own."""
    paths = []
    for i in range(3):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(texture(np.random.default_rng(i))).resize((64, 64)).save(paths[-1])
    found = perceptual_hashes(paths, tmp_path)
    for path, bits in zip(paths, found, strict=True):
        assert np.array_equal(bits, imagehash.phash(Image.open(path), hash_size=16).hash.ravel())


def test_dicom_has_a_hash(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    from dicom_files import made, written

    (tmp_path / "a.dcm").write_bytes(written(made()))
    gray = (255 * read_image(tmp_path / "a.dcm", Preprocessing(size=64))[0]).round().byte().numpy()
    expected = imagehash.phash(Image.fromarray(gray), hash_size=16).hash.ravel()
    assert np.array_equal(perceptual_hashes([tmp_path / "a.dcm"], tmp_path)[0], expected)


def test_files_that_cannot_be_read_are_listed(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"none")
    with pytest.raises(DataError) as caught:
        perceptual_hashes([tmp_path / "a.png", tmp_path / "b.png"], tmp_path)
    assert [p.split(":")[0] for p in caught.value.problems] == ["a.png", "b.png"]


def test_distances_are_counted_bits() -> None:
    generator = np.random.default_rng(0)
    train, test = generator.random((2, 300, 256)) < 0.5
    for i in range(300):
        test[i] = train[i]
        test[i, generator.choice(256, i % 60, replace=False)] ^= True
    found = find_duplicates([f"a{i}" for i in range(300)], [f"b{i}" for i in range(300)], train, test)
    expected = {i: [(i, i % 60)] for i in range(300) if i % 60 <= NEAR}
    counted = np.count_nonzero(test[:, None] != train[None], axis=2)
    assert found.near == expected
    assert (counted <= NEAR).sum() == len(expected)
    assert not found.exact


def test_exact_copies_are_no_near_ones() -> None:
    bits = np.zeros((2, 256), bool)
    found = find_duplicates(["x", "y"], ["x", "z"], bits, bits)
    assert found.exact == {0: [0]}
    assert found.near == {0: [(1, 0)], 1: [(0, 0), (1, 0)]}
    assert (found.tested, found.trained) == ({0, 1}, {0, 1})


def with_duplicates(root: Path) -> Path:
    """Of ten test images: one is a copy of a training image, one stored anew, one brighter."""
    counts = COUNTS["brain_tumor"]
    images = listed(root, counts) / "images"
    train, test = [images / f"n_{i:03d}.jpg" for i in range(3)], [images / f"n_{i:03d}.jpg" for i in (6, 7, 10)]
    shutil.copy(train[0], test[0])
    Image.open(train[1]).resize((90, 80)).save(test[1], quality=60)
    ImageEnhance.Brightness(Image.open(train[2])).enhance(1.2).save(test[2])
    return root


@pytest.mark.usefixtures("small")
def test_duplicates_are_told_and_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = with_duplicates(tmp_path / "s")
    assert run("brain_tumor", source, tmp_path / "a") == 0
    error = capsys.readouterr().err
    assert "2 normal and 1 abnormal test images are in train too: 1 byte for byte, 2 as the same picture" in error
    assert "3 training images are such, results will flatter" in error
    told = record(tmp_path / "a")["duplicates"]
    assert told["exact"] == [{"test": "images/n_006.jpg", "train": "images/n_000.jpg", "train_images": 1}]
    assert [(p["test"], p["train"]) for p in told["near"]] == [
        ("images/n_007.jpg", "images/n_001.jpg"),
        ("images/n_010.jpg", "images/n_002.jpg"),
    ]
    assert told["dropped_from_train"] == []
    assert run("brain_tumor", source, tmp_path / "b", "--drop-duplicates") == 0
    about = record(tmp_path / "b")
    assert about["duplicates"]["dropped_from_train"] == [f"images/n_{i:03d}.jpg" for i in range(3)]
    assert about["split"].endswith("; 3 training images dropped that are duplicates of test images")
    assert about["counts"]["train"] == 3
    assert [i.path.name for i in open_dataset(tmp_path / "b").train] == ["n_003.jpg", "n_004.jpg", "n_005.jpg"]
    assert len(list((tmp_path / "b" / "images").iterdir())) == 11
    assert len(list((source / "images").iterdir())) == 14  # nothing was lost there


@pytest.mark.usefixtures("small")
def test_without_duplicates_the_name_stays(tmp_path: Path) -> None:
    source = listed(tmp_path / "s", COUNTS["brain_tumor"])
    for out, flags in ((tmp_path / "a", []), (tmp_path / "b", ["--drop-duplicates"])):
        assert run("brain_tumor", source, out, *flags) == 0
    assert record(tmp_path / "a") == record(tmp_path / "b")


@pytest.mark.data
def test_the_copies_in_the_real_brain_set_are_found(real_data: Path, tmp_path: Path) -> None:
    source, out = real_data / "brain_tumor_mri", tmp_path / "out"
    assert run("brain_tumor", source, out, "--allow-other-counts") == 0
    told = record(out)["duplicates"]
    data = open_dataset(source)
    trained = set(content_hashes([i.path for i in data.train]))
    copies = {i.path.name for i in data.test if content_hashes([i.path])[0] in trained}
    assert {Path(pair["test"]).name for pair in told["exact"]} == copies
    assert len({content_hashes([source / "images" / name])[0] for name in copies}) == 20  # two test images are one
    assert told["test_abnormal"] == 0
    assert told["test_normal"] > 100


@pytest.mark.data
@pytest.mark.parametrize(("name", "near"), [("chest_xray", 0), ("isic2018", 3)])
def test_other_patients_are_no_duplicates(name: str, near: int, real_data: Path) -> None:
    """ISIC's three pairs show one lesion each, photographed twice."""
    data = open_dataset(real_data / name)
    train, test = [[i.path for i in items] for items in (data.train, data.test)]
    found = find_duplicates(
        content_hashes(train),
        content_hashes(test),
        perceptual_hashes(train, data.root),
        perceptual_hashes(test, data.root),
    )
    assert (len(found.exact), len(found.near)) == (0, near)
