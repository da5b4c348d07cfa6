# SPDX-License-Identifier: Apache-2.0
"""The files: how a detector is written in each format, and how such a file is run."""

from __future__ import annotations

import importlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scrd_fast.choices import ExportFormat
from scrd_fast.errors import MissingExtraError, UnavailableError
from scrd_fast.export.detector import Detector

__all__ = ["METADATA", "SUFFIX", "Runner", "open_file", "read_metadata", "require", "write_file"]

SUFFIX: dict[ExportFormat, str] = {"torch": ".pt2", "aoti": ".pt2", "onnx": ".onnx"}
METADATA = "scrd_fast"  # the key, in every format
OPSET = 18

Runner = Callable[[Tensor], dict[str, Tensor]]  # images [N, 3, H, W] on the CPU to the outputs, on the CPU


def require(kind: ExportFormat) -> None:
    """Raises `UnavailableError` where this machine lacks what writing the format takes."""
    for package in ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" else ():
        try:
            importlib.import_module(package)
        except ImportError:
            raise MissingExtraError(package, "export") from None
    if kind == "aoti":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            raise UnavailableError("--format aoti: needs a C++ compiler; none was found, and CXX is not set") from None


def write_file(detector: Detector, kind: ExportFormat, path: Path, metadata: dict[str, Any]) -> None:
    """Write `path`, whose name ends as `SUFFIX` says. The same detector and metadata give the same torch and ONNX
    file, byte by byte."""
    text = json.dumps(metadata, sort_keys=True)
    size = detector.config.preprocessing.canvas
    # No side is the canvas's, and none is 1: what is equal or 1 in the example could be taken for always so.
    example = torch.zeros(2, 3, size + 6, size + 9, device=detector.get_buffer("mean").device)
    sides = {0: "batch", 2: "height", 3: "width"}
    with _quiet(), torch.no_grad():
        detector(example)  # what is cached must be plain tensors, not those of a graph that is traced
        if kind == "onnx":
            _write_onnx(detector, example, sides, path, text)
            return
        dynamic = {dim: torch.export.Dim(name) for dim, name in sides.items()}
        program = torch.export.export(detector, (example,), dynamic_shapes=(dynamic,), strict=False)
        program.graph.eliminate_dead_code()  # a teacher may compute maps that nobody reads
        program.graph_module.recompile()
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # it holds paths of this machine
        if kind == "torch":
            torch.export.save(program, path, extra_files={METADATA: text})
        else:
            options = {"aot_inductor.metadata": {METADATA: text}}
            torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)


def _write_onnx(detector: Detector, example: Tensor, sides: dict[int, str], path: Path, metadata: str) -> None:
    import onnx

    program = torch.onnx.export(
        detector,
        (example,),
        dynamic_shapes=(sides,),
        input_names=["images"],
        output_names=list(detector(example)),
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert program is not None  # for the type checker: it is with dynamo
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # they hold paths of this machine
    onnx.helper.set_model_props(model, {METADATA: metadata})
    onnx.checker.check_model(model, full_check=True)  # with shape inference
    onnx.save(model, path)


def open_file(kind: ExportFormat, path: Path) -> Runner:
    """What runs a file that `write_file` wrote."""
    if kind == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]

        def run(images: Tensor) -> dict[str, Tensor]:
            arrays = session.run(names, {"images": images.numpy()})
            return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}

        return run
    extra = {METADATA: ""}
    with _quiet():
        if kind == "torch":
            module: Any = torch.export.load(path, extra_files=extra).module()
        else:
            module = torch._inductor.aoti_load_package(str(path))
            extra = module.get_metadata()
    device = torch.device(json.loads(extra[METADATA])["device"])

    @torch.inference_mode()
    def run_module(images: Tensor) -> dict[str, Tensor]:
        return {name: value.cpu() for name, value in module(images.to(device)).items()}

    return run_module


def read_metadata(kind: ExportFormat, path: Path) -> str:
    """The JSON text that a file carries."""
    if kind == "onnx":
        import onnx

        model = onnx.load(path)
        return {prop.key: str(prop.value) for prop in model.metadata_props}[METADATA]
    if kind == "torch":
        extra = {METADATA: ""}
        torch.export.load(path, extra_files=extra)
        return extra[METADATA]
    return str(torch._inductor.aoti_load_package(str(path)).get_metadata()[METADATA])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's notes on its own inner workings, and on a GPU that is not there."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
