# SPDX-License-Identifier: Apache-2.0
"""What a screening run would do."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scrd_fast.console import Console
from scrd_fast.data.reading import count_frames
from scrd_fast.errors import ImageError
from scrd_fast.model.scrd import read_config
from scrd_fast.screening.inputs import Input, list_inputs
from scrd_fast.screening.report import load_json
from scrd_fast.screening.screener import model_folder
from scrd_fast.screening.settings import ScreenSettings

__all__ = ["show_plan"]

_ROW_BYTES = 300  # of a row in Parquet and worklist, about
_OVERLAY_BYTES = 120_000
_MAP_BYTES = 100_000
_DICOM_BYTES = {"sc": 2_000_000, "sr": 10_000, "seg": 60_000}
_DICOM_TYPES = (".dcm", ".dicom", "without ending")
_SHOWN = 1000  # problems that are listed one by one


def show_plan(console: Console, run: Path, inputs: Sequence[Path], out: Path, settings: ScreenSettings) -> None:
    """Print counts per type and status, time and disk. Opens headers only, loads no model, writes nothing."""
    folder = model_folder(run)
    axis = read_config(folder).preprocessing.slice_axis
    types: Counter[str] = Counter()
    status: Counter[str] = Counter()
    problems: list[dict[str, str]] = []
    pictures = dicom = count = 0
    for entry in list_inputs(inputs, out):
        count += 1
        frames, error, refused = _look(entry, axis)
        pictures += frames
        kind = _type(entry)
        dicom += frames if kind in _DICOM_TYPES else 0
        types[kind] += error is None
        status["ok" if error is None else "refused" if refused else "failed"] += 1
        if error is not None and len(problems) < _SHOWN:
            problems.append({"path": str(entry.source), "error": error})
    rate = _known_rate(folder)
    drawn = 0 if settings.overlays == "above" else min(settings.overlays, pictures)
    maps = pictures * _MAP_BYTES if settings.maps else 0
    results = dicom * sum(_DICOM_BYTES[kind] for kind in settings.dicom)
    rows = (pictures + count - status["ok"]) * _ROW_BYTES
    plan: dict[str, Any] = {
        "inputs": count,
        "pictures": pictures,
        "types": {name: n for name, n in types.items() if n},
        "status": {name: status[name] for name in ("ok", "failed", "refused")},
        "problems": problems,
        "estimated_seconds": round(pictures / rate, 1) if rate else None,
        "estimated_disk_bytes": rows + drawn * _OVERLAY_BYTES + maps + results,
    }
    print(json.dumps(plan, indent=2) if console.json else _text(plan))


def _look(entry: Input, axis: int) -> tuple[int, str | None, bool]:
    """Pictures of an input, or its error and whether that is a refusal."""
    if entry.error is not None:
        return 0, entry.error, entry.refused
    try:
        return count_frames(entry.source, axis), None, False
    except ImageError as error:
        return 0, f"{error.code}: {error}", error.refused


def _type(entry: Input) -> str:
    name = entry.source.member or entry.source.path.name
    suffix = ".nii.gz" if name.lower().endswith(".nii.gz") else Path(name).suffix.lower()
    return suffix or "without ending"


def _text(plan: dict[str, Any]) -> str:
    lines = [f"{plan['inputs']} inputs: " + ", ".join(f"{n} {kind}" for kind, n in plan["types"].items())]
    lines += [f"would fail: {problem['path']}: {problem['error']}" for problem in plan["problems"]]
    seconds = plan["estimated_seconds"]
    lines.append(
        f"{plan['pictures']} pictures, about {'unknown time' if seconds is None else f'{seconds} s'}, "
        f"{plan['estimated_disk_bytes']} bytes of disk"
    )
    return "\n".join(lines)


def _known_rate(folder: Path) -> float | None:
    """Images per second when the model was calibrated, where the training run tells."""
    rate = load_json(folder.parent / "run.json").get("calibration_images_per_second")
    return float(rate) if rate else None
