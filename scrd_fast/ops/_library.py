# SPDX-License-Identifier: Apache-2.0
"""The operator library `scrd_fast`: its compiled kernels, and which of them can run what.

An operator always exists. `define` gives it a schema and its plain-PyTorch reference; the kernels in the two
shared libraries replace the reference on their device once they are loaded; where there is none for CUDA, the
Triton kernel does. So `backend="auto"` is torch's dispatcher, a compiled or exported graph is the same with and
without kernels, and no operator asks what was built.

The Triton kernels are also operators of their own, in the namespace `scrd_fast_triton`, for those who ask for them
by name. Triton itself is imported when one of them first runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import os
import shlex
import shutil
import urllib.parse
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scrd_fast.errors import UnavailableError

__all__ = [
    "BACKENDS",
    "LibraryState",
    "build_info",
    "choose",
    "define",
    "define_backward",
    "define_triton",
    "instruction_set",
    "libraries",
    "library",
    "operators",
    "repair",
    "why_not",
]

BACKENDS = ("auto", "reference", "native", "triton")
CHANGES_FIRST = "(Tensor(a!)"  # so begins the schema of an operator that works in place

library = torch.library.Library("scrd_fast", "DEF")  # type: ignore[no-untyped-call]
_triton_library = torch.library.Library("scrd_fast_triton", "DEF")  # type: ignore[no-untyped-call]
_in_triton: set[str] = set()  # the operators that have a Triton kernel
_triton_is_cuda: set[str] = set()  # those whose CUDA kernel it is


@dataclass(frozen=True)
class LibraryState:
    """What became of one shared library. `error`: why one that exists cannot be used, and what repairs it."""

    name: str  # the device type that its kernels are for
    path: Path
    state: str
    error: str | None = None
    instruction_set: str | None = None  # of the CPU kernels in use


def build_info() -> dict[str, str] | None:
    """The facts of the native build, or None where there is none that Python can import."""
    try:
        facts: dict[str, str] = importlib.import_module("scrd_fast._C").build_info()
    except ImportError:
        return None
    return facts


def _load(name: str) -> LibraryState:
    path = Path(__file__).parents[1] / f"libscrd_fast_{name}.so"
    if not path.exists():
        why = (build_info() or {}).get(f"no_{name}_reason", "installed without native code")
        return LibraryState(name, path, f"not built ({why})")
    if name == "cuda" and torch.version.cuda is None:
        return LibraryState(name, path, f"not loaded (torch {torch.__version__} has no CUDA)")
    try:
        torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]
    except OSError as cause:
        return LibraryState(name, path, "failed to load", _mismatch(name, path, f"does not load: {cause}"))
    return _with_instruction_set(path) if name == "cpu" else LibraryState(name, path, "loaded")


def _with_instruction_set(path: Path) -> LibraryState:
    """The newest that was built and that this CPU has, or the one that SCRD_FAST_ISA asks for."""
    loaded = ctypes.CDLL(str(path))
    answers = []
    for ask in (loaded.scrd_fast_isa, loaded.scrd_fast_isa_error):
        ask.restype = ctypes.c_char_p
        answer = ask()
        answers.append(None if answer is None else str(answer.decode()))
    isa, error = answers
    return LibraryState("cpu", path, "unusable" if error else "loaded", error, isa)


def repair(name: str) -> str:
    """The command that builds this package again, from where it came, with the torch in use; `name` of the library."""
    source = "--no-binary scrd_fast scrd_fast"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError, KeyError):
        origin = json.loads(importlib.metadata.distribution("scrd_fast").read_text("direct_url.json") or "{}")
        url, code = origin["url"], origin.get("vcs_info")
        if code is not None:
            source = shlex.quote(f"{code['vcs']}+{url}@{code['commit_id']}")
        elif url.startswith("file://") and not url.endswith(".whl"):  # a wheel would stay what it is
            folder = shlex.quote(urllib.parse.unquote(url.removeprefix("file://")))
            source = f"-e {folder}" if origin.get("dir_info", {}).get("editable") else folder
    switch = "SCRD_FAST_CUDA=1 " if name == "cuda" else ""  # or it could come without, and say nothing
    return f"{switch}pip install --force-reinstall --no-deps --no-build-isolation {source}"


def _mismatch(name: str, path: Path, trouble: str) -> str:
    """One sentence: what is wrong, what the library was built for, what there is, and what to type."""
    facts = build_info() or {}
    built = f"torch {facts.get('torch', 'unknown')}, CUDA {facts.get('cuda') or 'none'}"
    if archs := facts.get("cuda_archs"):
        built += f", GPUs of {archs}"
    found = f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}"
    return f"{path.name} {trouble}; it was built with {built}; found {found}; to repair it: {repair(name)}"


def _load_all() -> dict[str, LibraryState]:
    states = {name: _load(name) for name in ("cpu", "cuda")}
    broken = [state.error for state in states.values() if state.state == "failed to load" and state.error]
    if broken:
        warnings.warn(". ".join([*broken, "Until then slower kernels are used"]), stacklevel=2)
    return states


_STATES = _load_all()


def libraries() -> list[LibraryState]:
    return list(_STATES.values())


def instruction_set() -> str | None:
    """That of the CPU kernels in use; None without kernels, or where SCRD_FAST_ISA asks for what is not there."""
    return _STATES["cpu"].instruction_set


def define(schema: str, reference: Callable[..., Any]) -> None:
    """Define an operator whose kernel, where no other is registered, is `reference`."""
    name = library.define(schema)  # type: ignore[no-untyped-call]
    library.impl(name, reference, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    if CHANGES_FIRST in schema:
        _tell_autograd(library, name)


def define_backward(schema: str, reference: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define an operator that is another's gradient, and has none itself: without a word torch would take it for 0."""
    define(schema, reference)
    name = f"scrd_fast::{schema[: schema.index('(')]}"

    def refuse(*_: Any) -> Any:
        raise RuntimeError(f"{name.removesuffix('_backward')} can be differentiated once only: its gradient has none")

    torch.library.register_fake(name, fake)
    torch.library.register_autograd(name, refuse)


def _tell_autograd(owner: torch.library.Library, name: str) -> None:
    """Count the changes of the first argument, as autograd wants them counted: it does not see kernels write."""
    operator = getattr(getattr(torch.ops, owner.ns), name).default

    def counted(keys: Any, changed: torch.Tensor, *rest: Any) -> Any:
        if not changed.is_inference():
            torch.autograd.graph.increment_version(changed)
        with torch._C._AutoDispatchBelowADInplaceOrView():
            return operator.redispatch(keys & torch._C._after_ADInplaceOrView_keyset, changed, *rest)

    owner.impl(name, counted, "ADInplaceOrView", with_keyset=True)  # type: ignore[no-untyped-call]


def define_triton(
    schema: str,
    fake: Callable[..., Any],
    backward: Callable[..., tuple[Any, ...]] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> None:
    """Say that the operator of that schema, defined before, has a namesake in `scrd_fast.ops.triton`."""
    name: str = _triton_library.define(schema)  # type: ignore[no-untyped-call]

    def launch(*arguments: Any) -> Any:
        return getattr(importlib.import_module("scrd_fast.ops.triton"), name)(*arguments)

    _triton_library.impl(name, launch, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"scrd_fast_triton::{name}", fake)
    if CHANGES_FIRST in schema:
        _tell_autograd(_triton_library, name)
    if backward is not None:
        torch.library.register_autograd(f"scrd_fast_triton::{name}", backward, setup_context=setup_context)
    _in_triton.add(name)
    if torch.version.cuda is not None and not _has_kernel(name, "cuda") and _no_triton() is None:
        library.impl(name, launch, "CUDA")  # type: ignore[no-untyped-call]
        _triton_is_cuda.add(name)


def _has_kernel(op: str, device_type: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"scrd_fast::{op}", device_type.upper())


@functools.cache
def _no_triton() -> str | None:
    """What Triton lacks to compile kernels, as far as can be told without importing it."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler: neither gcc nor clang is on PATH, and CC is not set"
    return None


def operators() -> list[str]:
    """The names of all operators that are defined, in alphabetical order."""
    names = torch._C._dispatch_get_all_op_names()
    return sorted(name.removeprefix("scrd_fast::") for name in names if name.startswith("scrd_fast::"))


# Dynamo takes the answer as a constant: kernels do not come and go while a graph is compiled.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def why_not(op: str, backend: str, device: torch.device) -> str | None:
    """None if `backend` can run the operator `op` on `device`, else the reason."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "triton":
        return _why_not_triton(op, device.type)
    if backend == "native":
        return _why_not_native(op, device)
    return None


def _why_not_native(op: str, device: torch.device) -> str | None:
    device_type = device.type
    if device_type not in _STATES:
        return f"there are native kernels for {' and '.join(_STATES)} only, not for {device_type}"
    state = _STATES[device_type]
    if state.state != "loaded":
        return state.error or f"{state.path.name}: {state.state}"
    if not _has_kernel(op, device_type) or (device_type == "cuda" and op in _triton_is_cuda):
        return f"{op} has no native kernel for {device_type} yet"
    if device_type == "cuda" and not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    if device_type == "cuda" and (gpu := _gpu_without_code(device.index)):
        return _mismatch(state.name, state.path, f"has no code for {gpu}")
    return None


@functools.cache
def _gpu_without_code(index: int | None) -> str | None:
    """That GPU (None: the current one), where the CUDA library has neither its machine code nor PTX that would do."""
    found = torch.cuda.get_device_capability(index)
    for arch in (build_info() or {}).get("cuda_archs", "").split():
        numbers, _, ptx = arch.partition("+")
        major, minor = (int(number) for number in numbers.rstrip("af").split("."))
        fits = minor == found[1] if numbers.endswith("a") else minor <= found[1]
        if (major == found[0] and fits) or (ptx and (major, minor) <= found):
            return None
    return f"{torch.cuda.get_device_name(index)} ({found[0]}.{found[1]})"


def _why_not_triton(op: str, device_type: str) -> str | None:
    if op not in _in_triton:
        return f"{op} has no Triton kernel yet"
    if reason := _no_triton():
        return reason
    try:
        interpreted = importlib.import_module("scrd_fast.ops.triton").INTERPRETED
    except Exception as error:  # whatever a broken installation raises
        return f"Triton cannot be imported: {error}"
    if device_type == "cpu" and interpreted:
        return None
    if device_type != "cuda":
        return f"Triton kernels are for cuda, not for {device_type} (for tests, TRITON_INTERPRET=1 runs them on cpu)"
    if not torch.cuda.is_available():
        return f"Triton needs a CUDA device, and torch {torch.__version__} finds none"
    return None


def choose(op: str, backend: str, device: torch.device, reference: Callable[..., Any]) -> Callable[..., Any]:
    """What runs `op` with `backend` on `device`. Only "auto" takes what there is, and in ONNX that is the reference."""
    operator: Callable[..., Any] = getattr(torch.ops.scrd_fast, op)
    if backend == "auto":
        # No other runtime knows these operators. The first question is the cheap one.
        in_onnx = torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()
        return reference if in_onnx else operator
    if reason := why_not(op, backend, device):
        raise UnavailableError(f"backend {backend!r} cannot run {op} on {device}: {reason}")
    if backend == "triton":
        operator = getattr(torch.ops.scrd_fast_triton, op)
    return reference if backend == "reference" else operator
