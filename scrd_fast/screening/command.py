# SPDX-License-Identifier: Apache-2.0
"""What `screen` does, between the command line and the library."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from scrd_fast.console import Console
from scrd_fast.device import usable_cores
from scrd_fast.errors import ScrdFastError
from scrd_fast.files import replacing
from scrd_fast.screening.dicom.writer import check_dicom, kinds_of
from scrd_fast.screening.guard import Guard
from scrd_fast.screening.plan import show_plan
from scrd_fast.screening.run import screen as run_screening
from scrd_fast.screening.settings import ScreenSettings
from scrd_fast.screening.work import Share

__all__ = ["screen"]


def screen(
    console: Console,
    run: Path,
    inputs: list[Path],
    out: Path,
    *,
    shard: str,
    hash_paths: Path | None,
    labels: Path | None,
    new_run: bool,
    dry_run: bool,
    **options: Any,
) -> int:
    settings, share = _settings(**options), _share(shard)
    if settings.dicom and hash_paths is not None:
        raise ScrdFastError("--dicom: its files name the patient, which --hash-paths is to keep out of OUT; choose one")
    check_dicom(settings.dicom)
    if dry_run:
        show_plan(console, run, inputs, out, settings)
        return 0
    if new_run and share.parts > 1:
        raise ScrdFastError("--new-run: with --shard each process would remove what the others have done; remove OUT")
    if settings.engine == "ray":
        if share.parts > 1:
            raise ScrdFastError("--shard: with --engine ray the cluster divides the shards; leave it out")
        from scrd_fast.screening import ray_engine  # noqa: F401  (what is missing is told before anything begins)
    key = None if hash_paths is None else _key(hash_paths, out)
    return run_screening(console, run, inputs, out, settings, share=share, key=key, anew=new_run, labels=labels)


def _settings(*, devices: str, workers: int | None, overlays: str, dicom: str, **options: Any) -> ScreenSettings:
    words: dict[str, Any] = {name: _words(options.pop(name)) for name in ("modality", "body_part", "view")}
    if options["engine"] == "ray" and devices == "auto":
        raise ScrdFastError("--devices: with --engine ray expected how many actors of the cluster work, got 'auto'")
    try:
        Guard(**words)
        return ScreenSettings(
            **options,
            **words,
            dicom=kinds_of(dicom),
            devices=_device_count(options["device"]) if devices == "auto" else _number("--devices", devices),
            workers=workers or usable_cores(),
            overlays="above" if overlays == "above" else _number("--overlays", overlays),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ScrdFastError(f"--{str(first['loc'][0]).replace('_', '-')}: {first['msg']}") from None
    except ValueError as error:  # a word that no header could hold
        raise ScrdFastError(f"--{str(error).replace('_', '-')}") from None


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip().upper() for word in text.split(",") if word.strip())


def _number(flag: str, text: str) -> int:
    if not text.isdecimal():
        raise ScrdFastError(f"{flag}: expected a whole number or the word that its help names, got {text!r}")
    return int(text)


def _device_count(device: str) -> int:
    import torch

    return max(torch.cuda.device_count(), 1) if device != "cpu" else 1


def _share(text: str) -> Share:
    """
    >>> _share("1/4")
    Share(number=1, parts=4)
    """
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ScrdFastError(f"--shard: expected I/N with I from 0 to N - 1, got {text!r}")
    return Share(int(index), int(count))


def _key(path: Path, out: Path) -> bytes:
    """The key of a file, which is made where there is none. It must not lie beside what it protects."""
    if path.resolve().is_relative_to(out.resolve()):
        raise ScrdFastError(f"--hash-paths: {path} lies in {out}; keep the key apart from the results")
    if not path.exists():  # another process may make it too, and both go on with one
        with replacing(path, first_wins=True, mode=0o600) as file:
            file.write(f"{secrets.token_hex(32)}\n".encode())
    key = path.read_bytes().strip()
    if len(key) < 16:
        raise ScrdFastError(f"--hash-paths: {path} holds {len(key)} bytes, expected a key of at least 16")
    return key
