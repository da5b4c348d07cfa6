# SPDX-License-Identifier: Apache-2.0
"""Files of ONNX and torch.export, made by the command line."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from documented import blocks_of
from export_files import run_alone, same_outputs
from PIL import Image
from torch import Tensor
from torch._inductor.exc import InvalidCxxCompiler

from scrd_fast.calibration import Calibration
from scrd_fast.cli import main
from scrd_fast.config import Preprocessing
from scrd_fast.data.reading import read_image
from scrd_fast.export import command, formats
from scrd_fast.export.check import bundled_batches
from scrd_fast.export.formats import open_file, read_metadata
from scrd_fast.export.resizing import resize_batch

pytestmark = pytest.mark.xdist_group("export")  # the files that they share are made once, not once a process

NAMES = ["score", "percentile", "decision", "map"]
SCORES = ["score_mean", "score_max", "score_top1", "score_top5", "score_combined"]


@pytest.fixture(scope="module")
def files(trained: Path, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`first` and `second`: both formats, in both orders, by the documented commands; and two pictures."""
    folder = tmp_path_factory.mktemp("export")
    commands = blocks_of("export.md", "bash")[0].splitlines()
    assert len(commands) == 2
    for name, lines in (("first", commands), ("second", commands[::-1])):
        for line in lines:
            documented(line, trained, folder / name)
    shutil.copy(tree / "test" / "square" / "000.png", folder / "image.png")
    deep = np.random.default_rng(0).integers(900, 5000, (50, 40)).astype(np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    return folder


def documented(line: str, run: Path, folder: Path, *more: str) -> None:
    """Run a documented command as if it were typed beside `run`, in `folder`."""
    program, verb, named, *flags, out = shlex.split(line)
    assert (program, verb, named) == ("scrd-fast", "export", "run")
    assert main([verb, str(run), *flags, str(folder / out), "-q", *more]) == 0


@pytest.mark.parametrize("name", ["detector.onnx", "detector.pt2"])
def test_twice_and_in_any_order_gives_the_same_bytes(files: Path, name: str) -> None:
    first, second = ((files / folder / name).read_bytes() for folder in ("first", "second"))
    assert first == second
    for path in (Path(__file__).parents[2], Path(sys.prefix)):
        assert str(path).encode() not in first


def test_both_formats_say_the_same(files: Path) -> None:
    """Also that a batch of any size and images of any size go in: those of the check."""
    runners = [open_file(kind, files / "first" / f"detector{formats.SUFFIX[kind]}") for kind in ("onnx", "torch")]
    for batch in bundled_batches(64):
        ours, theirs = (run(batch) for run in runners)
        assert list(ours) == list(theirs) == NAMES + SCORES
        same_outputs(ours, theirs)
        assert ours["map"].shape == (len(batch), 1, 64, 64)
        assert ours["decision"].dtype == torch.bool


def test_onnx_is_one_file_of_standard_operators(files: Path) -> None:
    path = files / "first" / "detector.onnx"
    model = onnx.load(path, load_external_data=False)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert model.ir_version == 10
    assert {node.domain for node in model.graph.node} == {""}
    assert not any(x.external_data for x in model.graph.initializer)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    onnx.checker.check_model(inferred, full_check=True)

    def shapes(values: Any) -> dict[str, list[Any]]:
        return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

    assert shapes(inferred.graph.input) == {"images": ["batch", 3, "height", "width"]}
    assert shapes(inferred.graph.output) == {
        name: ["batch", 1, 64, 64] if name == "map" else ["batch"] for name in NAMES + SCORES
    }


def test_torch_has_our_operators(files: Path) -> None:
    program = torch.export.load(files / "first" / "detector.pt2")
    ours = {str(node.target) for node in program.graph.nodes if "scrd_fast" in str(node.target)}
    assert ours == {"scrd_fast.cosine_distances.default", "scrd_fast.anomaly_map.default"}


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_metadata_says_what_the_file_is(files: Path, trained: Path, kind: Any) -> None:
    facts = json.loads(read_metadata(kind, files / "first" / f"detector{formats.SUFFIX[kind]}"))
    calibration = Calibration.load(trained / "model" / "calibration.json")
    assert Preprocessing.model_validate(facts["preprocessing"]) == Preprocessing(size=64)
    assert facts["threshold"] == calibration.threshold
    assert facts["calibration"] == calibration.id
    assert facts["model_sha256"] == calibration.model_sha256
    assert [f"score_{name}" for name in facts["scores"]] == SCORES
    assert (facts["format"], facts["precision"], facts["canvas"], facts["score"]) == (kind, "32", 64, "combined")


def test_the_documented_onnx_example_runs_without_this_package_and_without_torch(files: Path) -> None:
    said = run_alone(blocks_of("export.md", "python")[1], files / "first", files / "image.png", ("scrd_fast", "torch"))
    assert said[0] in ("normal", "abnormal")
    outputs = open_file("onnx", files / "first" / "detector.onnx")(picture(files))
    assert [float(x) for x in said[1:]] == pytest.approx([float(outputs[n][0]) for n in ("score", "percentile")])


def test_the_documented_torch_example_imports_the_operators_alone(files: Path) -> None:
    blocked = ("timm", "scrd_fast.model", "scrd_fast.export", "scrd_fast.screening", "scrd_fast.config")
    said = run_alone(blocks_of("export.md", "python")[2], files / "first", files / "image.png", blocked)
    outputs = open_file("torch", files / "first" / "detector.pt2")(picture(files))
    assert [float(x) for x in said[1:]] == [float(outputs[n][0]) for n in ("score", "percentile")]


def test_the_documented_window_is_the_reading_function_s(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    found: dict[str, Any] = {}
    exec(compile(blocks_of("export.md", "python")[0], "export.md", "exec"), found)
    expected = read_image("deep.png", Preprocessing(size=64))
    resized = resize_batch(torch.from_numpy(found["images"].copy()), Preprocessing(size=64))
    torch.testing.assert_close(resized[0], expected, rtol=0, atol=1e-6)


def picture(files: Path) -> Tensor:
    pixels = np.asarray(Image.open(files / "image.png").convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())


def test_int8_on_the_normals_of_the_data_set(
    trained: Path, tree: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "normals_of_my_site").symlink_to(tree / "train")
    documented(blocks_of("export.md", "bash")[1].strip(), trained, here, "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["differences"]["images"] == 24
    assert 0 < result["differences"]["score"] < 1
    model = onnx.load("small.onnx")
    kinds = {node.op_type for node in model.graph.node}
    assert "QuantizeLinear" in kinds
    to_map = [n for n in model.graph.node if n.op_type == "MatMul"]
    made = {output: n.op_type for n in model.graph.node for output in n.output}
    assert "DequantizeLinear" not in {made.get(x) for n in to_map for x in n.input}
    assert json.loads(read_metadata("onnx", Path("small.onnx")))["precision"] == "int8"


@pytest.mark.usefixtures("here")
def test_bfloat16(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--format", "torch", "--precision", "bf16", "--out", "half.pt2", "--json"]
    assert main(["export", str(trained), *flags]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] < 45e6  # 73 MB in float32
    program = torch.export.load("half.pt2")
    assert {x.dtype for name, x in program.state_dict.items() if "network" in name} == {torch.bfloat16}


def test_a_damaged_file_is_refused_and_not_kept(
    trained: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(detector: Any, kind: Any, path: Path, metadata: Any) -> None:
        with torch.no_grad():
            next(detector.network.student.parameters()).mul_(1.01)
        formats.write_file(detector, kind, path, metadata)

    monkeypatch.setattr(command, "write_file", damaged)
    assert main(["export", str(trained), "--format", "torch", "--out", "detector.pt2", "-q"]) == 1
    text = capsys.readouterr()
    assert text.out == ""
    assert "differs from the model and was not kept" in text.err
    assert len(text.err.splitlines()) == 1
    assert list(here.iterdir()) == []


@pytest.mark.usefixtures("here")
def test_a_missing_extra_is_named(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", str(trained), "--format", "onnx", "--out", "detector.onnx"]) == 4
    assert "onnxscript is not installed; install this package with its [export] extra" in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_a_missing_compiler_is_named(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    assert main(["export", str(trained), "--format", "aoti", "--out", "detector.pt2"]) == 4
    assert "--format aoti: needs a C++ compiler" in capsys.readouterr().err


WRONG = {
    "exists": (["--format", "onnx", "--out", "there.onnx"], "there.onnx: exists already"),
    "format": (["--format", "tensorrt", "--out", "a.onnx"], "'tensorrt' is not one of"),
    "ending": (["--format", "onnx", "--out", "a.pt2"], "ends in .onnx"),
    "bf16": (["--format", "onnx", "--out", "a.onnx", "--precision", "bf16"], "has 32 and int8"),
    "int8": (["--format", "aoti", "--out", "a.pt2", "--precision", "int8"], "has 32 and bf16"),
    "images": (["--format", "onnx", "--out", "a.onnx", "--precision", "int8"], "--calibration-images"),
    "no use": (["--format", "torch", "--out", "a.pt2", "--calibration-images", "."], "--calibration-images"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_get_one_line(trained: Path, here: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    flags, expected = WRONG[name]
    Path("there.onnx").write_bytes(b"kept")
    assert main(["export", str(trained), *flags]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.splitlines()) == 1
    assert [path.name for path in here.iterdir()] == ["there.onnx"]
    assert Path("there.onnx").read_bytes() == b"kept"


def test_without_a_calibration_there_is_no_decision_to_export(
    trained: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "model", here / "model", ignore=shutil.ignore_patterns("calibration.json"))
    assert main(["export", "model", "--format", "torch", "--out", "a.pt2"]) == 2
    assert "no calibration, so no decision; `scrd-fast calibrate` makes one" in capsys.readouterr().err
