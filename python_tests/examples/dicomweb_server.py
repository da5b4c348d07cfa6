# SPDX-License-Identifier: Apache-2.0
"""A stand-in for a DICOMweb server: as much of QIDO, WADO and STOW as PS3.18 asks for and our recipe uses."""

from __future__ import annotations

import io
import json
import re
from email.message import Message
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom
from orthanc_servers import Handler, Stub

ROOT = "/dicom-web"
LEVEL = ("StudyInstanceUID", "SeriesInstanceUID", "Modality", "Manufacturer", "StudyDate")
BOUNDARY = "part-of-the-stand-in"


class DicomWeb(Stub):
    """The files of the stand-in for Orthanc, by another interface."""

    def handler(self) -> type[Handler]:
        return _Handler

    @property
    def headers(self) -> dict[str, Any]:
        return {name: pydicom.dcmread(io.BytesIO(file), stop_before_pixels=True) for name, file in self.files.items()}


class _Handler(Handler):
    stub: DicomWeb

    def do_GET(self) -> None:  # noqa: N802
        url = urlsplit(self.path)
        if not url.path.startswith(ROOT):
            super().do_GET()
        elif self.allowed(url.path):
            if url.path == f"{ROOT}/series":
                self._qido({name: values[0] for name, values in parse_qs(url.query).items()})
            else:
                self._wado(url.path)

    def _qido(self, asked: dict[str, str]) -> None:
        offset = int(asked.pop("offset", "0"))
        found = {}
        for header in self.stub.headers.values():
            if all(str(header.get(name)) == value for name, value in asked.items()):
                shown = pydicom.Dataset()
                for name in LEVEL:
                    setattr(shown, name, header.get(name))
                found[header.SeriesInstanceUID] = shown.to_json_dict()
        self._json(200 if offset == 0 else 204, list(found.values()) if offset == 0 else None)

    def _wado(self, path: str) -> None:
        asked = re.fullmatch(rf"{ROOT}/studies/([\d.]+)/series/([\d.]+)", path)
        assert asked is not None
        assert "transfer-syntax=*" in self.headers["Accept"]
        headers = self.stub.headers.items()
        names = [name for name, it in headers if (it.StudyInstanceUID, it.SeriesInstanceUID) == asked.groups()]
        head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = b"".join(head + self.stub.files[name] + b"\r\n" for name in names) + f"--{BOUNDARY}--\r\n".encode()
        self.answer(200, body, f'multipart/related; type="application/dicom"; boundary={BOUNDARY}')

    def do_POST(self) -> None:  # noqa: N802
        if not self.path.startswith(ROOT):
            super().do_POST()
            return
        length, chunks = self.headers["Content-Length"], []
        if length is None:  # chunked, as large files come
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
        body = b"".join(chunks) if length is None else self.rfile.read(int(length))
        if self.allowed(self.path):
            assert self.path == f"{ROOT}/studies"
            self._stow(body)

    def _stow(self, body: bytes) -> None:
        kind = Message()
        kind["Content-Type"] = self.headers["Content-Type"]
        assert (kind.get_content_type(), kind.get_param("type")) == ("multipart/related", "application/dicom")
        told = pydicom.Dataset()
        told.ReferencedSOPSequence = []
        for part in body.split(f"--{kind.get_param('boundary')}".encode())[1:-1]:
            file = part.partition(b"\r\n\r\n")[2][:-2]
            self.stub.add(file)
            header, item = pydicom.dcmread(io.BytesIO(file), stop_before_pixels=True), pydicom.Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
            told.ReferencedSOPSequence.append(item)
        self._json(200, told.to_json_dict())

    def _json(self, status: int, content: Any) -> None:
        self.answer(status, b"" if content is None else json.dumps(content).encode(), "application/dicom+json")
