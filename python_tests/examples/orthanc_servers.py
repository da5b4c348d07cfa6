# SPDX-License-Identifier: Apache-2.0
"""A stand-in for Orthanc, as far as our poller speaks to it, and the real one where it is installed."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom

USER, PASSWORD = "scrd", "a word"
RECIPES = Path(__file__).resolve().parents[2] / "examples" / "orthanc"
LEVELS = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


def credentials(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def ids_of(header: Any) -> list[str]:
    """Of patient, study, series and instance: SHA-1 of their numbers, joined by |, in five parts."""
    names = [str(header.get(name, "")) for name in LEVELS]
    digests = [hashlib.sha1("|".join(names[: n + 1]).encode()).hexdigest() for n in range(4)]
    return ["-".join(digest[i : i + 8] for i in range(0, 40, 8)) for digest in digests]


class Server:
    """What tests ask of either."""

    url: str

    def ask(self, path: str, body: bytes | None = None) -> bytes:
        headers = {"Authorization": credentials(USER, PASSWORD)}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, body, headers), timeout=60) as answer:
            return bytes(answer.read())

    def json(self, path: str, body: bytes | None = None) -> Any:
        return json.loads(self.ask(path, body))

    def store(self, *files: bytes) -> list[dict[str, Any]]:
        return [self.json("/instances", file) for file in files]

    def results(self) -> list[Any]:
        """Of ours: every instance whose Manufacturer says so."""
        found = [pydicom.dcmread(io.BytesIO(self.ask(f"/instances/{i}/file"))) for i in self.json("/instances")]
        return [dataset for dataset in found if dataset.get("Manufacturer") == "scrd_fast"]

    def settle(self) -> None:
        """Wait until every series is stable."""


class Stub(Server):
    """Its REST interface by its documentation and by what Orthanc 1.10.1 was seen to answer."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.series: dict[str, dict[str, Any]] = {}
        self.changes: list[dict[str, Any]] = []
        self.unstable: dict[str, None] = {}
        self.requests: list[tuple[str, str]] = []
        self.failing: dict[str, int] = {}  # paths, and the status that they answer
        self.word = credentials(USER, PASSWORD)  # what who asks must say
        self.slowness = 0.0  # seconds that storing takes
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), type("Bound", (self.handler(),), {"stub": self}))
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def handler(self) -> type[Handler]:
        return Handler

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, file: bytes) -> dict[str, Any]:
        header = pydicom.dcmread(io.BytesIO(file), stop_before_pixels=True)
        patient, study, series, instance = ids_of(header)
        new = instance not in self.files
        if new:
            self.files[instance] = file
            self._change("NewInstance", "Instance", instance)
            self.unstable[series] = None
            names = ("Manufacturer", "Modality", "SeriesInstanceUID", "SeriesNumber")
            tags = {name: str(header[name].value) for name in names if name in header}
            about = {"ID": series, "Instances": [], "MainDicomTags": tags, "ParentStudy": study, "Type": "Series"}
            self.series.setdefault(series, about)["Instances"].append(instance)
        parents = {"ParentPatient": patient, "ParentStudy": study, "ParentSeries": series}
        status = {"ID": instance, "Path": f"/instances/{instance}", "Status": "Success" if new else "AlreadyStored"}
        return status | parents

    def _change(self, kind: str, level: str, name: str) -> None:
        known = {"ChangeType": kind, "Date": "20240304T101112", "ID": name, "ResourceType": level}
        self.changes.append(known | {"Path": f"/{level.lower()}/{name}", "Seq": len(self.changes) + 1})

    def changed(self, asked: dict[str, list[str]]) -> dict[str, Any]:
        """No series is ever waited for: what has come is stable."""
        for series in self.unstable:
            self._change("StableSeries", "Series", series)
        self.unstable.clear()
        if "last" in asked:
            shown, done = self.changes[-1:], True
        else:
            since, limit = (int(asked.get(name, [default])[0]) for name, default in (("since", "0"), ("limit", "100")))
            rest = [change for change in self.changes if change["Seq"] > since]
            shown, done = rest[:limit], len(rest) <= limit
        return {"Changes": shown, "Done": done, "Last": shown[-1]["Seq"] if shown else len(self.changes)}


class Handler(BaseHTTPRequestHandler):
    stub: Stub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if not self.allowed(url.path):
            return
        _, kind, *rest = url.path.split("/")
        stub = self.stub
        if kind == "changes":
            self.answer(200, stub.changed(parse_qs(url.query, keep_blank_values=True)))
        elif kind == "system":
            self.answer(200, {"ApiVersion": 16, "Version": "1.10.1", "Name": "stub"})
        elif kind == "instances" and not rest:
            self.answer(200, list(stub.files))
        elif kind == "series" and rest[0] in stub.series:
            self.answer(200, stub.series[rest[0]])
        elif kind == "instances" and rest[0] in stub.files and rest[1:] == ["file"]:
            self.answer(200, stub.files[rest[0]])
        else:
            self.answer(404, b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.allowed(self.path):
            time.sleep(self.stub.slowness)
            try:
                self.answer(200, self.stub.add(body))
            except pydicom.errors.InvalidDicomError:
                self.answer(400, {"HttpStatus": 400, "OrthancError": "Bad file format", "OrthancStatus": 15})

    def allowed(self, path: str) -> bool:
        self.stub.requests.append((self.command, path))
        if self.headers["Authorization"] != self.stub.word:
            self.answer(401, b"")
            return False
        if status := self.stub.failing.get(path):
            self.answer(status, {"HttpStatus": status})
            return False
        return True

    def answer(self, status: int, content: Any, kind: str = "application/json") -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # who asked may have been killed
            self.wfile.write(body)


class Real(Server):
    """Orthanc itself by the recipe, with folders and ports of ours."""

    def __init__(self, folder: Path, pacs_port: int, plugins: Sequence[str] = ()) -> None:
        self.settings = json.loads((RECIPES / "orthanc.json").read_text())
        self.dicom_port, port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        places = {"StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db")}
        ports = {"DicomPort": self.dicom_port, "HttpPort": port, "StableAge": 1}
        assert self.settings["LuaScripts"] == ["/etc/orthanc/forward.lua"]
        self.settings |= places | ports | {"LuaScripts": [str(RECIPES / "forward.lua")], "Plugins": [*plugins]}
        self.settings["DicomModalities"]["pacs"][1:] = ["127.0.0.1", pacs_port]
        (folder / "db").mkdir(parents=True)
        (folder / "orthanc.json").write_text(json.dumps(self.settings))
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["Orthanc", str(folder / "orthanc.json")],
                env=os.environ | {"ORTHANC_PASSWORD": PASSWORD},
                stdout=log,
                stderr=log,
            )
        self._wait(lambda: self.json("/system"))

    def _wait(self, condition: Any) -> None:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(urllib.error.URLError):
                if condition():
                    return
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def settle(self) -> None:
        self._wait(lambda: all(self.json(f"/series/{name}")["IsStable"] for name in self.json("/series")))

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=60)
