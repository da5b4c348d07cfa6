# SPDX-License-Identifier: Apache-2.0
"""The verb `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scrd_fast.choices import ExportFormat, ExportPrecision
from scrd_fast.console import Console
from scrd_fast.options import DeviceOption, Run
from scrd_fast.verbs import verb

__all__ = ["export"]


@verb
def export(
    console: Console,
    run: Run,
    format: Annotated[ExportFormat, typer.Option("--format", help="What the file is for.")],  # noqa: A002
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="A new file: .onnx, else .pt2.")],
    precision: Annotated[
        ExportPrecision, typer.Option("--precision", help="bf16 not for onnx, int8 for onnx only.")
    ] = "32",
    calibration_images: Annotated[
        list[Path] | None,
        typer.Option("--calibration-images", metavar="IMAGES", help="Normal images that fix the ranges of int8."),
    ] = None,
    device: DeviceOption = "cpu",
) -> None:
    """Write the model, from decoded image to decision, as one file that other programs run; then run and check it."""
    from scrd_fast.export.command import export as command

    command(console, run, format, out, precision, calibration_images or [], device)
