# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from scrd_fast import SCRD
from scrd_fast.config import ModelConfig, Objective
from scrd_fast.errors import ScrdFastError
from scrd_fast.model.blocks import Architecture, Bottleneck, Residual, Student
from scrd_fast.model.objectives import objective_loss
from scrd_fast.model.teacher import Teacher

OBJECTIVES: list[Objective] = ["authors", "paper", "rd4ad", "scrd"]


def model(objective: Objective = "scrd", name: str = "resnet18", **options: Any) -> SCRD:
    torch.manual_seed(0)
    return SCRD.create(name, weights="random", size=64, objective=objective, **options)


@pytest.mark.parametrize("name", ["resnet18", "resnet26", "tf_efficientnet_lite0", "convnext_atto"])
def test_the_student_mirrors_the_teacher(name: str) -> None:
    scrd = model(name=name)
    features = scrd.teacher(torch.randn(2, 3, 64, 96))
    student, weights = scrd.reconstruct(features)
    assert [s.shape for s in student] == [f.shape for f in features]
    assert weights.shape == (2, 3)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))


def test_wide_resnet50_2_has_the_shapes_of_rd4ad() -> None:
    """Channel counts, block counts and parameters as in RD4AD's bottleneck and decoder."""
    with torch.device("meta"):
        arch = Architecture((256, 512, 1024), (3, 4, 6), 4, 128, 1, signed=False)
        bottleneck, student = Bottleneck(arch), Student(arch)
        features = [torch.empty(1, c, s, s) for c, s in ((256, 64), (512, 32), (1024, 16))]
        embedding = bottleneck(features)
        outputs = student(embedding)
    assert embedding.shape == (1, 2048, 8, 8)
    assert [tuple(o.shape) for o in outputs] == [tuple(f.shape) for f in features]
    assert len(bottleneck.embed) == 3
    assert [len(stage) for stage in student.stages] == [3, 4, 6]  # type: ignore[arg-type]
    first: Any = student.stages[0]
    assert isinstance(first[0], Residual)
    up: Any = first[0].body[3]
    assert isinstance(up, nn.ConvTranspose2d)
    assert (up.in_channels, up.out_channels, up.kernel_size, up.stride) == (512, 512, (2, 2), (2, 2))
    teacher = Architecture.of(Teacher("wide_resnet50_2", "random"))
    assert teacher == arch


def test_only_the_trainable_parts_ask_for_gradients() -> None:
    scrd = model()
    trainable = {n.split(".")[0] for n, p in scrd.named_parameters() if p.requires_grad}
    assert trainable == {"bottleneck", "student", "scale_adaptation"}
    scrd.train()
    assert scrd.student.training
    assert not scrd.teacher.training
    assert len(list(scrd.trainable_parameters())) < len(list(scrd.parameters()))


def flat_distance(x: Tensor, y: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(x.double().flatten(1), y.double().flatten(1), dim=1)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_equals_its_formula_by_torch_alone(objective: Objective) -> None:
    scrd = model(objective).double().eval()
    torch.manual_seed(1)
    images, noisy = torch.randn(3, 3, 64, 64).double(), torch.randn(3, 3, 64, 64).double()
    parts = scrd.training_loss(images, None if objective == "rd4ad" else noisy)
    clean, distorted = scrd.teacher(images), scrd.teacher(noisy)
    student, w = scrd.reconstruct(clean)
    pull = torch.stack([flat_distance(c, s) for c, s in zip(clean, student, strict=True)], dim=1)
    push = torch.stack([flat_distance(n, s) for n, s in zip(distorted, student, strict=True)], dim=1)
    expected = {
        "rd4ad": pull.sum(1).mean(),
        "authors": pull.sum(1).mean() / push.sum(1).mean(),
        "paper": (w * pull).sum(1).mean() / (w * push).sum(1).mean(),
    }
    expected["scrd"] = expected["rd4ad"] + expected["authors"]
    torch.testing.assert_close(parts.loss, expected[objective])


def test_the_noisy_image_goes_through_the_teacher_only_and_in_one_batch() -> None:
    scrd = model("scrd").train()
    seen: dict[str, list[int]] = {"teacher": [], "bottleneck": []}
    scrd.teacher.register_forward_hook(lambda _m, i, _o: seen["teacher"].append(i[0].shape[0]))
    scrd.bottleneck.register_forward_hook(lambda _m, i, _o: seen["bottleneck"].append(i[0][0].shape[0]))
    scrd.training_loss(torch.randn(3, 3, 64, 64), torch.randn(3, 3, 64, 64))
    assert seen == {"teacher": [6], "bottleneck": [3]}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_scale_weights_learn_where_they_stand_in_the_loss(objective: Objective) -> None:
    scrd = model(objective).train()
    scrd.training_loss(torch.randn(4, 3, 64, 64), torch.randn(4, 3, 64, 64)).loss.backward()
    assert all(p.grad is not None for p in scrd.student.parameters())
    gradient = scrd.scale_adaptation.linear.weight.grad
    assert (gradient is not None and bool((gradient != 0).any())) == (objective == "paper")


def test_a_ratio_needs_the_noisy_distances_and_survives_equal_images() -> None:
    ones = torch.ones(2, 3)
    with pytest.raises(ValueError, match="d_noisy must be given for the objective authors"):
        objective_loss("authors", ones, None, ones / 3)
    assert objective_loss("authors", ones * 0, ones * 0, ones / 3) == 0


@pytest.mark.parametrize("weighted", [False, True])
def test_map_and_scores_equal_torch_and_scipy(weighted: bool) -> None:
    scrd = model("paper", map_weights=weighted).eval()
    torch.manual_seed(2)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        prediction = scrd(images)
        features = scrd.teacher(images)
        student, w = scrd.reconstruct(features)
    expected = np.zeros((2, 64, 64))
    for k, (f, s) in enumerate(zip(features, student, strict=True)):
        distance = 1 - F.cosine_similarity(f, s, dim=1)
        up = F.interpolate(distance[:, None], size=(64, 64), mode="bilinear", align_corners=True)[:, 0]
        expected += (up * (w[:, k, None, None] if weighted else 1)).double().numpy()
    blurred = np.stack([gaussian_filter(m, 4.0) for m in expected])
    np.testing.assert_allclose(prediction.map[:, 0].numpy(), blurred, atol=1e-5)
    ordered = np.sort(blurred.reshape(2, -1), axis=1)[:, ::-1]
    for name, count in (("max", 1), ("top1", 41), ("top5", 205), ("mean", 4096)):
        np.testing.assert_allclose(prediction.scores[name].numpy(), ordered[:, :count].mean(1), atol=1e-5)


def test_a_score_does_not_depend_on_the_batch() -> None:
    scrd = model(name="tf_efficientnet_lite0").eval()
    torch.manual_seed(3)
    images = torch.rand(5, 3, 64, 64)
    whole = scrd.predict(images).scores
    for order in ([4, 2, 0], [3], [1, 1, 1, 1, 1, 1, 1]):
        part = scrd.predict(images[order]).scores
        for name, values in part.items():
            torch.testing.assert_close(values, whole[name][order], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "convnext_atto"])
def test_bf16_runs_whatever_the_teacher_ends_in(name: str) -> None:
    scrd = model(name=name).eval()
    images = torch.rand(2, 3, 64, 64)
    half, full = scrd.predict(images, precision="bf16"), scrd.predict(images)
    torch.testing.assert_close(half.map, full.map, rtol=0, atol=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert scrd.training_loss(images, images + 0.1).loss.isfinite()


@pytest.mark.parametrize("weights", ["random", "package"])
def test_saved_and_loaded_it_gives_the_same_bits(tmp_path: Path, weights: str) -> None:
    name = "tf_efficientnet_lite0"
    torch.manual_seed(4)
    scrd = SCRD.create(name, weights=weights, size=64).eval()
    scrd.save_pretrained(tmp_path / "model")
    again = SCRD.from_pretrained(tmp_path / "model")
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(scrd.predict(images).map, again.predict(images).map)
    assert again.config == scrd.config
    assert again.fingerprint() == scrd.fingerprint()
    carried = any(k.startswith("teacher.") for k in load_file(tmp_path / "model" / "model.safetensors"))
    assert carried == (weights == "random")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_weights_from_a_path_are_carried(tmp_path: Path) -> None:
    source = Teacher("resnet18", "random")
    torch.save(source.encoder.state_dict(), tmp_path / "w.pth")
    SCRD.create("resnet18", weights=str(tmp_path / "w.pth"), size=64).save_pretrained(tmp_path / "m")
    (tmp_path / "w.pth").unlink()
    again = SCRD.from_pretrained(tmp_path / "m")
    assert again.teacher.fingerprint() == source.fingerprint() == again.config.teacher.sha256


def test_another_teacher_stops_the_loading(tmp_path: Path) -> None:
    SCRD.create("tf_efficientnet_lite0", weights="package", size=64).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["teacher"]["sha256"] = "0" * 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ScrdFastError, match="not those the model was trained with"):
        SCRD.from_pretrained(tmp_path)


def test_broken_folders_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ScrdFastError, match=r"no config.json; expected a folder"):
        SCRD.from_pretrained(tmp_path)
    model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.pt")
    with pytest.raises(ScrdFastError, match=r"no model.safetensors; other formats are not read"):
        SCRD.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"format_version": 2}))
    with pytest.raises(ScrdFastError, match="format_version"):
        SCRD.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"colour": 1}))
    with pytest.raises(ScrdFastError, match="colour"):
        SCRD.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ScrdFastError, match=r"config.json: the file"):
        SCRD.from_pretrained(tmp_path)


def test_map_weights_want_an_objective_that_trains_them() -> None:
    with pytest.raises(ValidationError, match="trains the scale weights"):
        ModelConfig(objective="rd4ad", map_weights=True)
    assert model("paper").config.map_weights
    assert not model("scrd").config.map_weights


def test_the_package_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    heavy = {"torch", "numpy", "timm", "PIL", "pyarrow"}
    code = f"import sys, scrd_fast, scrd_fast.cli; print(sorted({heavy!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
