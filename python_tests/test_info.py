# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from scrd_fast import info
from scrd_fast.ops import _library

ROOT = Path(info.__file__).parents[1]
COLLECT = """
import json
from scrd_fast import info
facts = info.collect()
print(json.dumps([facts, info.usable(facts), info.render(facts)]))
"""


def collect_with(tmp_path: Path, torch_source: str | None, **variables: str | None) -> tuple[dict[str, Any], bool, str]:
    """What another process collects whose torch is `torch_source`, without the variables that are None."""
    if torch_source is not None:
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "__init__.py").write_text(torch_source)
    every: dict[str, str | None] = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", **variables}
    environment = {name: value for name, value in every.items() if value is not None}
    done = subprocess.run(
        [sys.executable, "-c", COLLECT],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts, usable, text = json.loads(done.stdout)
    return facts, usable, text


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return info.collect()


def test_facts_are_json_and_none_failed(facts: dict[str, Any]) -> None:
    assert json.loads(json.dumps(facts)) == facts
    assert [name for name, section in facts.items() if "error" in section] == []
    assert info.usable(facts)


def test_facts_are_those_of_this_process(facts: dict[str, Any]) -> None:
    assert facts["torch"]["version"] == torch.__version__
    assert len(facts["gpus"]) == torch.cuda.device_count()
    assert facts["build"] == _library.build_info()
    assert [entry["name"] for entry in facts["libraries"]] == ["cpu", "cuda"]
    assert facts["memory_bytes"]["total"] > facts["memory_bytes"]["available"] > 0


def test_every_operator_and_backend_has_an_answer(facts: dict[str, Any]) -> None:
    operators = facts["operators"]
    assert set(operators) >= {"simplex_noise", "anomaly_map", "contrastive_distance", "synthesize_anomalies"}
    for row in operators.values():
        assert list(row) == ["native cpu", "native cuda", "triton", "reference"]
        assert all(row.values())
        assert row["reference"] == "available"
    assert operators["simplex_noise"]["native cpu"] == "available"
    assert "Triton" in operators["simplex_noise"]["triton"]


def test_every_dicom_syntax_has_a_decoder(facts: dict[str, Any]) -> None:
    pytest.importorskip("pydicom")
    found = facts["dicom_decoders"]
    assert len(found) == len(info.DICOM_SYNTAXES)
    assert all(found.values())
    assert "pylibjpeg" in found["JPEG 2000 Image Compression (Lossless Only)"]


def test_text_has_every_fact(facts: dict[str, Any]) -> None:
    text = info.render(facts)
    for word in (torch.__version__, "simplex_noise", "native cuda", "SCRD_FAST_CUDA", "GiB", "usable: yes"):
        assert word in text


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("raise ImportError('libcudart.so.13: cannot open shared object file')", "libcudart.so.13"),
        ("raise OSError('libtorch_cpu.so: undefined symbol')", "undefined symbol"),
        ("raise ModuleNotFoundError('No module named torch')", "No module named torch"),
        ("raise RuntimeError('a broken installation')", "a broken installation"),
        ("raise SystemExit('not on this machine')", "not on this machine"),
        ("", "has no attribute"),
    ],
)
def test_a_broken_torch_is_reported_and_not_raised(tmp_path: Path, source: str, cause: str) -> None:
    broken, usable, text = collect_with(tmp_path, source)
    assert not usable
    assert cause in broken["torch"]["error"]
    assert "error" in broken["operators"]
    assert cause in text
    assert "usable: no" in text
    assert broken["build"]["torch_target"] == "2.11"  # what needs no torch is still there
    assert broken["memory_bytes"]["total"] > 0


def test_a_library_that_does_not_load_is_in_the_report(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    copy = shutil.copytree(Path(info.__file__).parent, tmp_path / "scrd_fast", ignore=ignored)
    (copy / "libscrd_fast_cpu.so").write_text("not a library")
    found, usable, text = collect_with(tmp_path, None)
    assert usable  # the reference is there
    assert found["libraries"][0]["state"] == "failed to load"
    for word in ("does not load", "built with torch", "found torch", "to repair it: pip install"):
        assert word in found["operators"]["simplex_noise"]["native cpu"]
        assert word in text


def test_nothing_in_the_environment_is_needed(tmp_path: Path) -> None:
    names = (*info.VARIABLES, "LD_LIBRARY_PATH", "HOME")
    found, usable, _ = collect_with(tmp_path, None, **dict.fromkeys(names))
    assert usable
    assert [name for name, section in found.items() if "error" in section] == []
    assert found["environment"] == dict.fromkeys(info.VARIABLES)


def test_environment_and_compilers(tmp_path: Path) -> None:
    nvcc = tmp_path / "toolkit" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.99'\n")
    nvcc.chmod(0o755)
    variables = {"CUDA_HOME": str(tmp_path / "toolkit"), "MAX_JOBS": "3", "SCRD_FAST_TOKEN": "canary"}
    found, usable, text = collect_with(tmp_path, None, **variables)
    assert usable
    assert found["compilers"]["nvcc"] == f"{nvcc}: release 12.4, V12.4.99"
    assert found["environment"]["MAX_JOBS"] == "3"
    assert found["environment"]["SCRD_FAST_TOKEN"] == "(set)"
    assert "canary" not in text
    assert "MAX_JOBS: 3" in text


def test_the_driver_is_known_where_it_has_a_program_only(tmp_path: Path) -> None:
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("the driver's file comes first")
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n[ $1 = --query-gpu=driver_version ] && echo 581.29\n")
    program.chmod(0o755)
    found, _, _ = collect_with(tmp_path, "raise ImportError", PATH=f"{program.parent}:{os.environ['PATH']}")
    assert found["system"]["driver"] == "581.29"


def test_no_compiler_at_all(tmp_path: Path) -> None:
    found, usable, _ = collect_with(tmp_path, None, PATH="/nonexistent", CUDA_HOME="/nonexistent", CXX="")
    assert usable
    assert found["compilers"] == {"nvcc": None, "c++": None}
