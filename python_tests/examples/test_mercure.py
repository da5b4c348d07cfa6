# SPDX-License-Identifier: Apache-2.0
"""The processing module for mercure, started as mercure starts it, but for the container."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("highdicom")

import pydicom
from documented import blocks_of
from routed import ROOT, SMALL, broken, check_results, load, picture

module = load("mercure/module")
RECIPE = ROOT / "examples" / "mercure"


def uids(file: bytes) -> str:
    header = pydicom.dcmread(io.BytesIO(file), stop_before_pixels=True)
    return f"{header.SeriesInstanceUID}#{header.SOPInstanceUID}"


class Mercure:
    """Folders as mercure lays them out: files named series#instance.dcm, their tags as JSON, and the task."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.inside, self.out = folder / "in", folder / "out"
        self.inside.mkdir(parents=True)
        self.out.mkdir()
        info = {"action": "process", "uid": "1.2.3", "uid_type": "study", "applied_rule": "chest", "mrn": "4711"}
        config = {"docker_tag": "scrd-fast-mercure", "settings": settings}
        process = {"module_name": "scrd_fast", "module_config": config, "settings": settings}
        task = {"id": "5d1f", "info": info, "process": process | {"retain_input_images": False}, "dispatch": {}}
        (self.inside / "task.json").write_text(json.dumps(task))

    def receive(self, *files: bytes) -> None:
        for file in files:
            (self.inside / f"{uids(file)}.dcm").write_bytes(file)
            (self.inside / f"{uids(file)}.tags").write_text(json.dumps({"PatientName": "Müller^Jürgen"}))

    @property
    def places(self) -> dict[str, str]:
        return {"MERCURE_IN_DIR": str(self.inside), "MERCURE_OUT_DIR": str(self.out)}

    def found(self) -> list[Any]:
        return [pydicom.dcmread(path) for path in sorted(self.out.glob("*.dcm"))]

    def result(self) -> dict[str, Any]:
        return dict(json.loads((self.out / "result.json").read_text()))


@pytest.fixture
def settings(trained: Path) -> dict[str, Any]:
    return {"model": str(trained), "device": "cpu", "workers": 1, "dicom": "sc,sr,seg", "max_failures": 0.5}


def run(mercure: Mercure, monkeypatch: pytest.MonkeyPatch) -> int:
    for name, value in mercure.places.items():
        monkeypatch.setenv(name, value)
    return int(module.main())


def test_a_task_goes_in_and_its_results_come_out(settings: dict[str, Any], tmp_path: Path) -> None:
    mercure, sources = Mercure(tmp_path, settings), [picture(1), picture(2), picture(1, series=2)]
    mercure.receive(*sources, broken(3), picture(9, Manufacturer="scrd_fast"))
    before = sorted(path.name for path in mercure.inside.iterdir())
    word, script = json.loads(re.findall(r"^CMD (.*)$", (RECIPE / "Dockerfile").read_text(), flags=re.M)[0])
    assert (word, script) == ("python", "/module.py")
    done = subprocess.run(
        [sys.executable, str(RECIPE / "module.py")], env=os.environ | mercure.places, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    check_results(mercure.found(), sources, kinds=3)
    assert {path.stem for path in mercure.out.glob("*.dcm")} == {
        f"{found.SeriesInstanceUID}#{found.SOPInstanceUID}" for found in mercure.found()
    }
    told = mercure.result()
    assert (told["inputs"], told["status"], told["dicom"]["written"]) == (4, {"failed": 1, "ok": 3}, 3)
    abnormal = told["decision"].get("abnormal", 0)
    assert told["__mercure_notification"]["requested"] == (abnormal > 0)
    assert told["__mercure_notification"]["text"].startswith(f"{abnormal} of 4 files")
    assert told["highest"]["file"] in before
    assert "Müller" not in (mercure.out / "result.json").read_text() + done.stderr + done.stdout
    assert sorted(path.name for path in mercure.inside.iterdir()) == before
    assert len(list(mercure.out.iterdir())) == 3 * 3 + 1


def test_a_task_with_too_many_bad_files_fails_as_a_whole(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mercure = Mercure(tmp_path, settings | {"max_failures": 0})
    mercure.receive(picture(1), broken(3))
    assert run(mercure, monkeypatch) == 3  # anything but 0 sends it to mercure's folder of errors
    assert mercure.result()["status"] == {"failed": 1, "ok": 1}
    assert len(mercure.found()) == 3


def test_a_task_without_pictures_is_done(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mercure = Mercure(tmp_path, settings)
    mercure.receive(picture(9, Manufacturer="scrd_fast"))
    assert run(mercure, monkeypatch) == 0
    assert mercure.result() == {"inputs": 0}
    assert mercure.found() == []


def test_settings_that_are_wrong_are_one_line(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mercure = Mercure(tmp_path / "flag", settings | {"no_such_flag": True})
    mercure.receive(picture(1))
    assert run(mercure, monkeypatch) == 2
    assert "--no-such-flag" in capsys.readouterr().err
    assert list(mercure.out.iterdir()) == []
    mercure = Mercure(tmp_path / "task", {})
    (mercure.inside / "task.json").write_text("[]")
    with pytest.raises(SystemExit) as ended:
        run(mercure, monkeypatch)
    assert ended.value.code == 2
    assert "task.json" in capsys.readouterr().err


def test_settings_become_flags() -> None:
    given = {"dicom": "sc", "strict": True, "compile": False, "max-failures": 0.5}
    assert list(module.flags_of(given)) == ["--dicom=sc", "--strict", "--max-failures=0.5"]
    assert [word for flag in module.flags_of({"device": "cpu", "workers": 1}) for word in flag.split("=")] == SMALL


def test_the_settings_of_the_docs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = blocks_of("routing.md", "json")
    mercure = Mercure(tmp_path, json.loads(block) | {"model": str(trained), "workers": 1})
    mercure.receive(picture(1), picture(2, series=2, kind="CT"))
    assert run(mercure, monkeypatch) == 0
    check_results(mercure.found(), [picture(1)], kinds=3)
    assert mercure.result()["status"] == {"ok": 1, "refused": 1}


def test_the_recipe_of_the_container_copies_what_is_there() -> None:
    """It cannot be built here."""
    lines = (RECIPE / "Dockerfile").read_text().splitlines()
    copied = [shlex.split(line)[1] for line in lines if line.startswith("COPY")]
    assert copied == [".", "${RUN}/model", "examples/mercure/module.py"]
    assert (ROOT / copied[-1]).is_file()
