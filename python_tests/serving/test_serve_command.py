# SPDX-License-Identifier: Apache-2.0
"""`scrd-fast serve` as a process, and its page in a browser."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from documented import blocks_of
from PIL import Image
from test_serving import png, upload

pytest.importorskip("fastapi")
import httpx
from services import served

from scrd_fast.cli import main

pytestmark = pytest.mark.xdist_group("serving")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def service(trained: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with served(trained, token="secret") as found:
        yield found


@pytest.fixture(scope="module")
def url(service: tuple[str, subprocess.Popen[str]]) -> str:
    return service[0]


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_reader_that_dies_is_replaced(service: tuple[str, subprocess.Popen[str]]) -> None:
    url, process = service
    headers = {"Authorization": "Bearer secret"}
    before = httpx.post(f"{url}/score", **upload(png(1)), headers=headers, timeout=60).json()
    assert "scrd_fast_readers_died 0.0" in httpx.get(f"{url}/metrics", headers=headers).text
    readers = [reader for child in children(process.pid) for reader in children(child)]  # by a server of forks
    assert readers
    for reader in readers:
        os.kill(reader, signal.SIGKILL)
    assert httpx.post(f"{url}/score", **upload(png(1)), headers=headers, timeout=60).json() == before
    assert "scrd_fast_readers_died 0.0" not in httpx.get(f"{url}/metrics", headers=headers).text


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on PATH")
def test_the_page_scores_what_is_dropped_on_it(url: str, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra [dev])")
    (tmp_path / "scan.png").write_bytes(png(1, 120))
    (tmp_path / "bad.png").write_bytes(b"no image")
    Image.open(tmp_path / "scan.png").save(
        tmp_path / "two.tiff", save_all=True, append_images=[Image.new("L", (50, 40))]
    )
    problems: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page: Any = browser.new_page(viewport={"width": 390, "height": 800})
        page.set_default_timeout(30_000)
        page.on("request", lambda r: r.url.startswith((url, "data:")) or problems.append(r.url))
        page.on("console", lambda m: "status of 4" in m.text or problems.append(m.text))  # answers with 4xx are meant
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(url)
        page.set_input_files("#file", tmp_path / "scan.png")
        page.get_by_label("This service wants a token").fill("other")
        page.keyboard.press("Enter")
        page.wait_for_selector("#state.bad")
        page.get_by_label("This service wants a token").fill("secret")
        page.keyboard.press("Enter")
        page.wait_for_selector("#result:visible")
        said = page.inner_text("#decision"), page.inner_text("#numbers"), page.get_attribute("#picture", "alt")
        assert said[0] in ("Normal", "Abnormal")
        assert "120 × 114 pixels" in said[1]
        assert "row" in (said[2] or "")
        assert page.evaluate("document.getElementById('picture').naturalWidth") == 64
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.set_input_files("#file", tmp_path / "two.tiff")
        page.wait_for_selector("#pick:visible")
        page.focus("#frame")
        page.keyboard.press("ArrowRight")
        assert page.inner_text("#number") == "2 of 2"
        assert "50 × 40 pixels" in page.inner_text("#numbers")
        page.evaluate(
            """() => { const carried = new DataTransfer(); carried.items.add(new File(["no image"], "bad.png"));
            document.dispatchEvent(new DragEvent("drop", { dataTransfer: carried, cancelable: true })); }"""
        )
        page.wait_for_selector("#state.bad")
        assert "no known image format" in page.inner_text("#state")
        assert page.is_hidden("#result")
        browser.close()
    assert problems == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_begun_is_answered_before_it_ends(number: signal.Signals, trained: Path) -> None:
    with served(trained) as (url, process):
        answers: list[int] = []

        def ask() -> None:
            with contextlib.suppress(httpx.ConnectError):  # it has ended before this one could ask
                answers.append(httpx.post(f"{url}/score", **upload(png(1, 400)), timeout=60).status_code)

        asking = [threading.Thread(target=ask) for _ in range(8)]
        for one in asking:
            one.start()
        while not answers:  # some are answered, the others on their way
            time.sleep(0.001)
        process.send_signal(number)
        for one in asking:
            one.join()
        assert process.wait(60) == 0
        assert set(answers) == {200}
        assert process.stderr is not None
        assert process.stderr.read().splitlines()[-1] == "ended"


def test_wrong_uses_are_one_line(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SCRD_FAST_TOKEN", raising=False)
    assert main(["serve", str(trained), "--host", "0.0.0.0"]) == 2
    assert "set SCRD_FAST_TOKEN" in capsys.readouterr().err
    assert main(["serve", str(trained), "--host", "203.0.113.1"]) == 2
    assert main(["serve", str(trained / "nothing"), "--port", "0"]) == 2
    for unfit in ("two words", ""):  # a secret that is not there is not to open the door
        monkeypatch.setenv("SCRD_FAST_TOKEN", unfit)
        assert main(["serve", str(trained), "--port", "0"]) == 2
    assert "SCRD_FAST_TOKEN" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setenv("SCRD_FAST_TOKEN", "secret")
    assert main(["serve", str(trained), "--host", "203.0.113.1", "--port", "0"]) == 2
    assert "203.0.113.1:0: cannot listen there" in capsys.readouterr().err


def test_without_fastapi_one_line_says_so(trained: Path) -> None:
    call = f"sys.exit(main(['serve', {str(trained)!r}]))"
    code = f"import sys; sys.modules['fastapi'] = None\nfrom scrd_fast.cli import main\n{call}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 4
    assert "fastapi is not installed; install this package with its [serve] extra" in result.stderr


def test_the_blocks_of_the_page_run(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scan.png").write_bytes(png(1))
    monkeypatch.chdir(tmp_path)
    here = "http://127.0.0.1:8000"
    (block,) = blocks_of("serving.md", "python")
    monkeypatch.setenv("SCRD_FAST_TOKEN", "secret")
    exec(compile(block.replace(here, url), "serving.md", "exec"), {})
    start, ask = blocks_of("serving.md", "bash")
    assert main([*start.split()[1:-1], "--print-config"]) == 0
    if shutil.which("curl"):
        done = subprocess.run(["bash", "-euc", ask.replace(here, url)], capture_output=True, text=True, check=True)
        assert '"decision"' in done.stdout
