# SPDX-License-Identifier: Apache-2.0
"""The wheel and the source archive of a release, checked, in a folder: `make wheel`.

The wheel is repaired by the command that cibuildwheel is configured with, so it says which systems it is for and
brings no library of torch or CUDA along.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT = 100e6  # bytes: what PyPI takes


def repair_command(wheel: Path, folder: Path) -> list[str]:
    (command,) = re.findall(r'^repair-wheel-command = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    return ["sh", "-c", str(command).format(wheel=wheel, dest_dir=folder)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--source", type=Path, default=ROOT)
    arguments = parser.parse_args()
    out, source = arguments.out, str(arguments.source)
    shutil.rmtree(out, ignore_errors=True)
    raw = out / "raw"
    python = [sys.executable, "-m"]
    subprocess.run([*python, "build", "--no-isolation", "--sdist", "--outdir", str(out), source], check=True)
    subprocess.run([*python, "build", "--no-isolation", "--wheel", "--outdir", str(raw), source], check=True)
    (wheel,) = raw.glob("*.whl")
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(repair_command(wheel, out), check=True, env=os.environ | {"PATH": tools})
    (repaired,) = out.glob("*.whl")
    shutil.rmtree(raw)
    files = sorted(str(file) for file in out.iterdir())
    subprocess.run([*python, "twine", "check", "--strict", *files], check=True)
    size = repaired.stat().st_size
    print(f"{repaired.name}: {size / 1e6:.2f} MB")
    if size > LIMIT:
        sys.exit(f"{repaired}: {size / 1e6:.0f} MB, more than {LIMIT / 1e6:.0f}")


if __name__ == "__main__":
    main()
