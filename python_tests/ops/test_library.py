# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import scrd_fast
from scrd_fast.errors import UnavailableError
from scrd_fast.ops import _library

CPU = torch.device("cpu")
USE = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, scrd_fast
    noise = scrd_fast.ops.simplex_noise(torch.tensor([1]), (1, 2, 3))
from scrd_fast.ops import _library
print(scrd_fast.__file__)
print(len([w for w in caught if "libscrd_fast" in str(w.message)]), [str(w.message) for w in caught])
print(_library.libraries()[0])
print(_library.why_not("simplex_noise", "native", torch.device("cpu")))
print(noise.shape)
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package, to be damaged."""
    ignored = shutil.ignore_patterns("__pycache__")
    return shutil.copytree(Path(scrd_fast.__file__).parent, tmp_path / "scrd_fast", ignore=ignored)


def use(copy: Path) -> list[str]:
    """The lines that USE prints with that copy."""
    environment = os.environ | {"PYTHONPATH": str(copy.parent)}
    done = subprocess.run(  # python -c looks in the working directory first
        [sys.executable, "-c", USE],
        env=environment,
        cwd=copy.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(str(copy))
    return lines


def test_an_intact_copy_loads_without_a_warning(copy: Path) -> None:
    _, warned, state, reason, shape = use(copy)
    assert warned.startswith("0 ")
    assert "state='loaded'" in state
    assert reason == "None"
    assert "[1, 1, 2, 3]" in shape


def test_a_library_that_does_not_load_keeps_its_cause_and_warns_once(copy: Path) -> None:
    (copy / "libscrd_fast_cpu.so").write_text("not a library")
    _, warned, state, reason, shape = use(copy)
    assert warned.startswith("1 ")
    for word in (
        "libscrd_fast_cpu.so",
        "built with torch",
        f"found torch {torch.__version__}",
        "pip install",
    ):
        assert word in warned
    assert "state='failed to load'" in state
    assert "libscrd_fast_cpu.so: failed to load: " in reason
    assert "[1, 1, 2, 3]" in shape  # by the reference


def test_an_absent_library_is_no_reason_to_warn(copy: Path) -> None:
    for library in copy.glob("*.so"):
        library.unlink()
    _, warned, _, reason, shape = use(copy)
    assert warned.startswith("0 ")
    assert reason == "libscrd_fast_cpu.so: not built (installed without native code)"
    assert "[1, 1, 2, 3]" in shape


def test_why_not_asks_the_dispatcher() -> None:
    library = torch.library.Library("scrd_fast", "FRAGMENT")
    library.define("test_why_not(Tensor x) -> Tensor")
    library.impl("test_why_not", torch.clone, "CompositeExplicitAutograd")
    assert _library.why_not("test_why_not", "reference", CPU) is None
    assert _library.why_not("test_why_not", "native", CPU) == "test_why_not has no native kernel for cpu yet"
    library.impl("test_why_not", torch.clone, "CPU")
    assert _library.why_not("test_why_not", "native", CPU) is None
    assert "test_why_not" in _library.operators()
    library._destroy()


def test_a_device_without_native_kernels_is_named() -> None:
    reason = _library.why_not("simplex_noise", "native", torch.device("meta"))
    assert reason == "there are native kernels for cpu and cuda only, not for meta"


def test_native_on_cuda_without_a_gpu_or_library_is_explained() -> None:
    reason = _library.why_not("simplex_noise", "native", torch.device("cuda"))
    if torch.cuda.is_available():
        assert reason is None
    else:
        assert reason is not None
        assert "CUDA" in reason or "not built" in reason


def test_choose() -> None:
    def reference() -> None: ...

    native = torch.ops.scrd_fast.simplex_noise
    assert _library.choose("simplex_noise", "auto", CPU, reference) is native
    assert _library.choose("simplex_noise", "native", CPU, reference) is native
    assert _library.choose("simplex_noise", "reference", CPU, reference) is reference
    with pytest.raises(UnavailableError, match=r"backend 'triton' cannot run simplex_noise on cpu: .*Triton"):
        _library.choose("simplex_noise", "triton", CPU, reference)
