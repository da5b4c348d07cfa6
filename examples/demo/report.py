# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page about a run of the demo, and the checks that make it a fair one.

    python examples/demo/report.py --data DATA --evaluation DIR --screening DIR --run RUN \
        --out demo/report.html --check

The page needs no network and no JavaScript. With --check the exit code is 1 where the image mean, maximum
or standard deviation alone tells abnormal images from normal ones (AUROC above 0.7), for then the data set
proves nothing, and where the model's AUROC is below 0.9.
"""

from __future__ import annotations

import argparse
import base64
import csv
import importlib.metadata
import json
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from sklearn.metrics import roc_auc_score

HERE = Path(__file__).resolve().parent
BASELINE_LIMIT = 0.7  # AUROC that a plain image statistic may reach at most
MODEL_LIMIT = 0.9  # AUROC that the model must reach
OVERLAYS, WORKLIST_ROWS = 12, 20
STATISTICS = {"mean": np.mean, "max": np.max, "std": np.std}
STATISTIC_NAMES = {"mean": "Image mean", "max": "Image maximum", "std": "Image standard deviation"}


# --- numbers --------------------------------------------------------------------------------------


def test_images(data: Path) -> Iterator[tuple[Path, int]]:
    """The test images of a folder tree with their labels, 0 for `good` and 1 for any other folder."""
    for folder in sorted(p for p in (data / "test").iterdir() if p.is_dir()):
        for path in sorted(folder.glob("*.png")):
            yield path, int(folder.name != "good")


def baseline_aurocs(data: Path) -> dict[str, float]:
    """AUROC of the image's mean, maximum and standard deviation on the test images, in the better direction.

    Raises ValueError where the test part lacks one of the classes.
    """
    labels: list[int] = []
    values: dict[str, list[float]] = {name: [] for name in STATISTICS}
    for path, label in test_images(data):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L"), dtype=np.float64)
        labels.append(label)
        for name, statistic in STATISTICS.items():
            values[name].append(float(statistic(pixels)))
    if len(set(labels)) < 2:
        raise ValueError(f"{data / 'test'}: need normal and abnormal images, got {len(labels)} of one class")
    aurocs = {name: float(roc_auc_score(labels, v)) for name, v in values.items()}
    return {name: max(a, 1 - a) for name, a in aurocs.items()}


def complaints(baselines: dict[str, float], auroc: float | None) -> list[str]:
    """What --check finds wrong, one sentence each."""
    found = [
        f"{STATISTIC_NAMES[name]} alone reaches AUROC {value:.3f}, above {BASELINE_LIMIT}: too easy data."
        for name, value in baselines.items()
        if value > BASELINE_LIMIT
    ]
    if auroc is None:
        found.append("metrics.json holds no AUROC of the model.")
    elif not auroc >= MODEL_LIMIT:
        found.append(f"The model's AUROC is {auroc:.3f}, below {MODEL_LIMIT}.")
    return found


def kind_aurocs(scores: list[dict[str, str]], score: str) -> list[dict[str, Any]]:
    """AUROC of each kind of lesion against all normal images, from the rows of scores.csv."""
    rows = [(Path(r["path"]).parent.name, r["label"], float(r[score])) for r in scores if r.get(score)]
    normal = [value for _, label, value in rows if label == "0"]
    table = []
    for kind in sorted({kind for kind, label, _ in rows if label == "1"}):
        lesion = [value for k, label, value in rows if label == "1" and k == kind]
        if normal:
            auroc = float(roc_auc_score([0] * len(normal) + [1] * len(lesion), normal + lesion))
            table.append({"kind": kind, "count": len(lesion), "auroc": auroc})
    return table


# --- reading what the steps wrote; every optional file may be missing -----------------------------


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_csv(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        return list(csv.DictReader(file))


def read_lines(path: Path | None) -> list[dict[str, Any]]:
    """The records of a JSON-lines file."""
    if path is None or not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def embed(path: Path) -> str | None:
    """A PNG as a data URI, so that the page is one file."""
    if not path.is_file():
        return None
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def flatten(content: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested keys as rows of a table: {"a": {"b": 1}} -> [("a b", "1")]. Lists of records are left out."""
    rows: list[tuple[str, str]] = []
    for key, value in content.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            rows += flatten(value, f"{name} ")
        elif isinstance(value, list):
            if value and not any(isinstance(v, (dict, list)) for v in value):
                rows.append((name, ", ".join(map(str, value))))
        elif value is not None:
            rows.append((name, f"{value:.4g}" if isinstance(value, float) else str(value)))
    return rows


def overlay_of(rank: int, row: dict[str, str], overlays: list[Path]) -> Path | None:
    """The overlay of a worklist row: its name begins with the rank, from 1, or holds the image's name."""
    stem = Path(row.get("path", "")).stem
    for overlay in overlays:
        number_first = re.match(r"(\d+)[-_]", overlay.stem)
        if (number_first and int(number_first[1]) == rank) or (stem and stem in overlay.stem):
            return overlay
    return None


def screening(folder: Path) -> dict[str, Any]:
    """The most suspicious images with their overlays, the head of the worklist, the summary."""
    worklist = read_csv(folder / "worklist.csv")
    overlays = sorted((folder / "overlays").glob("*.png"))
    pictures = []
    for rank, row in enumerate(worklist, start=1):
        picture = overlay_of(rank, row, overlays)
        if picture is not None and len(pictures) < OVERLAYS:
            pictures.append({"source": embed(picture), "caption": Path(row["path"]).name, "row": row})
    if not pictures:  # no worklist, or names that do not match: the order of the files
        pictures = [{"source": embed(p), "caption": p.name, "row": {}} for p in overlays[:OVERLAYS]]
    return {
        "pictures": pictures,
        "worklist": worklist[:WORKLIST_ROWS],
        "total": len(worklist),
        "summary": flatten(read_json(folder / "summary.json")),
    }


def training(run: Path) -> dict[str, Any]:
    """Settings, versions, timings and the loss curve of RUN."""
    record = read_json(run / "run.json")
    settings = record.get("settings") or record.get("identity", {}).get("settings", {})
    points = [(p["iteration"], p["loss"]) for p in read_lines(run / "metrics.jsonl") if "loss" in p]
    rates = [p["images_per_second"] for p in read_lines(run / "metrics.jsonl") if p.get("images_per_second")]
    facts = {k: v for k, v in record.items() if k not in ("settings", "identity", "versions")}
    return {
        "settings": flatten(settings),
        "facts": flatten(facts),
        "versions": record.get("versions", {}),
        "curve": curve(points),
        "rate": float(np.median(rates)) if rates else None,
    }


def curve(points: list[tuple[float, float]], width: float = 640, height: float = 150) -> dict[str, Any] | None:
    """A polyline's points in a box of `width` x `height`, with the ends of both axes."""
    if len(points) < 2:
        return None
    x, y = np.array(points, dtype=np.float64).T
    low, high = float(y.min()), float(y.max())
    across = (x - x[0]) / max(x[-1] - x[0], 1e-12) * width
    down = height - (y - low) / max(high - low, 1e-12) * height
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, down, strict=True))
    return {
        "line": line,
        "low": low,
        "high": high,
        "first": int(x[0]),
        "last": int(x[-1]),
        "end": float(y[-1]),
    }


# --- the page -------------------------------------------------------------------------------------


def versions(run_versions: dict[str, Any]) -> dict[str, str]:
    """What took part, the training run's own record first."""
    found = {str(k): str(v) for k, v in run_versions.items()}
    found.setdefault("python", platform.python_version())
    installed = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    for name in ("torch", "timm", "numpy", "scipy", "pillow", "nilearn"):
        if name in installed:
            found.setdefault(name, installed[name])
    return found


def number(value: Any, digits: int = 3) -> str:
    """A float, or the value of {"value", "low", "high"}, as text; an en dash where there is none."""
    value = value.get("value") if isinstance(value, dict) else value
    return "–" if value is None else f"{float(value):.{digits}f}"


def interval(metric: Any) -> str:
    """The 95 % interval of {"value", "low", "high"} as text, empty where there is none."""
    if not isinstance(metric, dict) or metric.get("low") is None or metric.get("high") is None:
        return ""
    return f"{metric['low']:.3f} to {metric['high']:.3f}"


def render(args: argparse.Namespace, metrics: dict[str, Any], baselines: dict[str, float]) -> str:
    """The page as text."""
    scores = read_csv(args.evaluation / "scores.csv")
    score = str(metrics.get("score", "top5"))
    run = training(args.run)
    steps = read_lines(args.steps)
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": number, "interval": interval}
    return environment.get_template("report.html.jinja").render(
        metrics=metrics,
        at=metrics.get("at_threshold") or {},
        pixel=metrics.get("pixel") or {},
        counts=metrics.get("counts") or {},
        by_score={k: v.get("auroc", v) for k, v in (metrics.get("by_score") or {}).items()},
        score=score,
        baselines=[(STATISTIC_NAMES[name], value) for name, value in baselines.items()],
        baseline_limit=BASELINE_LIMIT,
        complaints=complaints(baselines, model_auroc(metrics)),
        kinds=kind_aurocs(scores, score),
        figures={name: embed(args.evaluation / f"{name}.png") for name in ("roc", "histogram", "gallery")},
        about=read_json(args.data / "about.json"),
        screening=screening(args.screening),
        run=run,
        steps=steps,
        seconds=sum(float(s.get("seconds", 0)) for s in steps),
        versions=versions(run["versions"]),
    )


def model_auroc(metrics: dict[str, Any]) -> float | None:
    auroc = metrics.get("auroc")
    value = auroc.get("value") if isinstance(auroc, dict) else auroc
    return None if value is None else float(value)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="One HTML page about a run of the demo.")
    parser.add_argument("--data", type=Path, required=True, help="what make_data.py wrote")
    parser.add_argument("--evaluation", type=Path, required=True, help="what `scrd-fast evaluate` wrote")
    parser.add_argument("--screening", type=Path, required=True, help="what `scrd-fast screen` wrote")
    parser.add_argument("--run", type=Path, required=True, help="what `scrd-fast train` wrote")
    parser.add_argument("--out", type=Path, required=True, help="the page; metrics.json is put beside it")
    parser.add_argument(
        "--steps", type=Path, help='what was run: lines of {"step": ..., "seconds": ..., "command": ...}'
    )
    parser.add_argument("--check", action="store_true", help="exit 1 where the result is unfair or weak")
    args = parser.parse_args(arguments)
    if not (args.evaluation / "metrics.json").is_file():
        parser.error(f"{args.evaluation} holds no metrics.json: run `scrd-fast evaluate` first")
    if not (args.data / "test").is_dir():
        parser.error(f"{args.data} holds no test folder: run make_data.py first")
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    metrics = read_json(args.evaluation / "metrics.json")
    baselines = baseline_aurocs(args.data)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(render(args, metrics, baselines), encoding="utf-8")
    shutil.copyfile(args.evaluation / "metrics.json", args.out.parent / "metrics.json")
    print(f"model AUROC {number(metrics.get('auroc'))} ({interval(metrics.get('auroc')) or 'no interval'})")
    for name, value in baselines.items():
        print(f"{STATISTIC_NAMES[name].lower()} AUROC {value:.3f}")
    print(args.out)
    wrong = complaints(baselines, model_auroc(metrics)) if args.check else []
    for sentence in wrong:
        print(f"check failed: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
