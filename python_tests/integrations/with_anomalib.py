# SPDX-License-Identifier: Apache-2.0
"""What is true where anomalib is: `test_anomalib.py` makes such an environment and runs pytest there on this file."""

from __future__ import annotations

import inspect
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

pytest.importorskip("anomalib", reason="anomalib is not installed")

from anomalib.data import Folder
from anomalib.deploy import TorchInferencer
from anomalib.engine import Engine
from anomalib.models import ReverseDistillation
from anomalib.models.image.reverse_distillation import anomaly_map as theirs
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import seed_everything
from torchvision.transforms.v2 import Compose, Normalize, Resize

from scrd_fast import SCRD
from scrd_fast.choices import Noise, Objective
from scrd_fast.data.reading import read_image
from scrd_fast.errors import ScrdFastError
from scrd_fast.integrations.anomalib import AnomalyMapGenerator, Scrd
from scrd_fast.metrics import image_metrics, pixel_metrics

ROOT = Path(__file__).parents[2]
SIZE = (64, 64)


def small(**options: Any) -> Scrd:
    seed_everything(5)
    options = {"pre_processor": Scrd.configure_pre_processor(SIZE), "visualizer": False} | options
    return Scrd("resnet18", weights="random", **options)


def data(tree: Path, **options: Any) -> Folder:
    folders: dict[str, Any] = {
        "normal_dir": "train/good",
        "abnormal_dir": "test/square",
        "normal_test_dir": "test/good",
        "mask_dir": "ground_truth/square",
    }
    sizes = {"train_batch_size": 4, "eval_batch_size": 4, "num_workers": 0}
    return Folder("squares", root=tree, **(folders | sizes | options))


def engine(folder: Path, **options: Any) -> Engine:
    options = {"max_steps": 6, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False} | options
    return Engine(default_root_dir=folder, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture(scope="module")
def fitted(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Scrd, Folder]:
    """A model that `Engine.fit` trained for six steps, in eval mode."""
    model, source = small(), data(tree)
    before = {k: v.clone() for k, v in model.model.scrd.state_dict().items()}
    engine(tmp_path_factory.mktemp("fit")).fit(model, datamodule=source)
    after = model.model.scrd.state_dict()
    changed = {k.split(".")[0] for k, v in after.items() if not torch.equal(before[k], v)}
    assert changed == {"bottleneck", "student"}  # neither the teacher nor weights that no loss trains
    assert model.model.scrd.teacher.fingerprint() == model.model.scrd.config.teacher.sha256
    return model.eval(), source


def scores_of(batches: list[Any]) -> dict[str, float]:
    return {
        path: float(score) for batch in batches for path, score in zip(batch.image_path, batch.pred_score, strict=True)
    }


def test_metrics_are_those_of_the_scores(fitted: tuple[Scrd, Folder], tree: Path, folder: Path) -> None:
    model, _ = fitted
    # All pictures are normal: some are called abnormal, so that the AUROC is neither 1 nor trivial.
    normals = data(tree, abnormal_dir="test/good", normal_test_dir="train/good", mask_dir=None, val_split_mode="none")
    (found,) = engine(folder).test(model, datamodule=normals)
    batches = engine(folder).predict(model, datamodule=normals)
    scores = torch.cat([b.pred_score for b in batches])
    labels = torch.cat([b.gt_label for b in batches])
    own = image_metrics(labels, scores)["auroc"]
    assert 0 < own < 1
    assert found["image_AUROC"] == pytest.approx(own, abs=1e-6)


def test_metrics_of_pixels_are_those_of_the_maps(fitted: tuple[Scrd, Folder], folder: Path) -> None:
    model, squares = fitted
    (found,) = engine(folder).test(model, datamodule=squares)
    batches = engine(folder).predict(model, datamodule=squares)
    maps = [m.numpy() for b in batches for m in b.anomaly_map]
    masks = [m.numpy() for b in batches for m in b.gt_mask]
    own = pixel_metrics(maps, masks, resamples=10)["auroc"]["value"]
    assert 0.5 < own < 1
    assert found["pixel_AUROC"] == pytest.approx(own, abs=1e-4)


def test_a_model_of_scrd_fast_scores_alike_in_anomalib(trained: Path, tree: Path, folder: Path) -> None:
    model = Scrd.from_pretrained(trained / "model", post_processor=False, evaluator=False, visualizer=False)
    own = SCRD.from_pretrained(trained / "model")
    assert own.config.score == "combined"
    batches = engine(folder).predict(model, datamodule=data(tree))
    for batch in batches:
        images = torch.stack([torch.as_tensor(read_image(Path(p), own.config.preprocessing)) for p in batch.image_path])
        expected = own.predict(images)
        torch.testing.assert_close(batch.pred_score, expected.scores["combined"], rtol=1e-3, atol=1e-3)
        maps = batch.anomaly_map.as_subclass(torch.Tensor)
        torch.testing.assert_close(maps, expected.map[:, 0], rtol=1e-3, atol=1e-4)


def test_a_model_of_anomalib_is_one_of_scrd_fast(fitted: tuple[Scrd, Folder], folder: Path) -> None:
    scrd = fitted[0].model.scrd
    scrd.save_pretrained(folder / "model")
    again = SCRD.from_pretrained(folder / "model")
    assert again.fingerprint() == scrd.fingerprint()
    assert again.config.preprocessing.mean == (0.485, 0.456, 0.406)


def test_checkpoints_keep_model_and_config(trained: Path, tree: Path, folder: Path) -> None:
    model = Scrd.from_pretrained(trained / "model", visualizer=False)
    driver, squares = engine(folder), data(tree)
    driver.fit(model, datamodule=squares)
    path = folder / "a.ckpt"
    driver.trainer.save_checkpoint(path)
    again = Scrd.load_from_checkpoint(path, visualizer=False)
    assert again.model.scrd.fingerprint() == model.model.scrd.fingerprint()
    assert again.model.scrd.config.reference is not None
    fresh = engine(folder).predict(again, datamodule=squares)
    assert scores_of(fresh) == scores_of(driver.predict(model, datamodule=squares))


def outputs_of(path: Path, images: torch.Tensor) -> dict[str, Any]:
    """What another runtime makes of the exported file."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path))
        names = [o.name for o in session.get_outputs()]
        return dict(zip(names, session.run(None, {"input": images.numpy()}), strict=True))
    import openvino

    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # where a processor has bfloat16, OpenVINO would take it
    found = openvino.Core().compile_model(str(path), "CPU", exact)(images.numpy())
    return {output.get_any_name(): value for output, value in found.items()}


@pytest.mark.parametrize(("kind", "input_size"), [("onnx", SIZE), ("onnx", None), ("openvino", SIZE)])
def test_exported_files_give_what_the_module_gives(
    kind: str, input_size: tuple[int, int] | None, fitted: tuple[Scrd, Folder], folder: Path
) -> None:
    model, squares = fitted
    path = engine(folder).export(model, kind, export_root=folder, input_size=input_size)
    for batch in squares.test_dataloader():  # of four pictures each, though it was exported with fewer
        images = torch.nn.functional.interpolate(batch.image.as_subclass(torch.Tensor), input_size or (80, 110))
        with torch.inference_mode():
            expected = model(images)
        assert len(expected.pred_score.unique()) > 1
        found = outputs_of(path, images)
        for name in ("pred_score", "anomaly_map"):
            np.testing.assert_allclose(found[name], getattr(expected, name), rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(found["pred_label"], expected.pred_label)


def test_the_torch_export_is_anomalibs(
    fitted: tuple[Scrd, Folder], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, squares = fitted
    path = engine(folder).export(model, "torch", export_root=folder)
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")  # anomalib's format is a pickle; this one was made here
    images = next(iter(squares.test_dataloader())).image
    with torch.inference_mode():
        found, expected = TorchInferencer(path, device="cpu").predict(images), model(images)
    torch.testing.assert_close(found.pred_score, expected.pred_score, rtol=0, atol=0)


def features(size: tuple[int, int]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(size[0])
    shapes = [(2, 8 * 2**k, -(-size[0] // s), -(-size[1] // s)) for k, s in enumerate((4, 8, 16))]
    first, second = ([torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2))
    return first, second


@pytest.mark.parametrize("mode", theirs.AnomalyMapGenerationMode)
@pytest.mark.parametrize("size", [(64, 64), (70, 49), (37, 131), (256, 256)])
@pytest.mark.parametrize("sigma", [1, 4])
def test_the_generator_equals_anomalibs(mode: Any, size: tuple[int, int], sigma: int) -> None:
    student, teacher = features(size)
    expected = theirs.AnomalyMapGenerator(size, sigma=sigma, mode=mode)(student, teacher)
    found = AnomalyMapGenerator(size, sigma=sigma, mode=mode)(student, teacher)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


def test_the_generator_takes_the_place_of_anomalibs() -> None:
    assert (
        inspect.signature(AnomalyMapGenerator).parameters.keys()
        == inspect.signature(theirs.AnomalyMapGenerator).parameters.keys()
    )
    transform = ReverseDistillation.configure_pre_processor(SIZE)
    model = ReverseDistillation("resnet18", pre_trained=False, pre_processor=transform).eval().model
    images = torch.rand(2, 3, *SIZE)
    with torch.inference_mode():
        expected = model(images)
        own = model.anomaly_map_generator
        model.anomaly_map_generator = AnomalyMapGenerator(own.image_size, own.sigma, own.mode)
        torch.testing.assert_close(model(images).anomaly_map, expected.anomaly_map, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("objective", "noise", "trained_parts"),
    [
        ("paper", "opensimplex", {"bottleneck", "student", "scale_adaptation"}),
        ("authors", "perlin", {"bottleneck", "student"}),
        ("rd4ad", "opensimplex", {"bottleneck", "student"}),
    ],
)
def test_every_objective_trains(
    objective: Objective, noise: Noise, trained_parts: set[str], tree: Path, folder: Path
) -> None:
    model = small(objective=objective, noise=noise)
    before = {k: v.clone() for k, v in model.model.scrd.state_dict().items()}
    engine(folder, max_steps=2, limit_val_batches=0).fit(model, datamodule=data(tree))
    after = model.model.scrd.state_dict()
    assert {k.split(".")[0] for k, v in after.items() if not torch.equal(before[k], v)} == trained_parts


def test_anomalies_follow_from_seed_and_batch() -> None:
    model, images = small(), torch.zeros(4, 3, *SIZE)
    first, other = model._noisy(images, 0), model._noisy(images, 1)
    assert first is not None
    assert torch.equal(first, model._noisy(images, 0))
    assert not torch.equal(first, other)
    seed_everything(6)
    assert not torch.equal(first, model._noisy(images, 0))
    changed = (first != 0).flatten(1).sum(1) / 3
    assert ((changed > 6 * 6) & (changed <= 7 * 7)).all()  # a box each, whose noise passes through 0 hardly ever
    assert small(objective="rd4ad")._noisy(images, 0) is None


def test_the_preprocessor_is_what_the_model_remembers() -> None:
    transform = Compose([Resize((96, 96)), Normalize([0.5, 0.4, 0.3], [0.2, 0.25, 0.3])])
    shape = small(pre_processor=PreProcessor(transform)).model.scrd.config.preprocessing
    assert (shape.size, shape.mean, shape.std) == (96, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    plain = small(pre_processor=PreProcessor(Resize(SIZE))).model.scrd.config.preprocessing
    assert (plain.mean, plain.std) == ((0, 0, 0), (1, 1, 1))
    for wrong in ((64, 96), (60, 60)):
        with pytest.raises(ScrdFastError, match=f"a multiple of 32 pixels, got {wrong[0]} x {wrong[1]}"):
            small(pre_processor=Scrd.configure_pre_processor(wrong))
    with pytest.raises(ScrdFastError, match="got no size"):
        small(pre_processor=False)


def test_the_page_of_the_documentation_runs(
    tree: Path, trained: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    shutil.copytree(tree, "data")
    shutil.copytree(trained, "run")
    save_file(timm.create_model("resnet18").state_dict(), "resnet18.safetensors")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "anomalib.md").read_text(), flags=re.M | re.S)
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block.replace("max_steps=40_000", "max_steps=2"), "anomalib.md", "exec"), names)
    assert names["engine"].trainer.global_step == 2
    assert Path("model", "model.safetensors").is_file()
