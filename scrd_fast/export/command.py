# SPDX-License-Identifier: Apache-2.0
"""What `export` does: write the file, run it, compare it with the model, and keep it only if they agree."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import scrd_fast
from scrd_fast.calibration import Calibration
from scrd_fast.choices import ExportFormat, ExportPrecision, Precision
from scrd_fast.console import Console
from scrd_fast.data.reading import read_frames
from scrd_fast.device import pick_device
from scrd_fast.errors import ImageError, ScrdFastError
from scrd_fast.export.check import bundled_batches, compare, require_agreement
from scrd_fast.export.detector import Detector
from scrd_fast.export.formats import SUFFIX, open_file, require, write_file
from scrd_fast.files import replacing
from scrd_fast.model.scrd import SCRD
from scrd_fast.screening.inputs import list_inputs
from scrd_fast.screening.screener import Screener, load

__all__ = ["export"]

BATCH = 8


def export(
    console: Console,
    run: Path,
    kind: ExportFormat,
    out: Path,
    precision: ExportPrecision,
    calibration_images: Sequence[Path],
    device: str,
) -> None:
    _check_flags(kind, out, precision, calibration_images)
    require(kind)
    model, calibration = load(run)
    if calibration is None:
        raise ScrdFastError(f"{run}: no calibration, so no decision; `scrd-fast calibrate` makes one")
    if kind == "onnx" and device == "cuda":
        raise ScrdFastError("--device cuda: an onnx file is for any device, and is made and checked on the CPU")
    place = pick_device("cpu" if kind == "onnx" else device)
    own: Precision = "32" if precision == "int8" else precision
    detector = Detector(model, calibration, precision=own, plain=kind == "onnx").eval().to(place)
    metadata = _metadata(model, calibration, kind, precision, place)
    out.parent.mkdir(parents=True, exist_ok=True)
    screener = Screener(model, calibration, device=str(place), precision=own, batch_size=BATCH)
    with tempfile.TemporaryDirectory(prefix="scrd_fast_export_") as folder, closing(screener):
        path = Path(folder) / f"detector{SUFFIX[kind]}"
        write_file(detector, kind, path, metadata)
        found = compare(open_file(kind, path), screener, bundled_batches(model.config.preprocessing.canvas))
        require_agreement(found, own, calibration)
        if precision == "int8":
            pictures = list(_pictures(console, model, calibration_images))
            path = _quantised(path, pictures)
            found = compare(open_file(kind, path), screener, pictures)
            require_agreement(found, precision, calibration)
        with path.open("rb") as made, replacing(out) as file:
            shutil.copyfileobj(made, file)
    console.log(f"the file was run and compared with the model: {found}")
    content = {"file": str(out), "format": kind, "precision": precision, "bytes": out.stat().st_size}
    console.result(out, content | {"differences": asdict(found), "metadata": metadata})


def _check_flags(kind: ExportFormat, out: Path, precision: ExportPrecision, images: Sequence[Path]) -> None:
    if out.suffix != SUFFIX[kind]:
        raise ScrdFastError(f"--out {out}: a file of --format {kind} ends in {SUFFIX[kind]}")
    if out.exists():
        raise ScrdFastError(f"--out {out}: exists already; choose a new name, or remove it")
    if precision != "32" and (precision == "int8") != (kind == "onnx"):
        other = "bf16" if precision == "int8" else "int8"
        raise ScrdFastError(f"--precision {precision}: not with --format {kind}, which has 32 and {other}")
    if (precision == "int8") != bool(images):
        raise ScrdFastError(
            "--calibration-images: --precision int8, and that alone, needs them: normal images, a hundred are enough"
        )


def _metadata(
    model: SCRD,
    calibration: Calibration,
    kind: ExportFormat,
    precision: ExportPrecision,
    place: torch.device,
) -> dict[str, Any]:
    preprocessing = model.config.preprocessing
    return {
        "scrd_fast": scrd_fast.__version__,
        "torch": torch.__version__,
        "format": kind,
        "precision": precision,
        "device": str(place),
        "teacher": model.config.teacher.name,
        "model_sha256": model.fingerprint(),
        "preprocessing": preprocessing.model_dump(mode="json"),
        "canvas": preprocessing.canvas,
        "score": model.config.score,
        "scores": list(model.config.scores),
        "calibration": calibration.id,
        "site": calibration.site,
        "threshold": calibration.threshold,
        "fpr": calibration.fpr,
        "normals": calibration.count,
    }


def _quantised(path: Path, batches: list[Tensor]) -> Path:
    from scrd_fast.export.quantise import quantise

    target = path.with_name(f"int8{path.suffix}")
    quantise(path, target, batches)
    return target


def _pictures(console: Console, model: SCRD, inputs: Sequence[Path]) -> Iterator[Tensor]:
    """Batches of the pictures that can be read, as the model's input."""
    batch: list[Tensor] = []
    count = 0
    for entry in list_inputs(inputs):
        try:
            frames = [frame.pixels for frame in read_frames(entry.source, model.config.preprocessing)]
        except ImageError as error:
            console.warn(f"{entry.source}: {error}: left out")
            continue
        for pixels in frames:
            count += 1
            batch.append(pixels)
            if len(batch) == BATCH:
                yield torch.stack(batch)
                batch = []
    if batch:
        yield torch.stack(batch)
    if not count:
        raise ScrdFastError(f"--calibration-images: no image of {', '.join(map(str, inputs))} could be read")
