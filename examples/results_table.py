# SPDX-License-Identifier: Apache-2.0
"""A Markdown table of several evaluations: python examples/results_table.py NAME=FOLDER ...

FOLDER is what `scrd-fast evaluate --out` wrote. Each row has AUROC by every score, and the stored score's interval.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

SCORES = ("mean", "max", "top1", "top5")


def row(name: str, folder: Path) -> str:
    metrics = json.loads((folder / "metrics.json").read_text())
    by_score = [f"{_value(metrics['by_score'][score]['auroc']):.3f}" for score in SCORES]
    stored, at = metrics["auroc"], metrics["at_threshold"]
    interval = f"{metrics['score']} {stored['low']:.3f}-{stored['high']:.3f}"
    cut = f"{at['sensitivity']['value']:.2f} / {at['specificity']['value']:.2f}" if at else "-"
    return "| " + " | ".join([name, *by_score, interval, f"{metrics['f1']['value']:.3f}", cut]) + " |"


def _value(number: object) -> float:
    return float(number["value"] if isinstance(number, dict) else number)  # type: ignore[arg-type]


def main(arguments: list[str]) -> None:
    print("| run | mean | max | top1 | top5 | 95 % interval | best F1 | sensitivity / specificity |")
    print("|---|---|---|---|---|---|---|---|")
    for argument in arguments:
        name, _, folder = argument.partition("=")
        print(row(name, Path(folder)))


if __name__ == "__main__":
    main(sys.argv[1:])
