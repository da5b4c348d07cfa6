# SPDX-License-Identifier: Apache-2.0
"""A processing module of mercure: screens the DICOM files of a task and leaves the results in its output folder.

mercure names the folders by MERCURE_IN_DIR and MERCURE_OUT_DIR. In the first lie the files and task.json, whose
process.settings are flags of `scrd-fast screen` by their names, and `model`, the folder of the model (/model).
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom

from scrd_fast.cli import main as scrd_fast

OURS = "scrd_fast"  # Manufacturer of the results: they are not screened again
TOLD = ("inputs", "rows", "status", "decision", "errors", "flags", "score", "threshold", "calibration_id", "dicom")


def settings_of(task: Path) -> dict[str, Any]:
    """What the module's and the rule's settings say, as mercure has joined them, over ours."""
    own = {"model": "/model", "dicom": "sc,sr", "overlays": 0}
    try:
        given = json.loads(task.read_bytes())["process"].get("settings") or {}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        print(f"{task}: no task of mercure's ({type(error).__name__})", file=sys.stderr)
        sys.exit(2)
    return own | {name.replace("_", "-"): value for name, value in given.items()}


def flags_of(settings: dict[str, Any]) -> Iterator[str]:
    """true is a flag without a value, false is none."""
    for name, value in settings.items():
        if value is not False:
            yield f"--{name}" if value is True else f"--{name}={value}"


def is_picture(path: Path) -> bool:
    """Whether it is screened: not a result of ours, and nothing without pixels. A damaged file is, and will be told."""
    try:
        header = pydicom.dcmread(path, specific_tags=["Manufacturer", "Rows"], stop_before_pixels=True)
    except Exception:  # pydicom raises anything for a damaged file
        return True
    return "Rows" in header and header.get("Manufacturer") != OURS


def deliver(found: Path, out: Path) -> None:
    """The results, named as mercure names files: series, #, instance."""
    for path in sorted((found / "dicom").glob("*/*.dcm")):
        uids = pydicom.dcmread(path, specific_tags=["SeriesInstanceUID", "SOPInstanceUID"], stop_before_pixels=True)
        shutil.copy(path, out / f"{uids.SeriesInstanceUID}#{uids.SOPInstanceUID}.dcm")


def result_of(found: Path) -> dict[str, Any]:
    """What mercure keeps with the task: counts, and the most suspicious file. It names no patient."""
    summary = json.loads((found / "summary.json").read_bytes())
    with (found / "worklist.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    abnormal = summary["decision"].get("abnormal", 0)
    told = {name: summary[name] for name in TOLD if name in summary}
    told["highest"] = {"file": Path(first["path"]).name, "score": first["score"], "percentile": first["percentile"]}
    text = f"{abnormal} of {summary['inputs']} files above the threshold. RESEARCH USE - NOT FOR DIAGNOSIS"
    return told | {"__mercure_notification": {"text": text, "requested": abnormal > 0}}


def main() -> int:
    inside, out = Path(os.environ["MERCURE_IN_DIR"]), Path(os.environ["MERCURE_OUT_DIR"])
    settings = settings_of(inside / "task.json")
    model, result, code = settings.pop("model"), {"inputs": 0}, 0
    pictures = [str(path) for path in sorted(inside.glob("*.dcm")) if is_picture(path)]
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "out"
        if pictures:
            code = scrd_fast(["screen", model, *pictures, "--out", str(found), *flags_of(settings), "-q"])
        if (found / "summary.json").exists():
            deliver(found, out)
            result = result_of(found)
    if code in (0, 3):
        (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
