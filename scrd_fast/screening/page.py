# SPDX-License-Identifier: Apache-2.0
"""`report.html`: a run as one page that opens in a browser, without a network and without a model.

OUT/report.html      written
OUT/page.parquet     read: the pictures that are shown, which a finished run has written
OUT/results/part-*.parquet, calibration.json, studies.csv, drift.json, run.json   read, what is there of them
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import sqlite3
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scrd_fast.calibration import Calibration, Decision
from scrd_fast.console import Console
from scrd_fast.errors import MissingExtraError, ScrdFastError, reason_of
from scrd_fast.files import read_record, write_atomically
from scrd_fast.screening.page_data import page_data, picture_data
from scrd_fast.screening.page_labels import Labels
from scrd_fast.screening.report import parts

__all__ = ["PAGE", "PICTURES", "write_page"]

PAGE, PICTURES = "report.html", "page.parquet"  # in a run's folder
_FOLDER = Path(__file__).parent
_SCRIPTS = tuple(f"page_{name}.js" for name in ("data", "chart", "list", "detail", "tabs", "main"))


def write_page(
    console: Console,
    out: Path,
    summary: dict[str, Any],
    decision: Decision | None,
    calibration: Calibration | None,
    labels: Labels | None,
) -> None:
    """Write `out/report.html`. `summary` is that of the run. What prevents the page is a warning: results stand."""
    try:
        html = _page(console, out, summary, decision, calibration, labels)
        write_atomically(out / PAGE, html.encode())
    except (ScrdFastError, OSError, pa.ArrowException, sqlite3.Error, csv.Error, ValueError) as error:
        console.warn(f"{PAGE} cannot be written: {' '.join(reason_of(error).split())}")
    else:
        console.log(f"page: {out / PAGE}")


def _page(
    console: Console,
    out: Path,
    summary: dict[str, Any],
    decision: Decision | None,
    calibration: Calibration | None,
    labels: Labels | None,
) -> str:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("jinja2", "model") from error
    record, drift = read_record(out / "run.json"), read_record(out / "drift.json")
    run_id = (pq.read_schema(parts(out)[0]).metadata or {}).get(b"scrd_fast.run_id", b"").decode()
    data = page_data(console, out, calibration, labels)
    columns = data["columns"]["sample_id"]
    samples = [columns["words"][code] for code in columns["codes"]]
    data |= {
        "run": _run(out, record, summary, run_id),
        "decision": asdict(decision) if decision else None,
        "calibration": _calibration(calibration),
        "drift": [str(reason) for reason in drift.get("reasons", [])] if drift.get("alarm") else None,
    }
    style = _read("page.css")
    script = '"use strict";\n(() => {\n' + "\n".join(map(_read, _SCRIPTS)) + "})();\n"
    environment = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html.jinja").render(
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=_as_json(data),
        pictures=_as_json(picture_data(out / PICTURES, samples, run_id)),
    )


def _run(out: Path, record: dict[str, Any], summary: dict[str, Any], run_id: str) -> dict[str, Any]:
    """What is told of the run. No folder: the page may go where paths must not."""
    identity = record.get("identity", {})
    return {
        "id": run_id,
        "started": record.get("started"),
        "version": record.get("versions", {}).get("scrd_fast"),
        "score": summary.get("score"),
        "model": identity.get("model_sha256", "")[:12],
        "hashed": identity.get("paths", "plain") != "plain",
        "finished": summary.get("run_status") == "finished",
        "shards": len(parts(out)),
        "decided_by": summary.get("decided_by"),
        **{name: summary.get(name) for name in ("inputs", "status", "errors", "flags", "images_per_second", "device")},
    }


def _calibration(calibration: Calibration | None) -> dict[str, Any] | None:
    if calibration is None:
        return None
    names = ("id", "count", "site", "reachable", "fpr", "score", "threshold")
    return {name: getattr(calibration, name) for name in names}


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a content security policy names what may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _as_json(content: Any) -> str:
    """JSON of ASCII letters that no text in it can end: `<` and `&` are escaped.

    >>> _as_json("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
