# SPDX-License-Identifier: Apache-2.0
"""The verbs `screen`, `report` and `drift`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scrd_fast.choices import Engine, MapFormat
from scrd_fast.console import Console
from scrd_fast.memory import keep_freed_memory
from scrd_fast.options import BatchSize, DeviceOption, LabelsOption, Out, PrecisionOption, Run
from scrd_fast.verbs import verb

__all__ = ["drift", "report", "screen"]


@verb
def screen(
    console: Console,
    run: Run,
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT...", help="Files, folders, patterns, lists (.txt .csv .parquet), archives."),
    ],
    out: Out,
    batch_size: BatchSize = 16,
    precision: PrecisionOption = "32",
    compile: Annotated[bool, typer.Option("--compile", help="Compile it; CUDA graphs on a GPU.")] = False,  # noqa: A002
    device: DeviceOption = "auto",
    devices: Annotated[str, typer.Option(metavar="N", help="Processes with a GPU each; auto: all GPUs.")] = "1",
    engine: Annotated[Engine, typer.Option("--engine", help="ray: on the cluster of RAY_ADDRESS, or here.")] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that read; default: one a core.")] = None,
    file_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds without news after which a file fails.")] = 60,
    shard_size: Annotated[int, typer.Option(min=1, help="Inputs that are committed together.")] = 1000,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Only part I, from 0, of N: for schedulers.")] = "0/1",
    maps: Annotated[MapFormat | None, typer.Option(help="Write every anomaly map: 16-bit PNG, or exact.")] = None,
    overlays: Annotated[
        str,
        typer.Option(metavar="N", help="Overlays of the N most suspicious; above: of all above the threshold."),
    ] = "20",
    max_failures: Annotated[float, typer.Option(min=0, max=1, help="Share of failed files that is too much.")] = 0.05,
    stop_on_failures: Annotated[bool, typer.Option("--stop-on-failures", help="Stop when it is too much.")] = False,
    modality: Annotated[str, typer.Option(metavar="A,B", help="DICOM of other modalities is refused.")] = "",
    body_part: Annotated[str, typer.Option(metavar="A,B", help="The same for the body part.")] = "",
    view: Annotated[str, typer.Option(metavar="A,B", help="The same for the view position.")] = "",
    strict: Annotated[bool, typer.Option("--strict", help="Refuse pictures unlike those of the calibration.")] = False,
    site: Annotated[str | None, typer.Option(help="Name of this site, as given to `calibrate`.")] = None,
    dicom: Annotated[
        str, typer.Option(metavar="sc,sr,seg", help="Results of DICOM in DICOM: picture, report, segmentation.")
    ] = "",
    hash_paths: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Keyed hashes for paths in the results; KEY is made if absent.")
    ] = None,
    labels: LabelsOption = None,
    new_run: Annotated[bool, typer.Option("--new-run", help="Remove the run that OUT holds, and begin anew.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
) -> None:
    """Score every image; a bad file becomes a row with its error. The same command goes on where it was stopped."""
    if precision == "bf16":
        keep_freed_memory()
    from scrd_fast.screening.command import screen as command

    options = {name: value for name, value in locals().items() if name not in ("console", "command")}
    raise typer.Exit(command(console, **options))


@verb
def report(
    console: Console,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `screen` wrote, finished or not.")],
    threshold: Annotated[float | None, typer.Option("--threshold", help="Call abnormal what scores above it.")] = None,
    fpr: Annotated[
        float | None, typer.Option("--fpr", min=1e-6, max=0.5, help="Take the threshold for this rate of false alarms.")
    ] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="Also write results.parquet, all rows in one file.")
    ] = False,
    labels: LabelsOption = None,
) -> None:
    """Sum a screening run up, with another threshold if one is given: worklist, summary and page. Loads no model."""
    from scrd_fast.screening.report import report as command

    command(console, folder, threshold, fpr, compact, labels)


@verb
def drift(
    console: Console,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `screen` wrote, finished or not.")],
    reference: Annotated[
        Path | None, typer.Option("--reference", metavar="DIR", help="Another run, instead of the calibration.")
    ] = None,
    bound: Annotated[
        float, typer.Option("--bound", min=0, max=1, help="Distance of distributions, 0 to 1, that is let pass.")
    ] = 0.1,
) -> None:
    """Say whether a run's pictures are like those of its calibration: drift.json and drift.png. Exit code 1: no."""
    from scrd_fast.screening.drift import drift as command

    raise typer.Exit(command(console, folder, reference, bound))
