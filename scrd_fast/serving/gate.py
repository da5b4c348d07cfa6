# SPDX-License-Identifier: Apache-2.0
"""What a request must be before its body is read, and while it is: allowed, not too large, not too slow."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import HTTPException
from starlette.responses import JSONResponse

__all__ = ["HEADERS", "OPEN", "Gate", "busy", "problem"]

OPEN = frozenset({"/", "/page.js", "/page.css", "/scale.png", "/healthz", "/openapi.json"})  # wants no token
RETRY_AFTER = "1"  # seconds
SILENCE = 30.0  # seconds in which nothing comes of an upload

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

HEADERS = {  # of every answer: no page but ours runs anything with it, and nothing stays in a cache
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_HEADERS = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
LOCAL = (b"localhost", b"127.0.0.1", b"[::1]")  # hosts


def problem(status: int, code: str, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"code": code, "detail": detail}, status, headers)


def busy() -> JSONResponse:
    return problem(503, "busy", "too many uploads are waiting; try again", {"Retry-After": RETRY_AFTER})


class Gate:
    """ASGI middleware: what may not be asked is answered at once.

    That is a request without the token, from another site's page, of more than `most_bytes`, while `most_uploads` are
    under way, or of which nothing comes for `SILENCE` seconds. A body of which no length is told is cut off where it
    has become too long.
    """

    def __init__(self, app: Any, *, token: str | None, most_bytes: int, most_uploads: int) -> None:
        self._app, self._most = app, most_bytes
        self._free = most_uploads
        self._token = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        takes = scope["method"] == "POST"
        if refusal := self._refusal(scope) or (busy() if takes and not self._free else None):
            await refusal(scope, receive, guarded)
            return
        self._free -= takes
        try:
            await self._app(scope, self._counted(receive), guarded)
        finally:
            self._free += takes

    def _refusal(self, scope: Message) -> JSONResponse | None:
        headers = dict(scope["headers"])
        given = headers.get(b"authorization", b"")
        if self._token and scope["path"] not in OPEN and not secrets.compare_digest(given, self._token):
            return problem(
                401, "token", "expected the header 'Authorization: Bearer TOKEN'", {"WWW-Authenticate": "Bearer"}
            )
        if scope["path"] not in OPEN and self._is_foreign(headers):
            return problem(403, "foreign", "another site's page, or another name of this machine, may not ask this")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._most:
            return problem(413, "too-large", self._too_large(), {"Connection": "close"})
        return None

    def _is_foreign(self, headers: dict[bytes, bytes]) -> bool:
        """Any page that its user opens could send files here, or read answers by a name that it controls."""
        if headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
            return True
        name = headers.get(b"host", b"")
        host = name if name.endswith(b"]") else name.rpartition(b":")[0] or name
        return self._token is None and host not in LOCAL

    def _too_large(self) -> str:
        return f"an upload may have {self._most} bytes"

    def _counted(self, receive: Receive) -> Receive:
        total, more = 0, True

        async def counted() -> Message:
            nonlocal total, more
            try:  # what comes after the body is that the client leaves, for which there is no hurry
                message = await asyncio.wait_for(receive(), SILENCE if more else None)
            except asyncio.TimeoutError:
                raise HTTPException(408, f"nothing came for {SILENCE:g} s", {"Connection": "close"}) from None
            more = message.get("more_body", False)
            total += len(message.get("body", b""))
            if total > self._most:
                raise HTTPException(413, self._too_large(), {"Connection": "close"})
            return message

        return counted
