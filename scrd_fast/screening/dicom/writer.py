# SPDX-License-Identifier: Apache-2.0
"""Results in DICOM, written beside the table.

OUT/dicom/sc/*.dcm, OUT/dicom/sr/*.dcm, OUT/dicom/seg/*.dcm   a file a picture, named as the sample
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from scrd_fast.calibration import Calibration
from scrd_fast.choices import DicomKind
from scrd_fast.errors import MissingExtraError, ScrdFastError
from scrd_fast.files import write_atomically
from scrd_fast.screening.dicom.common import Made, Maker, file_of
from scrd_fast.screening.screener import Screened
from scrd_fast.screening.writers import read_part

__all__ = ["FOLDER", "DicomResults", "check_calibration", "check_dicom", "clean_up", "count_dicom", "kinds_of"]

FOLDER = "dicom"  # in a run's folder
NOT_WRITTEN = "dicom-not-written"


def kinds_of(text: str) -> tuple[DicomKind, ...]:
    """The kinds of a list with commas, each once, in a fixed order. Raises `ScrdFastError` for another word.

    >>> kinds_of("seg,sc")
    ('sc', 'seg')
    """
    words, known = {word.strip() for word in text.lower().split(",") if word.strip()}, get_args(DicomKind)
    if other := sorted(words - set(known)):
        raise ScrdFastError(f"--dicom: expected some of {', '.join(known)}, got {', '.join(map(repr, other))}")
    return tuple(kind for kind in known if kind in words)


def check_dicom(kinds: Sequence[str]) -> None:
    """Raises `MissingExtraError` where a package is missing that results of `kinds` need."""
    packages = [("highdicom", "dicom")] + ([("matplotlib", "model")] if "sc" in kinds else [])
    for package, extra in packages if kinds else []:
        try:
            __import__(package)
        except ImportError:
            raise MissingExtraError(package, extra) from None


def check_calibration(run: Path, calibration: Calibration | None) -> None:
    """Raises `ScrdFastError` where there is none, or one without a scale of maps."""
    if calibration is None or calibration.map_scale is None:
        raise ScrdFastError(
            f"--dicom: {run} has no calibration with a scale of maps, without which no result can be read; "
            "`scrd-fast calibrate` makes one"
        )


def _quiet() -> None:
    """highdicom and pydicom name values of a header in warnings and lines of log."""
    for name in ("highdicom", "pydicom"):
        warnings.filterwarnings("ignore", module=rf"{name}\b")
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _builders() -> dict[str, Callable[[Made], Any]]:
    from scrd_fast.screening.dicom.capture import capture
    from scrd_fast.screening.dicom.report import report
    from scrd_fast.screening.dicom.segmentation import segmentation

    return {"sc": capture, "sr": report, "seg": segmentation}


class DicomResults:
    """Writes the results of DICOM pictures; of others there are none."""

    def __init__(self, out: Path, kinds: Sequence[str], maker: Maker) -> None:
        check_dicom(kinds)  # here, since threads that import one package at a time can stand in each other's way
        _quiet()
        self._out, self._kinds, self._maker, self._builders = out, kinds, maker, _builders()

    def write(self, name: str, result: Screened) -> list[str]:
        """Flags of what could not be written, and why."""
        if result.original is None or result.map is None:
            return []
        header = result.original.header
        if header.problem is not None:
            return [NOT_WRITTEN, f"dicom-{header.problem}"]
        flags = ["dicom-header-mended"] if header.mended else []
        for kind in self._kinds:
            if problem := self._write(kind, name, result):
                flags += [flag for flag in (NOT_WRITTEN, problem) if flag not in flags]
        return flags

    def _write(self, kind: str, name: str, result: Screened) -> str | None:
        """What hindered it. Files are made whole and renamed, since others may watch the folder."""
        try:
            made = Made(self._maker, result)
            content = file_of(made, self._builders[kind](made))
        except Exception:  # highdicom raises anything for a header that does not fit together, and quotes it
            return f"dicom-no-{kind}"
        try:
            path = self._out / FOLDER / kind / f"{name}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        except OSError:
            return "dicom-disk"
        return None


def clean_up(out: Path) -> None:
    """Remove what killed processes have left half written, once all is done."""
    for path in (out / FOLDER).glob("*/.*.tmp"):
        path.unlink(missing_ok=True)


def count_dicom(parts: Sequence[Path]) -> dict[str, int]:
    """Of the pictures that were scored: how many have all their results, lack some, or are no DICOM."""
    counts = {"written": 0, "not_written": 0, "no_dicom": 0}
    for part in parts:
        for row in read_part(part, ["status", "burned_in", "flags"]):
            if row["status"] == "ok":
                known = "not_written" if NOT_WRITTEN in row["flags"] else "written"
                counts["no_dicom" if row["burned_in"] is None else known] += 1
    return counts
