# SPDX-License-Identifier: Apache-2.0
"""What runs here, and why not the rest: the report to attach to a question.

It is needed most where something is broken, so each section is collected by itself: one that fails holds
`{"error": cause}`, and the others are still there. Nothing here needs torch to be importable.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scrd_fast import __version__
from scrd_fast.choices import Backend
from scrd_fast.memory import free_memory, memory_limit, total_memory

__all__ = ["collect", "render", "usable"]

SECRET = "SCRD_FAST_TOKEN"  # is never shown
# Those of the build, of the tests (SCRD_FAST_DATA, SCRD_FAST_ISA), of the service and of torch's choice of GPUs.
VARIABLES = (
    "SCRD_FAST_CUDA",
    "SCRD_FAST_NATIVE",
    "TORCH_CUDA_ARCH_LIST",
    "MAX_JOBS",
    "NVCC_THREADS",
    "CUDA_HOME",
    "CUDA_PATH",
    "CXX",
    "SCRD_FAST_DATA",
    "SCRD_FAST_ISA",
    SECRET,
    "CUDA_VISIBLE_DEVICES",
)
DICOM_SYNTAXES = (  # by pydicom's names
    "JPEGBaseline8Bit",
    "JPEGExtended12Bit",
    "JPEGLossless",
    "JPEGLosslessSV1",
    "JPEGLSLossless",
    "JPEGLSNearLossless",
    "JPEG2000Lossless",
    "JPEG2000",
    "RLELossless",
)
GIB = 2**30


def collect() -> dict[str, Any]:
    """All facts, as values that JSON knows. Never raises."""
    sections: dict[str, Callable[[], Any]] = {
        "package": _package,
        "system": _system,
        "torch": _torch,
        "gpus": _gpus,
        "build": _build,
        "libraries": _libraries,
        "operators": _operators,
        "compilers": _compilers,
        "extras": _extras,
        "dicom_decoders": _dicom_decoders,
        "memory_bytes": _memory,
        "environment": lambda: {name: _shown(name) for name in VARIABLES},
    }
    return {name: _guarded(section) for name, section in sections.items()}


def _shown(name: str) -> str | None:
    value = os.environ.get(name)
    return "(set)" if value and name == SECRET else value


def usable(info: dict[str, Any], backend: Backend | None = None) -> bool:
    """Whether the operators work at all, on whatever backend, or all of them on the one that is named."""
    operators = info["operators"]
    if not operators or "error" in operators or "error" in info["torch"]:
        return False
    if backend is None:
        return True
    # A gradient that has no kernel of its own is part of another's.
    rows = [row for name, row in operators.items() if not name.endswith("_backward")]
    return all(row[backend.replace("-", " ")] == "available" for row in rows)


def render(info: dict[str, Any], backend: Backend | None = None) -> str:
    """The same facts as text for people."""
    lines: list[str] = []
    for title, section in info.items():
        lines.append(f"{title.removesuffix('_bytes').replace('_', ' ')}:")
        lines += [f"  {line}" for line in _lines(title, section)] or ["  none"]
    name = "usable" if backend is None else f"usable with {backend}"
    lines.append(f"{name}: " + ("yes" if usable(info, backend) else "no; see above why"))
    return "\n".join(lines)


def _lines(title: str, section: Any) -> list[str]:
    if isinstance(section, list):
        return [", ".join(f"{key} {value}" for key, value in entry.items() if value) for entry in section]
    if title == "memory_bytes" and "error" not in section:
        return [f"{key}: {value / GIB:.1f} GiB" if value else f"{key}: none" for key, value in section.items()]
    lines = []
    for key, value in section.items():
        if isinstance(value, dict):
            lines.append(f"{key}:")
            lines += [f"  {name}: {_text(inner)}" for name, inner in value.items()]
        else:
            lines.append(f"{key}: {_text(value)}")
    return lines


def _text(value: Any) -> str:
    return "none" if value in (None, "") else str(value)


def _guarded(section: Callable[[], Any]) -> Any:
    try:
        return section()
    except (Exception, SystemExit) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _package() -> dict[str, Any]:
    return {
        "version": __version__,
        "folder": str(Path(__file__).parent),
        "commit of the build": _guarded_build().get("commit"),
    }


def _system() -> dict[str, Any]:
    return {
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "driver": _driver(),
        "triton": _version("triton"),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _torch() -> dict[str, Any]:
    torch = importlib.import_module("torch")
    return {
        "version": torch.__version__,
        "commit": torch.version.git_version,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
    }


def _driver() -> str | None:
    """NVIDIA's. WSL has no file of it, but the program."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        program = shutil.which("nvidia-smi")
        return (
            _output(program, "--query-gpu=driver_version", "--format=csv,noheader").splitlines()[0] if program else None
        )
    found = re.search(r"Kernel Module.*?(\d+\.[\d.]+)", text)
    return found[1] if found else text.splitlines()[0]


def _gpus() -> list[dict[str, Any]]:
    cuda = importlib.import_module("torch").cuda
    if not cuda.is_available():
        return []
    gpus = [cuda.get_device_properties(index) for index in range(cuda.device_count())]
    return [{"name": gpu.name, "sm": f"{gpu.major}.{gpu.minor}", "memory_bytes": gpu.total_memory} for gpu in gpus]


def _build() -> dict[str, Any]:
    facts: dict[str, Any] = importlib.import_module("scrd_fast._C").build_info()
    return facts


def _guarded_build() -> dict[str, Any]:
    facts: dict[str, Any] = _guarded(_build)
    return facts


def _libraries() -> list[dict[str, Any]]:
    library = importlib.import_module("scrd_fast.ops._library")
    return [dataclasses.asdict(state) | {"path": str(state.path)} for state in library.libraries()]


def _operators() -> dict[str, dict[str, str]]:
    """Each operator x backend: "available" or the reason why not."""
    torch = importlib.import_module("torch")
    importlib.import_module("scrd_fast.ops")
    library = importlib.import_module("scrd_fast.ops._library")
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    columns = {
        "native cpu": ("native", cpu),
        "native cuda": ("native", cuda),
        "triton": ("triton", cuda),
        "reference": ("reference", cpu),
    }
    return {
        op: {title: library.why_not(op, *where) or "available" for title, where in columns.items()}
        for op in library.operators()
    }


def _compilers() -> dict[str, str | None]:
    return {"nvcc": _nvcc(), "c++": _first_line(os.environ.get("CXX") or "c++")}


def _nvcc() -> str | None:
    """The compiler that the build would take: that of CUDA_HOME, else on PATH, else in the usual folder."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    folders = [f"{home}/bin"] if home else [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    found = shutil.which("nvcc", path=os.pathsep.join(folders))
    if found is None:
        return None
    release = re.search(r"release [^\n]*", _output(found))
    return f"{found}: {release[0] if release else 'nvcc --version says nothing about a release'}"


def _first_line(command: str) -> str | None:
    found = shutil.which(command)
    return f"{found}: {_output(found).splitlines()[0]}" if found else None


def _output(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [program, *(arguments or ("--version",))], capture_output=True, text=True, timeout=20, check=False
    )
    return done.stdout or done.stderr or "says nothing"


def _extras() -> dict[str, dict[str, str | None]]:
    """The optional dependencies by the extra that brings them, as the package's metadata names them."""
    found: dict[str, dict[str, str | None]] = {}
    for requirement in importlib.metadata.requires("scrd_fast") or []:
        parts = re.match(r"""([\w.-]+).*;.*extra == ["']([\w-]+)["']""", requirement)
        if parts and parts[2] not in ("dev", "all"):
            found.setdefault(parts[2], {})[parts[1]] = _version(parts[1])
    return found


def _dicom_decoders() -> dict[str, str | None]:
    """What decodes each compressed transfer syntax; nothing without pydicom."""
    if importlib.util.find_spec("pydicom") is None:
        return {}
    base, uid = (importlib.import_module(f"pydicom.{name}") for name in ("pixels.decoders.base", "uid"))
    syntaxes = [getattr(uid, name) for name in DICOM_SYNTAXES]
    return {str(s.name): ", ".join(sorted(base.get_decoder(s).available_plugins)) or None for s in syntaxes}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory() -> dict[str, int | None]:
    return {"total": total_memory(), "available": free_memory(), "cgroup limit": memory_limit()}
