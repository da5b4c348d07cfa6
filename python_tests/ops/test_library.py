# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import scrd_fast
from scrd_fast.errors import UnavailableError
from scrd_fast.ops import _library

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
WHERE = "import scrd_fast; print(scrd_fast.__file__)"
USE = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, scrd_fast
    noise = scrd_fast.ops.simplex_noise(torch.tensor([1]), (1, 2, 3))
from scrd_fast.ops import _library
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


def use(copy: Path, script: str = USE, *arguments: str) -> list[str]:
    """The lines that the script prints with that copy."""
    environment = os.environ | {"PYTHONPATH": str(copy.parent)}
    done = subprocess.run(  # python -c looks in the working directory first
        [sys.executable, "-c", WHERE + script, *arguments],
        env=environment,
        cwd=copy.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first.startswith(str(copy))
    return lines


def test_an_intact_copy_loads_without_a_warning(copy: Path) -> None:
    warned, state, reason, shape = use(copy)
    assert warned.startswith("0 ")
    assert "state='loaded'" in state
    assert reason == "None"
    assert "[1, 1, 2, 3]" in shape


ASK_BY_NAME = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, scrd_fast
    noise = scrd_fast.ops.simplex_noise(torch.tensor([1]), (1, 2, 3))
from scrd_fast.errors import UnavailableError
from scrd_fast.ops import _library
try:
    _library.choose("simplex_noise", "native", torch.device(NAME), None)
except UnavailableError as error:
    print(error)
print(*[w.message for w in caught], sep="; ")
print({state.name: state.state for state in _library.libraries()}[NAME], noise.shape)
"""


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_a_library_that_does_not_load_leaves_a_working_package(copy: Path, name: str) -> None:
    """One warning; who asks for the kernels by name gets the same text."""
    if name == "cuda" and torch.version.cuda is None:
        pytest.skip("a torch without CUDA does not try")
    (copy / f"libscrd_fast_{name}.so").write_text("not a library")
    error, warned, state = use(copy, f"\nNAME = {name!r}{ASK_BY_NAME}")
    assert warned.count("does not load") == 1
    facts = _library.build_info()
    assert facts is not None
    for word in (
        f"libscrd_fast_{name}.so does not load: ",
        f"built with torch {facts['torch']}, CUDA {facts['cuda'] or 'none'}",
        f"found torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}",
        f"to repair it: {_library.repair(name)}",
    ):
        assert word in warned
        assert word in error
    assert warned.removesuffix(". Until then slower kernels are used") == error.partition(f" on {name}: ")[2]
    assert state == "failed to load torch.Size([1, 1, 2, 3])"


@pytest.mark.parametrize(
    ("origin", "source"),
    [
        (None, "--no-binary scrd_fast scrd_fast"),  # from an index
        ('{"url": "file:///my%20clones/scrd_fast", "dir_info": {}}', "'/my clones/scrd_fast'"),
        ('{"url": "file:///clone", "dir_info": {"editable": true}}', "-e /clone"),
        ('{"url": "file:///tmp/scrd_fast-0.1.0.tar.gz", "archive_info": {}}', "/tmp/scrd_fast-0.1.0.tar.gz"),
        ('{"url": "file:///tmp/scrd_fast-0.1.0.whl"}', "--no-binary scrd_fast scrd_fast"),
        (
            '{"url": "https://example.org/scrd_fast", "vcs_info": {"vcs": "git", "commit_id": "ab12"}}',
            "git+https://example.org/scrd_fast@ab12",
        ),
        ("not JSON", "--no-binary scrd_fast scrd_fast"),
    ],
)
def test_the_command_that_repairs_names_where_the_package_came_from(
    origin: str | None, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = type("Distribution", (), {"read_text": lambda self, name: origin})()
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: found)
    assert _library.repair("cpu") == f"pip install --force-reinstall --no-deps --no-build-isolation {source}"


@pytest.mark.parametrize(
    ("archs", "gpu", "runs"),
    [
        ("8.0 9.0", (9, 0), True),
        ("8.0", (8, 6), True),  # machine code serves later minor versions
        ("8.6", (8, 0), False),
        ("8.0", (9, 0), False),
        ("8.0+PTX", (9, 0), True),  # PTX all later ones
        ("9.0+PTX", (8, 0), False),
        ("10.0f", (10, 3), True),
        ("9.0a", (9, 0), True),
        ("10.0a", (10, 3), False),
        ("", (9, 0), False),
    ],
)
def test_a_gpu_that_the_library_has_no_code_for_is_named(
    archs: str, gpu: tuple[int, int], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_library, "build_info", lambda: {"torch": "2.11.0", "cuda": "13.0", "cuda_archs": archs})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
    _library._gpu_without_code.cache_clear()
    assert _library._gpu_without_code(0) == (None if runs else f"a GPU ({gpu[0]}.{gpu[1]})")
    _library._gpu_without_code.cache_clear()


def test_two_libraries_that_do_not_load_make_one_warning(copy: Path) -> None:
    for name in ("cpu", "cuda"):
        (copy / f"libscrd_fast_{name}.so").write_text("not a library")
    warned, *_ = use(copy)
    assert warned.startswith("1 ")
    assert warned.count("does not load") == (1 if torch.version.cuda is None else 2)


def test_an_absent_library_is_no_reason_to_warn(copy: Path) -> None:
    for library in copy.glob("*.so"):
        library.unlink()
    warned, _, reason, shape = use(copy)
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
    with pytest.raises(
        UnavailableError,
        match=r"'triton' cannot run cosine_distances_backward on cpu: cosine_distances_backward has no Triton kernel",
    ):
        _library.choose("cosine_distances_backward", "triton", CPU, reference)


@pytest.fixture
def _fresh_answers() -> Iterator[None]:
    _library._no_triton.cache_clear()
    yield
    _library._no_triton.cache_clear()


@pytest.mark.usefixtures("_fresh_answers")
def test_triton_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "triton", None)
        assert _library.why_not("simplex_noise", "triton", CUDA) == "Triton is not installed"
    pytest.importorskip("triton")
    _library._no_triton.cache_clear()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        patch.delenv("CC", raising=False)
        assert "needs a C compiler" in str(_library.why_not("simplex_noise", "triton", CUDA))
    _library._no_triton.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "scrd_fast.ops.triton", None)
        assert "Triton cannot be imported: " in str(_library.why_not("simplex_noise", "triton", CUDA))


@needs_triton
def test_triton_kernels_need_a_gpu_or_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = importlib.import_module("scrd_fast.ops.triton")
    reason = _library.why_not("simplex_noise", "triton", CUDA)
    assert reason is None if torch.cuda.is_available() else "Triton needs a CUDA device" in str(reason)
    monkeypatch.setattr(kernels, "INTERPRETED", True)
    assert _library.why_not("simplex_noise", "triton", CPU) is None
    monkeypatch.setattr(kernels, "INTERPRETED", False)
    assert "not for cpu (for tests, TRITON_INTERPRET=1" in str(_library.why_not("simplex_noise", "triton", CPU))
    with pytest.raises(UnavailableError, match="backend 'triton' cannot run simplex_noise on cpu: Triton kernels are"):
        _library.choose("simplex_noise", "triton", CPU, lambda: None)


STAND_IN = """
import sys
if "--without" in sys.argv:
    sys.modules["triton"] = None
import torch
from scrd_fast.ops import _library
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
for op in (
    "simplex_noise", "synthesize_anomalies", "synthesize_anomalies_", "cosine_distances", "anomaly_map",
    "contrastive_distance", "contrastive_distance_backward", "cosine_distances_backward",
):
    print(has_kernel("scrd_fast::" + op, "CUDA"), _library.why_not(op, "native", torch.device("cuda")))
print("scrd_fast.ops.triton" in sys.modules)
"""


@needs_triton
@pytest.mark.skipif(torch.version.cuda is None, reason="needs a torch with CUDA")
@pytest.mark.parametrize("triton", [True, False])
def test_triton_is_the_cuda_kernel_where_there_is_no_other(copy: Path, triton: bool) -> None:
    (copy / "libscrd_fast_cuda.so").unlink(missing_ok=True)
    arguments = [] if triton else ["--without"]
    *lines, imported = use(copy, STAND_IN, *arguments)
    assert [line.split()[0] for line in lines] == [str(triton)] * 7 + ["False"]
    assert all("libscrd_fast_cuda.so: not built" in line for line in lines)  # asked for by name it stays unavailable
    assert imported == "False"
