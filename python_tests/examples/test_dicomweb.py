# SPDX-License-Identifier: Apache-2.0
"""The recipe for DICOMweb servers, against a stand-in, and against Orthanc's plugin where that is installed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("highdicom")
pytest.importorskip("dicomweb_client")

from dicomweb_server import ROOT, DicomWeb
from orthanc_servers import PASSWORD, USER, Real, Server, credentials, free_port
from routed import SMALL, broken, check_results, documented, load, picture, runs

screen = load("dicomweb/screen")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
Screen = Callable[..., int]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[DicomWeb]:
    monkeypatch.setenv("DICOMWEB_USER", USER)
    monkeypatch.setenv("DICOMWEB_PASSWORD", PASSWORD)
    stand_in = DicomWeb()
    yield stand_in
    with contextlib.suppress(OSError):
        stand_in.stop()


@pytest.fixture
def command(trained: Path, tmp_path: Path) -> Screen:
    def run(server: Server, *filters: str) -> int:
        found = [word for text in filters for word in ("--find", text)]
        own = [str(trained), "--url", server.url + ROOT, "--out", str(tmp_path / "out"), *found]
        return int(screen.main([*own, "--", *SMALL, "--overlays", "0", "--max-failures", "0.5", "-q"]))

    return run


def whole_way(server: Server, command: Screen) -> None:
    sources = [picture(1), picture(2), picture(1, series=2), picture(1, series=3, kind="CT")]
    server.store(*sources[:2], broken(3), sources[3])
    assert command(server, "Modality=DX", "StudyDate=20240304") == 0
    check_results(server.results(), sources[:2])
    server.store(sources[2])
    assert command(server, "StudyDate=20240304") == 0  # this also finds what it has made itself
    check_results(server.results(), sources)


def test_what_is_found_is_screened_and_its_results_are_in_its_study(server: DicomWeb, command: Screen) -> None:
    whole_way(server, command)


def test_what_cannot_be_fetched_or_stored_is_told_at_the_end(
    server: DicomWeb, command: Screen, caplog: pytest.LogCaptureFixture
) -> None:
    sources = [picture(1), picture(1, series=2)]
    server.store(*sources)
    path = f"{ROOT}/studies/1.2.826.0.1.77101/series/1.2.826.0.1.9.2"
    server.failing = {path: 500}
    assert command(server, "Modality=DX") == 3
    check_results(server.results(), sources[:1])
    server.failing = {f"{ROOT}/studies": 409}
    assert command(server, "Modality=DX") == 3
    server.failing = {}
    assert command(server, "Modality=DX") == 0
    check_results(server.results(), sources)
    assert "1.2.826.0.1" not in caplog.text  # UIDs
    assert caplog.text.count("409") == 4


def test_a_server_that_is_away_or_finds_nothing_is_no_traceback(
    server: DicomWeb, command: Screen, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(server, "Modality=DX") == 0
    server.stop()
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client tries five times
    assert command(server, "Modality=DX") == 4
    assert caplog.messages[-1].endswith("ConnectionError; the same command goes on")
    with pytest.raises(SystemExit):
        command(server, "Modality")


def test_the_command_of_the_docs(server: DicomWeb, trained: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "run").symlink_to(trained)
    server.word = credentials(USER, "change-me")
    server.add(picture(1))
    assert documented("dicomweb/screen", server.url, monkeypatch) == 0
    assert len(server.files) == 3


@pytest.mark.release
@runs("Orthanc")
@pytest.mark.skipif(not PLUGIN.exists(), reason="not installed: orthanc-dicomweb")
@pytest.mark.usefixtures("server")
def test_the_recipe_with_the_plugin_of_orthanc(command: Screen, tmp_path: Path) -> None:
    orthanc = Real(tmp_path / "orthanc", free_port(), [str(PLUGIN)])
    try:
        whole_way(orthanc, command)
    finally:
        orthanc.stop()
