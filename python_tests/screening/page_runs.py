# SPDX-License-Identifier: Apache-2.0
"""Folders of runs that nobody screened, for the page: tables of any length, pictures that are textures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from conftest import texture

from scrd_fast.calibration import Calibration
from scrd_fast.config import Preprocessing
from scrd_fast.data.frames import About
from scrd_fast.screening.page_pictures import PagePicture, layers, thumbnail, write_pictures
from scrd_fast.screening.writers import SCHEMA

RUN_ID = "0123456789ab"
SCALE = (1.0, 3.0)


def made_row(number: int, path: str, score: float | None, **more: Any) -> dict[str, Any]:
    """As `screen` writes it; without a score it failed."""
    name = f"{number:016x}"
    row = dict.fromkeys(SCHEMA.names) | {
        "run_id": RUN_ID, "input_id": name, "sample_id": f"{name}-0", "path": path, "frame": 0, "status": "ok",
        "score": score, "flags": [],
    }  # fmt: skip
    if score is None:
        row |= {"frame": None, "sample_id": name, "status": "failed", "error": "missing: no such file"}
    else:
        row |= {f"scale_{k}": score / k for k in (1, 2, 3)} | {"weight_1": 0.2, "weight_2": 0.5, "weight_3": 0.3}
        row |= {f"score_{name}": score / (i + 1) for i, name in enumerate(("max", "top1", "top5", "mean"))}
        row |= {"peak_row": 20 + number % 30, "peak_column": 10 + number % 40, "height": 64, "width": 70}
        row |= {"shown_by": "range"}
    return row | more


def write_run(
    out: Path,
    rows: list[dict[str, Any]],
    calibration: Calibration | None = None,
    *,
    finished: bool = True,
    shard: int = 1000,
) -> Path:
    """`rows` as the parts of a run."""
    (out / "results").mkdir(parents=True)
    for number, start in enumerate(range(0, max(len(rows), 1), shard)):
        table = pa.Table.from_pylist(rows[start : start + shard], schema=SCHEMA)
        schema = SCHEMA.with_metadata(SCHEMA.metadata | {b"scrd_fast.run_id": RUN_ID.encode()})
        pq.write_table(table.replace_schema_metadata(schema.metadata), out / f"results/part-{number:06d}.parquet")
    if calibration is not None:
        calibration.save(out / "calibration.json")
    record = {"status": "finished" if finished else "running", "started": "2026-01-31T10:00:00+0000"}
    record |= {"identity": {"command": "screen", "paths": "plain", "model_sha256": "ab" * 32}}
    (out / "run.json").write_text(json.dumps(record | {"versions": {"scrd_fast": "0.1.0"}}))
    (out / "summary.json").write_text(json.dumps({"score": "combined"}))
    return out


def write_made_pictures(out: Path, samples: list[str], with_layers: int) -> None:
    """Textures, the first of them with a bright place in picture and heat map."""
    generator, about = np.random.default_rng(0), About(64, 70, False, 0.0, 1.0, 0.5)
    preprocessing = Preprocessing(size=64)
    kinds = [
        torch.from_numpy(texture(generator, 70).astype(np.float32)[:64, :64] / 255).expand(3, 64, 64) for _ in range(8)
    ]
    small = [thumbnail(kind, about, preprocessing) for kind in kinds]
    distance = np.hypot(*(np.mgrid[:64, :64] - 30.0))
    heat = torch.from_numpy((0.5 + 3.0 * np.exp(-((distance / 9) ** 2))).astype(np.float32))
    large = [layers(kind, heat, about, preprocessing, SCALE) for kind in kinds]
    pictures = [
        PagePicture(name, small[i % 8], *(large[i % 8] if i < with_layers else ())) for i, name in enumerate(samples)
    ]
    write_pictures(out / "page.parquet", pictures, RUN_ID, SCALE)


def embedded(out: Path, name: str = "data") -> Any:
    """What a page carries, as its script reads it."""
    html = (out / "report.html").read_text(encoding="utf-8")
    (content,) = re.findall(rf'<script type="application/json" id="{name}">(.*?)</script>', html, flags=re.S)
    return json.loads(content)


def column(data: Any, name: str) -> list[Any]:
    """A column of texts as it was before it was coded."""
    found = data["columns"][name]
    return [None if code is None else found["words"][code] for code in found["codes"]]


HOSTILE = [
    "<img src=x onerror=\"window.hacked='img'\">.png",
    "</script><script>window.hacked='script'</script>.png",
    "<!--<script>.png",
    "'\"><svg onload=window.hacked='svg'>&amp;&lt;.png",
    "line\u2028separator\u2029.png",
    "right\u202egnp.exe",
    "zero\u200bwidth\u0000\r\n.png",
    "b\\udcff.png",  # as the table has bytes that are no UTF-8
    "folder/" + "very-long-" * 300 + ".png",
    "{{ 7 * 7 }}${7*7}`.png",
    "ünïcödé 胸部 🫁.png",
]
