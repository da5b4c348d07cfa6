# SPDX-License-Identifier: Apache-2.0
"""From a file of experiments to its report.

DIR/runs/        a folder for each run, see `plan`
DIR/figures/     PNG files
DIR/report.md    the report, and as one file with its pictures report.html
DIR/config.yaml  the file of experiments as it was
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scrd_fast.bench.machine import machine, versions
from scrd_fast.device import pick_device
from scrd_fast.errors import MissingExtraError, ScrdFastError
from scrd_fast.files import write_atomically
from scrd_fast.reproduce.config import STUDIES, Experiments, load_experiments
from scrd_fast.reproduce.document import Report, Section, Table, write_report
from scrd_fast.reproduce.execute import NEEDS_ANOMALIB, execute, locked
from scrd_fast.reproduce.plan import Run, data_of, runs_of
from scrd_fast.reproduce.results import Result, Results
from scrd_fast.reproduce.sections import Context, section_of

__all__ = ["Outcome", "Planned", "plan", "reproduce"]


@dataclass(frozen=True)
class Outcome:
    """The reports, and why runs that were asked for, or the timing, have no result: what -> reason."""

    markdown: Path
    html: Path
    failed: dict[str, str]
    finished: int


@dataclass(frozen=True)
class Planned:
    """A run that is asked for, and whether it is finished already."""

    run: Run
    folder: Path
    finished: bool


def plan(config: Path, out: Path, *, only: Sequence[str] = (), skip_missing: bool = False) -> list[Planned]:
    """What `reproduce` would do. Hashes the data sets, writes nothing."""
    experiments = load_experiments(config)
    data, _ = data_of(config, experiments, skip_missing)
    runs = runs_of(experiments, data, _studies(experiments, only))
    return [Planned(run, run.folder(out), run.is_finished(out)) for run in runs]


def reproduce(
    config: Path,
    out: Path,
    *,
    only: Sequence[str] = (),
    jobs: int = 1,
    anomalib: str | None = None,
    skip_missing: bool = False,
    log: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Do the runs of the studies `only` (all without), `jobs` at a time, and write the report of the whole file.

    Finished runs are not done again, stopped ones go on, failed ones are tried anew. `anomalib`: a Python interpreter
    of an environment that has it. The report shows every study with the runs that are there by then.
    Raises `ScrdFastError` for a file, a data set or a study that cannot be used.
    """
    _need_packages()
    experiments = load_experiments(config)
    studies = _studies(experiments, only)
    data, missing = data_of(config, experiments, skip_missing)
    runs = runs_of(experiments, data, studies)
    with locked(out):
        write_atomically(out / "config.yaml", config.read_bytes())
        execute(runs, out, jobs, anomalib, log)
        results = Results(data, out)
        context = Context(config, experiments, results, _machine(experiments), studies)
        sections = [_setup(context), *(section_of(context, study) for study in experiments.asked()), _runs(context)]
        write_report(Report(experiments.title, _notices(context, missing), sections), out)
    found = {str(run): results.of(run) for run in runs}
    failed = {name: reason for name, reason in found.items() if isinstance(reason, str) and reason != NEEDS_ANOMALIB}
    failed |= context.failed
    finished = sum(isinstance(result, Result) for result in found.values())
    return Outcome(out / "report.md", out / "report.html", failed, finished)


def _need_packages() -> None:
    """Before hours of runs, whose report could then not be made."""
    for package in ("scipy", "scikit-learn", "matplotlib", "jinja2"):
        if importlib.util.find_spec(package.replace("scikit-learn", "sklearn")) is None:
            raise MissingExtraError(package, "model")


def _studies(experiments: Experiments, only: Sequence[str]) -> list[str]:
    asked = experiments.asked()
    for name in only:
        if name not in asked:
            raise ScrdFastError(f"--only {name}: no such study; the file asks for {', '.join(asked)}")
    return [name for name in STUDIES if name in (only or asked)]


def _machine(experiments: Experiments) -> dict[str, Any]:
    names = {experiments.method(name).settings.device for name in experiments.methods}
    devices = [pick_device(name) for name in sorted(names)]
    return machine(next((device for device in devices if device.type == "cuda"), torch.device("cpu")))


def _notices(context: Context, missing: dict[str, str]) -> list[str]:
    notices = [f"The data set {name} was left out: {reason}" for name, reason in missing.items()]
    for name in context.experiments.methods:
        if (method := context.experiments.method(name)).kind == "anomalib":
            reasons = {context.results.reason(method, data) for data in context.results.data} - {""}
            notices += [f"{name}: {reason}" for reason in sorted(reasons)]
    return [*notices, "Research use; not a medical device."]


def _setup(context: Context) -> Section:
    facts = context.machine
    found = {name: version for name, version in versions().items() if version}
    gpu = facts["gpu"]["name"] if facts["gpu"] else "no GPU used"
    text = [
        f"Machine: {facts['cpu']}, {facts['cores']} cores, {gpu}, {facts['platform']}.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in found.items()) + ".",
    ]
    data = Table(
        "Data sets",
        ["data set", "folder", "split", "training normals", "test normal", "test abnormal", "SHA-256"],
        [
            [d.name, str(d.root), d.split or "not named", *map(str, (d.train, d.normal, d.abnormal)), d.sha256[:12]]
            for d in context.results.data
        ],
    )
    methods = Table(
        "Methods", ["method", "what it is", "settings"], [_method_row(context, n) for n in context.experiments.methods]
    )
    return Section("What was run", text=text, tables=[data, methods])


def _method_row(context: Context, name: str) -> list[str]:
    method = context.experiments.method(name)
    what = {"trained": "trained", "baseline": f"baseline {method.model}", "anomalib": f"anomalib {method.model}"}
    used = method.identity(0)["settings"]
    shown = context.experiments.train | context.experiments.methods[name] | {"score": used["score"]}
    settings = [f"{key} {used[key]}" for key in used if key in shown and key != "seed"]
    return [name, what[method.kind], ", ".join(settings)]


def _runs(context: Context) -> Section:
    """Every run that any study asks for, with what it took."""
    rows = []
    for run in runs_of(context.experiments, context.results.data, context.experiments.asked()):
        result = context.results.of(run)
        cells = [result, "", "", ""]
        if isinstance(result, Result):
            memory = result.record.get("peak_memory_bytes")
            auroc, seconds = result.metrics["auroc"]["value"], result.record["seconds"]
            version = result.record["versions"]["scrd_fast"]
            cells = [f"{auroc:.4f}", f"{seconds:.0f}", f"{memory / 1e6:.0f}" if memory else "", version]
        rows.append([run.folder(context.out).name, run.data.name, run.method.name, str(run.seed), *map(str, cells)])
    header = ["run", "data set", "method", "seed", "AUC", "seconds", "peak memory (MB)", "version"]
    return Section("Runs", tables=[Table("Every run, and what it took", header, rows)])
