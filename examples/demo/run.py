# SPDX-License-Identifier: Apache-2.0
"""The whole demo: makes the data, trains, evaluates, screens and reports, by the commands that a user would type.

python examples/demo/run.py OUT
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
TRAINING = "--teacher tf_efficientnet_lite0 --teacher-weights package --size 128 --batch-size 16 --iterations 250"


def steps(out: Path) -> dict[str, str]:
    """The commands by the name of their step."""
    cli = "python -m scrd_fast"
    return {
        "make the data": f"python {HERE.relative_to(Path.cwd())}/make_data.py {out}/data",
        "train": f"{cli} train {out}/data --out {out}/run {TRAINING}",
        "evaluate": f"{cli} evaluate {out}/run {out}/data --out {out}/evaluation",
        "screen": f"{cli} screen {out}/run {out}/data/test --out {out}/screening",
    }


def run(command: str) -> None:
    words = shlex.split(command)
    print(f"$ {command}", file=sys.stderr, flush=True)
    code = subprocess.run([sys.executable, *words[1:]]).returncode
    if code != 0:
        sys.exit(code)


def main(out: Path) -> None:
    if out.exists() and not (out / "data" / "about.json").is_file():
        sys.exit(f"{out} exists and is not an earlier demo: name another folder")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    log = out / "steps.jsonl"
    for step, command in steps(out).items():
        start = time.perf_counter()
        run(command)
        record = {"step": step, "seconds": round(time.perf_counter() - start, 1), "command": command}
        with log.open("a") as file:
            file.write(json.dumps(record) + "\n")
    folders = f"--data {out}/data --evaluation {out}/evaluation --screening {out}/screening --run {out}/run"
    run(f"python {HERE / 'report.py'} {folders} --steps {log} --out {out}/report.html --check")
    print(f"the report: {(out / 'report.html').resolve()}\nthe numbers: {(out / 'metrics.json').resolve()}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
