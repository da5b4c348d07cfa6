# SPDX-License-Identifier: Apache-2.0
"""Arguments and flags that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scrd_fast.choices import Device, Precision

__all__ = ["BatchSize", "Data", "DeviceOption", "LabelsOption", "Out", "PrecisionOption", "Run"]

Out = Annotated[Path, typer.Option("--out", help="Folder for the results: new, empty, or of the same run.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `train` wrote.")]
Data = Annotated[Path, typer.Argument(metavar="DATA", help="Data set: data.json, folder tree, or ISIC table.")]
DeviceOption = Annotated[Device, typer.Option("--device", help="Where to compute.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Images computed at once.")]
LabelsOption = Annotated[
    Path | None,
    typer.Option("--labels", metavar="CSV", help="Columns path and label (0 or 1): an ROC curve on the page."),
]
PrecisionOption = Annotated[Precision, typer.Option("--precision", help="What the network computes in: 32 or bf16.")]
