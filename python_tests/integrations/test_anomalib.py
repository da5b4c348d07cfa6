# SPDX-License-Identifier: Apache-2.0
"""The map generator against torch and scipy; the rest in an environment that has anomalib."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomllib
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from scrd_fast.errors import UnavailableError
from scrd_fast.integrations import anomalib
from scrd_fast.integrations.anomalib import AnomalyMapGenerator

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def features(size: tuple[int, int], dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], ...]:
    generator = torch.Generator().manual_seed(size[1])
    shapes = [(2, 8 * 2**k, -(-size[0] // s), -(-size[1] // s)) for k, s in enumerate((4, 8, 16))]
    return tuple([torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes] for _ in range(2))


def by_scipy(
    student: list[torch.Tensor], teacher: list[torch.Tensor], size: tuple[int, int], sigma: float, mode: str
) -> Any:
    scales = []
    for s, t in zip(student, teacher, strict=True):
        distance = 1 - F.cosine_similarity(s.double(), t.double())
        scales.append(F.interpolate(distance[:, None], size=size, mode="bilinear", align_corners=True))
    joined = sum(scales) if mode == "add" else torch.stack(scales).prod(0)
    return gaussian_filter(joined.numpy(), (0, 0, sigma, sigma), mode="mirror", truncate=4)


@pytest.mark.parametrize("mode", ["add", "multiply"])
@pytest.mark.parametrize("size", [(64, 64), (37, 131)])
@pytest.mark.parametrize("sigma", [1, 4])
def test_the_map_is_the_sum_or_product_blurred_with_a_mirrored_border(
    mode: str, size: tuple[int, int], sigma: int
) -> None:
    student, teacher = features(size)
    found = AnomalyMapGenerator(size, sigma=sigma, mode=mode)(student, teacher)
    np.testing.assert_allclose(found, by_scipy(student, teacher, size, sigma, mode), rtol=1e-5, atol=2e-6)


def test_the_defaults_are_sigma_4_and_a_product() -> None:
    student, teacher = features((64, 64))
    found = AnomalyMapGenerator([64, 64])(student, teacher)
    np.testing.assert_allclose(found, by_scipy(student, teacher, (64, 64), 4, "multiply"), rtol=1e-5, atol=2e-6)


def test_another_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="mode must be one of add, multiply, got 'mean'"):
        AnomalyMapGenerator((64, 64), mode="mean")


def test_without_anomalib_the_model_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UnavailableError, match=r"^anomalib is not installed; type: pip install anomalib$"):
        anomalib.Scrd  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'Scr'"):
        anomalib.Scr  # noqa: B018


@pytest.mark.release
@pytest.mark.timeout(1800)
def test_in_an_environment_with_anomalib(tmp_path: Path) -> None:
    """The newest anomalib, with this torch: `with_anomalib.py` runs there, on the files of this checkout."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["model"], *extras["export"]]
    python = str(tmp_path / "env" / "bin" / "python")
    pins = ["-c", str(ROOT / "constraints.txt"), f"torch=={str(torch.__version__).split('+')[0]}"]
    tools = ["anomalib", "openvino", "pytest", "pytest-timeout", "pytest-xdist"]
    for command in (
        [sys.executable, "-m", "venv", str(tmp_path / "env")],
        [python, "-m", "pip", "install", "-q", *pins, *tools, *needed],
    ):
        subprocess.run(command, check=True)
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "with_anomalib.py")]
    done = subprocess.run(tests, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
