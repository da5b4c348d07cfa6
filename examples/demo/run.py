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


def steps(out: Path) -> dict[str, list[str]]:
    """What a user would type after `python`, by the name of the step."""
    data, run_folder = str(out / "data"), str(out / "run")
    cli = ["-m", "scrd_fast"]
    return {
        "make the data": [str(HERE / "make_data.py"), data],
        "train": [*cli, "train", data, "--out", run_folder, *TRAINING.split()],
        "evaluate": [*cli, "evaluate", run_folder, data, "--out", str(out / "evaluation")],
        "screen": [*cli, "screen", run_folder, str(out / "data" / "test"), "--out", str(out / "screening")],
    }


def run(arguments: list[str]) -> str:
    """Run a command, or end with its exit code. Returns the command as text."""
    text = shlex.join(["python", *arguments])
    print(f"$ {text}", file=sys.stderr, flush=True)
    code = subprocess.run([sys.executable, *arguments]).returncode
    if code != 0:
        sys.exit(code)
    return text


def main(out: Path) -> None:
    log = out / "steps.jsonl"
    if out.exists() and not log.is_file():
        sys.exit(f"{out} exists and is not an earlier demo: name another folder")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    log.touch()  # marks the folder as a demo's
    for step, arguments in steps(out).items():
        start = time.perf_counter()
        command = run(arguments)
        record = {"step": step, "seconds": round(time.perf_counter() - start, 1), "command": command}
        with log.open("a") as file:
            file.write(json.dumps(record) + "\n")
    folders = {"data": "data", "evaluation": "evaluation", "screening": "screening", "run": "run"}
    flags = [word for flag, name in folders.items() for word in (f"--{flag}", str(out / name))]
    report = out / "report.html"
    run([str(HERE / "report.py"), *flags, "--steps", str(log), "--out", str(report), "--check"])
    print(f"the report: {report.resolve()}\nthe numbers: {(out / 'metrics.json').resolve()}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
