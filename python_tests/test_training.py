# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TRAIN_FLAGS, make_tree
from safetensors.torch import load_file

from scrd_fast import SCRD
from scrd_fast.calibration import Calibration
from scrd_fast.cli import main
from scrd_fast.data.datasets import open_dataset
from scrd_fast.errors import ScrdFastError
from scrd_fast.ops import synthesize_anomalies
from scrd_fast.runs import Checkpoints
from scrd_fast.settings import TrainSettings
from scrd_fast.training import Interrupted, batch_indices, train


def settings(**changes: Any) -> TrainSettings:
    base: dict[str, Any] = {
        "teacher": "resnet18", "teacher_weights": "random", "size": 64, "batch_size": 4, "iterations": 6,
        "log_every": 1, "checkpoint_every": 2, "seed": 3, "device": "cpu",
    }  # fmt: skip
    return TrainSettings(**(base | changes))


def curve(run: Path) -> list[tuple[int, float]]:
    return [(r["iteration"], r["loss"]) for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_finished_run_holds_all_that_is_promised(trained: Path) -> None:
    record = json.loads((trained / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["identity"]["settings"]["iterations"] == 6
    assert record["checkpoint"] == "last"
    assert record["calibration_images_per_second"] > 0
    assert record["train_images"] + record["calibration_images"] == 24
    assert [i for i, _ in curve(trained)] == [1, 2, 3, 4, 5, 6]
    assert list((trained / "tensorboard").iterdir())
    assert Calibration.load(trained / "model" / "calibration.json").count == record["calibration_images"]
    assert SCRD.from_pretrained(trained / "model").config.objective == "scrd"


def run_alone(*arguments: str) -> None:
    """In a process of its own, as a user would: what other tests did to this one may cost a last bit."""
    subprocess.run([sys.executable, "-m", "scrd_fast", *arguments, "-q"], check=True)


def test_the_same_seed_gives_the_same_bits(tree: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run_alone("train", str(tree), "--out", str(tmp_path / name), *TRAIN_FLAGS)
    assert curve(tmp_path / "one") == curve(tmp_path / "two")
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))


def test_another_seed_gives_another_run(trained: Path, tree: Path, tmp_path: Path) -> None:
    assert main(["train", str(tree), "--out", str(tmp_path / "other"), *TRAIN_FLAGS, "--seed", "4", "-q"]) == 0
    assert curve(tmp_path / "other") != curve(trained)


def test_the_noise_is_the_one_asked_for(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def recorded(*arguments: Any, variant: str, **options: Any) -> torch.Tensor:
        asked.append(variant)
        return synthesize_anomalies(*arguments, variant=variant, backend="reference", **options)

    monkeypatch.setattr("scrd_fast.synthesis.synthesize_anomalies", recorded)
    for noise in ("opensimplex", "hashed"):
        flags = [*TRAIN_FLAGS, "--iterations", "2", "--noise", noise, "-q"]
        assert main(["train", str(tree), "--out", str(tmp_path / noise), *flags]) == 0
    assert asked == ["opensimplex"] * 2 + ["hashed"] * 2
    assert curve(tmp_path / "hashed") != curve(tmp_path / "opensimplex")


@pytest.mark.parametrize("noise", ["perlin", "gaussian", "cutpaste", "blobs"])
def test_every_other_noise_trains(noise: Any, tree: Path, tmp_path: Path) -> None:
    train(open_dataset(tree), tmp_path / "run", settings(noise=noise, iterations=2))
    train(open_dataset(tree), tmp_path / "none", settings(noise=noise, iterations=2, strength=0))
    assert curve(tmp_path / "run") != curve(tmp_path / "none")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["identity"]["settings"]["noise"] == noise


def test_training_lowers_the_loss(tree: Path, tmp_path: Path) -> None:
    train(open_dataset(tree), tmp_path / "run", settings(iterations=25, objective="rd4ad"))
    losses = [loss for _, loss in curve(tmp_path / "run")]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@pytest.mark.parametrize("stop_after", [1, 4, 5])
def test_a_stopped_run_goes_on_to_the_same_result(tree: Path, tmp_path: Path, stop_after: int) -> None:
    data = open_dataset(tree)
    train(data, tmp_path / "whole", settings())

    def stop(iteration: int, _loss: float, _rate: float) -> None:
        if iteration == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match=f"stopped after iteration {stop_after}"):
        train(data, tmp_path / "cut", settings(), on_step=stop)
    assert not (tmp_path / "cut" / "model").exists()
    train(data, tmp_path / "cut", settings())
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))


def test_a_killed_run_goes_on_to_the_same_result(tree: Path, tmp_path: Path) -> None:
    """SIGKILL leaves no time to save: the run goes on from the last checkpoint, and drops the metrics after it."""
    flags = [*TRAIN_FLAGS, "--iterations", "16", "--checkpoint-every", "3"]
    cut = ["train", str(tree), "--out", str(tmp_path / "cut"), *flags]
    process = subprocess.Popen([sys.executable, "-m", "scrd_fast", *cut, "-q"])
    deadline = time.monotonic() + 240
    while len(list((tmp_path / "cut" / "checkpoints").glob("*"))) < 1 or len(curve(tmp_path / "cut")) < 4:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not (tmp_path / "cut" / "model").exists()
    run_alone(*cut)
    run_alone("train", str(tree), "--out", str(tmp_path / "whole"), *flags)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))


def test_a_finished_run_is_not_trained_again(trained: Path, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "model" / "model.safetensors").stat().st_mtime_ns
    assert main(["train", str(tree), "--out", str(trained), *TRAIN_FLAGS]) == 0
    captured = capsys.readouterr()
    assert "finished" in captured.err
    assert captured.out == f"{trained / 'model'}\n"
    assert (trained / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_other_settings_in_the_same_folder_are_refused(
    trained: Path, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(tree), "--out", str(trained), *TRAIN_FLAGS, "--lr", "0.1"]) == 2
    assert "settings.lr: there 0.001, asked for 0.1" in capsys.readouterr().err


def test_a_foreign_folder_is_refused(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    assert main(["train", str(tree), "--out", str(tmp_path), *TRAIN_FLAGS]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_unreadable_images_are_all_listed_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_tree(tmp_path / "data")
    for name in ("000.png", "007.png"):
        (root / "train" / "good" / name).write_bytes(b"broken")
    assert main(["train", str(root), "--out", str(tmp_path / "run"), *TRAIN_FLAGS]) == 2
    text = capsys.readouterr().err
    assert "good/000.png" in text
    assert "good/007.png" in text
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_loss_that_is_not_finite_stops_the_run(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(ScrdFastError, match=r"the loss is not finite at iteration 2, whose images are train/good/"):
        train(open_dataset(tree), tmp_path / "run", settings(lr=1e30, iterations=20))


def test_no_test_image_is_read(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "data")
    for path in (root / "test").rglob("*.png"):
        path.write_bytes(b"never to be opened")
    train(open_dataset(root), tmp_path / "run", settings())
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_an_epoch_sees_every_image_once() -> None:
    for count, batch in ((10, 4), (3, 5), (16, 16)):
        stream = [i for step in range(20) for i in batch_indices(step, batch, count, seed=1)]
        for epoch in range(len(stream) // count):
            assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert batch_indices(7, 4, 100, seed=1) != batch_indices(7, 4, 100, seed=2)


def test_the_last_checkpoints_stay_and_a_damaged_one_is_passed_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for iteration in (1, 2, 3):
        checkpoints.save(iteration, {"iteration": iteration})
    assert [p.name for p in checkpoints.files()] == ["iteration-00000002.pt", "iteration-00000003.pt"]
    checkpoints.files()[-1].write_bytes(b"damaged")
    state = checkpoints.load_newest(torch.device("cpu"))
    assert state is not None
    assert state["iteration"] == 2
    checkpoints.files()[0].write_bytes(b"damaged too")
    with pytest.raises(ScrdFastError, match="no checkpoint there can be read"):
        checkpoints.load_newest(torch.device("cpu"))


def test_weights_that_are_not_finite_are_never_saved(tree: Path, tmp_path: Path) -> None:
    flags = {"lr": 1e30, "iterations": 20, "log_every": 1000, "checkpoint_every": 2}
    with pytest.raises(ScrdFastError, match="not finite"):
        train(open_dataset(tree), tmp_path / "run", settings(**flags))
    for path in (tmp_path / "run" / "checkpoints").glob("*.pt"):
        state = torch.load(path, weights_only=True)
        assert all(v.isfinite().all() for v in state["model"].values() if v.is_floating_point())


def test_changed_images_are_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_tree(tmp_path / "data")
    command = ["train", str(root), "--out", str(tmp_path / "run"), *TRAIN_FLAGS, "-q"]
    assert main(command) == 0
    (root / "train" / "good" / "000.png").write_bytes((root / "train" / "good" / "001.png").read_bytes())
    assert main(command) == 2
    assert "data_sha256" in capsys.readouterr().err


def test_copies_of_training_images_in_the_test_part_are_told(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "data")
    (root / "test" / "good" / "copy.png").write_bytes((root / "train" / "good" / "001.png").read_bytes())
    lines: list[str] = []
    train(open_dataset(root), tmp_path / "run", settings(iterations=1), log=lines.append)
    assert any("1 test images are copies of training images" in line for line in lines)
