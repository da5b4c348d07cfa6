# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/kernels.md, from committed results alone: `python benchmarks/roofline_table.py` writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scrd_fast.bench.results import SCHEMA
from scrd_fast.bench.table import seconds

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "kernels.md"
BEGIN, END = "<!-- made by python benchmarks/roofline_table.py -->\n", "<!-- end -->"
CASES = {  # the largest of each operator: (case, variants)
    "simplex_noise": [("256 patches", ("opensimplex", "hashed"))],
    "synthesize_anomalies": [("16 images in place", ("opensimplex", "hashed"))],
    "contrastive_distance": [
        (f"16 samples, {dtype}, channels-last", ("forward", "backward")) for dtype in ("float32", "bfloat16")
    ],
    "anomaly_map": [(f"64 images, {dtype}, channels-last", ("map", "mean")) for dtype in ("float32", "bfloat16")],
}
OURS = ("scrd_fast", "scrd_fast triton")


def found() -> list[dict[str, Any]]:
    results = [json.loads(path.read_text()) for path in sorted((ROOT / "benchmarks" / "results").glob("*.json"))]
    return [result for result in results if result.get("schema") == SCHEMA]


def rows(results: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The machine and the row, operator by operator."""
    for op, cases in CASES.items():
        for case, variants in cases:
            for variant in variants:
                for result in results:
                    for row in result["rows"]:
                        key = (row["op"], row["case"], row["variant"])
                        if key == (op, case, variant) and row["contender"] in OURS and row["status"] == "ok":
                            yield machine(result), row


def machine(result: dict[str, Any]) -> str:
    about = result["machine"]
    if about["gpu"]:
        return str(about["gpu"]["name"])
    return f"{about['cpu'].split()[-1]}, {'AVX-512' if 'avx512f' in about['flags'] else 'AVX2'}"


def ratio(flops: float, moved: float) -> str:
    return f"{flops / moved:.{2 if flops < 10 * moved else 3}g}"


def line(name: str, row: dict[str, Any]) -> str:
    work, share = row["work"], row["percent"]
    flops = work["flops32"] + work["flops64"]
    taken = row["times"].get("device_warm", row["times"]["wall_warm"])["median"]
    limit = max(share, key=share.get)
    shares = [f"**{value:.0f} %**" if kind == limit else f"{value:.0f} %" for kind, value in share.items()]
    case = row["case"].replace(", channels-last", "")
    call = f"`{row['op']}`, {case}, {row['variant']}" + (", Triton" if row["contender"] == OURS[1] else "")
    numbers = f"{seconds(taken)} | {work['bytes'] / 1e6:.3g} | {flops / 1e6:.3g} | {ratio(flops, work['bytes'])}"
    return f"| {call} | {' | '.join(shares)} | {numbers} | {name} |"


def peaks(results: list[dict[str, Any]]) -> Iterator[str]:
    for result in results:
        peak = result["peaks"]["cuda" if result["machine"]["gpu"] else "cpu"]
        rates = peak["copy"] | peak["read"]
        far = max(map(int, rates))  # beyond the caches
        memory = max(kind[str(far)] for kind in (peak["copy"], peak["read"]) if str(far) in kind)
        flops = peak["flops"]["32"]
        ops = ", ".join(f"`{op}`" for op in dict.fromkeys(row["op"] for row in result["rows"]))
        yield f"| {machine(result)} | {ops} | {memory / 1e9:.0f} | {flops / 1e9:.0f} | {ratio(flops, memory)} |"


def tables() -> str:
    results = found()
    return "\n".join(
        [
            "| call | bytes | FLOPs | issue | time | MB | MFLOP | FLOP / byte | machine |",
            "|---|---|---|---|---|---|---|---|---|",
            *(line(name, row) for name, row in rows(results)),
            "",
            "| machine | in the run of | GB/s | float32 GFLOP/s | FLOP / byte where they meet |",
            "|---|---|---|---|---|",
            *peaks(results),
            "",
        ]
    )


def with_tables(page: str) -> str:
    before, rest = page.split(BEGIN)
    return before + BEGIN + tables() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
