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
    Engine,
    FeatureCache,
    Fit,
    Intensity,
    MapFormat,
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
LabelsOption = Annotated[
    Path | None,
    typer.Option("--labels", metavar="CSV", help="Columns path and label (0 or 1): an ROC curve on the page."),
]
PrecisionOption = Annotated[Precision, typer.Option("--precision", help="What the network computes in: 32 or bf16.")]


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
    run: Run,
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
@verb
def reproduce(
    console: Console,
    experiments: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of data sets, methods and studies.")],
    out: Out,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Study to run, repeatable; default: all.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, which share the cores.")] = 1,
    anomalib: Annotated[
        str | None, typer.Option(metavar="PYTHON", help="Of an environment with anomalib, for its methods.")
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out data sets that are not there.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs; do none, write nothing.")] = False,
) -> None:
    """Do all runs of CONFIG, and report them in tables and figures. The same command goes on where it was stopped."""
    from scrd_fast.reproduce.command import reproduce as command

    raise typer.Exit(command(console, experiments, out, only or [], jobs, anomalib, skip_missing, dry_run))


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `scrd-fast` and `python -m scrd_fast`."""
    return run(app, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
