# SPDX-License-Identifier: Apache-2.0
"""What a request must be before its body is read, and while it is: allowed, not too large, not too slow."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import HTTPException
from starlette.responses import JSONResponse

__all__ = ["OPEN", "Gate", "busy", "problem"]

OPEN = frozenset({"/", "/page.js", "/page.css", "/scale.png", "/healthz", "/openapi.json"})  # wants no token
RETRY_AFTER = "1"  # seconds
SILENCE = 30.0  # seconds in which nothing comes of an upload

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_HEADERS = (  # of every answer: no page but ours runs anything with it, and nothing stays in a cache
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


def problem(status: int, code: str, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"code": code, "detail": detail}, status, headers)


def busy() -> JSONResponse:
    return problem(503, "busy", "too many uploads are waiting; try again", {"Retry-After": RETRY_AFTER})


class Gate:
    """ASGI middleware. Without the token, with more than `most_bytes`, or while `most_uploads` are under way, a request
    is answered at once; so is one of which nothing comes for `SILENCE` seconds.

    A body of which no length is told is cut off where it has become too long.
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
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._most:
            return problem(413, "too-large", self._too_large(), {"Connection": "close"})
        return None

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
