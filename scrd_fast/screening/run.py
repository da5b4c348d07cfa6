# SPDX-License-Identifier: Apache-2.0
"""A screening run on one machine: shards of the manifest, committed one after the other, and what sums them up.

OUT/results/part-*.parquet   finished shards only
OUT/worklist.csv             the same rows, most suspicious first
OUT/overlays/*.png           the most suspicious images with their maps
OUT/summary.json, run.json   counts, rates, and what was run
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scrd_fast.config import Precision, Strict
from scrd_fast.console import Advance, Console
from scrd_fast.errors import ImageError
from scrd_fast.plots import overlay
from scrd_fast.runs import begin, claim_folder, finish, write_json
from scrd_fast.screening.manifest import input_id, list_inputs, manifest_hash
from scrd_fast.screening.screener import Screener, model_folder
from scrd_fast.screening.writers import read_parts, row_of, worklist, write_part, write_worklist

__all__ = ["ScreenSettings", "dry", "screen"]

TOO_MANY_FAILED = 3  # exit code
_ROW_BYTES = 200  # of a row in Parquet and worklist, about
_OVERLAY_BYTES = 120_000


class ScreenSettings(Strict):
    """How a run is done; all but `overlays` and `max_failures` may change a score's last bits."""

    batch_size: int = 16
    precision: Precision = "32"
    device: str = "auto"
    shard_size: int = 1000
    overlays: int = 20
    max_failures: float = 0.05


def screen(console: Console, run: Path, inputs: Sequence[Path], out: Path, settings: ScreenSettings) -> int:
    """Screen `inputs` into `out`, or go on where the same run was stopped. Returns the exit code."""
    paths = list_inputs(inputs, out)
    screener = Screener.from_pretrained(
        run, device=settings.device, precision=settings.precision, batch_size=settings.batch_size
    )
    if screener.calibration is None:
        console.warn(f"{run} has no calibration: there will be scores, but no decisions and no percentiles")
    identity = {
        "command": "screen",
        "model_sha256": screener.model.fingerprint(),
        "calibration": screener.calibration.id if screener.calibration else None,
        "manifest_sha256": manifest_hash(paths),
        "settings": settings.model_dump(exclude={"overlays", "max_failures"}),
    }
    record = claim_folder(out, identity)
    begin(out, record)
    run_id = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    console.detail(f"{screener.model.config.teacher.name} on {screener.device}, {len(paths)} images, run {run_id}")
    clock = time.perf_counter()
    with console.progress(len(paths), "images") as advance:
        scored = _screen_shards(screener, paths, out / "results", settings.shard_size, run_id, advance)
    seconds = time.perf_counter() - clock
    rows = read_parts(out / "results")
    rows_by_rank = worklist(rows)
    write_worklist(out / "worklist.csv", rows_by_rank)
    originals = {input_id(path): path for path in paths}  # a row's path is a printable form
    top = [originals[row["input_id"]] for row in rows_by_rank[: settings.overlays] if row["score"] is not None]
    _write_overlays(screener, top, out / "overlays")
    summary = _summary(screener, run, rows, scored, seconds)
    write_json(out / "summary.json", summary)
    finish(out, record, summary=summary)
    console.log(f"{summary['images']} images: {_counts_text(summary)}")
    console.result(out / "worklist.csv", summary)
    failed = summary["status"].get("failed", 0)
    if failed > settings.max_failures * len(rows):
        console.warn(f"{failed} of {len(rows)} files failed, more than --max-failures {settings.max_failures:g}")
        return TOO_MANY_FAILED
    return 0


def _screen_shards(
    screener: Screener, paths: Sequence[Path], results: Path, shard_size: int, run_id: str, advance: Advance
) -> int:
    """Screen the shards that are not there yet; returns how many images that were."""
    results.mkdir(exist_ok=True)
    score = screener.model.config.score
    scored = failed = 0
    for number, start in enumerate(range(0, len(paths), shard_size)):
        part = results / f"part-{number:06d}.parquet"
        if part.is_file():
            continue
        rows = []
        for done, result in enumerate(screener(paths[start : start + shard_size]), start=start + 1):
            rows.append(row_of(result, run_id, score))
            failed += result.error is not None
            advance(done, f"{failed} failed" if failed else "")
        write_part(part, rows)
        scored += len(rows)
    return scored


def _write_overlays(screener: Screener, paths: Sequence[Path], folder: Path) -> None:
    """Screen the most suspicious once more and draw them: maps of all images would fill the disk."""
    calibration = screener.calibration
    low, high = (calibration.map_low, calibration.map_high) if calibration else (None, None)
    for rank, result in enumerate(screener(paths), start=1):
        if result.image is None or result.map is None:  # gone since it was scored
            continue
        if low is None or high is None:
            low, high = 0.0, max(result.scores["max"], 1e-6)  # that of the most suspicious, which comes first
        folder.mkdir(exist_ok=True)
        pixels = overlay(result.image.permute(1, 2, 0).numpy(), result.map.numpy(), low, high)
        Image.fromarray(np.asarray(pixels)).save(folder / f"{rank:03d}-{input_id(result.path)}.png")


def _summary(
    screener: Screener, run: Path, rows: Sequence[dict[str, Any]], scored: int, seconds: float
) -> dict[str, Any]:
    calibration = screener.calibration
    return {
        "images": len(rows),
        "status": dict(Counter(row["status"] for row in rows)),
        "decision": dict(Counter(row["decision"] for row in rows if row["decision"])),
        "errors": dict(Counter(row["error"].split(":")[0] for row in rows if row["error"])),
        "score": screener.model.config.score,
        "threshold": calibration.threshold if calibration else None,
        "false_alarm_rate": calibration.fpr if calibration else None,
        "calibration_id": calibration.id if calibration else None,
        "model": str(model_folder(run)),
        "seconds": round(seconds, 2),
        "images_per_second": round(scored / seconds, 2) if scored else None,
    }


def _counts_text(summary: dict[str, Any]) -> str:
    counts = summary["decision"] | {k: v for k, v in summary["status"].items() if k != "ok" or not summary["decision"]}
    return ", ".join(f"{n} {name}" for name, n in counts.items())


def dry(console: Console, run: Path, inputs: Sequence[Path], settings: ScreenSettings) -> None:
    """What a run would do: counts per type and status, time and disk. Opens headers only, loads no model."""
    folder = model_folder(run)
    paths = list_inputs(inputs)
    types: Counter[str] = Counter()
    bad: list[dict[str, str]] = []
    for path in paths:
        try:
            types[_header(path)] += 1
        except ImageError as error:
            bad.append({"path": str(path), "error": f"{error.code}: {error}"})
    rate = _known_rate(folder)
    content: dict[str, Any] = {
        "inputs": len(paths),
        "types": dict(types),
        "status": {"ok": len(paths) - len(bad), "failed": len(bad)},
        "failed": bad,
        "estimated_seconds": round(len(paths) / rate, 1) if rate else None,
        "estimated_disk_bytes": len(paths) * _ROW_BYTES + min(settings.overlays, len(paths)) * _OVERLAY_BYTES,
    }
    if console.json:
        print(json.dumps(content, indent=2))
        return
    print(f"{content['inputs']} inputs: " + ", ".join(f"{n} {kind}" for kind, n in types.items()))
    for entry in bad:
        print(f"would fail: {entry['path']}: {entry['error']}")
    seconds = content["estimated_seconds"]
    duration = "unknown time" if seconds is None else f"{seconds} s"
    print(f"about {duration}, {content['estimated_disk_bytes']} bytes of disk")


def _header(path: Path) -> str:
    try:
        with Image.open(path) as image:
            return f"{image.format} {image.mode}"
    except FileNotFoundError:
        raise ImageError("missing", "no such file") from None
    except Exception as error:  # headers of hostile files raise anything
        raise ImageError("not-an-image", type(error).__name__) from None


def _known_rate(folder: Path) -> float | None:
    """Images per second when the model was calibrated, where the training run tells."""
    path = folder.parent / "run.json"
    if not path.is_file():
        return None
    rate = json.loads(path.read_text()).get("calibration_images_per_second")
    return float(rate) if rate else None
