# SPDX-License-Identifier: Apache-2.0
"""The pictures of a run: anomaly maps to compute with, and overlays to look at, on one scale of colours."""

from __future__ import annotations

import io
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from scrd_fast.calibration import Calibration
from scrd_fast.choices import MapFormat
from scrd_fast.errors import MissingExtraError
from scrd_fast.plots import overlay
from scrd_fast.screening.dicom.writer import DicomResults
from scrd_fast.screening.screener import Screened

__all__ = ["MAP_STEP", "Pictures", "draw_overlay", "encode_map"]

MAP_STEP = 6.0 / 65535  # of a 16-bit map: it is the sum of three distances of at most 2 each


def encode_map(values: npt.NDArray[np.float32], kind: MapFormat) -> bytes:
    """An anomaly map [P, P] as a file: "npz" holds it exactly as `map`, "png" in 16 bits.

    A PNG's values are steps of `MAP_STEP`, which its text `scrd_fast.step` repeats.

    >>> content = encode_map(np.full((2, 2), 1.5, np.float32), "png")
    >>> round(float(np.asarray(Image.open(io.BytesIO(content))).max() * MAP_STEP), 4)
    1.5
    """
    out = io.BytesIO()
    if kind == "npz":
        np.savez_compressed(out, map=values)
    else:
        text = PngInfo()
        text.add_text("scrd_fast.step", repr(MAP_STEP))
        steps = np.rint(values.astype(np.float64) / MAP_STEP).clip(0, 65535).astype(np.uint16)
        Image.fromarray(steps).save(out, "png", pnginfo=text, compress_level=1)
    return out.getvalue()


def draw_overlay(path: Path, result: Screened, scale: tuple[float, float]) -> None:
    """The picture with its map on it, `scale` (low, high) being that of all overlays."""
    assert result.image is not None  # for the type checker: the screener keeps maps
    assert result.map is not None
    pixels = overlay(result.image.permute(1, 2, 0).numpy(), result.map.numpy(), *scale)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path)


class Pictures:
    """Writes maps, overlays of what is called abnormal, and results in DICOM, beside the model's work.

    A picture that cannot be written gives a flag, and its row stands all the same.
    """

    def __init__(
        self,
        out: Path,
        maps: MapFormat | None,
        overlays: bool,
        calibration: Calibration | None,
        dicom: DicomResults | None = None,
    ) -> None:
        self._out, self._maps, self._dicom = out, maps, dicom
        self._scale = calibration.map_scale if overlays and calibration else None
        self._pool = ThreadPoolExecutor(2, "pictures")

    @property
    def wanted(self) -> bool:
        """Whether there can be anything to write."""
        return self._maps is not None or self._scale is not None or self._dicom is not None

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def begin(self, name: str, result: Screened) -> Future[tuple[str | None, list[str]]]:
        """Gives the map's file, relative to the run's folder, and flags of what could not be written."""
        return self._pool.submit(self._write, name, result)

    def _write(self, name: str, result: Screened) -> tuple[str | None, list[str]]:
        """No forced writes: until a shard's part is there, its pictures count for nothing and are written anew."""
        file, flags = None, list[str]()
        if self._maps is not None and result.map is not None:
            try:
                (self._out / "maps").mkdir(exist_ok=True)
                (self._out / f"maps/{name}.{self._maps}").write_bytes(encode_map(result.map.numpy(), self._maps))
                file = f"maps/{name}.{self._maps}"
            except OSError:
                flags.append("map-not-written")
        if self._scale is not None and result.abnormal:
            try:
                draw_overlay(self._out / "overlays" / f"{name}.png", result, self._scale)
            except (OSError, MissingExtraError):
                flags.append("overlay-not-written")
        if self._dicom is not None:
            flags += self._dicom.write(name, result)
        return file, flags
