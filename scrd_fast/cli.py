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

from scrd_fast.choices import (
    Backend,
    Cache,
    Device,
    FeatureCache,
    Fit,
    Intensity,
    Noise,
    Objective,
    Precision,
    Score,
    Switch,
)
from scrd_fast.console import Console
from scrd_fast.memory import keep_freed_memory
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


Out = Annotated[Path, typer.Option("--out", help="Folder for the results: new, empty, or of the same run.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `train` wrote.")]
Data = Annotated[Path, typer.Argument(metavar="DATA", help="Data set: data.json, folder tree, or ISIC table.")]
DeviceOption = Annotated[Device, typer.Option("--device", help="Where to compute.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Images computed at once.")]
PrecisionOption = Annotated[Precision, typer.Option("--precision", help="32 or bf16 (autocast).")]


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


@app.command()
@verb
def train(
    console: Console,
    data: Data,
    out: Out,
    teacher: Annotated[str, typer.Option(help="timm name of a CNN.")] = "wide_resnet50_2",
    teacher_weights: Annotated[str, typer.Option(help="pretrained, random, package, or a file.")] = "pretrained",
    objective: Annotated[Objective, typer.Option(help="Training objective.")] = "scrd",
    score: Annotated[Score, typer.Option(help="Image score, stored with the model.")] = "top5",
    map_weights: Annotated[
        Switch | None,
        typer.Option(help="Weight the maps by scale; default: where the objective trains them."),
    ] = None,
    size: Annotated[int, typer.Option(help="Image size in pixels, a multiple of 32.")] = 256,
    fit: Annotated[Fit, typer.Option(help="stretch to a square, or pad to one.")] = "stretch",
    intensity: Annotated[Intensity, typer.Option(help="How pixels become 0 to 1.")] = "auto",
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
    run: Run,
    normals: Annotated[list[Path], typer.Argument(metavar="NORMALS...", help="Normal images, files or folders.")],
    fpr: Annotated[float, typer.Option("--fpr", min=1e-6, max=0.5, help="Target rate of false alarms.")] = 0.05,
    batch_size: BatchSize = 16,
    precision: PrecisionOption = "32",
    device: DeviceOption = "auto",
) -> None:
    """Set threshold and percentiles from normal images of your own site."""
    from scrd_fast.commands import calibrate as command

    command(console, run, normals, fpr, batch_size, precision, device)


@app.command()
@verb
def screen(
    console: Console,
    run: Run,
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT...", help="Images: files or folders.")],
    out: Out,
    batch_size: BatchSize = 16,
    precision: PrecisionOption = "32",
    device: DeviceOption = "auto",
    shard_size: Annotated[int, typer.Option(min=1, help="Inputs that are committed together.")] = 1000,
    overlays: Annotated[int, typer.Option(min=0, help="Overlays of the most suspicious images.")] = 20,
    max_failures: Annotated[float, typer.Option(min=0, max=1, help="Share of failed files that is too much.")] = 0.05,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
) -> None:
    """Score every image; a bad file becomes a row with its error. The same command goes on where it was stopped."""
    from scrd_fast.screening.run import ScreenSettings, dry, screen

    settings = ScreenSettings(
        batch_size=batch_size,
        precision=precision,
        device=device,
        shard_size=shard_size,
        overlays=overlays,
        max_failures=max_failures,
    )
    if dry_run:
        dry(console, run, inputs, settings)
    else:
        raise typer.Exit(screen(console, run, inputs, out, settings))


@app.command()
@verb
def bench(
    console: Console,
    op: Annotated[list[str] | None, typer.Option("--op", help="Operator, repeatable; default: all.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few cases, short turns, no compilations.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file for the result.")] = None,
    device: DeviceOption = "auto",
    seed: Annotated[int, typer.Option(help="Of the inputs.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores.")] = None,
    time_limit: Annotated[float | None, typer.Option(min=0, help="Seconds after which no further case begins.")] = None,
    anomalib: Annotated[
        str | None, typer.Option(metavar="PYTHON", help="Of an environment with anomalib, to measure that too.")
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="CSV file, made from the result.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Picture, made from the result.")] = None,
    results: Annotated[
        Path | None, typer.Option("--results", help="Show this earlier result instead of measuring.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option("--compare", help="Two results; exit 1 if the second is slower.")
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="Share of a median that --compare lets pass.")] = 0.1,
) -> None:
    """Measure the operators against the ways there were before. Exit code 1: a row failed, or --compare found one."""
    from scrd_fast.bench import results as files
    from scrd_fast.bench import run as module

    if compare is not None:
        raise typer.Exit(int(module.show_comparison(console, *compare, tolerance)))
    if results is not None:
        module.show(console, files.load(results), None, csv, plot)
        return
    pythons = {"anomalib": anomalib} if anomalib else {}
    failed = module.bench(console, op or [], quick, out, device, seed, threads, csv, plot, time_limit, pythons)
    raise typer.Exit(int(failed))


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `scrd-fast` and `python -m scrd_fast`."""
    return run(app, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
