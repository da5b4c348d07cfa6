# SPDX-License-Identifier: Apache-2.0
"""What the tests of exported files share."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["run_alone", "same_outputs"]

# An import of what is blocked fails, as where it is not installed.
BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if any(name == b or name.startswith(b + ".") for b in {blocked!r}):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocker())
"""


def run_alone(code: str, folder: Path, picture: Path, blocked: Sequence[str]) -> list[str]:
    """Words that `code` prints in a process of its own, beside a folder's file and `image.png`."""
    with tempfile.TemporaryDirectory() as place:
        for path in folder.iterdir():
            (Path(place) / path.name).symlink_to(path)
        shutil.copy(picture, Path(place) / "image.png")
        program = BLOCKER.format(blocked=tuple(blocked)) + code
        done = subprocess.run([sys.executable, "-c", program], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def same_outputs(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """But for rounding; decisions exactly."""
    for name, value in ours.items():
        if name == "decision":
            assert torch.equal(value, theirs[name])
        else:
            torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-4)
