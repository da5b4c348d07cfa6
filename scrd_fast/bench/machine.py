# SPDX-License-Identifier: Apache-2.0
"""The machine, its state and the software of a run: what a number is worth nothing without."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

import scrd_fast
from scrd_fast.bench.timing import cores

__all__ = ["commit", "installed", "machine", "state", "versions"]

FLAGS = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vbmi", "avx512_vnni")
PACKAGES = ("torch", "triton", "numpy", "numba", "opensimplex", "scrd_fast")
QUERY = {
    "name": "name",
    "driver": "driver_version",
    "clock_sm_mhz": "clocks.sm",
    "clock_memory_mhz": "clocks.mem",
    "clock_sm_max_mhz": "clocks.max.sm",
    "power_w": "power.draw",
    "power_limit_w": "power.limit",
    "temperature_c": "temperature.gpu",
}
# Power cap, hardware slowdown, software and hardware thermal slowdown, power brake (nvml.h); idling is none of them.
THROTTLED = 0x4 | 0x8 | 0x20 | 0x40 | 0x80


def machine(device: torch.device) -> dict[str, Any]:
    """Facts that do not change: processor, cores, flags, memory, and the GPU that is measured."""
    fields: dict[str, str] = {}
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", fields.get("Features", "")).split()
    facts: dict[str, Any] = {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cpu_family_model": f"{fields.get('cpu family', '?')}/{fields.get('model', '?')}",
        "cores": len(cores()),
        "flags": [flag for flag in FLAGS if flag in flags],
        "platform": platform.platform(),
        "gpu": None,
    }
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        facts["gpu"] = {
            "name": gpu.name,
            "sm": f"{gpu.major}.{gpu.minor}",
            "processors": gpu.multi_processor_count,
            "memory_bytes": gpu.total_memory,
            "l2_bytes": gpu.L2_cache_size,
        }
    return facts


def state(device: torch.device) -> dict[str, Any]:
    """What changes: the load, and the GPU's clocks, power, temperature and whether it holds itself back."""
    facts: dict[str, Any] = {"load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None}
    if device.type == "cuda":
        facts["gpu"] = _nvidia_smi(device.index or 0)
    return facts


def _nvidia_smi(index: int) -> dict[str, Any]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return {"error": "nvidia-smi not found"}
    # nvidia-smi counts all GPUs, torch those that it may see.
    uuid = str(torch.cuda.get_device_properties(index).uuid)
    uuid = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
    facts: dict[str, Any] = {}
    for reasons in ("clocks_event_reasons.active", "clocks_throttle_reasons.active"):  # the new name, the old one
        fields = ",".join([*QUERY.values(), reasons])
        command = [program, f"--id={uuid}", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return {"error": str(error)}
        facts = _parse(done.stdout if done.returncode == 0 else "", done.stdout + done.stderr)
        if "error" not in facts:
            break
    return facts


def _parse(text: str, said: str = "") -> dict[str, Any]:
    """One line of nvidia-smi. A value that the card does not give is None."""
    values = [value.strip() for value in text.strip().split(",")]
    names = [*QUERY, "throttle_mask"]
    if len(values) != len(names):
        return {"error": f"nvidia-smi: {' '.join((said or text).split())[:200]}"}
    facts: dict[str, Any] = {}
    for name, value in zip(names, values, strict=True):
        facts[name] = value if name in ("name", "driver", "throttle_mask") else _number(value)
    try:
        facts["throttled"] = bool(int(facts["throttle_mask"], 16) & THROTTLED)
    except ValueError:
        facts["throttled"] = None
    return facts


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def installed(package: str) -> str | None:
    """Its version, or None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    found |= {package: installed(package) for package in PACKAGES}
    return found | {"torch": torch.__version__, "scrd_fast": scrd_fast.__version__}


def commit() -> dict[str, Any]:
    """Of the checkout that the package lies in; nothing outside a checkout."""
    root = Path(scrd_fast.__file__).parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top) != root:
        return {"commit": None, "dirty": None}
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
