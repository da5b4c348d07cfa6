# SPDX-License-Identifier: Apache-2.0
"""What the verb `serve` does: load, listen, and end without losing an answer."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scrd_fast.config import Precision
from scrd_fast.console import Console
from scrd_fast.device import usable_cores
from scrd_fast.errors import MissingExtraError, ScrdFastError
from scrd_fast.screening.screener import Screener

__all__ = ["serve"]

TOKEN = "SCRD_FAST_TOKEN"
QUEUED = 8  # batches that may wait
CONNECTIONS = 512  # open at a time, idle ones too; the uploads among them are limited by the gate
GRACE = 60  # seconds that answers may take once the end was asked for


def serve(
    console: Console,
    run: Path,
    host: str,
    port: int,
    batch_size: int,
    precision: Precision,
    device: str,
    workers: int | None,
    file_timeout: float,
    most_megabytes: int,
) -> None:
    """Until SIGINT or SIGTERM; then what was begun is answered. Raises `ScrdFastError` for an open port without a
    token, and for a token that no header can carry."""
    try:
        import uvicorn

        from scrd_fast.serving.app import create_app
    except ImportError as error:
        raise MissingExtraError(error.name or "fastapi", "serve") from None
    token = os.environ.get(TOKEN)
    if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
        raise ScrdFastError(f"{TOKEN}: expected printable ASCII characters without blanks, or no such variable")
    if token is None and not _is_local(host):
        raise ScrdFastError(f"--host {host}: others could reach it; set {TOKEN}, which they then must send")
    with _listening(host, port) as listening:
        screener = Screener.from_pretrained(
            run,
            device=device,
            precision=precision,
            batch_size=batch_size,
            workers=workers or usable_cores(),
            file_timeout=file_timeout,
        )
        if screener.calibration is None:
            console.warn(f"{run}: has no calibration; there are scores, but no decisions and no maps")
        app = create_app(screener, token=token, most_bytes=most_megabytes * 2**20, most_waiting=QUEUED * batch_size)
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listening.getsockname()[1]}"
        console.log(f"{screener.model.config.teacher.name} on {screener.device}; Ctrl-C ends it")
        console.result(url, {"url": url})
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            date_header=False,
            limit_concurrency=max(CONNECTIONS, 2 * QUEUED * batch_size),
            timeout_graceful_shutdown=GRACE,
        )
        with _quiet_signals():
            uvicorn.Server(config).run(sockets=[listening])
    console.log("ended")


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Before the model is loaded: a port that is taken is said at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ScrdFastError(f"{host}:{port}: cannot listen there: {error.strerror or error}") from None
    with listening:
        yield listening


@contextmanager
def _quiet_signals() -> Iterator[None]:
    """uvicorn raises a signal again once it has ended: this is how the service is meant to end."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
