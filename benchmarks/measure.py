# SPDX-License-Identifier: Apache-2.0
"""The GPU's benchmarks of one operator, without the command line and what it needs (benchmarks/gpu.sh):

python benchmarks/measure.py OPERATOR FOLDER SECONDS
"""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import torch

from scrd_fast.bench.run import bench
from scrd_fast.console import Console


def main(op: str, folder: str, seconds: str) -> int:
    gpu = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    out = Path(folder) / f"{op}-{gpu}.json"
    out.with_suffix(".csv").unlink(missing_ok=True)  # it is written last, and belongs to one JSON
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the processes that it started, too
    failed = bench(Console(), [op], False, out, "cuda", 0, None, out.with_suffix(".csv"), time_limit=float(seconds))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
