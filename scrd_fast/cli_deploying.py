# SPDX-License-Identifier: Apache-2.0
"""The verbs `export` and `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scrd_fast.choices import ExportFormat, ExportPrecision
from scrd_fast.console import Console
from scrd_fast.options import BatchSize, DeviceOption, PrecisionOption, Run
from scrd_fast.verbs import verb

__all__ = ["export", "serve"]


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


@verb
def serve(
    console: Console,
    run: Run,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at; others than this machine's want a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 8000,
    batch_size: BatchSize = 16,
    precision: PrecisionOption = "32",
    device: DeviceOption = "auto",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that read; default: one a core.")] = None,
    file_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds after which a file that hangs fails.")] = 10,
    most_megabytes: Annotated[int, typer.Option("--max-megabytes", min=1, help="Of an upload.")] = 256,
) -> None:
    """Score images that are uploaded: POST /score, and a page to drop them on. SCRD_FAST_TOKEN sets a token."""
    from scrd_fast.serving.command import serve as command

    command(console, run, host, port, batch_size, precision, device, workers, file_timeout, most_megabytes)
