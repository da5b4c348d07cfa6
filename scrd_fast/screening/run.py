# SPDX-License-Identifier: Apache-2.0
"""A screening run: a manifest, its shards, and what sums them up.

OUT/manifest.parquet         what is screened, fixed when the run begins
OUT/results/part-*.parquet   finished shards only
OUT/maps/, OUT/overlays/     pictures, where they were asked for
OUT/dicom/                   results in DICOM, where they were asked for
OUT/calibration.json         the calibration that decided
OUT/worklist.csv             an input a line, most suspicious first
OUT/studies.csv, series.csv  a study or series a line, the same
OUT/summary.json, run.json   counts, rates, and what was run
OUT/report.html              all of it as a page; page.parquet has its pictures
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from scrd_fast.calibration import Calibration
from scrd_fast.console import Console
from scrd_fast.device import SLOW_BFLOAT16, bfloat16_is_slow
from scrd_fast.errors import ScrdFastError
from scrd_fast.files import write_atomically
from scrd_fast.model.scrd import SCRD
from scrd_fast.runs import begin, claim_folder, finish, new_record, versions
from scrd_fast.screening.dicom.writer import FOLDER, check_calibration, clean_up, count_dicom
from scrd_fast.screening.inputs import list_inputs
from scrd_fast.screening.manifest import MANIFEST, Manifest
from scrd_fast.screening.page import PAGE, PICTURES, write_page
from scrd_fast.screening.page_labels import Labels
from scrd_fast.screening.processes import warm_up
from scrd_fast.screening.report import load_json, write_summary, write_worklist
from scrd_fast.screening.screener import load, model_folder
from scrd_fast.screening.settings import ScreenSettings
from scrd_fast.screening.shards import Task
from scrd_fast.screening.work import ALL, LEGEND, Share, Work, device_kind
from scrd_fast.screening.writers import CHECKPOINT, RESULTS, SCHEMA_VERSION, is_finished, keyed_hash, part_path

__all__ = ["remove_run", "screen"]

TOO_MANY_FAILED = 3  # exit code
OWN = (
    *(RESULTS, CHECKPOINT, "maps", "overlays", FOLDER, LEGEND, MANIFEST),
    *("calibration.json", "worklist.csv", "studies.csv", "series.csv", "summary.json", "results.parquet"),
    *("drift.json", "drift.png"),
    *(PAGE, PICTURES),
)


def screen(
    console: Console,
    run: Path,
    inputs: Sequence[Path],
    out: Path,
    settings: ScreenSettings,
    *,
    share: Share = ALL,
    key: bytes | None = None,
    anew: bool = False,
    labels: Path | None = None,
) -> int:
    """Screen `inputs` into `out`, or go on where the same run was stopped. Returns the exit code.

    `key` replaces the paths in the results by keyed hashes; `anew` first removes the run that is there; `labels` are
    for the page alone.
    """
    known = None if labels is None else Labels(labels, _shown(key))
    if settings.engine == "local":
        warm_up()
    model, calibration = load(run)
    if settings.dicom:
        check_calibration(run, calibration)
    if calibration is None:
        console.warn(f"{run} has no calibration: there will be scores, but no decisions and no percentiles")
    if settings.precision == "bf16" and bfloat16_is_slow(device_kind(settings)):
        console.warn(SLOW_BFLOAT16)
    identity = _identity(model, calibration, inputs, settings, key)
    for given in inputs if anew else ():  # as the model is, known to be there before anything is removed
        next(list_inputs([given], out), None)
    fresh = anew and remove_run(out)
    record = new_record(identity) if fresh else claim_folder(out, identity)
    if fresh or not (out / "run.json").exists():
        begin(out, record)
    if calibration is not None and not (out / "calibration.json").exists():
        stored = calibration.without_devices() if key else calibration
        stored.save(out / "calibration.json")
    if record["versions"] != versions():
        console.warn("the run began with other versions (run.json has them): scores may differ in their last bits")
    manifest = _manifest(record, inputs, out, settings.shard_size, key)
    run_id, marks = _run_id(identity, manifest, key), _marks(console, identity, calibration, settings)
    task = Task(run, out, settings, run_id, marks, key, record["started"], identity["model_sha256"])
    console.detail(f"{model.config.teacher.name}, {manifest.count} inputs in {manifest.shards} shards, {task.run_id}")
    work = Work(console, task, manifest, share, (model, calibration))
    with closing(work):
        facts = work.screen()
        if record["status"] == "finished" and not facts:
            if labels is not None:
                console.warn(
                    f"--labels: the run is finished; `scrd-fast report {out} --labels` puts them into its page"
                )
            return _told(console, out, record["summary"], settings)
        left = manifest.shards - sum(is_finished(part_path(out, k), task.run_id) for k in range(manifest.shards))
        if left:
            if labels is not None:
                console.warn(
                    "--labels: there is no page before all shards are finished; give them to the last, or to report"
                )
            console.log(f"{manifest.shards - left} of {manifest.shards} shards are finished")
            console.result(out / RESULTS, {"shards": manifest.shards, "finished": manifest.shards - left})
            return TOO_MANY_FAILED if work.too_many_failed else 0
        shutil.rmtree(out / CHECKPOINT, ignore_errors=True)  # of a run on a cluster that was killed
        decision = calibration.decision if calibration else None
        counts = write_worklist(out, decision)
        work.draw()
    if settings.dicom:
        clean_up(out)
        facts["dicom"] = count_dicom([part_path(out, k) for k in range(manifest.shards)])
    facts |= {"score": model.config.score, "model": str(model_folder(run)), "run_status": "finished"}
    summary = write_summary(out, counts, decision, calibration, "run", facts)
    write_page(console, out, summary, decision, calibration, known)
    about = {"summary": summary, "manifest": keyed_hash(key or b"", manifest.sha256.encode())}
    finish(out, record, **about, preprocessing=model.config.preprocessing.model_dump())
    if key is not None:  # it holds the paths, and so does what a killed process left of it
        for path in (out / MANIFEST, *out.glob(f".{MANIFEST}.*.tmp")):
            path.unlink(missing_ok=True)
    return _told(console, out, summary, settings)


def _told(console: Console, out: Path, summary: dict[str, Any], settings: ScreenSettings) -> int:
    """Say what a finished run has found. Returns the exit code."""
    console.log(f"{summary['inputs']} inputs: {_counts_text(summary)}")
    if settings.dicom:
        counts = summary["dicom"]
        console.log(
            f"results in DICOM of {counts['written']} pictures; not of {counts['not_written']}, see flags, "
            f"nor of {counts['no_dicom']} that are no DICOM"
        )
    console.result(out / "worklist.csv", summary)
    failed, most = summary["status"].get("failed", 0), settings.max_failures
    if failed > most * summary["inputs"]:
        console.warn(f"{failed} of {summary['inputs']} inputs failed, more than --max-failures {most:g}")
        return TOO_MANY_FAILED
    return 0


def _shown(key: bytes | None) -> Callable[[str], str]:
    """What stands for a path in the table."""
    return str if key is None else lambda text: keyed_hash(key, text.encode())


def _identity(
    model: SCRD, calibration: Calibration | None, inputs: Sequence[Path], settings: ScreenSettings, key: bytes | None
) -> dict[str, Any]:
    """What must be the same for a run to go on. Holds no path."""
    # As given too: the manifest holds them so, and a relative path leads elsewhere from another folder.
    named = b"\0".join(os.fsencode(p) for path in inputs for p in (path, path.absolute()))
    return {
        "command": "screen",
        "schema": SCHEMA_VERSION,
        "model_sha256": model.fingerprint(),
        "calibration": calibration.id if calibration else None,
        "inputs": keyed_hash(key or b"", named),
        "paths": keyed_hash(key, b"paths") if key else "plain",
        "settings": settings.identity() | {"device": device_kind(settings)},
    }


def _manifest(
    record: dict[str, Any], inputs: Sequence[Path], out: Path, shard_size: int, key: bytes | None
) -> Manifest:
    """That of the run, which stays as it began. A finished run of other files than are there now is refused."""
    (out / RESULTS).mkdir(exist_ok=True)
    path = out / MANIFEST
    finished = record.get("manifest")
    if finished is None:
        return Manifest.open(path) if path.is_file() else Manifest.create(path, list_inputs(inputs, out), shard_size)
    with tempfile.TemporaryDirectory() as folder:
        now = Manifest.create(Path(folder) / MANIFEST, list_inputs(inputs, out), shard_size)
        if keyed_hash(key or b"", now.sha256.encode()) != finished:
            raise ScrdFastError(f"{out} is finished, and the inputs are others by now; take a new folder")
        if all(part_path(out, k).is_file() for k in range(now.shards)):
            return now  # nothing is left to be read by it
        if not path.is_file():
            write_atomically(path, now.path.read_bytes())
    return Manifest.open(path)


def _run_id(identity: dict[str, Any], manifest: Manifest, key: bytes | None) -> str:
    """With a key it follows from that too: everything else but the paths is in `run.json`, so they could be guessed."""
    listed = manifest.sha256 if key is None else keyed_hash(key, manifest.sha256.encode())
    return hashlib.sha256(json.dumps([identity, listed], sort_keys=True).encode()).hexdigest()[:12]


def _marks(
    console: Console, identity: dict[str, Any], calibration: Calibration | None, settings: ScreenSettings
) -> tuple[str, ...]:
    """A flag for every row where the calibration is none for this model or site."""
    if calibration is None:
        return ()
    problems = calibration.mismatch(identity["model_sha256"], settings.site)
    for problem in problems:
        console.warn(f"the calibration was {problem}: decisions and percentiles may be wrong; calibrate anew")
    return ("foreign-calibration",) if problems else ()


def _counts_text(summary: dict[str, Any]) -> str:
    counts = summary["decision"] | {k: v for k, v in summary["status"].items() if k != "ok" or not summary["decision"]}
    return ", ".join(f"{n} {name}" for name, n in counts.items())


def remove_run(out: Path) -> bool:
    """Remove what a run has written to `out`, and nothing else; whether there was one.

    Its `run.json` stays until the next run's takes its place: without it other files would keep the folder from any.
    Raises `ScrdFastError` where the run is another command's.
    """
    if not (out / "run.json").is_file():
        return False
    if load_json(out / "run.json").get("identity", {}).get("command") != "screen":
        raise ScrdFastError(f"{out} holds a run of another command; choose a new folder")
    for name in OWN:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for path in out.glob(".*.tmp"):  # of killed processes
        path.unlink(missing_ok=True)
    return True
