# SPDX-License-Identifier: Apache-2.0
"""The operators' tests on a wheel in a fresh environment with a torch of its own: `make test-wheel TORCH=2.15.0`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from installs import ROOT, clean_variables, new_environment

TEST_TOOLS = ("pytest", "pytest-timeout", "hypothesis", "opensimplex", "numba", "scipy", "numpy<2.4")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the wheel lies")
    parser.add_argument("torch", help="a version")
    parser.add_argument("tests", nargs="*", help="arguments of pytest; write -- before them")
    arguments = parser.parse_args()
    (wheel,) = arguments.folder.glob("scrd_fast-*.whl")
    with tempfile.TemporaryDirectory() as folder:
        python = new_environment(Path(folder) / "env", f"torch=={arguments.torch}", str(wheel.resolve()), *TEST_TOOLS)
        script = [str(Path(__file__).with_name("operators.sh")), str(ROOT), *arguments.tests]
        return subprocess.run(script, env=clean_variables() | {"PYTHON": str(python)}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
