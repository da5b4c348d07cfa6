# SPDX-License-Identifier: Apache-2.0
"""How a screening run is done."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scrd_fast.choices import DicomKind, Engine, MapFormat, Precision
from scrd_fast.config import Strict

__all__ = ["ScreenSettings"]


class ScreenSettings(Strict):
    """Of these `identity` are the ones on which the table depends: a run that goes on must have the same."""

    batch_size: int = Field(16, ge=1)
    precision: Precision = "32"
    compile: bool = False
    device: str = "auto"
    engine: Engine = "local"
    devices: int = Field(1, ge=1)  # processes with a model each
    workers: int = Field(1, ge=1)  # processes that read, of all devices together
    file_timeout: float = Field(60.0, gt=0)  # seconds
    shard_size: int = Field(1000, ge=1)
    maps: MapFormat | None = None
    overlays: int | Literal["above"] = 20
    max_failures: float = Field(0.05, ge=0, le=1)
    stop_on_failures: bool = False
    modality: tuple[str, ...] = ()
    body_part: tuple[str, ...] = ()
    view: tuple[str, ...] = ()
    strict: bool = False
    site: str | None = None
    dicom: tuple[DicomKind, ...] = ()

    def identity(self) -> dict[str, object]:
        free = {"engine", "devices", "workers", "file_timeout", "overlays", "max_failures", "stop_on_failures"}
        free |= set() if self.dicom else {"dicom"}  # runs without are what they were before there was any
        return self.model_dump(mode="json", exclude=free) | {"overlays_above": self.overlays == "above"}
