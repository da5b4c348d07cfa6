# SPDX-License-Identifier: Apache-2.0
"""The command line. Nothing heavy is imported before a verb runs, so that `--help` is quick.

Exit codes: 0 done; 1 done, but a bound was exceeded; 2 usage, settings or input; 3 too many files failed;
4 something this machine lacks; 130 interrupted, with what was done kept.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from scrd_fast import cli_deploying, cli_measuring, cli_screening, cli_sharing
from scrd_fast.choices import Backend, Cache, FeatureCache, Fit, Intensity, Noise, Objective, Score, Switch
from scrd_fast.console import Console
from scrd_fast.memory import keep_freed_memory
from scrd_fast.options import BatchSize, Data, DeviceOption, Out, OwnRun, PrecisionOption, Run
from scrd_fast.verbs import run, verb

__all__ = ["main"]

app = typer.Typer(
    name="scrd-fast",
    help="Unsupervised medical anomaly detection: train on normal images, screen any number of others. "
    "Research use, not a medical device.",
    epilog="Add --debug to any command to see where an error came from.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command()
@verb
def info(
    console: Console,
    backend: Annotated[
        Backend | None, typer.Option("--backend", help="Exit with code 4 unless every operator has this one.")
    ] = None,
) -> None:
    """Show what is installed, what was built, and which backend runs each operator."""
    import json

    from scrd_fast import info as module

    facts = module.collect()
    print(json.dumps(facts, indent=2) if console.json else module.render(facts, backend))
    raise typer.Exit(0 if module.usable(facts, backend) else 4)


def _size_or_auto(text: str) -> int | str:
    return "auto" if text == "auto" else int(text)


data_app = typer.Typer(help="Prepare the data sets that results are reported on.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@data_app.command("prepare")
@verb
def data_prepare(
    console: Console,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of `scrd-fast data list`.")],
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="What was downloaded: a folder, or one archive.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the data set: new or empty, and not in SOURCE.")],
    split: Annotated[
        Path | None, typer.Option("--split", metavar="FILE", help="data.json that says which image goes where.")
    ] = None,
    allow_other_counts: Annotated[
        bool, typer.Option("--allow-other-counts", help="Take other counts than published, as a split of its own.")
    ] = False,
    drop_duplicates: Annotated[
        bool, typer.Option("--drop-duplicates", help="Leave out training images that are test images too.")
    ] = False,
) -> None:
    """Make a data set of SOURCE: its counts checked, its duplicates found, its split named in dataset.json."""
    from scrd_fast.data.layouts import Request
    from scrd_fast.data.prepare import prepare

    request = Request(name, source, split, allow_other_counts)
    console.result(out, prepare(console, request, out, drop_duplicates=drop_duplicates))


@data_app.command("list")
@verb
def data_list(console: Console) -> None:
    """Show the data sets that are known: names, counts, splits, sources, licences."""
    import json
    from dataclasses import asdict

    from scrd_fast.data.known import KNOWN, render

    print(json.dumps({name: asdict(about) for name, about in KNOWN.items()}, indent=2) if console.json else render())


@app.command()
@verb
def train(
    console: Console,
    data: Data,
    out: Out,
    teacher: Annotated[str, typer.Option(help="timm name of a CNN or plain ViT.")] = "wide_resnet50_2",
    teacher_weights: Annotated[str, typer.Option(help="pretrained, random, package, or a file.")] = "pretrained",
    objective: Annotated[Objective, typer.Option(help="Training objective.")] = "scrd",
    score: Annotated[Score, typer.Option(help="Image score, stored with the model.")] = "combined",
    map_weights: Annotated[
        Switch | None,
        typer.Option(help="Weight the maps by scale; default: where the objective trains them."),
    ] = None,
    size: Annotated[int, typer.Option(help="Image size in pixels, a multiple of 32 and of a ViT's patches.")] = 256,
    tiles: Annotated[int, typer.Option(min=1, max=16, help="Tiles of that size a side: for large images.")] = 1,
    fit: Annotated[Fit, typer.Option(help="stretch to a square, or pad to one.")] = "stretch",
    intensity: Annotated[Intensity, typer.Option(help="How pixels become 0 to 1.")] = "auto",
    slice_axis: Annotated[int, typer.Option(min=0, max=2, help="Axis of a NIfTI volume whose slices are images.")] = 2,
    batch_size: Annotated[
        Any, typer.Option(parser=_size_or_auto, metavar="N", help="Images per step, of all processes; auto: what fits.")
    ] = 16,
    accumulate: Annotated[int, typer.Option(help="Parts a batch is computed in; less memory.")] = 1,
    iterations: Annotated[int, typer.Option(help="Steps.")] = 40_000,
    seed: Annotated[int, typer.Option(help="Fixes weights, order and noise.")] = 0,
    strength: Annotated[float, typer.Option(help="Strength of the synthetic anomalies.")] = 0.2,
    noise: Annotated[Noise, typer.Option(help="Noise of the synthetic anomalies.")] = "opensimplex",
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 1e-3,
    precision: PrecisionOption = "32",
    compile: Annotated[bool, typer.Option("--compile", help="Compile it; CUDA graphs on a GPU.")] = False,  # noqa: A002
    device: DeviceOption = "auto",
    cache: Annotated[Cache, typer.Option(help="Where decoded images are kept; auto: where they fit.")] = "auto",
    cache_features: Annotated[
        FeatureCache, typer.Option(help="Where the teacher's features of the clean images are kept, in bfloat16.")
    ] = "off",
    calibration_fraction: Annotated[float, typer.Option(help="Share of the normals that calibrates.")] = 0.1,
    log_every: Annotated[int, typer.Option(help="Iterations between two lines of metrics.")] = 10,
    checkpoint_every: Annotated[int, typer.Option(help="Iterations between two checkpoints.")] = 500,
    keep_checkpoints: Annotated[int, typer.Option(help="How many checkpoints stay.")] = 2,
    unlabelled: Annotated[
        Path | None,
        typer.Option("--unlabelled", metavar="FOLDER", help="Images, some abnormal: they choose a checkpoint."),
    ] = None,
) -> None:
    """Train on the normal images of DATA. The same command goes on where it was stopped."""
    if precision == "bf16":
        keep_freed_memory()
    from scrd_fast.commands import train as command

    settings = {
        name: value
        for name, value in locals().items()
        if name not in ("console", "data", "out", "command", "map_weights")
    }
    command(console, data, out, settings | {"map_weights": None if map_weights is None else map_weights == "on"})


@app.command()
@verb
def evaluate(
    console: Console,
    run: Run,
    data: Data,
    out: Out,
    batch_size: BatchSize = 16,
    precision: PrecisionOption = "32",
    device: DeviceOption = "auto",
    seed: Annotated[int, typer.Option(help="Of the bootstrap intervals.")] = 0,
) -> None:
    """Measure a model on the labelled test images of DATA: metrics.json, scores.csv and plots."""
    from scrd_fast.commands import evaluate as command

    command(console, run, data, out, batch_size, precision, device, seed)


@app.command()
@verb
def calibrate(
    console: Console,
    run: OwnRun,
    normals: Annotated[list[Path], typer.Argument(metavar="NORMALS...", help="Normal images, files or folders.")],
    unlabelled: Annotated[
        list[Path] | None,
        typer.Option("--unlabelled", help="Images of which some are abnormal: they choose the score, by AUCp."),
    ] = None,
    fpr: Annotated[float, typer.Option("--fpr", min=1e-6, max=0.5, help="Target rate of false alarms.")] = 0.05,
    site: Annotated[str | None, typer.Option("--site", help="Where the images are from, a name of your own.")] = None,
    batch_size: BatchSize = 16,
    precision: PrecisionOption = "32",
    device: DeviceOption = "auto",
) -> None:
    """Set threshold and percentiles from normal images of your own site."""
    from scrd_fast.commands import calibrate as command

    command(console, run, normals, unlabelled or [], fpr, site, batch_size, precision, device)


for function in (
    cli_screening.screen,
    cli_screening.report,
    cli_screening.drift,
    cli_deploying.export,
    cli_measuring.bench,
    cli_measuring.reproduce,
    cli_sharing.card,
    cli_sharing.push,
    cli_deploying.serve,
):
    app.command()(function)


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `scrd-fast` and `python -m scrd_fast`."""
    return run(app, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
