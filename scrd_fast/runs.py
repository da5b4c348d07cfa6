# SPDX-License-Identifier: Apache-2.0
"""A training run's folder: who may write into it, its metrics and its checkpoints."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import pickle
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

import scrd_fast
from scrd_fast.errors import ScrdFastError
from scrd_fast.files import write_atomically
from scrd_fast.settings import TrainSettings

__all__ = ["Checkpoints", "RunFolder", "begin", "claim_folder", "finish", "new_record", "versions", "write_json"]


_READERS = (
    "numpy",
    "pillow",
    "pydicom",
    "python-gdcm",
    "pylibjpeg",
    "pylibjpeg-openjpeg",
    "pyjpegls",
    "nibabel",
    "highdicom",
)


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {
        "scrd_fast": scrd_fast.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for name in ("timm", *_READERS):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def claim_folder(out: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The record of the run that `identity` describes: the one that `out` holds, or a new one. Writes nothing.

    `out` may be absent, empty or of the same run; anything else raises `ScrdFastError`, which names what differs.
    """
    path = out / "run.json"
    if path.is_file():
        record: dict[str, Any] = json.loads(path.read_text())
        different = _differences(record.get("identity", {}), identity)
        if different:
            raise ScrdFastError(
                f"{out} holds another run ({'; '.join(different)}); take a new folder, or the old settings to go on"
            )
        return record
    if out.exists() and (not out.is_dir() or any(not _is_half_written(path) for path in out.iterdir())):
        raise ScrdFastError(f"{out} is not empty and holds no run of this command; choose a new folder")
    return new_record(identity)


def new_record(identity: dict[str, Any]) -> dict[str, Any]:
    return {"identity": identity, "versions": versions(), "started": _now(), "status": "running"}


def _is_half_written(path: Path) -> bool:
    """Left by a process that was killed, or of one that begins the same run at this moment."""
    return path.name.startswith(".run.json.") and path.name.endswith(".tmp")


def begin(out: Path, record: dict[str, Any]) -> None:
    """Make the folder and put the run's record there; from now on it belongs to this run."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "run.json", record)


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    lines: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: there {a!r}, asked for {b!r}")
    return lines


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def finish(out: Path, record: dict[str, Any], **facts: Any) -> None:
    """Mark a run as finished, with what is worth knowing of it."""
    write_json(out / "run.json", record | {"status": "finished", "finished": _now(), **facts})


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


class RunFolder:
    """RUN/: `run.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/`, `model/`."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path, self.record = path, record
        self.model, self.checkpoints = path / "model", path / "checkpoints"
        self._clock = time.perf_counter()

    @classmethod
    def open(cls, out: Path, settings: TrainSettings, hashes: Sequence[str], teacher: str) -> RunFolder:
        """`hashes` are those of the training files' contents in their order, `teacher` that of its weights."""
        identity = {
            "command": "train",
            "data_sha256": hashlib.sha256("".join(hashes).encode()).hexdigest(),
            "teacher_sha256": teacher,
            "settings": settings.identity(),
        }
        return cls(out, claim_folder(out, identity))

    @property
    def finished(self) -> bool:
        return self.record.get("status") == "finished"

    def begin(self) -> None:
        begin(self.path, self.record)

    def finish(self, **facts: Any) -> None:
        """Mark the run as finished, with what is worth knowing of it."""
        seconds = round(time.perf_counter() - self._clock, 2)
        finish(self.path, self.record, seconds_since_last_start=seconds, **facts)

    @contextmanager
    def metrics(self, start: int) -> Iterator[Callable[[dict[str, Any]], None]]:
        """A writer of metrics, to `metrics.jsonl` and TensorBoard; lines after iteration `start` are dropped first."""
        path = self.path / "metrics.jsonl"
        kept = []
        if path.is_file():
            kept = [x for x in path.read_text().splitlines(keepends=True) if _iteration(x) <= start]
        write_atomically(path, "".join(kept).encode())
        board = _tensorboard(self.path / "tensorboard", start)
        with path.open("a", encoding="utf-8") as file:

            def write(record: dict[str, Any]) -> None:
                file.write(json.dumps(record) + "\n")
                file.flush()
                if board is not None:
                    for key, value in record.items():
                        for k, v in enumerate(value) if isinstance(value, list) else [("", value)]:
                            board.add_scalar(f"{key}/{k}" if k != "" else key, v, record["iteration"])

            try:
                yield write
            finally:
                if board is not None:
                    board.close()


def _iteration(line: str) -> float:
    try:
        return float(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # half a line, from a killed run


def _tensorboard(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # a convenience: metrics.jsonl holds everything
        return None
    return SummaryWriter(str(folder), purge_step=start + 1)  # type: ignore[no-untyped-call]


class Checkpoints:
    """The last `keep` states of a run, each written whole or not at all, read without unpickling."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def files(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob("iteration-*.pt"))

    def save(self, iteration: int, state: dict[str, Any]) -> None:
        self.folder.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(self.folder / f"iteration-{iteration:08d}.pt", buffer.getbuffer())
        for old in self.files()[: -self.keep]:
            old.unlink()

    def states(self, device: torch.device) -> Iterator[dict[str, Any]]:
        """Newest first, one at a time; damaged ones are passed over."""
        for path in reversed(self.files()):
            with suppress(RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError):
                yield dict(torch.load(path, map_location=device, weights_only=True))

    def load_newest(self, device: torch.device) -> dict[str, Any] | None:
        """None where there is no checkpoint. Where the newest is damaged an older one serves."""
        for state in self.states(device):
            return state
        if self.files():
            raise ScrdFastError(f"{self.folder}: no checkpoint there can be read; remove them to start anew")
        return None

    def newest_text(self) -> str:
        files = self.files()
        return f"the last good checkpoint is {files[-1]}" if files else "there is no checkpoint yet"
