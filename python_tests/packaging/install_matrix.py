# SPDX-License-Identifier: Apache-2.0
"""Every way to install in every situation, for real, as a table in docs/installation.md: `make install-matrix`.

It takes half an hour on two cores. Exit code 1: something was not as it should be; the table says it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from scrd_fast.bench.machine import commit, machine

sys.path.insert(0, str(Path(__file__).parent))
from installs import SITUATIONS, WAYS, Outcome, Situation, Way, install, mistakes

PAGE = Path(__file__).parents[2] / "docs" / "installation.md"
BEGIN, END = "<!-- made by make install-matrix -->\n", "<!-- end -->\n"


def row(way: Way, situation: Situation, outcome: Outcome, wrong: list[str]) -> str:
    if wrong:
        result = "WRONG: " + "; ".join(wrong)
    elif outcome.failed:
        result = "refused"
    elif situation.libraries:
        result = "CPU and CUDA kernels" if outcome.states[1] == "loaded" else "CPU kernels"
    else:
        result = "no native code"
    size = f"{outcome.wheel_bytes / 1e6:.2f} MB" if outcome.wheel_bytes and "-e" not in way.name.split() else ""
    said = re.sub(r"/\S*/(\w+)", r".../\1", outcome.said()).replace("|", "/")
    return f"| {situation.name} | `{way.name}` | {result} | {said} | {outcome.seconds:.0f} s | {size} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a pattern: of 'situation: way', those to run; writes no page")
    only = parser.parse_args().only
    rows, wrong_rows = [], 0
    for situation in SITUATIONS:
        for way in WAYS:
            if not re.search(only, f"{situation.name}: {way.name}"):
                continue
            folder = Path(tempfile.mkdtemp(prefix="install-"))
            try:
                outcome = install(way, situation, folder)
            finally:
                shutil.rmtree(folder)
            wrong = mistakes(way, situation, outcome)
            wrong_rows += bool(wrong)
            rows.append(row(way, situation, outcome, wrong))
            print(rows[-1], flush=True)
            if wrong:
                print(outcome.output[-3000:], file=sys.stderr)
    if not only:
        _write(rows)
    return 1 if wrong_rows else 0


def _write(rows: list[str]) -> None:
    cpu, source = machine(torch.device("cpu"))["cpu"], commit()["commit"][:12]
    head = (
        f"{cpu}, Python {sys.version.split()[0]}, torch {torch.__version__} in each environment, commit {source}; CUDA "
        "code for one architecture (`TORCH_CUDA_ARCH_LIST=9.0`).\n\n"
        "| what there is | command | result | what is said | time | wheel |\n|---|---|---|---|---|---|\n"
    )
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + head + "\n".join(rows) + "\n" + END + after)


if __name__ == "__main__":
    sys.exit(main())
