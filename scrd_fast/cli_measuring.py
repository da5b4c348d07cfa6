# SPDX-License-Identifier: Apache-2.0
"""The verbs `bench` and `reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scrd_fast.console import Console
from scrd_fast.options import DeviceOption, Out
from scrd_fast.verbs import verb

__all__ = ["bench", "reproduce"]


@verb
def bench(
    console: Console,
    op: Annotated[list[str] | None, typer.Option("--op", help="Operator, repeatable; default: all.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few cases of each operator, no torch.compile; within two minutes.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file for the result.")] = None,
    device: DeviceOption = "auto",
    seed: Annotated[int, typer.Option(help="Of the inputs.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores.")] = None,
    time_limit: Annotated[
        float | None, typer.Option(min=0, help="Seconds after which no further case begins; default of --quick: 75.")
    ] = None,
    anomalib: Annotated[
        str | None, typer.Option(metavar="PYTHON", help="Of an environment with anomalib, to measure that too.")
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="CSV file, made from the result.")] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Picture, of each operator where there are several, made from the result."),
    ] = None,
    results: Annotated[
        Path | None, typer.Option("--results", help="Show this earlier result instead of measuring.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option("--compare", help="Two results; exit 1 if the second is slower.")
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="Share of a median that --compare lets pass.")] = 0.1,
) -> None:
    """Measure the operators against plain PyTorch, torch.compile and others' code.

    Exit code 1: a result of ours was wrong, or --compare found something worse.
    """
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
