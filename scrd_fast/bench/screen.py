# SPDX-License-Identifier: Apache-2.0
"""Images a second from files to results, and memory: our command, its ceiling, and the ways there are beside it.

`python -m scrd_fast.bench.screen CONTENDER JSON` is the process of one of ours or the authors'; `measure` starts them
all in turns. anomalib's lie in `screen_anomalib`.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scrd_fast.bench.authors_loop import evaluate, map_of
from scrd_fast.bench.processes import Observed, environment, observe
from scrd_fast.bench.screen_anomalib import RIVALS
from scrd_fast.bench.screen_made import Setup, make_run, screen_command
from scrd_fast.choices import Precision
from scrd_fast.data.reading import normalise, read_image
from scrd_fast.device import pick_device
from scrd_fast.model.scrd import SCRD
from scrd_fast.screening.screener import Screener

__all__ = ["CONTENDERS", "TOLERANCE", "measure", "run"]

AUTHORS = "authors' loop, float32"
MODEL: dict[str, Precision] = {"model only, float32": "32", "model only, bfloat16": "bf16"}
SCREEN: dict[str, Precision] = {"scrd_fast screen, float32": "32", "scrd_fast screen, bfloat16": "bf16"}
CONTENDERS = (AUTHORS, *MODEL, *SCREEN, *RIVALS)
TOLERANCE = 1e-4  # of the authors' map against ours, on the same pixels; maps of an untrained student are about 3
Found = dict[str, Any]


def measure(
    setup: Setup, data: Path, contenders: Sequence[str], anomalib: Path | None, log: Callable[[str], None]
) -> list[Found]:
    """A row for each contender; those of anomalib need the interpreter of an environment that has it."""
    found: dict[str, list[Found]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory(prefix="scrd_fast_bench_") as folder:
        run_folder = make_run(Path(folder) / "run", setup)
        agreement = _agreement(run_folder, sorted(data.iterdir())[:2]) if AUTHORS in contenders else {}
        for turn in range(setup.rounds):
            for name in contenders:
                log(f"round {turn + 1} of {setup.rounds}: {name}")
                out = Path(folder) / f"{turn}"
                found[name].append(_process(name, setup, data, run_folder, out, anomalib))
    rows = [_row(name, results) for name, results in found.items()]
    by_name = {row["contender"]: row for row in rows}
    if AUTHORS in by_name:
        by_name[AUTHORS] |= agreement
    ceilings = {screen: by_name.get(model) for screen, model in zip(SCREEN, MODEL, strict=True)}
    for row in rows:
        first, ceiling = by_name.get(AUTHORS), ceilings.get(row["contender"])
        row["times_faster"] = row["images_per_second"] / first["images_per_second"] if first else None
        row["share_of_model_only"] = row["images_per_second"] / ceiling["images_per_second"] if ceiling else None
    return rows


def _process(name: str, setup: Setup, data: Path, run_folder: Path, out: Path, anomalib: Path | None) -> Found:
    given = json.dumps(dataclasses.asdict(setup) | {"data": str(data), "run": str(run_folder)})
    if name in SCREEN:
        out = out / name
        command = screen_command(run_folder, data, out, setup, SCREEN[name])
    elif name in RIVALS:
        if anomalib is None:
            raise ValueError(f"anomalib must be a Python interpreter for the contender {name!r}, got None")
        command = [str(anomalib), "-m", "scrd_fast.bench.screen_anomalib", name, given]
    else:
        command = [sys.executable, "-m", "scrd_fast.bench.screen", name, given]
    done = observe(command, environment(setup.threads))
    if done.code != 0:
        raise RuntimeError(f"{name}: exit code {done.code}: {done.stderr.strip()[-2000:]}")
    said = _summary(out) if name in SCREEN else json.loads(done.stdout.splitlines()[-1])
    return said | _seen(done, said)


def _seen(done: Observed, said: Found) -> Found:
    """Of our command the whole process counts; of the others what is timed, which comes last, and the start."""
    apart = said.get("apart_seconds", 0.0)
    since = done.seconds - said["seconds"] - 1.0 if apart else 0.0
    return {
        "process_seconds": done.seconds,
        "images_per_second_whole": said["images"] / (done.seconds - apart),
        # Where the timed part falls between two samples the whole process counts.
        "peak_bytes": max((size for moment, size in done.series if moment >= since), default=0) or done.peak_bytes,
        "largest_process_bytes": done.largest_bytes,
    }


def _summary(out: Path) -> Found:
    summary = json.loads((out / "summary.json").read_text())
    if summary["status"] != {"ok": summary["inputs"]}:
        raise RuntimeError(f"not all images were screened: {summary['status']}, {summary['errors']}")
    names = ("images_per_second", "seconds", "seconds_by_stage", "bottleneck")
    return {"images": summary["rows"], **{name: summary[name] for name in names}}


def _row(name: str, found: list[Found]) -> Found:
    names = ("images_per_second", "images_per_second_whole", "process_seconds", "peak_bytes", "largest_process_bytes")
    medians = {key: statistics.median(result[key] for result in found) for key in names}
    return found[-1] | medians | {"contender": name, "rates": [result["images_per_second"] for result in found]}


def run(contender: str, setup: Setup, data: Path, run_folder: Path) -> Found:
    """In this process. `seconds` begins with the model in memory; `apart_seconds` went into one warming call."""
    torch.set_num_threads(setup.threads)
    paths = sorted(data.iterdir())
    if contender == AUTHORS:
        compute = _authors(setup, paths, run_folder)
    else:
        compute = _model_only(MODEL[contender], setup, paths, run_folder)
    warm = _timed(lambda: compute(True))
    seconds = _timed(lambda: compute(False))
    return {"images": len(paths), "seconds": seconds, "images_per_second": len(paths) / seconds, "apart_seconds": warm}


def _timed(compute: Callable[[], None]) -> float:
    start = time.perf_counter()
    compute()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _model_only(precision: Precision, setup: Setup, paths: Sequence[Path], run_folder: Path) -> Callable[[bool], None]:
    screener = Screener.from_pretrained(
        run_folder, device=setup.device, precision=precision, batch_size=setup.batch_size
    )
    preprocessing = screener.model.config.preprocessing
    images = torch.stack([read_image(path, preprocessing) for path in paths])
    batches = [batch.to(screener.device) for batch in torch.split(images, setup.batch_size)]  # type: ignore[no-untyped-call]

    def compute(warming: bool) -> None:
        for batch in batches[:1] if warming else batches:
            screener.predictor(batch)

    return compute


def _authors(setup: Setup, paths: Sequence[Path], run_folder: Path) -> Callable[[bool], None]:
    model = SCRD.from_pretrained(run_folder / "model", device=pick_device(setup.device))

    def compute(warming: bool) -> None:
        for _ in evaluate(model, paths[:1] if warming else paths, setup.size):
            pass

    return compute


def _agreement(run_folder: Path, paths: Sequence[Path]) -> Found:
    """The same pixels give the same maps; from the files, through either's own reading, about the same scores."""
    model = SCRD.from_pretrained(run_folder / "model")
    preprocessing = model.config.preprocessing
    images = torch.stack([read_image(path, preprocessing) for path in paths])
    ours = model.predict(images)
    theirs = np.stack([map_of(model, image[None]) for image in normalise(images, preprocessing)])
    difference = float(np.abs(theirs - ours.map[:, 0].numpy()).max())
    if not difference <= TOLERANCE:
        raise RuntimeError(f"the authors' maps differ from ours by {difference:g}, more than {TOLERANCE:g}")
    scores = np.array([score for _, score in evaluate(model, paths, preprocessing.size)])
    found = float(np.abs(scores - ours.scores["max"].numpy()).max())
    return {"map_difference": difference, "score_difference": found}


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    places = {name: Path(given.pop(name)) for name in ("data", "run")}
    print(json.dumps(run(sys.argv[1], Setup(**given), places["data"], places["run"])))
