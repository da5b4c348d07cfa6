# SPDX-License-Identifier: Apache-2.0
"""What uploads may ask of the machine: how many at a time, in how many parts, and how slowly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
import httpx
from PIL import Image
from services import client
from test_serving import png, upload

from scrd_fast.screening.screener import Screener
from scrd_fast.serving import gate
from scrd_fast.serving.batching import MAX_FRAMES, Batcher
from scrd_fast.serving.gate import Gate

FORM = {"Content-Type": "multipart/form-data; boundary=b"}


@pytest.fixture(scope="module")
def service(trained: Path) -> Any:
    with client(trained) as made:
        yield made


def test_a_form_holds_one_file(service: Any) -> None:
    """Any number of small ones would lie in memory."""
    files = [("file", ("x.png", png(1))), ("other", ("y.png", png(1)))]
    assert service.post("/score", files=files).status_code == 400
    fields = {f"field-{i}": "x" for i in range(9)}
    assert service.post("/score", **upload(png(1)), data=fields).status_code == 400
    assert service.post("/score", **upload(png(1)), data={"note": "x"}).status_code == 200


def test_another_kind_of_body_is_not_read(service: Any) -> None:
    for kind in ("application/x-www-form-urlencoded", "application/json", "image/png"):
        refused = service.post("/score", content=b"file=x", headers={"Content-Type": kind})
        assert refused.status_code == 400
        assert "multipart/form-data" in refused.json()["detail"]


def test_no_more_images_of_a_file_are_read_than_its_refusal_takes(trained: Path, tmp_path: Path) -> None:
    first, *others = (Image.new("L", (9, 8), i) for i in range(MAX_FRAMES + 9))
    first.save(tmp_path / "many.tiff", save_all=True, append_images=others)
    batcher = Batcher(Screener.from_pretrained(trained, device="cpu", batch_size=16), most_waiting=1)
    assert len(batcher.submit(tmp_path / "many.tiff").result(60)) == MAX_FRAMES + 1
    batcher.close()


async def _drained(_: Any, receive: Any, send: Any) -> None:
    """An application that reads all of a body."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body"})


def test_a_limited_number_of_uploads_is_under_way() -> None:
    async def check() -> None:
        go = asyncio.Event()

        async def slowly() -> AsyncIterator[bytes]:
            yield b"a"
            await go.wait()
            yield b"b"

        guarded = Gate(_drained, token=None, most_bytes=100, most_uploads=2)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guarded), base_url="http://localhost") as client:
            under_way = [asyncio.create_task(client.post("/score", content=slowly())) for _ in range(2)]
            await asyncio.sleep(0.05)
            refused = await client.post("/score", content=b"x")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert refused.json()["code"] == "busy"
            assert (await client.get("/healthz")).status_code == 200
            go.set()
            assert [answer.status_code for answer in await asyncio.gather(*under_way)] == [200, 200]
            assert (await client.post("/score", content=b"x")).status_code == 200

    asyncio.run(check())


def test_an_upload_that_stops_is_given_up(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "SILENCE", 0.1)

    async def stops() -> AsyncIterator[bytes]:
        yield b"--b\r\n"
        await asyncio.Event().wait()

    async def check(app: Any) -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            refused = await asyncio.wait_for(client.post("/score", content=stops(), headers=FORM), 30)
            assert (refused.status_code, refused.json()["code"]) == (408, "timeout")
            assert refused.headers["connection"] == "close"

    with client(trained) as service:
        asyncio.run(check(service.app))
        assert 'scrd_fast_requests_total{status="408"} 1.0' in service.get("/metrics").text
