# SPDX-License-Identifier: Apache-2.0
"""Exported files against the screener's predictor: `python benchmarks/bench_export.py --out FILE.json`.

A model is trained (or `--run` names one) on a real data set of the folder SCRD_FAST_DATA. All contenders see the same
test images, as the model's input: AUROC of all of them, and images a second in turns whose order changes. The files
resize once more, by a matrix that changes nothing; the predictor does not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scrd_fast.bench.machine import commit, installed, machine, state, versions
from scrd_fast.bench.timing import cores
from scrd_fast.calibration import Calibration
from scrd_fast.choices import ExportFormat, ExportPrecision, Precision
from scrd_fast.cli import main as command
from scrd_fast.data.datasets import Item, open_dataset
from scrd_fast.data.images import ImageStore
from scrd_fast.export.formats import SUFFIX, open_file
from scrd_fast.files import write_atomically
from scrd_fast.metrics import image_metrics
from scrd_fast.model.inference import Predictor
from scrd_fast.model.scrd import SCRD
from scrd_fast.screening.screener import load

PREDICTOR = "predictor"  # float32: what the others are compared with
FILES: list[tuple[ExportFormat, ExportPrecision]] = [
    ("torch", "32"), ("aoti", "32"), ("onnx", "32"), ("torch", "bf16"), ("aoti", "bf16"), ("onnx", "int8"),
]  # fmt: skip
PAUSE = 0.2  # seconds, in which the thread pool of the contender before comes to rest

Score = Callable[[Tensor], Tensor]  # images [N, 3, P, P] to scores [N]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cpu")
    facts: dict[str, Any] = {
        "schema": "scrd_fast.export/1",
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "setup": {name: str(x) if isinstance(x, Path) else x for name, x in vars(arguments).items()},
        "machine": machine(device),
        "versions": versions() | {name: installed(name) for name in ("onnx", "onnxscript", "onnxruntime", "timm")},
        **commit(),
        "before": state(device),
    }
    with tempfile.TemporaryDirectory(prefix="scrd_fast_bench_") as folder:
        facts |= _measured(arguments, Path(folder))
    facts["after"] = state(device)
    print(f"{facts['machine'].get('cpu')}, {arguments.threads} threads, load {facts['before']['load_1min']}")
    print(f"{facts['teacher']}, {facts['size']} px, {facts['test']} test images of {arguments.data}")
    for row in facts["rows"]:
        print(
            f"{row['contender']:16s} {row['images_per_second']:8.1f} images/s, {row['times_predictor']:5.2f} x; "
            f"AUROC {row['auroc']:.4f} ({row['auroc_change']:+.4f}), score differs by {row['score_difference']:.2g}, "
            f"{row['decisions_differ']} decisions; {row.get('bytes', 0) / 1e6:.0f} MB"
        )
    if arguments.out is not None:
        write_atomically(arguments.out, (json.dumps(facts, indent=1) + "\n").encode())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="brain_tumor_mri", help="a folder in SCRD_FAST_DATA")
    parser.add_argument("--run", type=Path, help="a trained run; default: one is trained")
    parser.add_argument("--teacher", default="tf_efficientnet_lite0")
    parser.add_argument("--teacher-weights", default="package")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--normals", type=int, default=128, help="training images that fix the ranges of int8")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--batches", type=int, default=4, help="in a turn")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=len(cores()))
    parser.add_argument("--only", nargs="+", default=[""], help="contenders whose names have one of these texts")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _measured(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    data = Path(os.environ["SCRD_FAST_DATA"]).resolve() / arguments.data
    run = arguments.run or _trained(arguments, data, folder / "run")
    model, calibration = load(run)
    assert calibration is not None  # for the type checker: `export` says so
    items = open_dataset(data)
    preprocessing = model.config.preprocessing
    names = folder / "normals.txt"
    names.write_text("".join(f"{item.path.resolve()}\n" for item in items.train[: arguments.normals]))
    contenders, rows = _contenders(arguments, run, names, folder, model)
    store = ImageStore(items.test, preprocessing, cache="off")
    batches = list(store.batches(arguments.batch_size))
    scores = {name: torch.cat([score(batch) for batch in batches]).double() for name, score in contenders.items()}
    rates = _rates(contenders, batches[: arguments.batches], arguments)
    for name, row in rows.items():
        row |= _quality(scores[name], scores[PREDICTOR], items.test, calibration)
        row |= {"images_per_second": statistics.median(rates[name]), "turns": rates[name]}
        row["times_predictor"] = row["images_per_second"] / statistics.median(rates[PREDICTOR])
    about = {"teacher": model.config.teacher.name, "size": preprocessing.size, "score": model.config.score}
    return about | {"model_sha256": model.fingerprint(), "test": len(items.test), "rows": list(rows.values())}


def _trained(arguments: argparse.Namespace, data: Path, out: Path) -> Path:
    names = ("teacher", "teacher_weights", "size", "iterations", "seed")
    flags = [text for n in names for text in (f"--{n.replace('_', '-')}", str(getattr(arguments, n)))]
    _run("train", str(data), "--out", str(out), "--device", "cpu", *flags)
    return out


def _run(*words: str) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        code = command([*words, "-q"])
    if code:
        sys.exit(code)


def _contenders(
    arguments: argparse.Namespace, run: Path, normals: Path, folder: Path, model: SCRD
) -> tuple[dict[str, Score], dict[str, dict[str, Any]]]:
    """What gives scores, and the beginning of its row; each file has passed the check of `export`."""

    def wanted(name: str) -> bool:
        return any(text in name for text in arguments.only)

    found: dict[str, Score] = {PREDICTOR: _predictor(model, "32")}
    if wanted(f"{PREDICTOR} bf16"):
        found[f"{PREDICTOR} bf16"] = _predictor(model, "bf16")
    rows: dict[str, dict[str, Any]] = {name: {"contender": name} for name in found}
    for kind, precision in FILES:
        name = f"{kind} {precision}"
        if not wanted(name):
            continue
        out = folder / f"{kind}-{precision}{SUFFIX[kind]}"
        more = ["--calibration-images", str(normals)] if precision == "int8" else []
        begun = time.perf_counter()
        print(f"writing {name}", file=sys.stderr)
        _run("export", str(run), "--format", kind, "--precision", precision, "--out", str(out), *more)
        rows[name] = {"contender": name, "seconds_to_export": round(time.perf_counter() - begun, 1)}
        rows[name]["bytes"] = out.stat().st_size
        found[name] = _file(kind, out)
    return found, rows


def _predictor(model: SCRD, precision: Precision) -> Score:
    predict = Predictor(model, torch.device("cpu"), precision=precision)
    return lambda images: predict(images).scores[model.config.score].float()


def _file(kind: ExportFormat, path: Path) -> Score:
    run = open_file(kind, path)
    return lambda images: run(images)["score"]


def _rates(
    contenders: dict[str, Score], batches: list[Tensor], arguments: argparse.Namespace
) -> dict[str, list[float]]:
    """Images a second of each turn; in every one all contenders have theirs, in another order."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    order, generator = list(contenders), random.Random(arguments.seed)
    images = sum(len(batch) for batch in batches)
    for _ in range(arguments.turns):
        generator.shuffle(order)
        for name in order:
            time.sleep(PAUSE)
            contenders[name](batches[0])  # warm
            begun = time.perf_counter()
            for batch in batches:
                contenders[name](batch)
            rates[name].append(images / (time.perf_counter() - begun))
    return rates


def _quality(scores: Tensor, expected: Tensor, items: list[Item], calibration: Calibration) -> dict[str, Any]:
    labels = [item.label for item in items]
    value, before = (image_metrics(labels, x.numpy())["auroc"] for x in (scores, expected))
    flips = calibration.decide(scores.numpy()) != calibration.decide(expected.numpy())
    return {
        "auroc": value,
        "auroc_change": value - before,
        "score_difference": float((scores - expected).abs().max()),
        "score_shift": float((scores - expected).mean()),
        "decisions_differ": int(flips.sum()),
    }


if __name__ == "__main__":
    main()
