# SPDX-License-Identifier: Apache-2.0
"""Services for tests: in this process, and in one of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from scrd_fast.screening.screener import Screener
from scrd_fast.serving.app import create_app

BYTES = 300_000


@contextmanager
def client(run: Path, **options: Any) -> Iterator[TestClient]:
    """Its readers are threads: processes take seconds to begin."""
    settings = {"most_bytes": BYTES, "most_waiting": 64} | options
    screener = Screener.from_pretrained(run, device="cpu", batch_size=4)
    app = create_app(screener, **settings)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as made:
        yield made


@contextmanager
def served(run: Path, *flags: str, token: str | None = None) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The command, and the address that it prints."""
    command = [sys.executable, "-m", "scrd_fast", "serve", str(run), "--port", "0", "--device", "cpu", *flags]
    environment = {name: value for name, value in os.environ.items() if name != "SCRD_FAST_TOKEN"}
    environment |= {} if token is None else {"SCRD_FAST_TOKEN": token}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), process.communicate()[1]
        yield url, process
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
