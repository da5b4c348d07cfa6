# SPDX-License-Identifier: Apache-2.0
"""One section of the report for each study."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from scrd_fast.model.scrd import read_config
from scrd_fast.reproduce import tables
from scrd_fast.reproduce.config import Experiments, Method
from scrd_fast.reproduce.document import Figure, Section, Table
from scrd_fast.reproduce.execute import time_methods
from scrd_fast.reproduce.figures import Cost, draw_costs, draw_distributions, draw_roc_curves, draw_strength
from scrd_fast.reproduce.gallery import draw_gallery_of
from scrd_fast.reproduce.lesions import weights_by_diameter
from scrd_fast.reproduce.plan import Run
from scrd_fast.reproduce.results import Result, Results

__all__ = ["Context", "section_of"]


@dataclass(frozen=True)
class Context:
    """What sections are made from. `asked`: the studies that this call was to do; others are shown as they are."""

    config: Path
    experiments: Experiments
    results: Results
    machine: dict[str, Any]
    asked: Sequence[str]
    failed: dict[str, str] = field(default_factory=dict)  # what failed while the report was made

    @property
    def out(self) -> Path:
        return self.results.out

    def methods(self, study: str) -> list[Method]:
        return self.experiments.methods_of(study)

    def complete(self, study: str) -> list[Method]:
        """The methods whose runs are all there."""
        return [method for method in self.methods(study) if self.results.complete(method)]


def section_of(context: Context, study: str) -> Section:
    """The section of one study, whose figures are drawn into the folder `figures`."""
    command = ["scrd-fast", "reproduce", str(context.config), "--out", str(context.out), "--only", study]
    section = Section(_TITLES[study], shlex.join(command), _cost(context, study))
    missing = [m.name for m in context.methods(study) if not context.results.complete(m)]
    if missing:
        section.text.append(f"Not there, or not for every data set and seed: {', '.join(missing)}.")
    if context.complete(study) or study == "main":
        try:
            _SECTIONS[study](context, section)
        except Exception as error:  # whatever it is, the other parts of the report are worth having
            reason = " ".join((str(error) or type(error).__name__).split())
            section.text.append(f"This part could not be made: {reason}")
            context.failed[study] = reason
    return section


def _cost(context: Context, study: str) -> str:
    found = _all_results(context, study)
    seconds = sum(result.record["seconds"] for result in found)
    counts = sorted({len(method.seeds) for method in context.methods(study)})
    seeds = "1 seed" if counts == [1] else f"{' or '.join(map(str, counts))} seeds"
    return f"{seeds}, {len(found)} finished runs, {seconds:.0f} s in all"


def _all_results(context: Context, study: str) -> list[Result]:
    of = context.results.of
    return [
        result
        for method in context.methods(study)
        for data in context.results.data
        for seed in method.seeds
        if isinstance(result := of(Run(data, method, seed)), Result)
    ]


def _figure(context: Context, section: Section, name: str, caption: str, draw: Callable[[Path], None]) -> None:
    path = context.out / "figures" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    draw(path)
    section.figures.append(Figure(caption, f"figures/{name}.png"))


def _main(context: Context, section: Section) -> None:
    results, methods = context.results, context.methods("main")
    section.text.append(
        "F1 and ACC are at an oracle threshold, the one that maximises F1 on the labels of these very test images, as "
        "published tables have them; no such threshold is known in use."
    )
    section.text.append(_interval_text(context.experiments.seeds, methods))
    section.tables += tables.scores(results, methods)
    section.tables.append(tables.readings(results, methods))
    section.tables.append(tables.thresholds(results, methods))
    main = context.experiments.studies.main
    if main is not None and main.compare is not None:
        chosen = context.experiments.method(main.compare)
        others = [method for method in methods if method.name != main.compare]
        section.text.append(
            "The difference between two methods is the mean over data sets of the mean AUC over seeds. Its interval is "
            "a paired bootstrap: 2,000 times the test images of each data set are drawn anew, within each class, the "
            "same for both methods and all seeds."
        )
        section.tables.append(tables.comparison(results, chosen, others))


def _interval_text(seeds: Sequence[int], methods: Sequence[Method]) -> str:
    bootstrap = "the bootstrap's over test images (1,000 resamples, stratified by class)"
    if len(seeds) == 1:
        return f"There is one seed: an interval is {bootstrap}, and the mean over data sets has none."
    fewer = ", ".join(f"{m.name} has {len(m.seeds)}" for m in methods if len(m.seeds) < len(seeds))
    return (
        f"A number is the mean over {len(seeds)} seeds{f' ({fewer})' if fewer else ''}, its interval Student's t over "
        f"them (cut at 0 and 1). Where a single seed, or all seeds alike, give one number the interval is {bootstrap}, "
        "and the mean over data sets has none."
    )


def _selection(context: Context, section: Section) -> None:
    try:
        table, text = tables.selection(context.results, context.complete("selection"))
    except ValueError as error:  # too few test images
        section.text.append(f"Not possible: {error}.")
        return
    section.text += [
        "Each candidate is an objective and the reading of its maps. The test images are cut into five folds, with "
        "equal shares of both classes; the candidate with the highest mean AUC on four folds is chosen and measured on "
        "the fifth, which had no part in the choice. Folds are of images: several of one patient or volume may lie on "
        "both sides.",
        text,
    ]
    section.tables.append(table)


def _ablation(context: Context, section: Section) -> None:
    section.tables.append(tables.ablation(context.results, context.methods("ablation")))


def _strength(context: Context, section: Section) -> None:
    methods, results = context.complete("strength"), context.results
    values = [method.settings.strength for method in methods]
    curves = {d.name: [results.estimate(m, d, lambda x: dict(x["auroc"])) for m in methods] for d in results.data}
    caption = "AUC over the strength of the synthetic anomalies that are trained with; bars are 95 % intervals."
    _figure(context, section, "strength", caption, lambda path: draw_strength(path, values, curves))
    rows = [[f"{value:g}", *(tables.number(curves[d.name][i]) for d in results.data)] for i, value in enumerate(values)]
    header = ["strength", *(data.name for data in results.data)]
    section.tables.append(Table("AUC over strength", header, rows))


def _distributions(context: Context, section: Section) -> None:
    results = context.results
    rows = {}
    for method in context.complete("distributions"):
        first = {data.name: results.finished(method, data)[0] for data in results.data}
        rows[method.name] = {name: (result.labels, result.stored) for name, result in first.items()}
    seed = context.experiments.seeds[0]
    caption = f"Scores of the test images of both classes, seed {seed}. Each panel has a scale of its own."
    _figure(context, section, "distributions", caption, lambda path: draw_distributions(path, rows))


def _timing(context: Context, section: Section) -> None:
    asked, results = context.experiments.studies.timing, context.results
    assert asked is not None
    if "timing" not in context.asked:
        section.text.append("Not measured by this call; the command above does.")
        return
    methods, data = context.complete("timing"), results.data[0]
    runs = {m.name: Run(data, m, m.seeds[0]) for m in methods if m.kind != "anomalib"}
    found = time_methods(runs, context.out, asked.rounds, context.machine) if runs else {}
    if found.get("status") == "failed":
        context.failed["timing"] = found["reason"]
        section.text.append(f"Timing failed: {found['reason']}")
        return
    costs = [_cost_of(context, method, found.get("seconds_per_image", {}).get(method.name)) for method in methods]
    batch = methods[0].settings.batch_size
    section.text.append(
        f"Time is that of the model alone, without reading files: the median of {asked.rounds} calls with {batch} "
        f"images of {data.name}, all methods in turns in one process that ran alone, on {context.machine['cpu']} with "
        f"{found.get('threads', '?')} threads{_gpu(context)}. Methods of anomalib were timed in their own run, with "
        "the reading of the files. Memory is the peak of the process (on a GPU, of its tensors) while test images were "
        "read and scored; of methods of anomalib, of their whole run."
    )
    rows = [[c.name, f"{c.milliseconds:.2f}", f"{c.memory / 1e6:.0f}", f"{c.auroc:.3f}"] for c in costs]
    header = ["method", "ms an image", "peak memory (MB)", "AUC, mean over data sets"]
    section.tables.append(Table("Time and memory", header, rows))
    caption = "AUC over the time an image takes; a circle's radius grows with peak memory."
    _figure(context, section, "timing", caption, lambda path: draw_costs(path, costs))


def _gpu(context: Context) -> str:
    gpu = context.machine.get("gpu")
    return f" and {gpu['name']}" if gpu else ""


def _cost_of(context: Context, method: Method, seconds: list[float] | None) -> Cost:
    record = context.results.finished(method, context.results.data[0])[0].record
    auroc = context.results.mean(method, lambda metrics: dict(metrics["auroc"])).value
    memory = record.get("predict_peak_memory_bytes") or record.get("peak_memory_bytes") or 0
    each = statistics.median(seconds) if seconds else record["predict_seconds_per_image"]
    return Cost(method.name, 1e3 * each, auroc, memory)


def _lesions(context: Context, section: Section) -> None:
    results = context.results
    (method,) = context.methods("lesions")
    section.text.append(
        "Discs of known diameter, brighter or darker than the image beneath by 0.35 of the range, are put into the "
        "normal images that were held out; the weights of the scales (strides 4, 8 and 16) are means over them, of the "
        f"first seed. Equal weights are 0.33. Diameters are in pixels of {method.settings.size}."
    )
    rows = []
    for data in results.data:
        result = results.finished(method, data)[0]
        folder = result.folder / "train" / "model"
        if not (folder / "config.json").is_file():
            section.text.append(f"The model of {result.run} was not kept; the command above makes it again.")
        elif read_config(folder).reference is None:
            section.text.append(f"{data.name}: too few images were held out to compare with.")
        else:
            found = weights_by_diameter(result)
            rows += [[data.name, f"{d:g}", *(f"{w:.2f}" for w in weights)] for d, weights in found.items()]
    section.tables.append(Table("Weights", ["data set", "diameter", "fine", "middle", "coarse"], rows))


def _roc(context: Context, section: Section) -> None:
    results = context.results
    panels: dict[str, Any] = {}
    for data in results.data:
        found = {method.name: results.finished(method, data) for method in context.complete("roc")}
        panels[data.name] = {name: (one[0].labels, [r.stored for r in one]) for name, one in found.items()}
    caption = "ROC curves, the mean over seeds at each false-positive rate, with the AUC."
    _figure(context, section, "roc", caption, lambda path: draw_roc_curves(path, panels))


def _gallery(context: Context, section: Section) -> None:
    asked, results = context.experiments.studies.gallery, context.results
    assert asked is not None
    (method,) = context.methods("gallery")
    for data in results.data:
        result = results.finished(method, data)[0]
        if not (result.folder / "train" / "model" / "config.json").is_file():
            section.text.append(f"The model of {result.run} was not kept; the command above makes it again.")
            continue
        caption = (
            f"{data.name}: the first test images of each class, with a synthetic anomaly of strength "
            f"{method.settings.strength:g}, the maps of both on one scale, and the weights that the scales have in "
            f"{method.name}, seed {method.seeds[0]}."
        )
        draw = partial(draw_gallery_of, result, asked.images)
        _figure(context, section, f"gallery-{data.name}", caption, draw)
    if not results.finished(method, results.data[0])[0].map_weights:
        section.text.append(
            f"The weights say which scale is the least usual of a normal image; {method.name} does not weight its maps."
        )


_TITLES = {
    "main": "Methods on all data sets",
    "selection": "Choosing objective and reading",
    "ablation": "What each part brings",
    "strength": "Strength of the synthetic anomalies",
    "distributions": "Score distributions",
    "timing": "Accuracy, time and memory",
    "lesions": "Weights of the scales by the size of a lesion",
    "roc": "ROC curves",
    "gallery": "Images, synthetic anomalies, maps and weights",
}
_SECTIONS: dict[str, Callable[[Context, Section], None]] = {
    "main": _main,
    "selection": _selection,
    "ablation": _ablation,
    "strength": _strength,
    "distributions": _distributions,
    "timing": _timing,
    "lesions": _lesions,
    "roc": _roc,
    "gallery": _gallery,
}
