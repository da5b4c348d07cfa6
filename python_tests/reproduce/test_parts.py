# SPDX-License-Identifier: Apache-2.0
"""Intervals, baselines, figures and exchange with anomalib, without processes."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from experiments import TRAIN
from PIL import Image
from scipy.stats import bootstrap, norm
from sklearn.metrics import roc_auc_score
from torch import Tensor

from scrd_fast.data.datasets import open_dataset
from scrd_fast.errors import ScrdFastError
from scrd_fast.labelled import see
from scrd_fast.model.prediction import Prediction
from scrd_fast.reproduce import fitting, rivals
from scrd_fast.reproduce.document import Report, Section, Table, write_report
from scrd_fast.reproduce.execute import locked
from scrd_fast.reproduce.figures import COLOURS, STYLES, Cost, draw_costs, draw_roc_curves, draw_strength
from scrd_fast.reproduce.fitting import fit_baseline, parts_of
from scrd_fast.reproduce.statistics import Estimate, Pair, auroc_difference, over_seeds
from scrd_fast.settings import TrainSettings

SETTINGS = TrainSettings(**TRAIN, score="max")


def test_the_difference_is_that_of_scikit_learns_aurocs() -> None:
    generator = np.random.default_rng(0)
    pairs = []
    expected = []
    for size in (30, 50):
        labels = np.array([0, 1, 1] * (size // 3))
        # Few values, so that there are ties.
        first, second = (generator.integers(0, 6, (3, labels.size)) + 2.0 * labels * k for k in (1, 0))
        pairs.append(Pair(labels, first, second[:2]))
        aurocs = [np.mean([roc_auc_score(labels, row) for row in rows]) for rows in (first, second[:2])]
        expected.append(aurocs[0] - aurocs[1])
    found = auroc_difference(pairs)
    assert found.value == pytest.approx(np.mean(expected))
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < found.value < found.high  # it sees that the first is better


def test_the_paired_interval_agrees_with_scipys_bootstrap() -> None:
    generator = np.random.default_rng(1)
    labels = np.repeat([0, 1], [40, 60])
    common = generator.normal(size=100) + labels
    first, second = common + 0.1 * generator.normal(size=100) + 0.3 * labels, common + 0.1 * generator.normal(size=100)

    def statistic(normal: np.ndarray, abnormal: np.ndarray) -> float:
        chosen = np.concatenate([normal, abnormal]).astype(int)
        return float(roc_auc_score(labels[chosen], first[chosen]) - roc_auc_score(labels[chosen], second[chosen]))

    sides = (np.arange(40), np.arange(40, 100))
    other = bootstrap(sides, statistic, n_resamples=600, method="percentile", vectorized=False, rng=generator)
    found = auroc_difference([Pair(labels, first[None], second[None])])
    assert found.low == pytest.approx(other.confidence_interval.low, abs=0.01)
    assert found.high == pytest.approx(other.confidence_interval.high, abs=0.01)


def test_the_same_scores_do_not_differ() -> None:
    scores = np.random.default_rng(0).normal(size=(2, 20))
    assert auroc_difference([Pair(np.array([0, 1] * 10), scores, scores)]) == Estimate(0.0, 0.0, 0.0)


def test_one_seed_and_seeds_that_agree_give_no_interval() -> None:
    assert over_seeds([0.5]) == Estimate(0.5)
    assert over_seeds([0.5, 0.5]) == Estimate(0.5)
    assert over_seeds([0.0, 1.0]).high == pytest.approx(0.5 + 12.7062 * 0.5, rel=1e-4)  # the book's t of one degree


class Brightness:
    """A baseline of one line: how far from the mean of the normal images."""

    def __init__(self, method: str, teacher: torch.nn.Module, preprocessing: object, seed: int) -> None:
        self.asked = (method, type(teacher).__name__, preprocessing, seed)
        self.mean = torch.zeros(())
        self.count = 0

    def fit(self, batches: Iterable[Tensor]) -> None:
        images = torch.cat(list(batches))
        self.mean, self.count = images.mean(), len(images)

    def predict(self, images: Tensor) -> Prediction:
        maps = (images.mean(1, keepdim=True) - self.mean).abs()
        flat = maps.flatten(1)
        scores = dict.fromkeys(("mean", "top1", "top5"), flat.mean(1)) | {"max": flat.amax(1)}
        n = len(images)
        return Prediction(maps, scores, torch.ones(n, 3) / 3, torch.zeros(n, 3), torch.zeros(n, 2, dtype=torch.int64))


def test_a_baseline_sees_the_images_that_a_trained_method_sees(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Brightness] = []

    def make_baseline(*arguments: object) -> Brightness:
        made.append(Brightness(*arguments))  # type: ignore[arg-type]
        return made[-1]

    module = types.ModuleType("scrd_fast.baselines")
    module.make_baseline = make_baseline  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "scrd_fast.baselines", module)
    data = open_dataset(tree)
    fitted = fit_baseline("knn", data, SETTINGS)
    trained_on, held_out = parts_of(data, SETTINGS)
    assert made[0].asked == ("knn", "Teacher", SETTINGS.preprocessing(), 0)
    assert made[0].count == len(trained_on) == len(data.train) - len(held_out)
    assert fitted.calibration is not None
    peaks = [r.scores["max"] for r in see(held_out, fitted.preprocessing, fitted.predict, 5)]  # type: ignore[union-attr]
    assert sorted(peaks) == pytest.approx(fitted.calibration.scores)
    assert fitted.calibration.score == "max"
    with pytest.raises(ScrdFastError, match=r"tiles: .* must be 1"):
        fitting.fit_baseline("knn", data, SETTINGS.model_copy(update={"tiles": 2}))


RIVAL = """#!{python}
import csv, json, pathlib, sys
job = pathlib.Path(sys.argv[3])
assert sys.argv[1:3] == ["-m", "scrd_fast.reproduce.rival"]
setup = json.loads((job / "job.json").read_text())
assert setup["model"] == "Cflow" and len(setup["layers"]) == 3 and (job / "backbone.safetensors").is_file()
for part in ("held_out", "test"):
    names = sorted(p.name for p in (job / part).iterdir())
    with (job / (part + ".csv")).open("w") as file:
        print("name,score", file=file)
        for i, name in reversed(list(enumerate(names))):
            print(f"{{name}},{{i / 8}}", file=file)
(job / "done.json").write_text(json.dumps({{"predict_seconds_per_image": 0.5}}))
"""


def test_a_rival_gets_pictures_and_gives_scores(tree: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(RIVAL.format(python=sys.executable))
    python.chmod(0o755)
    data = open_dataset(tree)
    scored = rivals.run_rival("Cflow", str(python), data, tmp_path / "job", SETTINGS)
    fitted, held_out = parts_of(data, SETTINGS)
    counts = {part: len(list((tmp_path / "job" / part).iterdir())) for part in ("train", "held_out", "test")}
    assert counts == {"train": len(fitted), "held_out": len(held_out), "test": len(data.test)}
    assert Image.open(tmp_path / "job" / "train" / "000000.png").size == (64, 64)
    assert scored.calibration is not None
    assert scored.calibration.count == len(held_out)
    seen = list(scored.seen())
    assert [one.scores["top5"] for one in seen] == [i / 8 for i in range(len(data.test))]
    assert seen[0].image.shape == (3, 64, 64)
    assert scored.facts == {"predict_seconds_per_image": 0.5}


def test_a_rival_that_fails_says_why(tree: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'Traceback' >&2\necho 'ValueError: no such model' >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(ScrdFastError, match="anomalib's Cflow: exit code 1: ValueError: no such model"):
        rivals.run_rival("Cflow", str(python), open_dataset(tree), tmp_path / "job", SETTINGS)


def test_two_processes_do_not_work_in_one_folder(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "out"),
        pytest.raises(ScrdFastError, match="another process works there"),
        locked(tmp_path / "out"),
    ):
        pass
    with locked(tmp_path / "out"):
        pass


def test_figures_of_many_methods_are_drawn(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 20)
    methods = {f"method {i}": (labels, [generator.normal(size=40) + labels]) for i in range(len(COLOURS) + 4)}
    draw_roc_curves(tmp_path / "roc.png", {"one": methods, "$two": methods})
    costs = [Cost(f"method {i}", 1.0 + i // 3, 0.9, 10**8 * (i + 1)) for i in range(12)]
    draw_costs(tmp_path / "costs.png", costs)
    draw_strength(tmp_path / "strength.png", [0.2], {"one": [Estimate(0.8)], "two": [Estimate(0.9, 0.8, 1.1)]})
    for name in ("roc", "costs", "strength"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5
    assert len(set(STYLES)) == len(STYLES)


def test_text_of_any_kind_is_shown_as_it_is(tmp_path: Path) -> None:
    odd = ["a|b", "`c`", "<script>", "line\nbreak", "\x00\x1b[31m", "\udcff", "*x*", "‮right"]
    section = Section("s", command="echo ``", tables=[Table("t", ["name", "n"], [[text, "1"] for text in odd])])
    write_report(Report("r", ["n"], [section]), tmp_path)
    rows = [x for x in (tmp_path / "report.md").read_text().splitlines() if x.startswith("| ")]
    assert len(rows) == 1 + len(odd)
    assert "&lt;script&gt;" in (tmp_path / "report.html").read_text()
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert not set(text) & {"\x00", "\x1b", "‮"}
        json.dumps(text)


def test_students_t_comes_near_the_normal_law_for_many_seeds() -> None:
    values = norm.ppf((np.arange(2000) + 0.5) / 2000)
    found = over_seeds(values.tolist())
    assert found.high == pytest.approx(norm.ppf(0.975) / 2000**0.5, rel=0.01)
