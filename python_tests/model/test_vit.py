# SPDX-License-Identifier: Apache-2.0
"""Teachers other than ResNets: plain ViTs, whose maps have one grid, and what of timm's zoo works or is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import timm
import torch
from conftest import TRAIN_FLAGS
from safetensors.torch import save_file
from torch import Tensor

from scrd_fast import SCRD
from scrd_fast.cli import main
from scrd_fast.errors import ScrdFastError
from scrd_fast.model.blocks import Bottleneck, Student
from scrd_fast.model.inference import Predictor
from scrd_fast.model.teacher import Teacher

VITS = ["vit_tiny_patch16_224", "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"]
PYRAMIDS = ["convnext_atto", "mobilenetv3_small_050", "regnety_002", "efficientnet_b0", "resnet50", "pvt_v2_b0"]


def images(size: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", VITS)
def test_features_are_those_of_timm_after_a_quarter_a_half_and_three_quarters(name: str) -> None:
    """Of timm's whole model with the same weights."""
    torch.manual_seed(0)
    teacher = Teacher(name, "random")
    assert len(teacher.encoder.model.blocks) == 9
    whole = timm.create_model(name, dynamic_img_size=True).eval()
    whole.load_state_dict(teacher.encoder.model.state_dict(), strict=False)
    x = images(2 * teacher.multiple)[..., : teacher.multiple]
    with torch.no_grad():
        expected = whole.forward_intermediates(x, indices=[2, 5, 8], intermediates_only=True)
        actual = teacher(x)
    patch = teacher.strides[0]
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)
        assert a.shape == (2, teacher.channels[0], 2 * teacher.multiple // patch, teacher.multiple // patch)
    assert teacher.multiple == math.lcm(32, patch)
    assert teacher.shapes(teacher.multiple) == [(teacher.channels[0], *[teacher.multiple // patch] * 2)] * 3


def test_a_vit_is_frozen() -> None:
    teacher = Teacher("test_vit", "random").train()
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(m.training for m in teacher.modules())


def test_a_student_of_one_grid_resamples_nothing() -> None:
    model = SCRD.create("test_vit", weights="random", size=64)
    features = model.teacher(images(64))
    embedding = model.bottleneck(features)
    assert embedding.shape == features[2].shape
    student, weights = model.reconstruct(features)
    assert [s.shape for s in student] == [f.shape for f in features]
    assert weights.shape == (2, 3)
    for part in (model.bottleneck, model.student):
        assert isinstance(part, (Bottleneck, Student))
        assert all(getattr(m, "stride", (1, 1)) == (1, 1) for m in part.modules())


@pytest.mark.parametrize("name", [*VITS, *PYRAMIDS])
def test_other_teachers_train_and_predict(name: str) -> None:
    size = 224 if "patch14" in name else 64
    model = SCRD.create(name, weights="random", size=size)
    model.train()
    inputs = images(size)
    model.training_loss(inputs, inputs + 0.1 * torch.randn_like(inputs)).loss.backward()
    scale = {id(p) for p in model.scale_adaptation.parameters()}
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in model.trainable_parameters() if id(p) not in scale
    )
    assert not any(p.grad is not None for p in model.teacher.parameters())
    whole = model.eval().predict(inputs)
    assert whole.map.shape == (2, 1, size, size)
    largest = whole.map.abs().max()
    for precision, tolerance in (("32", 1e-5), ("bf16", 1e-2)):
        fast = Predictor(model, torch.device("cpu"), precision=precision)(inputs)  # type: ignore[arg-type]
        assert (fast.map - whole.map).abs().max() < tolerance * largest


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("swin_tiny_patch4_window7_224", "does not give feature maps of images of any size"),
        ("maxvit_tiny_tf_224", "does not give feature maps of images of any size"),
        ("hiera_tiny_224", "does not give feature maps of images of any size"),
        ("mixer_s16_224", r"has features at strides \[16, 16, 16\], needed are \[4, 8, 16\], or a plain ViT"),
        ("beit_base_patch16_224", "or a plain ViT"),
    ],
)
def test_what_cannot_be_a_teacher_is_refused_in_one_line(name: str, reason: str) -> None:
    with pytest.raises(ScrdFastError, match=f"teacher: {name} .*{reason}|teacher: {name} {reason}") as caught:
        Teacher(name, "random")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("size", "near"), [(256, "224 or 448"), (96, "224 or 448"), (480, "448 or 672")])
def test_a_size_must_hold_whole_patches(
    size: int, near: str, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "vit_small_patch14_dinov2"
    flags = ["--teacher", name, "--teacher-weights", "random", "--size", str(size)]
    assert main(["train", str(tree), "--out", str(tmp_path / "run"), *flags]) == 2
    error = capsys.readouterr().err
    assert "a multiple of 32 pixels and of the 14 pixels of a patch" in error
    assert f"so of 224: {near}, got {size}" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_from_a_file_have_their_positions_resampled_as_timm_does(tmp_path: Path, suffix: str) -> None:
    """A model of 64 pixels: its position embeddings are of 4 x 4 patches, the teacher's of 14 x 14."""
    torch.manual_seed(0)
    state = timm.create_model("vit_tiny_patch16_224", img_size=64).state_dict()
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"model": state}, path)
    else:
        save_file(state, path)
    teacher = Teacher("vit_tiny_patch16_224", str(path))
    assert teacher.source == "path"
    expected = timm.create_model(
        "vit_tiny_patch16_224", pretrained=True, pretrained_cfg_overlay={"state_dict": state}, num_classes=1000
    ).state_dict()
    for key, value in teacher.encoder.model.state_dict().items():
        assert torch.equal(value, expected[key]), key
    assert teacher.encoder.model.pos_embed.shape == (1, 197, 192)


def test_weights_with_the_publishers_names_are_understood(tmp_path: Path) -> None:
    """DINOv2's files have a mask token, and registers and position embeddings of their own."""
    torch.manual_seed(0)
    state = timm.create_model("vit_small_patch14_reg4_dinov2").state_dict()
    theirs = {{"reg_token": "register_tokens"}.get(k, k): v for k, v in state.items()}
    theirs["pos_embed"] = torch.cat([torch.zeros(1, 1, 384), theirs["pos_embed"]], dim=1)
    theirs["cls_token"] = state["cls_token"]
    save_file(theirs | {"mask_token": torch.zeros(1, 384)}, tmp_path / "w.safetensors")
    teacher = Teacher("vit_small_patch14_reg4_dinov2", str(tmp_path / "w.safetensors"))
    for key, value in teacher.encoder.model.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    state = timm.create_model("test_vit").state_dict()
    save_file({k: v for k, v in state.items() if k != "blocks.1.attn.qkv.weight"}, tmp_path / "w.safetensors")
    with pytest.raises(
        ScrdFastError, match=r"1 tensors that the teacher needs are not there, e\.g\. blocks_1_attn_qkv"
    ):
        Teacher("test_vit", str(tmp_path / "w.safetensors"))
    with pytest.raises(ScrdFastError, match="no known package carries weights of test_vit"):
        Teacher("test_vit", "package")


@pytest.mark.parametrize(
    "extra", [["--cache-features", "memory"], ["--precision", "bf16", "--cache-features", "memory"], ["--tiles", "2"]]
)
def test_a_vit_goes_through_every_command(extra: list[str], tree: Path, tmp_path: Path) -> None:
    run, flags = tmp_path / "run", [*TRAIN_FLAGS, "--teacher", "test_vit", "--iterations", "2", *extra, "-q"]
    assert main(["train", str(tree), "--out", str(run), *flags]) == 0
    first = SCRD.from_pretrained(run / "model")
    assert first.fingerprint() == SCRD.from_pretrained(run / "model").fingerprint()
    device = ["--device", "cpu", "-q"]
    assert main(["evaluate", str(run), str(tree), "--out", str(tmp_path / "found"), *device]) == 0
    assert json.loads((tmp_path / "found" / "metrics.json").read_text())
    assert main(["calibrate", str(run), str(tree / "train" / "good"), *device]) == 0
    assert main(["screen", str(run), str(tree / "test" / "square"), "--out", str(tmp_path / "table"), *device]) == 0
