# SPDX-License-Identifier: Apache-2.0
"""What a request must be before any of its body is read: allowed, and not too large."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import HTTPException
from starlette.responses import JSONResponse

__all__ = ["OPEN", "Gate", "problem"]

OPEN = frozenset({"/", "/page.js", "/page.css", "/scale.png", "/healthz", "/openapi.json"})  # wants no token

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


class Gate:
    """ASGI middleware. Without the token, or with more than `most_bytes`, a request is answered at once.

    A body of which no length is told is cut off where it has become too long.
    """

    def __init__(self, app: Any, *, token: str | None, most_bytes: int) -> None:
        self._app, self._most = app, most_bytes
        self._token = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        refusal = self._refusal(scope)
        await (refusal or self._app)(scope, self._counted(receive), guarded)

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
        total = 0

        async def counted() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self._most:
                raise HTTPException(413, self._too_large(), {"Connection": "close"})
            return message

        return counted
