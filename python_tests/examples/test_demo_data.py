# SPDX-License-Identifier: Apache-2.0
"""The demo's data (examples/demo/make_data.py) and its page (examples/demo/report.py)."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("nilearn", reason="the demo's anatomy comes from nilearn's wheel")

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo"
KINDS = ("mass", "necrosis", "diffuse", "stroke", "spots")


def load(name: str) -> ModuleType:
    """A module from the examples folder, which is no package."""
    spec = importlib.util.spec_from_file_location(f"demo_{name}", DEMO / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


make_data = load("make_data")
report = load("report")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.asarray(image)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("demo") / "data"
    make_data.make_data(out, size=64, seed=3, train=4, test_normal=5, test_abnormal=10)
    return out


# --- the data set ---------------------------------------------------------------------------------


def test_the_layout_is_a_folder_tree_with_a_mask_per_abnormal_image(data: Path) -> None:
    assert len(list((data / "train" / "good").glob("*.png"))) == 4
    assert len(list((data / "test" / "good").glob("*.png"))) == 5
    assert sorted(p.name for p in (data / "test").iterdir()) == sorted(["good", *KINDS])
    for kind in KINDS:
        images = sorted(p.stem for p in (data / "test" / kind).glob("*.png"))
        masks = sorted(p.stem for p in (data / "ground_truth" / kind).glob("*.png"))
        assert len(images) == 2
        assert masks == [f"{stem}_mask" for stem in images]
    assert not (data / "ground_truth" / "good").exists()


def test_images_and_masks_are_8_bit_grey_of_the_size_asked_for(data: Path) -> None:
    for path in data.rglob("*.png"):
        array = pixels(path)
        assert array.shape == (64, 64)
        assert array.dtype == np.uint8
    for path in (data / "ground_truth").rglob("*.png"):
        assert set(np.unique(pixels(path))) == {0, 255}, path


def test_the_package_reads_it(data: Path) -> None:
    datasets = pytest.importorskip("scrd_fast.data.datasets")
    found = datasets.open_dataset(data)
    found.require(train=True, test=True)
    assert [len(found.train), len(found.test)] == [4, 15]
    assert sum(item.label for item in found.test) == 10
    assert all((item.mask is not None) == (item.label == 1) for item in found.test)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(data: Path, tmp_path: Path) -> None:
    arguments = ["--size", "64", "--train", "4", "--test-normal", "5", "--test-abnormal", "10"]
    assert make_data.main([str(tmp_path / "same"), "--seed", "3", *arguments]) == 0
    assert files(tmp_path / "same") == files(data)
    make_data.main([str(tmp_path / "other"), "--seed", "4", *arguments])
    same, other = files(tmp_path / "same"), files(tmp_path / "other")
    assert same.keys() == other.keys()
    assert all(same[name] != other[name] for name in same)


def test_no_image_occurs_twice(data: Path) -> None:
    images = [p.read_bytes() for part in ("train", "test") for p in (data / part).rglob("*.png")]
    assert len(set(images)) == len(images) == 19


def test_a_smaller_set_replaces_a_larger_one(tmp_path: Path) -> None:
    make_data.make_data(tmp_path, size=32, train=3, test_normal=1, test_abnormal=5)
    make_data.make_data(tmp_path, size=32, train=1, test_normal=1, test_abnormal=1)
    assert len(list(tmp_path.rglob("*.png"))) == 4


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    keep = tmp_path / "train" / "mine.png"
    keep.parent.mkdir()
    keep.write_bytes(b"mine")
    with pytest.raises(SystemExit, match="not made by"):
        make_data.make_data(tmp_path, size=32, train=1, test_normal=1, test_abnormal=1)
    assert keep.read_bytes() == b"mine"


@pytest.mark.parametrize("kind", KINDS)
def test_a_lesion_changes_its_mask_and_nothing_else(kind: str) -> None:
    for index in range(4):
        sample = make_data.make_sample(kind, split="abnormal", index=index, seed=1, size=128)
        inside = sample.mask > 0
        assert set(np.unique(sample.mask)) == {0, 255}
        assert np.array_equal(sample.image[~inside], sample.twin[~inside])
        assert not (inside & ~sample.brain).any()
        change = np.abs(sample.image.astype(int) - sample.twin.astype(int))[inside]
        assert change.mean() > 5  # of 255: there is something to find
        share = inside.sum() / sample.brain.sum()
        assert 0.004 < share < 0.35, f"{kind} {index} covers {share:.3f} of the brain"


def test_the_twin_is_the_healthy_image_of_the_same_draws() -> None:
    healthy = make_data.make_sample(None, split="abnormal", index=2, seed=1, size=64)
    lesion = make_data.make_sample("mass", split="abnormal", index=2, seed=1, size=64)
    assert np.array_equal(healthy.image, lesion.twin)
    assert np.array_equal(healthy.image, healthy.twin)
    assert not healthy.mask.any()


def test_the_background_is_black_and_the_window_is_used() -> None:
    for index in range(6):
        sample = make_data.make_sample(None, split="train", index=index, size=128)
        assert not sample.image[~sample.brain].any()
        assert 0.2 < sample.brain.mean() < 0.6
        assert sample.image.max() == 255


def test_plain_statistics_do_not_tell_the_classes_apart(tmp_path: Path) -> None:
    make_data.make_data(tmp_path, size=64, seed=5, train=0, test_normal=60, test_abnormal=60)
    baselines = report.baseline_aurocs(tmp_path)
    assert set(baselines) == {"mean", "max", "std"}
    assert all(0.5 <= value <= 0.7 for value in baselines.values()), baselines


# --- the page -------------------------------------------------------------------------------------


def metric(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.0213, "high": value + 0.0197}


def fake_metrics(auroc: float) -> dict[str, Any]:
    return {
        "score": "top5", "auroc": metric(auroc), "auprc": metric(0.9), "f1": metric(0.88),
        "at_threshold": {"threshold": 0.4321, "sensitivity": metric(0.8125), "specificity": metric(0.9375)},
        "by_score": {"top5": {"auroc": metric(auroc)}, "max": {"auroc": metric(0.9012)}},
        "pixel": {"auroc": metric(0.9654), "aupro": metric(0.8456), "dice": metric(0.5)},
        "counts": {"normal": 5, "abnormal": 10},
    }  # fmt: skip


def write_inputs(folder: Path, data: Path, auroc: float) -> list[str]:
    """What evaluate, screen and train leave behind, in small; returns the arguments of report.py."""
    evaluation, screening, run = (folder / name for name in ("evaluation", "screening", "run"))
    (screening / "overlays").mkdir(parents=True)
    evaluation.mkdir()
    run.mkdir()
    (evaluation / "metrics.json").write_text(json.dumps(fake_metrics(auroc)))
    image = Image.new("RGB", (8, 8), (200, 30, 30))
    for name in ("roc", "histogram", "gallery"):
        image.save(evaluation / f"{name}.png")
    rows = list(report.test_images(data))
    with (evaluation / "scores.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "mean", "max", "top1", "top5"])
        writer.writerows([path, label, 0.1, 0.2, 0.3, 0.4 + label * 0.1] for path, label in rows)
    with (screening / "worklist.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "score", "percentile", "decision", "status", "error"])
        writer.writerow([rows[-1][0], 0.7391, 0.993, "abnormal", "ok", ""])
        writer.writerow(["<b>broken</b>.png", "", "", "", "failed", "not an image"])
    image.save(screening / "overlays" / f"0001-{rows[-1][0].stem}.png")
    summary = {"status": {"ok": 1, "failed": 1}, "images_per_second": 61.37}
    (screening / "summary.json").write_text(json.dumps(summary))
    record = {"identity": {"settings": {"iterations": 250}}, "versions": {"torch": "2.11.0"}}
    (run / "run.json").write_text(json.dumps(record))
    losses = [{"iteration": i, "loss": 1 / i, "images_per_second": 20.0} for i in (10, 20, 30)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in losses))
    steps = folder / "steps.jsonl"
    step = {"step": "train", "seconds": 123.4, "command": "python -m scrd_fast train x"}
    steps.write_text(json.dumps(step) + "\n")
    return [
        "--data", str(data), "--evaluation", str(evaluation), "--screening", str(screening),
        "--run", str(run), "--steps", str(steps), "--out", str(folder / "page" / "report.html"),
    ]  # fmt: skip


def test_the_page_is_one_file_with_the_numbers_and_the_statement(data: Path, tmp_path: Path) -> None:
    assert report.main(write_inputs(tmp_path, data, 0.9531)) == 0
    page = (tmp_path / "page" / "report.html").read_text()
    for text in ("The lesions are made.", "Not a medical device", "MNI152", "nilearn"):
        assert text in page
    model = ["0.953", "0.932 to 0.973", "0.812", "0.938", "0.965", "0.846", "0.4321"]
    steps = ["0.7391", "61.37", "123.4"]
    assert [n for n in model + steps if n not in page] == []
    for value in report.baseline_aurocs(data).values():
        assert f"{value:.3f}" in page
    assert "python -m scrd_fast train x" in page
    assert "&lt;b&gt;broken" in page
    assert "<b>broken" not in page
    assert json.loads((tmp_path / "page" / "metrics.json").read_text())["auroc"]["value"] == 0.9531


def test_the_page_loads_nothing(data: Path, tmp_path: Path) -> None:
    report.main(write_inputs(tmp_path, data, 0.95))
    page = (tmp_path / "page" / "report.html").read_text()
    sources = re.findall(r'\bsrc\s*=\s*["\']?([^"\'\s>]+)', page)
    assert len(sources) == 4  # ROC, histogram, gallery, one overlay
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"<script|<link|<iframe|@import|url\(", page)


def test_an_overlay_is_found_by_rank_or_by_name() -> None:
    overlays = [Path("001-2e75.png"), Path("002-9474.png"), Path("mass_0010.png")]
    assert report.overlay_of(2, {"path": "test/mass/mass_0004.png"}, overlays) == overlays[1]
    assert report.overlay_of(9, {"path": "test/mass/mass_0010.png"}, overlays) == overlays[2]
    assert report.overlay_of(9, {"path": "test/mass/mass_0004.png"}, overlays) is None


def test_the_page_does_without_optional_inputs(data: Path, tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "metrics.json").write_text(json.dumps({"auroc": {"value": 0.95}}))
    none = str(tmp_path / "none")
    arguments = [
        "--data", str(data), "--evaluation", str(tmp_path / "evaluation"), "--run", none,
        "--screening", none, "--out", str(tmp_path / "report.html"),
    ]  # fmt: skip
    assert report.main(arguments) == 0
    assert "0.950" in (tmp_path / "report.html").read_text()


def test_check_fails_a_weak_model(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = write_inputs(tmp_path, data, 0.8944)
    assert report.main(arguments) == 0
    capsys.readouterr()
    assert report.main([*arguments, "--check"]) == 1
    printed = capsys.readouterr()
    assert "AUROC is 0.894, below 0.9" in printed.err
    assert "image mean AUROC" in printed.out
    assert "Check failed" in (tmp_path / "page" / "report.html").read_text()


def test_check_fails_what_a_statistic_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, level in (("good", 100), ("mass", 60)):
        (tmp_path / "data" / "test" / folder).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (8, 8), level + i).save(tmp_path / "data" / "test" / folder / f"{folder}_{i}.png")
    # Darker counts as much as brighter.
    assert report.baseline_aurocs(tmp_path / "data") == {"mean": 1.0, "max": 1.0, "std": 0.5}
    assert report.main([*write_inputs(tmp_path, tmp_path / "data", 0.97), "--check"]) == 1
    assert "Image mean alone reaches AUROC 1.000" in capsys.readouterr().err


def test_baselines_need_both_classes(tmp_path: Path) -> None:
    (tmp_path / "test" / "good").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "test" / "good" / "a.png")
    with pytest.raises(ValueError, match="need normal and abnormal"):
        report.baseline_aurocs(tmp_path)
