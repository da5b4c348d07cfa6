# SPDX-License-Identifier: Apache-2.0
"""The recipe for Orthanc, against a stand-in of its REST interface, and against Orthanc where it is installed."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("highdicom")

from orthanc_servers import PASSWORD, USER, Real, Stub, credentials, free_port
from routed import ROOT, SMALL, broken, check_results, documented, load, picture, runs

poller = load("orthanc/poller")
Poll = Callable[..., int]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setenv("ORTHANC_USER", USER)
    monkeypatch.setenv("ORTHANC_PASSWORD", PASSWORD)
    server = Stub()
    yield server
    with contextlib.suppress(OSError):
        server.stop()


@pytest.fixture
def command(stub: Stub, trained: Path, tmp_path: Path) -> list[str]:
    own = [str(trained), "--url", stub.url, "--modality", "DX,CR,OT,SR", "--state", str(tmp_path / "state"), "--once"]
    return [*own, "--everything", "--", *SMALL]


@pytest.fixture
def poll(command: list[str], monkeypatch: pytest.MonkeyPatch) -> Poll:
    """Run the poller until all is done; `slept` gets its waits instead of the clock."""

    def run(slept: Callable[[float], None] = lambda _: None) -> int:
        monkeypatch.setattr(poller.time, "sleep", slept)
        return int(poller.main(command))

    return run


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The files of each screening, of which none is done: all fail whose names hold `bad`, as a crash would."""
    found: list[list[str]] = []

    def screen(words: list[str]) -> int:
        files, out = Path(words[2]), Path(words[words.index("--out") + 1])
        found.append(sorted(path.stem for path in files.iterdir()))
        if any(path.read_bytes() == picture(*BAD) for path in files.iterdir()):
            return 1
        out.mkdir(exist_ok=True)
        (out / "worklist.csv").write_text("path,error,decision\n")
        return 0

    monkeypatch.setattr(poller, "scrd_fast", screen)
    return found


BAD = (7, 7)  # number and series of the picture on which a screening fails


def folder_of(command: list[str]) -> Path:
    return Path(command[command.index("--state") + 1])


def state(command: list[str]) -> dict[str, Any]:
    return dict(json.loads((folder_of(command) / "state.json").read_text()))


def stored(stub: Stub) -> int:
    return stub.requests.count(("POST", "/instances"))


def fetched(stub: Stub) -> set[str]:
    return {path.split("/")[2] for _, path in stub.requests if path.endswith("/file")}


@pytest.mark.timeout(120)  # results that are screened again make results without end
def test_what_has_come_is_screened_once_and_its_results_are_in_its_study(
    stub: Stub, poll: Poll, command: list[str], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    sources = [picture(1), picture(2), picture(1, series=2, kind="CR")]
    other, damaged, gone = picture(1, series=3, kind="CT"), broken(3), picture(4)
    *wanted, _, third, fourth = stub.store(*sources, other, damaged, gone)
    stub.failing[f"/instances/{fourth['ID']}/file"] = 500
    assert poll() == 0
    assert fetched(stub) == {answer["ID"] for answer in (*wanted, third, fourth)}
    stub.failing.clear()
    check_results(stub.results(), sources)
    assert stored(stub) == 6 + 6  # sources and results
    assert poll() == 0  # what the server did not give is asked for again
    assert fourth["ID"] in fetched(stub)
    check_results(stub.results(), [*sources, gone])
    stub.requests.clear()
    assert poll() == 0  # it sees the series that it has made itself
    assert stored(stub) == 0
    assert fetched(stub) == set()
    assert state(command)["groups"] == []
    assert not (folder_of(command) / "work").exists()
    told = capfd.readouterr().err + caplog.text
    assert "Müller" not in told
    assert "1.2.826.0.1" not in told  # UIDs


MOMENTS: dict[str, Callable[[Stub, Path], object]] = {
    "begun": lambda _, folder: (folder / "state.json").exists(),
    "fetching": lambda stub, _: fetched(stub),
    "screening": lambda _, folder: (folder / "work" / "0" / "out" / "run.json").exists(),
    "screened": lambda _, folder: list((folder / "work" / "0" / "out" / "dicom").glob("*/*.dcm")),
    "storing": lambda stub, _: len(stub.files) > 2,
    "stored": lambda stub, _: len(stub.files) == 2 + 4,
}


@pytest.mark.parametrize(
    "moment", [name if name == "storing" else pytest.param(name, marks=pytest.mark.release) for name in MOMENTS]
)
def test_a_poller_that_is_killed_goes_on_and_stores_nothing_twice(
    stub: Stub, poll: Poll, command: list[str], moment: str
) -> None:
    dates = {f"{name}{kind}": "" for name in ("Content", "Acquisition", "Series", "Study") for kind in ("Date", "Time")}
    sources = [picture(1, **dates), picture(2, series=2, **dates)]  # their results have UIDs of the run
    stub.store(*sources)
    stub.slowness = 0.5
    process = subprocess.Popen([sys.executable, str(ROOT / "examples" / "orthanc" / "poller.py"), *command])
    deadline = time.monotonic() + 120
    while not MOMENTS[moment](stub, folder_of(command)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    stub.slowness = 0.0
    assert moment == "begun" or state(command)["groups"]
    assert poll() == 0
    check_results(stub.results(), sources)


def test_a_server_that_is_away_is_waited_for(stub: Stub, poll: Poll, seen: list[list[str]]) -> None:
    stub.store(picture(1))
    stub.stop()
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 8:
            stub.start()

    assert poll(sleep) == 0
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert len(seen) == 1


def test_a_stranger_is_told_so(
    stub: Stub, poll: Poll, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ORTHANC_PASSWORD", "another")
    with pytest.raises(SystemExit) as ended:
        poll()
    assert ended.value.code == 2
    assert "ORTHANC_PASSWORD" in caplog.text
    assert len(stub.requests) == 1


def test_results_that_are_refused_are_kept(stub: Stub, poll: Poll, command: list[str]) -> None:
    stub.store(picture(1))
    stub.failing["/instances"] = 507
    assert poll() == 0
    assert stored(stub) == 1 + 2 * poller.REFUSALS
    kept = sorted(path.name[:4] for path in (folder_of(command) / "undelivered").iterdir())
    assert kept == ["0-sc", "0-sr"]


def test_a_series_on_which_everything_fails_is_given_up_alone(
    stub: Stub, poll: Poll, seen: list[list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    good, _, also_good = stub.store(picture(1), picture(*BAD), picture(1, series=8))
    assert poll() == 0
    assert [len(names) for names in seen] == [3] * poller.TRIES + [1] * (1 + poller.TRIES + 1)
    assert (seen[3], seen[-1]) == ([good["ID"]], [also_good["ID"]])
    given_up = [record.getMessage() for record in caplog.records if "given up" in record.getMessage()]
    assert len(given_up) == 1


def test_what_no_series_is_to_blame_for_ends_it_and_loses_nothing(
    stub: Stub, poll: Poll, command: list[str], seen: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.store(picture(1))
    with monkeypatch.context() as patch:
        for code in (2, 4, 2, 4):
            patch.setattr(poller, "scrd_fast", lambda _, code=code: code)
            with pytest.raises(SystemExit) as ended:
                poll()
            assert ended.value.code == code
        patch.setattr(poller, "scrd_fast", lambda _: 130)
        with pytest.raises(KeyboardInterrupt):
            poll()
    assert state(command)["tries"] == 0
    assert poll() == 0
    assert len(seen) == 1


def test_it_begins_with_what_comes_and_again_where_the_server_does(
    stub: Stub, poll: Poll, command: list[str], seen: list[list[str]]
) -> None:
    command.remove("--everything")
    stub.store(picture(1))
    stub.json("/changes")  # stable by now
    assert poll() == 0
    assert seen == []
    stub.store(*(picture(number, series=2) for number in range(1, 120)))
    assert poll() == 0
    assert [len(names) for names in seen] == [119]  # more changes than a page
    stub.files, stub.series, stub.changes = {}, {}, []
    (again,) = stub.store(picture(1))
    assert poll() == 0
    assert seen[1:] == [[again["ID"]]]


def test_another_model_does_not_stumble_over_what_the_last_one_has_begun(
    stub: Stub, poll: Poll, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.store(picture(1))
    real = poller.scrd_fast

    def other(words: list[str]) -> int:
        assert real([*words, "--strict"]) == 0
        raise KeyboardInterrupt

    monkeypatch.setattr(poller, "scrd_fast", other)
    with pytest.raises(KeyboardInterrupt):
        poll()
    monkeypatch.setattr(poller, "scrd_fast", real)
    assert poll() == 0
    check_results(stub.results(), [picture(1)])


def test_the_command_of_the_docs(stub: Stub, trained: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "run").symlink_to(trained)
    stub.word = credentials(USER, "change-me")
    stub.add(picture(1))
    assert documented("orthanc/poller", stub.url, monkeypatch, "--once", "--everything") == 0
    assert len(stub.files) == 3


@pytest.mark.release
@runs("Orthanc", "storescu", "storescp")
def test_the_recipe_in_orthanc_itself(tmp_path: Path, poll: Poll, command: list[str]) -> None:
    """A modality sends by C-STORE; the results are in Orthanc, and the PACS gets them by C-STORE."""
    pacs, port = tmp_path / "pacs", free_port()
    pacs.mkdir()
    receiver = subprocess.Popen(["storescp", "+xa", "-od", str(pacs), str(port)], stdout=subprocess.DEVNULL)
    server = Real(tmp_path / "orthanc", port)
    try:
        sources = [picture(1), picture(2), picture(1, series=2, kind="CR")]
        sent = []
        for number, file in enumerate([*sources, broken(3), picture(1, series=3, kind="CT")]):
            path = tmp_path / f"{number}.dcm"
            path.write_bytes(file)
            sent.append(str(path))
        send = ["storescu", "-aec", "SCRDFAST", "-xs", "127.0.0.1", str(server.dicom_port)]
        for path in sent:
            words = send if path != sent[3] else [word if word != "-xs" else "-xy" for word in send]
            subprocess.run([*words, path], check=True)
        server.settle()
        command[command.index("--url") + 1] = server.url
        assert poll() == 0
        results = server.results()
        check_results(results, sources)
        server.settle()
        assert poll() == 0
        assert len(server.results()) == len(results)
        deadline = time.monotonic() + 60
        while len(list(pacs.iterdir())) < len(results):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert len(list(pacs.iterdir())) == len(results)
    finally:
        server.stop()
        receiver.terminate()
        receiver.wait()
