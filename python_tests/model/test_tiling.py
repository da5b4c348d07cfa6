# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from scrd_fast import SCRD
from scrd_fast.cli import main
from scrd_fast.config import ModelConfig, Preprocessing
from scrd_fast.data.datasets import open_dataset
from scrd_fast.data.reading import normalise, read_image
from scrd_fast.model.inference import Predictor
from scrd_fast.model.prediction import Prediction, peak_of
from scrd_fast.model.tiling import cut_tiles, predict_tiles, tile_weights
from scrd_fast.screening.writers import read_part
from scrd_fast.settings import TrainSettings
from scrd_fast.training import Interrupted, train

LITE = "tf_efficientnet_lite0"
FLAGS = [
    "--teacher", "resnet18", "--teacher-weights", "random", "--size", "64", "--tiles", "2", "--batch-size", "4",
    "--iterations", "4", "--log-every", "1", "--device", "cpu", "-q",
]  # fmt: skip


def model(tiles: int, name: str = "resnet18", size: int = 64) -> SCRD:
    torch.manual_seed(0)
    preprocessing = Preprocessing(size=size, tiles=tiles)
    return SCRD.create(name, weights="random", preprocessing=preprocessing).eval()


@pytest.fixture(scope="module")
def tiled(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with 2 x 2 tiles of 64 pixels."""
    out = tmp_path_factory.mktemp("tiled") / "run"
    assert main(["train", str(tree), "--out", str(out), *FLAGS]) == 0
    return out


@pytest.mark.parametrize(("size", "tiles", "canvas"), [(256, 1, 256), (64, 2, 112), (96, 3, 240), (256, 16, 3136)])
def test_the_tiles_fill_the_canvas(size: int, tiles: int, canvas: int) -> None:
    preprocessing = Preprocessing(size=size, tiles=tiles)
    assert preprocessing.canvas == canvas
    weights = tile_weights(preprocessing)
    total = torch.zeros(canvas)
    for i, row in enumerate(weights):
        total[i * 3 * size // 4 :][:size] += row
    torch.testing.assert_close(total, torch.ones(canvas), rtol=0, atol=1e-7)
    assert weights.min() > 0
    assert weights[0, 0] == weights[-1, -1] == 1  # at the canvas's own border


def test_a_tile_has_a_hundredth_of_the_map_at_its_border_at_most() -> None:
    """It bounds the seam for any network, as a share of the difference of two tiles' maps."""
    for size in (32, 64, 256, 2048):
        assert tile_weights(Preprocessing(size=size, tiles=2))[1, 0] < 0.01


@pytest.mark.parametrize(("name", "size"), [("resnet18", 64), ("resnet18", 128), (LITE, 64), (LITE, 128)])
@pytest.mark.parametrize("grey", [0.0, 0.5])
def test_a_constant_image_has_no_seams(name: str, size: int, grey: float) -> None:
    """What the step across a tile's border has beyond that of the tile that goes on there."""
    scrd = model(2, name, size)
    side, begin = scrd.config.preprocessing.canvas, 3 * size // 4
    whole = scrd.predict(torch.full((1, 3, side, side), grey)).map[0, 0]
    with torch.inference_mode():
        tile = scrd(normalise(torch.full((1, 3, size, size), grey), scrd.config.preprocessing)).map[0, 0]
    span = tile.max() - tile.min()
    assert span > 0.1  # zeros around a tile are seen by the network: its map is not constant
    for full, own in ((whole[:begin], tile[:begin]), (whole.T[:begin], tile.T[:begin])):
        steps, of_tile = full.diff(dim=1), own.diff(dim=1)
        starts = steps[:, begin - 1] - of_tile[:, begin - 1]
        ends = steps[:, size - 1] - of_tile[:, size - begin - 1]
        cut = own[:, 0] - own[:, begin]  # the same, were the next tile put down without a ramp
        assert max(starts.abs().max(), ends.abs().max()) < 0.01 * span < 0.1 * cut.abs().max()


def test_one_tile_is_the_prediction_bit_for_bit() -> None:
    scrd = model(1)
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        inputs = normalise(images, scrd.config.preprocessing).contiguous(memory_format=torch.channels_last)
        direct = scrd(inputs)
    predicted = scrd.predict(images)
    assert torch.equal(predicted.map, direct.map)
    assert torch.equal(predicted.peak, direct.peak)
    assert all(torch.equal(predicted.scores[name], direct.scores[name]) for name in direct.scores)


def test_map_and_scores_are_those_of_the_tiles_put_together_by_numpy() -> None:
    scrd = model(3)
    side = scrd.config.preprocessing.canvas
    images = torch.rand(2, 3, side, side)
    found = scrd.predict(images)
    ramp = np.ones(64)
    ramp[:16] = np.sin(np.pi / 2 * (np.arange(16) + 0.5) / 16) ** 2
    profile = [np.minimum(ramp if i else 1, ramp[::-1] if i < 2 else 1) for i in range(3)]
    expected, parts = np.zeros((2, side, side)), []
    for i in range(3):
        for j in range(3):
            tile = images[:, :, 48 * i : 48 * i + 64, 48 * j : 48 * j + 64]
            with torch.inference_mode():
                parts.append(scrd(normalise(tile, scrd.config.preprocessing)))
            expected[:, 48 * i : 48 * i + 64, 48 * j : 48 * j + 64] += (
                np.outer(profile[i] * np.ones(64), profile[j] * np.ones(64)) * parts[-1].map[:, 0].numpy()
            )
    np.testing.assert_allclose(found.map[:, 0].numpy(), expected, atol=1e-5)
    ordered = np.sort(expected.reshape(2, -1), axis=1)[:, ::-1]
    for name, count in (("max", 1), ("top1", 256), ("top5", 1280), ("mean", 25600)):
        np.testing.assert_allclose(found.scores[name].numpy(), ordered[:, :count].mean(1), atol=1e-5)
    peaks = [np.unravel_index(m.argmax(), m.shape) for m in found.map[:, 0].numpy()]
    assert found.peak.tolist() == [list(p) for p in peaks]
    torch.testing.assert_close(found.scales, torch.stack([p.scales for p in parts]).mean(0))
    torch.testing.assert_close(found.weights, torch.stack([p.weights for p in parts]).mean(0))


def test_a_map_that_is_the_picture_comes_out_as_the_picture() -> None:
    """With the picture itself for the network's map, whatever is put down elsewhere or weighted wrongly is seen."""
    canvas = 0.5 * torch.rand(2, 3, 160, 160)
    canvas[0, :, 90:100, 50:60] = 1  # where two tiles overlap
    canvas[1, :, 5:15, 140:150] = 1

    def picture(tiles: Tensor) -> Prediction:
        nothing = torch.zeros(len(tiles), 3)
        return Prediction(tiles[:, :1], {}, nothing, nothing, peak_of(tiles[:, :1]))

    found = predict_tiles(canvas, ModelConfig(preprocessing=Preprocessing(size=64, tiles=3)), picture)
    torch.testing.assert_close(found.map, canvas[:, :1], rtol=0, atol=1e-6)
    for (row, column), (top, left) in zip(found.peak.tolist(), ((90, 50), (5, 140)), strict=True):
        assert top <= row < top + 10
        assert left <= column < left + 10


def test_the_predictor_agrees_and_an_image_does_not_depend_on_its_batch() -> None:
    scrd = model(2)
    images = torch.rand(3, 3, 112, 112)
    whole, fast = scrd.predict(images), Predictor(scrd, torch.device("cpu"))
    for found, of in ((fast(images), [0, 1, 2]), (scrd.predict(images[[2, 0]]), [2, 0])):
        torch.testing.assert_close(found.map, whole.map[of], rtol=0, atol=1e-4)
        for name, values in found.scores.items():
            torch.testing.assert_close(values, whole.scores[name][of], rtol=0, atol=1e-4)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images must be \[N, 3, 112, 112\], the canvas of the model, got"):
        model(2).predict(torch.rand(1, 3, 64, 64))


def test_each_image_gives_the_tile_that_was_drawn_for_it() -> None:
    canvases = torch.arange(2 * 3 * 112 * 112, dtype=torch.float32).view(2, 3, 112, 112)
    tiles = cut_tiles(canvases, torch.tensor([[1, 0], [0, 1]]), Preprocessing(size=64, tiles=2))
    assert torch.equal(tiles[0], canvases[0, :, 48:, :64])
    assert torch.equal(tiles[1], canvases[1, :, :64, 48:])


def test_what_the_model_gets_does_not_grow_with_the_picture(tmp_path: Path) -> None:
    preprocessing = Preprocessing(size=64, tiles=3)
    for size in ((600, 400), (6000, 4000)):
        Image.new("L", size, 90).save(tmp_path / "picture.png")
        pixels = read_image(tmp_path / "picture.png", preprocessing)
        assert pixels.shape == (3, 160, 160)
        assert pixels.untyped_storage().nbytes() == 4 * 3 * 160 * 160


def test_training_with_tiles_goes_on_to_the_same_bits(tiled: Path, tree: Path, tmp_path: Path) -> None:
    data = open_dataset(tree)
    options: dict[str, Any] = json.loads((tiled / "run.json").read_text())["identity"]["settings"]
    settings = TrainSettings(**options)
    assert SCRD.from_pretrained(tiled / "model").config.preprocessing.tiles == settings.tiles == 2

    def run(name: str, stop_after: int | None) -> dict[str, Tensor]:
        def step(iteration: int, _loss: float, _rate: float) -> None:
            if iteration == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)

        if stop_after is not None:
            with pytest.raises(Interrupted):
                train(data, tmp_path / name, settings, on_step=step)
        train(data, tmp_path / name, settings)
        return load_file(tmp_path / name / "model" / "model.safetensors")

    whole, cut = run("whole", None), run("cut", 2)
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_each_step_draws_a_tile_of_each_image(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[list[int]]] = []

    def recorded(canvases: Tensor, places: Tensor, preprocessing: Preprocessing) -> Tensor:
        drawn.append(places.tolist())
        return cut_tiles(canvases, places, preprocessing)

    monkeypatch.setattr("scrd_fast.loop.cut_tiles", recorded)
    assert main(["train", str(tree), "--out", str(tmp_path / "run"), *FLAGS, "--iterations", "12"]) == 0
    assert [len(places) for places in drawn] == [4] * 12
    assert len({str(places) for places in drawn}) > 1
    assert {tuple(place) for places in drawn for place in places} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_cached_features_are_refused_with_tiles(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tree), "--out", str(tmp_path / "run"), *FLAGS, "--cache-features", "memory"]) == 2
    error = capsys.readouterr().err
    assert "--cache-features memory needs --tiles 1" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_screening_needs_no_flag(tiled: Path, tree: Path, tmp_path: Path, workers: str) -> None:
    flags = ["--maps", "npz", "--overlays", "2", "--workers", workers, "--device", "cpu", "-q"]
    assert main(["screen", str(tiled), str(tree / "test"), "--out", str(tmp_path / "out"), *flags]) == 0
    rows = read_part(tmp_path / "out" / "results" / "part-000000.parquet")
    scrd = SCRD.from_pretrained(tiled / "model")
    for row in rows:
        found = scrd.predict(read_image(row["path"], scrd.config.preprocessing)[None])
        assert row["score_top5"] == pytest.approx(float(found.scores["top5"]), abs=1e-4)
        assert np.load(tmp_path / "out" / row["map"])["map"].shape == (112, 112)
    for path in (tmp_path / "out" / "overlays").iterdir():
        with Image.open(path) as overlay:
            assert overlay.height == 112


def test_evaluation_needs_no_flag(tiled: Path, tree: Path, tmp_path: Path) -> None:
    assert main(["evaluate", str(tiled), str(tree), "--out", str(tmp_path / "out"), "--device", "cpu", "-q"]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert 0 <= metrics["auroc"]["value"] <= 1
    assert 0 <= metrics["pixel"]["auroc"]["value"] <= 1
