# SPDX-License-Identifier: Apache-2.0
"""The process of one run: `python -m scrd_fast.reproduce.worker FOLDER [PYTHON]`.

FOLDER holds a `run.json` that says what to do; the outcome is written there, whole or not at all. PYTHON is that of an
environment with anomalib. The process ends with the one that started it, whose end of standard input then closes.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from scrd_fast.budget import peak_bytes
from scrd_fast.data.datasets import DataSet, open_dataset
from scrd_fast.data.images import ImageStore
from scrd_fast.data.known import split_name
from scrd_fast.device import pick_device
from scrd_fast.errors import ImageError, ScrdFastError
from scrd_fast.evaluation import evaluate
from scrd_fast.files import read_record, write_atomically
from scrd_fast.labelled import Seen, labelled, see
from scrd_fast.loop import Interrupted
from scrd_fast.memory import give_back_freed_memory, keep_freed_memory, process_bytes
from scrd_fast.model.scrd import read_config
from scrd_fast.reproduce.fitting import Fitted, fit_baseline, fit_trained
from scrd_fast.reproduce.rivals import run_rival
from scrd_fast.runs import finish, write_json
from scrd_fast.settings import TrainSettings

__all__ = ["main"]

TICK = 2.0  # seconds between two notes of how long it took so far
INTERRUPTED = 130  # exit code
Record = dict[str, Any]


def main(folder: Path, anomalib: str | None) -> int:
    """Returns the exit code: 0 where the record says how it went, be it well or not."""
    record = read_record(folder / "run.json")
    clock = _Clock(folder / "seconds")
    threading.Thread(target=_end_with_parent, args=(clock,), daemon=True).start()
    try:
        facts = _time_methods(record) if "timed" in record else _measure(record, folder, anomalib)
    except Interrupted:
        return INTERRUPTED
    except Exception as error:  # whatever it is, it is the outcome of this run alone
        reason = str(error) if isinstance(error, (ScrdFastError, OSError, ValueError)) else ""
        reason = " ".join((reason or f"{type(error).__name__}: {error}").split())
        write_json(folder / "run.json", record | {"status": "failed", "reason": reason, "seconds": clock.save()})
        return 0
    finish(folder, record, seconds=clock.save(), **facts)
    return 0


class _Clock:
    """Seconds that all starts of a run took together; what a kill cuts off is `TICK` at most."""

    def __init__(self, path: Path) -> None:
        self._path, self._start = path, time.perf_counter()
        try:
            self._before = float(path.read_text())
        except (OSError, ValueError):
            self._before = 0.0

    def save(self) -> float:
        seconds = round(self._before + time.perf_counter() - self._start, 2)
        with contextlib.suppress(OSError):  # a full disk must not end the run
            write_atomically(self._path, str(seconds).encode())
        return seconds


def _end_with_parent(clock: _Clock) -> None:
    while not select.select([sys.stdin], [], [], TICK)[0]:
        clock.save()
    os.killpg(0, signal.SIGKILL)  # and with whatever this process has started


def _measure(record: Record, folder: Path, anomalib: str | None) -> Record:
    settings = TrainSettings(**record["settings"])
    device = pick_device(settings.device)
    if settings.precision == "bf16":
        keep_freed_memory()  # as the command `train` does
    data = open_dataset(record["root"], settings.slice_axis)
    data.require(train=True, test=True)
    facts: Record
    if record["kind"] == "anomalib":
        assert anomalib is not None
        scored = run_rival(record["model"], anomalib, data, folder / "rival", settings)
        evaluate(
            labelled(data, settings.preprocessing(), scored.seen()),
            scored.calibration,
            settings.score,
            folder,
            split=split_name(data.root),
        )
        facts = scored.facts
    else:
        fitted = _fit(record, folder, settings, data)
        facts = {"peak_memory_bytes": _peak_bytes(device)}
        if record["kind"] == "trained":
            facts["map_weights"] = read_config(folder / "train" / "model").map_weights
        _forget_peak(device)

        def seen() -> Iterator[Seen | ImageError]:
            yield from see(data.test, fitted.preprocessing, fitted.predict, settings.batch_size)
            facts["predict_peak_memory_bytes"] = _peak_bytes(device)

        evaluate(
            labelled(data, fitted.preprocessing, seen()),
            fitted.calibration,
            settings.score,
            folder,
            scores=fitted.scores,
            split=split_name(data.root),
        )
    _tidy(folder, record["keeps_model"])
    return facts


def _tidy(folder: Path, keeps_model: bool) -> None:
    """Remove most of the disk that it took, which is of no use any more."""
    train = folder / "train"
    if train.is_dir() and not keeps_model:
        shutil.copy(train / "metrics.jsonl", folder / "training.jsonl")
        shutil.rmtree(train)
    for left in (train / "checkpoints", train / "tensorboard", folder / "rival"):
        shutil.rmtree(left, ignore_errors=True)


def _fit(record: Record, folder: Path, settings: TrainSettings, data: DataSet, *, calibrated: bool = True) -> Fitted:
    if record["kind"] == "baseline":
        return fit_baseline(record["model"], data, settings, calibrated=calibrated)
    return fit_trained(data, folder / "train", settings, lambda text: print(text, flush=True))


def _time_methods(record: Record) -> Record:
    """Seconds an image of each method, in turns, on the same images in memory: the first batch of the test part."""
    methods: dict[str, tuple[Fitted, torch.Tensor]] = {}
    for name, timed in record["timed"].items():
        settings = TrainSettings(**timed["settings"])
        data = open_dataset(timed["root"], settings.slice_axis)
        items = data.test[: settings.batch_size]
        images = ImageStore(items, settings.preprocessing(), cache="off").batch(range(len(items)))
        methods[name] = _fit(timed, Path(timed["folder"]), settings, data, calibrated=False), images
        print(f"{name} is ready", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(record["rounds"] + 1):
        for name, (fitted, images) in methods.items():
            start = time.perf_counter()
            fitted.predict(images).scores["mean"].tolist()  # waits for a GPU
            if turn:  # the first one warms up
                seconds[name].append((time.perf_counter() - start) / len(images))
    return {"seconds_per_image": seconds, "threads": torch.get_num_threads()}


def _peak_bytes(device: torch.device) -> int:
    """Of a GPU's tensors, or of this process without the one that started it."""
    return (0 if device.type == "cuda" else process_bytes("VmHWM")) or peak_bytes(device)


def _forget_peak(device: torch.device) -> None:
    """From now on the peak is that of what follows; on a system without that, of the whole process."""
    gc.collect()
    give_back_freed_memory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None))
