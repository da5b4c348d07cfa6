# SPDX-License-Identifier: Apache-2.0
"""The service: its answers are the screener's, its limits hold, and one bad file costs that file alone."""

from __future__ import annotations

import base64
import io
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import texture
from PIL import Image

pytest.importorskip("fastapi")

from services import BYTES, client

from scrd_fast.plots import overlay
from scrd_fast.screening.screener import Screener
from scrd_fast.serving import batching
from scrd_fast.serving.batching import Batcher, Full


def png(seed: int, size: int = 70, kind: type = np.uint8) -> bytes:
    pixels = texture(np.random.default_rng(seed), size).astype(kind) * (257 if kind is np.uint16 else 1)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    return out.getvalue()


def upload(content: bytes, name: str = "x.png") -> dict[str, Any]:
    return {"files": {"file": (name, content, "application/octet-stream")}}


@pytest.fixture(scope="module")
def service(trained: Path) -> Any:
    with client(trained) as made:
        yield made


@pytest.fixture(scope="module")
def screener(trained: Path) -> Screener:
    return Screener.from_pretrained(trained, device="cpu", batch_size=4)


def one_of(screener: Screener, content: bytes, folder: Path) -> Any:
    (folder / "one").write_bytes(content)
    return next(iter(screener.screen([folder / "one"])))


@pytest.mark.parametrize("content", [png(1), png(2, 301), png(3, kind=np.uint16)], ids=["small", "large", "16 bit"])
def test_an_answer_is_what_the_screener_says(content: bytes, service: Any, screener: Screener, tmp_path: Path) -> None:
    expected, calibration = one_of(screener, content, tmp_path), screener.calibration
    answer = service.post("/score?overlay=true", **upload(content)).json()
    assert calibration is not None
    assert (answer["model_sha256"], answer["calibration"]) == (screener.model.fingerprint(), calibration.id)
    assert (answer["threshold"], answer["score_name"]) == (calibration.threshold, "combined")
    assert tuple(answer["map_scale"]) == calibration.map_scale
    (image,) = answer["images"]
    drawn = Image.open(io.BytesIO(base64.b64decode(image.pop("overlay"))))
    picture = expected.image.permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(drawn, overlay(picture, expected.map.numpy(), *calibration.map_scale))
    assert image == {
        "frame": 0,
        "status": "ok",
        "score": expected.scores["combined"],
        "scores": expected.scores,
        "percentile": expected.percentile,
        "decision": "abnormal" if expected.abnormal else "normal",
        "peak": list(expected.peak),
        "height": expected.about.height,
        "width": expected.about.width,
        "flags": list(expected.flags),
        "error": None,
    }


def test_without_being_asked_no_overlay_is_drawn(service: Any) -> None:
    assert service.post("/score", **upload(png(1))).json()["images"][0]["overlay"] is None


def test_uploads_at_one_time_share_batches_and_bad_ones_harm_none(
    trained: Path, screener: Screener, tmp_path: Path
) -> None:
    contents = [png(i, 64 + 7 * i) if i % 5 else b"no image %d" % i for i in range(20)]
    alone = [one_of(screener, content, tmp_path) for content in contents]
    with client(trained) as service, ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda content: service.post("/score", **upload(content)), contents))
        numbers = service.get("/metrics").text
    for answer, expected in zip(answers, alone, strict=True):
        if expected.error:
            assert answer.status_code == 422
            assert answer.json() == {"code": expected.error.code, "detail": str(expected.error)}
        else:  # in another batch a network rounds otherwise
            assert answer.json()["images"][0]["score"] == pytest.approx(expected.scores["combined"], abs=1e-5)
    assert 'scrd_fast_requests_total{status="200"} 16.0' in numbers
    assert 'scrd_fast_requests_total{status="422"} 4.0' in numbers
    assert 'scrd_fast_images_total{status="ok"} 16.0' in numbers
    spent = re.findall(r"^scrd_fast_(?:model|screening)_seconds_total (\S+)", numbers, re.M)
    assert 0 < min(map(float, spent)) < max(map(float, spent))
    count = float(re.findall(r"^scrd_fast_batch_files_count (\S+)", numbers, re.M)[0])
    assert re.search(r"^scrd_fast_batch_files_sum 20.0", numbers, re.M)
    assert 5 <= count < 20  # of four at most, and together


def test_dicom_of_several_frames_has_an_answer_for_each(service: Any) -> None:
    pytest.importorskip("pydicom")
    from dicom_files import made, stacked, written

    frames = np.random.default_rng(0).integers(0, 4000, (3, 40, 30))
    answer = service.post("/score", **upload(written(stacked(frames, PatientName="Canary^Anna")))).json()
    assert [image["frame"] for image in answer["images"]] == [0, 1, 2]
    assert "Canary" not in str(answer)
    many = written(stacked(np.zeros((batching.MAX_FRAMES + 1, 8, 8))))
    refused = service.post("/score", **upload(many))
    assert (refused.status_code, refused.json()["code"]) == (413, "too-large")
    cut = written(made(PatientName="Canary^Anna", PatientID="canary-1"))[:-900]
    refused = service.post("/score", **upload(cut, "Canary^Anna.dcm"))
    assert refused.status_code == 422
    assert "anary" not in refused.text


def test_what_is_too_large_is_refused(service: Any) -> None:
    exact = service.post("/score", **upload(b"x" * (BYTES - 1000)))
    assert exact.status_code == 422  # it is read, and is no image
    for body in (upload(b"x" * (BYTES + 1)), _without_length(b"x" * (BYTES + 1))):
        refused = service.post("/score", **body)
        assert (refused.status_code, refused.json()["code"]) == (413, "too-large")
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "png")
    refused = service.post("/score", **upload(bomb.getvalue()))
    assert (refused.status_code, refused.json()["code"]) == (422, "too-large")


def _without_length(content: bytes) -> dict[str, Any]:
    start = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    pieces = [start, *(content[i : i + 4096] for i in range(0, len(content), 4096)), b"\r\n--b--\r\n"]
    return {"content": iter(pieces), "headers": {"Content-Type": "multipart/form-data; boundary=b"}}


def test_requests_that_are_none_get_a_problem(service: Any) -> None:
    for answer, status in (
        (service.post("/score"), 400),
        (service.post("/score", data={"file": "text"}), 400),
        (service.post("/score?overlay=perhaps", **upload(png(1))), 400),
        (service.get("/score"), 405),
        (service.get("/nothing"), 404),
    ):
        assert answer.status_code == status
        assert answer.json().keys() == {"code", "detail"}
        assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_pages_of_other_sites_and_other_names_get_nothing(service: Any, trained: Path) -> None:
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Host": "evil.example:8000"}):
        refused = service.post("/score", **upload(png(1)), headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (403, "foreign")
    for headers in ({"Sec-Fetch-Site": "same-origin"}, {"Host": "127.0.0.1:8000"}, {"Host": "[::1]:8000"}):
        assert service.post("/score", **upload(png(1)), headers=headers).status_code == 200
    assert service.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200  # a link leads here
    with client(trained, token="secret") as behind:  # a proxy has names of its own
        headers = {"Authorization": "Bearer secret", "Host": "scores.example"}
        assert behind.post("/score", **upload(png(1)), headers=headers).status_code == 200


def test_a_full_disk_is_not_kept_full(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Any, target: Any, _: int) -> None:
        target.write(source.read(100))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scrd_fast.serving.app.shutil.copyfileobj", full)
    assert service.post("/score", **upload(png(1))).status_code == 500
    assert list(Path(service.app.state.service.folder.name).iterdir()) == []


def test_a_token_is_wanted_before_anything_is_read(trained: Path) -> None:
    with client(trained, token="secret") as service:
        for headers in (
            {},
            {"Authorization": "Bearer other"},
            {"Authorization": "secret"},
            {"Authorization": "Bearer é".encode()},
        ):
            refused = service.post("/score", **upload(png(1)), headers=headers)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert service.get("/metrics", headers=headers).status_code == 401
        assert service.get("/healthz").status_code == service.get("/").status_code == 200
        allowed = {"Authorization": "Bearer secret"}
        assert service.post("/score", **upload(png(1)), headers=allowed).status_code == 200
        assert service.get("/metrics", headers=allowed).status_code == 200


class Slow(Screener):
    """Waits for `go` before each batch."""

    go: threading.Event

    def run(self, found: Any) -> Any:
        assert self.go.wait(60)
        yield from super().run(found)


@pytest.fixture
def slow(trained: Path) -> Slow:
    screener = Slow.from_pretrained(trained, device="cpu", batch_size=2)
    screener.go = threading.Event()
    return screener  # type: ignore[return-value]


def test_more_than_may_wait_is_sent_away_and_the_rest_answered(slow: Slow, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(png(1))
    batcher = Batcher(slow, most_waiting=3)
    first = batcher.submit(tmp_path / "one")
    until = time.monotonic() + 30
    while batcher.waiting and time.monotonic() < until:  # the thread has it
        time.sleep(0.01)
    time.sleep(4 * batching.LINGER)
    waiting = [batcher.submit(tmp_path / "one") for _ in range(3)]
    with pytest.raises(Full):
        batcher.submit(tmp_path / "one")
    threading.Timer(0.2, slow.go.set).start()
    batcher.close()  # what is waiting is answered
    assert [len(answer.result(0)) for answer in (first, *waiting)] == [1, 1, 1, 1]
    with pytest.raises(Full):
        batcher.submit(tmp_path / "one")


def test_a_full_service_says_when_to_come_again(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise Full

    with client(trained) as service:
        monkeypatch.setattr(Batcher, "submit", refuse)
        answer = service.post("/score", **upload(png(1)))
        assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "busy", "1")


def test_an_error_of_one_batch_is_not_the_end(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with client(trained) as service:
        right = Screener.run
        monkeypatch.setattr(Screener, "run", lambda *_: 1 / 0)
        answer = service.post("/score", **upload(png(1)))
        assert (answer.status_code, answer.json()) == (500, {"code": "internal", "detail": "ZeroDivisionError"})
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert 'scrd_fast_requests_total{status="500"} 1.0' in service.get("/metrics").text
        assert service.get("/healthz").json()["status"] == "ok"
        for _ in range(2):
            service.post("/score", **upload(png(1)))
        unhealthy = service.get("/healthz")
        assert (unhealthy.status_code, unhealthy.json()["status"]) == (503, "failing")
        monkeypatch.setattr(Screener, "run", right)
        assert service.post("/score", **upload(png(1))).status_code == 200
        assert service.get("/healthz").json()["status"] == "ok"


def test_nothing_that_was_uploaded_stays(service: Any) -> None:
    folder = Path(service.app.state.service.folder.name)
    for content in (png(1), b"no image"):
        service.post("/score", **upload(content))
    assert list(folder.iterdir()) == []


def test_without_a_calibration_there_are_scores_alone(trained: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((trained / "model" / name).read_bytes())
    with client(tmp_path) as service:
        answer = service.post("/score?overlay=true", **upload(png(1))).json()
    assert answer["calibration"] is answer["threshold"] is answer["map_scale"] is None
    image = answer["images"][0]
    assert image["decision"] is image["percentile"] is image["overlay"] is None
    assert image["score"] == image["scores"]["combined"]
