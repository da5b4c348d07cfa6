# SPDX-License-Identifier: Apache-2.0
"""What is usual among normal images: the combined score and the weights of the scales."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TRAIN_FLAGS
from pydantic import ValidationError
from scipy import stats

from scrd_fast.calibration import Calibration
from scrd_fast.cli import main
from scrd_fast.config import ModelConfig, Preprocessing, Reference
from scrd_fast.data.datasets import open_dataset
from scrd_fast.data.images import ImageStore, content_hashes, split_calibration
from scrd_fast.model.inference import Predictor
from scrd_fast.model.objectives import objective_loss
from scrd_fast.model.reference import combined_score, fit_reference, left_out_scores, scale_weights
from scrd_fast.model.scrd import SCRD


def readings(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return np.exp(generator.normal([-2, -1, -3], [0.1, 0.2, 0.4], (count, 3))), np.exp(generator.normal(0, 0.3, count))


def test_the_combined_score_is_the_larger_of_two_z_scores() -> None:
    scales, top1 = readings(50)
    reference = fit_reference(scales, top1)
    new_scales, new_top1 = readings(20, seed=1)
    expected = np.maximum(
        stats.zmap(np.log(new_scales[:, 0]), np.log(scales[:, 0]), ddof=1),
        stats.zmap(np.log(new_top1), np.log(top1), ddof=1),
    )
    found = combined_score(reference, torch.from_numpy(new_scales), torch.from_numpy(new_top1))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_weights_are_the_softmax_of_three_z_scores() -> None:
    scales, top1 = readings(50)
    new, _ = readings(20, seed=1)
    expected = torch.from_numpy(stats.zmap(np.log(new), np.log(scales), ddof=1)).softmax(1)
    found = scale_weights(fit_reference(scales, top1), torch.from_numpy(new))
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [3, 4, 57])
def test_left_out_scores_are_those_of_references_without_the_image(count: int) -> None:
    scales, top1 = readings(count)
    expected = []
    for i in range(count):
        others = fit_reference(np.delete(scales, i, 0), np.delete(top1, i)) if count > 3 else None
        if others is None:  # two others: a reference asks for three, the formula does not
            pair = np.log(np.delete(np.column_stack([scales[:, 0], top1]), i, 0))
            z = (np.log([scales[i, 0], top1[i]]) - pair.mean(0)) / pair.std(0, ddof=1)
            expected.append(z.max())
        else:
            expected.append(
                float(combined_score(others, torch.tensor(scales[i : i + 1]), torch.tensor(top1[i : i + 1])))
            )
    np.testing.assert_allclose(left_out_scores(scales, top1), expected, rtol=1e-4, atol=1e-4)


def test_left_out_scores_keep_the_promised_share_of_false_alarms() -> None:
    """A threshold from scores that include the image itself would be passed too often by new normal images."""
    shares = {"left out": [], "plain": []}
    for seed in range(200):
        scales, top1 = readings(40, seed)
        reference = fit_reference(scales, top1)
        new = combined_score(reference, *(torch.from_numpy(x) for x in readings(400, seed + 10_000))).numpy()
        plain = combined_score(reference, torch.from_numpy(scales), torch.from_numpy(top1)).numpy()
        for name, own in (("left out", left_out_scores(scales, top1)), ("plain", plain)):
            shares[name].append((new > Calibration.fit(own, "combined", fpr=0.1).threshold).mean())
    assert np.mean(shares["left out"]) < 0.1 < np.mean(shares["plain"])


def test_images_that_are_all_alike_do_not_divide_by_zero() -> None:
    reference = fit_reference(np.ones((5, 3)), np.zeros(5))
    assert torch.isfinite(combined_score(reference, torch.zeros(2, 3), torch.ones(2))).all()
    assert np.isfinite(left_out_scores(np.ones((5, 3)), np.zeros(5))).all()


@pytest.mark.parametrize(
    ("scales", "top1", "message"),
    [
        (np.ones((2, 3)), np.ones(2), "at least 3 images, got 2"),
        (np.ones((4, 2)), np.ones(4), r"\[N, 3\] and \[N\], got \[4, 2\] and \[4\]"),
        (np.ones((4, 3)), np.ones(3), r"got \[4, 3\] and \[3\]"),
    ],
)
def test_what_gives_no_reference(scales: np.ndarray, top1: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_reference(scales, top1)


def test_a_config_without_a_reference_has_no_combined_score() -> None:
    with pytest.raises(ValidationError, match="needs a reference"):
        ModelConfig(score="combined")
    moments = ((0.0, 1.0), (0.0, 1.0), (0.0, 1.0))
    config = ModelConfig(score="combined", reference=Reference(scales=moments, top1=(0.0, 1.0)))
    assert config.scores == ("mean", "max", "top1", "top5", "combined")
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config


def test_a_trained_model_compares_with_its_held_out_images(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["train", str(tree), "--out", str(out), *TRAIN_FLAGS, "-q"]) == 0
    model = SCRD.from_pretrained(out / "model")
    assert model.config.score == "combined"
    items = open_dataset(tree).train
    _, held_out = split_calibration(content_hashes([i.path for i in items]), 0.1)
    images = ImageStore([items[i] for i in held_out], model.config.preprocessing, cache="off").batch(
        range(len(held_out))
    )
    found = model.predict(images)
    assert model.config.reference == fit_reference(found.scales.numpy(), found.scores["top1"].numpy())
    assert model.config.reference is not None
    assert torch.equal(found.weights, scale_weights(model.config.reference, found.scales))
    calibration = Calibration.load(out / "model" / "calibration.json")
    own = left_out_scores(found.scales.numpy(), found.scores["top1"].numpy())
    np.testing.assert_allclose(calibration.scores, np.sort(own), rtol=1e-5, atol=1e-5)
    assert calibration.model_sha256 == model.fingerprint()
    quick = Predictor(model, torch.device("cpu"))(images)
    torch.testing.assert_close(quick.scores["combined"], found.scores["combined"], rtol=1e-2, atol=1e-2)


def test_too_few_images_for_a_reference_are_told_before_training(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = shutil.copytree(tree, tmp_path / "few")
    for path in sorted((few / "train" / "good").iterdir())[4:]:
        path.unlink()
    assert main(["train", str(few), "--out", str(tmp_path / "run"), *TRAIN_FLAGS, "-q"]) == 2
    assert "--score combined needs 3 held-out normal images" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_no_held_out_images_and_the_combined_score_exclude_each_other(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*TRAIN_FLAGS, "--calibration-fraction", "0", "-q"]
    assert main(["train", str(tree), "--out", str(tmp_path / "run"), *flags]) == 2
    assert "--calibration-fraction must be above 0" in capsys.readouterr().err


def test_tiles_are_compared_as_one_image() -> None:
    moments = ((-1.0, 0.5), (-1.0, 0.5), (-1.0, 0.5))
    reference = Reference(scales=moments, top1=(0.0, 1.0))
    model = SCRD.create("resnet18", weights="random", preprocessing=Preprocessing(size=64, tiles=2)).eval()
    model.config = model.config.model_copy(update={"reference": reference})
    found = model.predict(torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(found.scores["combined"], combined_score(reference, found.scales, found.scores["top1"]))


def test_the_gradient_of_the_learned_scale_weights_is_no_rounding_noise() -> None:
    """With the weights on the distances it is; where they multiply both arguments of a cosine, they cancel."""
    torch.manual_seed(0)
    logits = torch.randn(8, 3, requires_grad=True)
    clean, noisy = torch.rand(8, 3) * 0.2, torch.rand(8, 3) * 0.2 + 0.1
    (gradient,) = torch.autograd.grad(objective_loss("paper", clean, noisy, logits.softmax(1)), logits)
    shift = torch.zeros_like(logits)
    shift[0, 0] = 1e-3
    with torch.no_grad():
        ahead, behind = (objective_loss("paper", clean, noisy, (logits + s).softmax(1)) for s in (shift, -shift))
    assert float(gradient[0, 0]) == pytest.approx(float((ahead - behind) / 2e-3), rel=0.05)
    assert float(gradient.abs().max()) > 1e-2
    cosine = torch.nn.functional.cosine_similarity
    features, student, weight = torch.rand(4, 64), torch.rand(4, 64), torch.rand(4, 1, requires_grad=True)
    (cancelled,) = torch.autograd.grad((1 - cosine(weight * features, weight * student)).mean(), weight)
    assert float(cancelled.abs().max()) < 1e-6


def test_the_weights_follow_the_size_of_what_stands_out() -> None:
    """Of a map that is unusual at one scale alone, that scale has the largest weight."""
    scales, top1 = readings(50)
    reference = fit_reference(scales, top1)
    for k in range(3):
        image = torch.from_numpy(np.exp(np.log(scales).mean(0)))[None].clone()
        image[0, k] *= 3
        assert scale_weights(reference, image)[0].argmax() == k
