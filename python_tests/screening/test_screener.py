# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import texture
from PIL import Image
from torch import nn

import scrd_fast
from scrd_fast.config import Preprocessing
from scrd_fast.data.frames import About, Source
from scrd_fast.data.reading import normalise
from scrd_fast.errors import UnavailableError
from scrd_fast.model.folding import fold_batch_norms
from scrd_fast.model.inference import Predictor
from scrd_fast.model.reference import scale_weights
from scrd_fast.model.scrd import SCRD
from scrd_fast.screening.batches import batches
from scrd_fast.screening.guard import Guard
from scrd_fast.screening.readers import Job
from scrd_fast.screening.screener import Screened, Screener


@pytest.fixture
def screener(trained: Path) -> Iterator[Screener]:
    made = Screener.from_pretrained(trained, device="cpu", batch_size=4)
    yield made
    made.close()


def images(tree: Path) -> list[Path]:
    return sorted((tree / "test").glob("*/*.png"))


def score(result: Screened) -> float:
    assert result.scores is not None, result.error
    return result.scores["top5"]


def statistics(module: nn.Module) -> None:
    """As after training: new batch-norms do next to nothing."""
    generator = torch.Generator().manual_seed(1)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1, generator=generator)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.7, 1.4, generator=generator)  # type: ignore[union-attr]
            norm.weight.data.uniform_(0.7, 1.3, generator=generator)
            norm.bias.data.normal_(0, 0.1, generator=generator)


def test_all_kinds_of_input_keep_their_order(screener: Screener, tree: Path, tmp_path: Path) -> None:
    path = images(tree)[0]
    pixels = np.asarray(Image.open(path))
    pages = tmp_path / "pages.tif"
    Image.fromarray(pixels).save(pages, save_all=True, append_images=[Image.fromarray(pixels[::-1].copy())])
    given: list[Any] = [
        path,
        str(path),
        Source(path),
        pixels,
        torch.from_numpy(pixels.copy()),
        np.stack([pixels] * 3, axis=-1),
        torch.from_numpy(pixels.copy()).expand(3, -1, -1),
        (pixels / np.float32(255)).astype(np.float32),
        torch.from_numpy(pixels.copy()).double() / 255,
        tmp_path / "gone.png",
        pages,
        (Source(pages), 1),
        (Source(pages), 2),
        np.zeros((4, 5, 6), np.uint8),
        torch.zeros(2, 3, 8, 8),
        np.zeros((8, 8), np.int64),
        np.full((8, 8), np.nan),
        np.full((8, 8), 2.0),
        np.zeros((0, 8), np.uint8),
        torch.zeros(8, 8, dtype=torch.bfloat16),
        np.array(3, np.uint8),
        path,
    ]
    results = list(screener.screen(given))
    assert [r.number for r in results] == sorted([*range(len(given)), 10])
    codes = {r.number: r.error.code for r in results if r.error}
    assert codes == {
        9: "missing", 12: "no-frame", 13: "unsupported", 14: "unsupported", 15: "unsupported", 16: "not-finite",
        17: "out-of-range", 18: "unsupported", 20: "unsupported",
    }  # fmt: skip
    same = [r for r in results if r.number in (*range(9), 10, 21) and r.frame == 0]
    assert len(same) == 11
    assert all(score(r) == pytest.approx(score(results[0]), abs=1e-5) for r in same)
    second = [r for r in results if r.frame == 1]
    assert [r.number for r in second] == [10, 11]
    assert score(second[0]) == pytest.approx(score(second[1]), abs=1e-5)


def test_deep_arrays_score_as_their_files_do(screener: Screener, tmp_path: Path) -> None:
    deep = np.random.default_rng(2).integers(900, 5000, (50, 40)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    file, array, tensor = screener.screen([tmp_path / "deep.png", deep, torch.from_numpy(deep.copy())])
    assert score(file) == pytest.approx(score(array), abs=1e-5)
    assert score(file) == pytest.approx(score(tensor), abs=1e-5)
    assert file.about == array.about == tensor.about


@pytest.mark.parametrize("size", [1, 3, 16])
def test_a_score_does_not_depend_on_the_batch(trained: Path, tree: Path, screener: Screener, size: int) -> None:
    paths = [*images(tree), *sorted((tree / "train" / "good").iterdir())]
    expected = {r.source: r for r in screener.screen(paths)}
    other = Screener.from_pretrained(trained, device="cpu", batch_size=size)
    for order in (paths, [paths[i] for i in np.random.default_rng(size).permutation(len(paths))]):
        for result in other.screen(order):
            before = expected[result.source]
            assert result.scores is not None
            assert before.scores is not None
            combined = result.scores.pop("combined")  # divided by a small spread: seen were 1.4e-5
            assert combined == pytest.approx(before.scores["combined"], abs=1e-4)
            assert result.scores == pytest.approx(
                {name: value for name, value in before.scores.items() if name != "combined"}, abs=1e-5
            )
            assert (result.abnormal, result.peak) == (before.abnormal, before.peak)


def test_errors_alone_and_nothing_at_all_are_screened(screener: Screener, tmp_path: Path) -> None:
    assert list(screener.screen([])) == []
    results = list(screener.screen([tmp_path / f"{i}.png" for i in range(40)]))
    assert [(r.number, r.status, r.frame) for r in results] == [(i, "failed", None) for i in range(40)]


def test_one_picture_does_not_wait_for_thousands_of_errors(tree: Path, tmp_path: Path) -> None:
    size = 32

    def found() -> Iterator[Any]:
        from scrd_fast.data.reading import read_frames
        from scrd_fast.errors import ImageError

        yield Job(0, Source(images(tree)[0])), next(read_frames(images(tree)[0], Preprocessing(size=size)))
        for i in range(1, 1000):
            yield Job(i, Source(tmp_path)), ImageError("missing", "no such file")

    made = list(batches(found(), 4, lambda: torch.empty(4, 3, size, size), Guard().check))
    assert max(len(batch.parts) for batch in made) <= 16
    assert sum(len(batch.parts) for batch in made) == 1000
    assert [len(batch.images) for batch in made] == [1] + [0] * (len(made) - 1)


def test_too_little_memory_halves_the_batch(screener: Screener, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, predict, most = images(tree), screener.predictor, 2
    expected = [r.scores for r in screener.screen(paths)]

    def small(pictures: torch.Tensor) -> Any:
        if len(pictures) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(pictures)

    monkeypatch.setattr(screener, "predictor", small)
    results = list(screener.screen(paths))
    assert screener.largest == 2
    assert [r.source for r in results] == [Source(p) for p in paths]
    for result, scores in zip(results, expected, strict=True):
        assert result.scores == pytest.approx(scores, abs=1e-5)
    most = 0
    with pytest.raises(UnavailableError, match="a single picture"):
        list(screener.screen(paths))


def test_a_score_that_is_not_finite_is_a_failure_of_its_picture(
    screener: Screener, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = screener.predictor

    def broken(pictures: torch.Tensor) -> Any:
        made = predict(pictures)
        bad = made.scores["max"].clone()
        with torch.inference_mode():
            bad[1] = float("nan")
        return made._replace(scores=made.scores | {"max": bad})

    monkeypatch.setattr(screener, "predictor", broken)
    results = list(screener.screen(images(tree)[:4]))
    assert [r.status for r in results] == ["ok", "failed", "ok", "ok"]
    assert results[1].error is not None
    assert (results[1].error.code, results[1].frame, results[1].scores) == ("not-finite", 0, None)


def test_flags_and_refusals_of_the_guard_reach_the_results(trained: Path) -> None:
    black, gray = np.zeros((64, 64), np.uint8), texture(np.random.default_rng(0))
    for strict in (False, True):
        made = Screener.from_pretrained(trained, device="cpu", guard=Guard(view={"PA"}, strict=strict))
        flat, good = made.screen([black, gray])
        assert "no-view" in good.flags
        assert "constant" in flat.flags
        assert (flat.status, good.status) == ("refused" if strict else "ok", "ok")
        assert (flat.scores is None) == strict
        assert flat.about is not None


class _Bright(nn.Module):
    """Stands for the predictor: the map is the picture itself."""

    def __call__(self, pictures: torch.Tensor) -> Any:  # type: ignore[override]
        from scrd_fast.model.prediction import Prediction

        found = pictures.mean(1, keepdim=True)
        at = found.flatten(1).argmax(1)
        n, size = len(pictures), pictures.shape[-1]
        scores = {name: found.flatten(1).amax(1) for name in ("mean", "max", "top1", "top5")}
        return Prediction(found, scores, torch.ones(n, 3), torch.ones(n, 3), torch.stack([at // size, at % size], 1))


@pytest.mark.parametrize("fit", ["stretch", "pad"])
@pytest.mark.parametrize(("height", "width"), [(200, 80), (30, 150), (64, 64), (1000, 1000)])
def test_the_peak_is_where_the_bright_square_is(fit: Any, height: int, width: int) -> None:
    model = SCRD.create("resnet18", weights="random", preprocessing=Preprocessing(size=64, fit=fit))
    screener = Screener(model, device="cpu")
    screener.predictor = _Bright()  # type: ignore[assignment]
    side = max(height, width) // 16
    for top, left in ((0, 0), (height // 3, width // 2), (height - side, width - side)):
        top, left = max(top, 0), max(left, 0)
        pixels = np.zeros((height, width), np.uint8)
        pixels[top : top + side, left : left + side] = 255
        (result,) = screener.screen([pixels])
        assert result.peak is not None
        step = max(height, width) / 64  # of the model's picture
        assert top - step <= result.peak[0] <= top + side + step
        assert left - step <= result.peak[1] <= left + side + step


def test_distances_of_the_scales_are_torchs(screener: Screener, tree: Path) -> None:
    model = screener.model
    for result in screener.screen(images(tree)[:5]):
        assert result.image is not None
        with torch.no_grad():
            features = model.teacher(normalise(result.image[None], model.config.preprocessing))
            student, _ = model.reconstruct(features)
            expected = [
                float((1 - F.cosine_similarity(t, s, dim=1)).mean()) for t, s in zip(features, student, strict=True)
            ]
        assert result.scales == pytest.approx(expected, abs=1e-5)
        assert model.config.reference is not None
        weights = scale_weights(model.config.reference, torch.tensor([expected]))
        assert result.weights == pytest.approx(weights[0].tolist(), abs=1e-3)


def test_nothing_is_kept(trained: Path) -> None:
    screener = Screener.from_pretrained(trained, device="cpu", batch_size=8)
    pixels = texture(np.random.default_rng(4))
    alive: list[weakref.ref[Any]] = []
    most = 0
    for result in screener.screen(pixels.copy() for _ in range(300)):
        alive.append(weakref.ref(result))
        del result
        if len(alive) % 50 == 0:
            gc.collect()
            most = max(most, sum(ref() is not None for ref in alive))
    assert len(alive) == 300
    assert most <= 2 * 8


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_the_predictor_predicts_what_the_model_does(name: str, precision: Any) -> None:
    torch.manual_seed(0)
    model = SCRD.create(name, weights="random", size=64).eval()
    statistics(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pictures = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    predictor = Predictor(model, torch.device("cpu"), precision=precision)
    assert not [m for m in predictor._network.modules() if isinstance(m, nn.BatchNorm2d)]
    actual, expected = predictor(pictures), model.predict(pictures)
    tolerance = {"32": 1e-4, "bf16": 0.1}[precision]  # 8 bits of mantissa, through dozens of layers
    for field in ("map", "weights", "scales"):
        a, e = getattr(actual, field).float(), getattr(expected, field)
        assert a.shape == e.shape
        assert (a - e).abs().max() <= tolerance * e.abs().max()
    for key, value in expected.scores.items():
        assert (actual.scores[key] - value).abs().max() <= tolerance * value.max()
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert not model.training
    assert any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("groups", "folds"), [(1, True), (2, False)])
@torch.no_grad()
def test_transposed_convolutions_are_folded(groups: int, folds: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.norm = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=groups), nn.BatchNorm2d(6)
            self.first = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [self.norm(self.up(self.first(x)))]

    net = Net().eval()
    statistics(net)
    folded = fold_batch_norms(net)
    assert (folded is not None) == folds
    if folded is not None:
        x = torch.randn(2, 3, 8, 8)
        torch.testing.assert_close(folded(x)[0], net(x)[0], atol=1e-5, rtol=1e-4)


def test_stored_pixels_stay_within_the_picture() -> None:
    from scrd_fast.screening.screener import stored_pixel

    for fit in ("stretch", "pad"):
        pre = Preprocessing(size=32, fit=fit)  # type: ignore[arg-type]
        for height, width in ((1, 500), (500, 1), (7, 31), (333, 222)):
            about = About(height=height, width=width, colour=False, low=0.0, high=1.0, mean=0.5)
            for peak in ((0, 0), (31, 31), (0, 31), (15, 16)):
                row, column = stored_pixel(peak, about, pre)
                assert 0 <= row < height
                assert 0 <= column < width


def test_the_package_gives_the_screener() -> None:
    assert scrd_fast.Screener is Screener
