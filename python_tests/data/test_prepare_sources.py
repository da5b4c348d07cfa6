# SPDX-License-Identifier: Apache-2.0
"""Every layout that a source can have, and how each is split."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_sources import COUNTS, bmad, brain_tumor, brats, isic, listed, record, rsna, run, small, uuid, zipped

from scrd_fast.config import Preprocessing
from scrd_fast.data.datasets import open_dataset
from scrd_fast.data.reading import read_mask
from scrd_fast.data.splits import BY_HASH, draw

pytest.importorskip("imagehash")
pytestmark = pytest.mark.usefixtures("small")
_ = small  # a fixture


def names(out: Path) -> dict[str, set[str]]:
    lists = json.loads((out / "data.json").read_text())
    return {f"{part} {label}": set(found) for part, labels in lists.items() for label, found in labels.items()}


@pytest.mark.parametrize("ending", ["zip", "tar.gz"])
def test_an_archive_is_read_in_place(ending: str, tmp_path: Path) -> None:
    source = listed(tmp_path / "RSNA", COUNTS["rsna"], lambda i: f"{uuid(i)}.png")
    packed = tmp_path / f"RSNA.{ending}"
    if ending == "zip":
        zipped(packed, source, "RSNA/")
    else:
        with tarfile.open(packed, "w:gz") as archive:
            archive.add(source, "./RSNA")
    assert run("rsna", packed, tmp_path / "a") == 0
    assert run("rsna", source, tmp_path / "b") == 0
    assert record(tmp_path / "a") == record(tmp_path / "b")
    assert record(tmp_path / "a")["patients_in_train_and_test"] == 0


def test_archives_in_a_folder_count_as_folders(tmp_path: Path) -> None:
    source, packed = isic(tmp_path / "plain"), tmp_path / "packed"
    packed.mkdir()
    for folder in source.iterdir():
        zipped(packed / f"{folder.name}.zip", folder, f"{folder.name}/")
    assert run("isic2018", source, tmp_path / "a") == 0
    assert run("isic2018", packed, tmp_path / "b") == 0
    assert record(tmp_path / "a") == record(tmp_path / "b")


def test_rsna_by_hash(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    source = rsna(tmp_path / "s")
    assert run("rsna", source, tmp_path / "out") == 0
    about = record(tmp_path / "out")
    assert about["split"] == BY_HASH == "by hash; not MedIAnomaly's, numbers are not comparable"
    assert about["patients_in_train_and_test"] == 0
    found = names(tmp_path / "out")
    normal = {f"{uuid(i)}.dcm" for i in range(12)}
    assert found["train 0"] | found["test 0"] <= normal
    assert found["test 1"] <= {f"{uuid(i)}.dcm" for i in range(12, 18)}  # never those that are neither
    shutil.move(source, tmp_path / "elsewhere")
    table = tmp_path / "elsewhere" / "stage_2_detailed_class_info.csv"
    head, *rows = table.read_text().splitlines()
    table.write_text("\n".join([head, *reversed(rows), ""]))
    assert run("rsna", tmp_path / "elsewhere", tmp_path / "again") == 0
    assert names(tmp_path / "again") == found


def test_rsna_by_its_list(tmp_path: Path) -> None:
    """The list is of PNGs made from the DICOM files."""
    pytest.importorskip("pydicom")
    source = rsna(tmp_path / "s")
    lists = {
        "train": {"0": [f"{uuid(i)}.png" for i in range(6)], "unlabeled": {"0": [f"{uuid(20)}.png"]}},
        "test": {"0": [f"{uuid(i)}.png" for i in range(6, 9)], "1": [f"{uuid(i)}.png" for i in range(12, 16)]},
    }
    split = tmp_path / "data.json"
    split.write_text(json.dumps(lists))
    assert run("rsna", source, tmp_path / "out", "--split", str(split)) == 0
    about = record(tmp_path / "out")
    assert about["split"] == "MedIAnomaly, by the list data.json"
    assert names(tmp_path / "out")["test 1"] == {f"{uuid(i)}.dcm" for i in range(12, 16)}
    pictures = tmp_path / "made"
    for i in range(21):
        (pictures / "images").mkdir(parents=True, exist_ok=True)
        shutil.copy(source / "stage_2_train_images" / f"{uuid(i)}.dcm", pictures / "images" / f"{uuid(i)}.dcm")
    assert run("rsna", pictures, tmp_path / "b", "--split", str(split)) == 0
    assert record(tmp_path / "b")["list_sha256"] == about["list_sha256"]


def test_a_list_that_contradicts_the_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, split = brain_tumor(tmp_path / "s"), tmp_path / "data.json"
    normal = [f"Tr-no_{i:04d}.jpg" for i in range(8)] + ["Te-no_0000.jpg", "Te-no_0001.jpg"]
    lists = {"train": {"0": normal[:6]}, "test": {"0": normal[6:], "1": ["Tr-gl_0000.jpg", "Tr-me_0000.jpg"]}}
    lists["test"]["1"] += ["Te-gl_0001.jpg", "Te-no_0002.jpg"]
    split.write_text(json.dumps(lists))
    assert run("brain_tumor", source, tmp_path / "out", "--split", str(split)) == 2
    error = capsys.readouterr().err
    assert "Testing/notumor/Te-no_0002.jpg: listed as 1 (test), which is not its class" in error
    assert "Te-gl_0001" not in error
    lists["test"]["1"][-1] = "Te-pi_0000.jpg"
    split.write_text(json.dumps(lists))
    assert run("brain_tumor", source, tmp_path / "out", "--split", str(split)) == 2
    assert "Te-pi_0000: listed in test 1, not in the source" in capsys.readouterr().err
    lists["test"]["1"][-1] = "Te-me_0000.jpg"
    split.write_text(json.dumps(lists))
    assert run("brain_tumor", source, tmp_path / "out", "--split", str(split)) == 0
    assert names(tmp_path / "out") == {
        "train 0": set(normal[:6]), "test 0": set(normal[6:]), "test 1": set(lists["test"]["1"]),
    }  # fmt: skip


@pytest.mark.parametrize("older", [False, True])
def test_brain_tumor_by_hash(older: bool, tmp_path: Path) -> None:
    assert run("brain_tumor", brain_tumor(tmp_path / "s", older=older), tmp_path / "out") == 0
    assert record(tmp_path / "out")["split"] == BY_HASH
    abnormal = names(tmp_path / "out")["test 1"]
    if older:  # names that several folders share keep their folders
        kinds = Counter(Path(p).parent.name for p in abnormal)
        assert kinds == {"glioma_tumor": 2, "meningioma_tumor": 2}
    else:
        assert Counter(p[3:5] for p in abnormal) == {"gl": 2, "me": 2}
    data = open_dataset(tmp_path / "out")
    assert not {i.path.read_bytes() for i in data.train} & {i.path.read_bytes() for i in data.test}


def test_too_few_images_give_a_smaller_split_if_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = brain_tumor(tmp_path / "s")
    shutil.rmtree(source / "Training" / "notumor")
    for path in sorted((source / "Testing" / "glioma").iterdir())[1:]:
        path.unlink()
    shutil.rmtree(source / "Training" / "glioma")
    assert run("brain_tumor", source, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "4 images of notumor, expected 10 or more" in error
    assert "1 images of glioma, expected 2 or more" in error
    assert run("brain_tumor", source, tmp_path / "out", "--allow-other-counts") == 0
    assert record(tmp_path / "out")["split"].startswith("other counts than published (2 train, 2 test normal")
    assert record(tmp_path / "out")["split"].endswith(BY_HASH)
    assert {k: len(v) for k, v in names(tmp_path / "out").items()} == {"train 0": 2, "test 0": 2, "test 1": 2}


@pytest.mark.parametrize("seed", range(5))
def test_a_group_is_never_split(seed: int, tmp_path: Path) -> None:
    """Patients with images of both classes, too."""
    from scrd_fast.data.frames import Source
    from scrd_fast.data.known import Counts
    from scrd_fast.data.listing import Found

    generator = np.random.default_rng(seed)
    images = {
        kind: [(f"p{generator.integers(40)}", Found(f"{kind}{i}", Source(tmp_path))) for i in range(count)]
        for kind, count in (("normal", 120), ("ill", 60))
    }
    patient = {file.name: key for found in images.values() for key, file in found}
    counts = Counts(40, 20, 30)
    parts = draw(images, "normal", counts, tmp_path, scaled=False)
    train = {patient[f.name] for f in parts["train", "0"]}
    test = {patient[f.name] for label in "01" for f in parts["test", label]}
    assert train
    assert not train & test
    shuffled = {kind: [found[i] for i in generator.permutation(len(found))] for kind, found in images.items()}
    assert draw(shuffled, "normal", counts, tmp_path, scaled=False) == parts


@pytest.mark.parametrize(("ends", "mark"), [("\n", ""), ("\r\n", "\ufeff")])
def test_isic_has_two_tests(ends: str, mark: str, tmp_path: Path) -> None:
    source = isic(tmp_path / "s", ends=ends, mark=mark)
    assert run("isic2018", source, tmp_path / "a") == 0
    assert run("isic2018_val", source, tmp_path / "b") == 0
    a, b = names(tmp_path / "a"), names(tmp_path / "b")
    assert a["train 0"] == b["train 0"] == {f"ISIC_{i:07d}.jpg" for i in range(1, 6)}
    assert b["test 0"] | b["test 1"] == {f"ISIC_{i:07d}.jpg" for i in range(10, 15)}
    assert a["test 0"] == {f"ISIC_{i:07d}.jpg" for i in range(15, 18)}
    assert "test set" in record(tmp_path / "a")["split"]
    assert "not comparable with isic2018" in record(tmp_path / "b")["split"]


def test_a_list_does_not_make_isic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its split is defined by the official tables: what a list says would be called by a name that is not its own."""
    assert run("isic2018", listed(tmp_path / "s", COUNTS["isic2018"]), tmp_path / "out") == 2
    assert "expected ISIC2018_Task3_*_GroundTruth.csv of Training and Test\n" in capsys.readouterr().err


def test_isic_wants_the_part_it_is_tested_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = isic(tmp_path / "s")
    shutil.rmtree(source / "ISIC2018_Task3_Validation_GroundTruth")
    assert run("isic2018_val", source, tmp_path / "out") == 2
    assert "expected ISIC2018_Task3_*_GroundTruth.csv of Training and Validation" in capsys.readouterr().err
    (source / "ISIC2018_Task3_Test_Input" / "ISIC_0000016.jpg").unlink()
    assert run("isic2018", source, tmp_path / "out") == 2
    assert "ISIC_0000016: listed in test 0, not in the source" in capsys.readouterr().err


def test_brats_keeps_its_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = brats(tmp_path / "s" / "BraTS2021")
    assert run("brats2021", tmp_path / "s", tmp_path / "out") == 0
    ill = [item for item in open_dataset(tmp_path / "out").test if item.label == 1]
    assert len(ill) == 4
    for item in ill:
        assert item.mask is not None
        assert read_mask(item.mask, Preprocessing(size=64)).any()
        assert item.mask.samefile(source / "test/annotation" / item.path.name.replace("flair", "seg"))
    assert record(tmp_path / "out")["patients_in_train_and_test"] == 0
    next((source / "test" / "annotation").iterdir()).unlink()
    assert run("brats2021", source, tmp_path / "b") == 2
    assert "no such mask" in capsys.readouterr().err


def test_patients_on_both_sides_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = brats(tmp_path / "s")
    path = next((source / "test" / "normal").iterdir())
    path.rename(path.with_name("BraTS2021_00001_flair_90.png"))
    assert run("brats2021", source, tmp_path / "out") == 0
    assert record(tmp_path / "out")["patients_in_train_and_test"] == 1
    assert "1 patients are in both train and test" in capsys.readouterr().err


def test_bmad_keeps_its_validation_apart(tmp_path: Path) -> None:
    assert run("rsna_bmad", bmad(tmp_path / "s"), tmp_path / "out") == 0
    found = names(tmp_path / "out")
    assert found["valid 0"] == {"valid/good/0.png"}
    assert found["test 1"] == {f"test/Ungood/{i}.png" for i in range(4)}
    assert record(tmp_path / "out")["split"] == "BMAD; not comparable with rsna"
    assert len(open_dataset(tmp_path / "out").test) == 6
