# SPDX-License-Identifier: Apache-2.0
"""`scrd-fast reproduce`, between the command line and the library."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from scrd_fast.console import Console
from scrd_fast.errors import ScrdFastError
from scrd_fast.reproduce.run import plan
from scrd_fast.reproduce.run import reproduce as run

__all__ = ["reproduce"]


def reproduce(
    console: Console,
    config: Path,
    out: Path,
    only: Sequence[str],
    jobs: int,
    anomalib: str | None,
    skip_missing: bool,
    dry_run: bool,
) -> int:
    """Returns the exit code: 1 where a run has failed."""
    if anomalib is not None and shutil.which(anomalib) is None:
        raise ScrdFastError(
            f"--anomalib {anomalib}: no such program; expected the Python of an environment with anomalib"
        )
    if dry_run:
        runs = plan(config, out, only=only, skip_missing=skip_missing)
        done = sum(planned.finished for planned in runs)
        for planned in runs:
            console.log(f"{'finished' if planned.finished else 'to do'}: {planned.run}")
        console.log(f"{len(runs)} runs, {done} of them finished")
        console.result(out, {"runs": {str(p.folder.name): p.finished for p in runs}})
        return 0
    outcome = run(config, out, only=only, jobs=jobs, anomalib=anomalib, skip_missing=skip_missing, log=console.log)
    for name, reason in outcome.failed.items():
        console.warn(f"{name}: {reason}")
    console.result(
        outcome.html,
        {
            "html": str(outcome.html),
            "markdown": str(outcome.markdown),
            "finished": outcome.finished,
            "failed": outcome.failed,
        },
    )
    return int(bool(outcome.failed))
