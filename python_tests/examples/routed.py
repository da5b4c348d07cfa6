# SPDX-License-Identifier: Apache-2.0
"""What the tests of the recipes for routing have in common. Wants pydicom."""

from __future__ import annotations

import importlib.util
import io
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pydicom
import pytest
from documented import blocks_of

sys.path.append(str(Path(__file__).resolve().parents[1] / "screening"))
from dicom_files import written
from dicom_sources import image

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--device", "cpu", "--workers", "1"]


def load(name: str) -> ModuleType:
    """A module from the examples folder, which is no package."""
    path = ROOT / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def documented(name: str, url: str, monkeypatch: pytest.MonkeyPatch, *own: str) -> int:
    """What the documentation types for this recipe, with another address, and flags of the recipe's own."""
    (block,) = [block for block in blocks_of("routing.md", "bash") if f"examples/{name}.py" in block]
    export, command = map(shlex.split, block.splitlines())
    assert (export.pop(0), command[:2]) == ("export", ["python", f"examples/{name}.py"])
    for assignment in export:
        monkeypatch.setenv(*assignment.split("=", 1))
    words = [word.replace("http://127.0.0.1:8042", url) for word in command[2:]]
    words[words.index("--") : words.index("--")] = own
    return int(sys.modules[Path(name).stem].main(words))


def picture(number: int, series: int = 1, kind: str = "DX", **elements: Any) -> bytes:
    """A file of its own UIDs; of one study, in the series of that number."""
    uids = {"SOPInstanceUID": f"1.2.826.0.1.9.{series}.{number}", "SeriesInstanceUID": f"1.2.826.0.1.9.{series}"}
    return written(image(kind, number, **(uids | elements)))


def broken(number: int, series: int = 1) -> bytes:
    """A good header, and pixels that no decoder takes."""
    dataset = pydicom.dcmread(io.BytesIO(picture(number, series)))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    dataset.PixelData = pydicom.encaps.encapsulate([b"no JPEG at all"])
    dataset["PixelData"].is_undefined_length = True
    return written(dataset)


def check_results(results: list[Any], sources: list[bytes], kinds: int = 2) -> None:
    """Each source has its results, in its study and in series of their own; dciodvfy finds no error in any."""
    known = {header.SOPInstanceUID: header for header in (pydicom.dcmread(io.BytesIO(file)) for file in sources)}
    assert len(results) == kinds * len(sources)
    assert len({result.SOPInstanceUID for result in results}) == len(results)
    referred: list[str] = []
    for result in results:
        (uid,) = {place.ReferencedSOPInstanceUID for place in _places(result)}
        source = known[uid]
        referred.append(uid)
        assert result.StudyInstanceUID == source.StudyInstanceUID
        assert (result.PatientID, result.PatientName) == (source.PatientID, source.PatientName)
        assert result.SeriesInstanceUID not in {header.SeriesInstanceUID for header in known.values()}
    assert sorted(referred) == sorted([*known] * kinds)
    if shutil.which("dciodvfy"):
        for result in results:
            check_by_dciodvfy(result)


def _places(result: Any) -> list[Any]:
    found: list[Any] = []
    result.walk(lambda place, element: found.append(place) if element.keyword == "ReferencedSOPInstanceUID" else None)
    return found


def check_by_dciodvfy(result: Any) -> None:
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        result.save_as(file.name, enforce_file_format=True)
        told = subprocess.run(["dciodvfy", "-new", file.name], capture_output=True)
    lines = (told.stdout + told.stderr).decode(errors="replace").splitlines()
    assert {"SCImage", "ComprehensiveSR", "Segmentation"} & set(lines), lines  # it knows what it looks at
    assert not [line for line in lines if line.startswith("Error")]


def runs(*words: str) -> pytest.MarkDecorator:
    """Skips what needs programs that are not installed."""
    missing = [word for word in words if shutil.which(word) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
