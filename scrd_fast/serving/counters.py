# SPDX-License-Identifier: Apache-2.0
"""What `/metrics` tells: numbers alone, nothing of any image or who sent it."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

import scrd_fast

__all__ = ["Counters"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
FILES = (1, 2, 4, 8, 16, 32, 64, 128)


class Counters:
    """Of one service, in a registry of its own."""

    def __init__(self, model_sha256: str, waiting: Callable[[], float], died: Callable[[], float]) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter("scrd_fast_requests", "Answers to /score, by HTTP status.", ["status"], registry=own)
        self.seconds = Histogram(
            "scrd_fast_request_seconds", "From an upload's end to its answer.", buckets=SECONDS, registry=own
        )
        self.images = Counter("scrd_fast_images", "Images, by what became of them.", ["status"], registry=own)
        self._batches = Histogram("scrd_fast_batch_files", "Uploads screened together.", buckets=FILES, registry=own)
        self._working = Counter("scrd_fast_screening_seconds", "Time in which batches were screened.", registry=own)
        self._model = Counter(
            "scrd_fast_model_seconds", "What the model took of it; the rest is reading.", registry=own
        )
        Gauge("scrd_fast_waiting", "Uploads that wait for a batch.", registry=own).set_function(waiting)
        Gauge("scrd_fast_readers_died", "Reading processes that were replaced.", registry=own).set_function(died)
        about = Gauge("scrd_fast_info", "What serves.", ["version", "model_sha256"], registry=own)
        about.labels(scrd_fast.__version__, model_sha256).set(1)

    def batch(self, files: int, seconds: float, model: float) -> None:
        self._batches.observe(files)
        self._working.inc(seconds)
        self._model.inc(model)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
