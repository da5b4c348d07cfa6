# SPDX-License-Identifier: Apache-2.0
"""Arguments and flags that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scrd_fast.choices import Device, Precision
from scrd_fast.errors import ScrdFastError

__all__ = ["BatchSize", "Data", "DeviceOption", "LabelsOption", "Out", "OwnRun", "PrecisionOption", "Run"]

HUB = "hf://"  # then user/model, or user/model@revision, as huggingface_hub has it


def _run(text: str) -> Path:
    """A folder; for a model of the hub that of its copy in the cache, which is fetched here and now."""
    if not str(text).startswith(HUB):
        return Path(text)
    from scrd_fast.hub import fetch, no_bars_in_files

    no_bars_in_files()
    name, _, revision = text.removeprefix(HUB).partition("@")
    return fetch(name, revision=revision or None)


def _own_run(text: str) -> Path:
    if str(text).startswith(HUB):
        name = text.removeprefix(HUB).partition("@")[0]
        raise ScrdFastError(f"{text}: a folder of your own is needed; `hf download {name} --local-dir DIR` makes one")
    return Path(text)


Out = Annotated[Path, typer.Option("--out", help="Folder for the results: new, empty, or of the same run.")]
Run = Annotated[
    Path, typer.Argument(metavar="RUN", parser=_run, help="Folder that `train` wrote, or hf://USER/MODEL[@REVISION].")
]
OwnRun = Annotated[Path, typer.Argument(metavar="RUN", parser=_own_run, help="Folder that `train` wrote.")]
Data = Annotated[Path, typer.Argument(metavar="DATA", help="Data set: data.json, folder tree, or ISIC table.")]
DeviceOption = Annotated[Device, typer.Option("--device", help="Where to compute.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Images computed at once.")]
LabelsOption = Annotated[
    Path | None,
    typer.Option("--labels", metavar="CSV", help="Columns path and label (0 or 1): an ROC curve on the page."),
]
PrecisionOption = Annotated[Precision, typer.Option("--precision", help="What the network computes in: 32 or bf16.")]
