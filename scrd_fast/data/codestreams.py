# SPDX-License-Identifier: Apache-2.0
"""What a JPEG or JPEG 2000 stream says of itself, read before a decoder believes it."""

from __future__ import annotations

from dataclasses import dataclass

from scrd_fast.errors import ImageError

__all__ = ["Codestream", "look_at"]

_JP2 = b"\x00\x00\x00\x0cjP  "
_START = b"\xff\x4f\xff\x51"  # SOC and SIZ, which ISO/IEC 15444-1 wants in this order
# Start of frame of JPEG, JPEG Lossless and JPEG-LS; among them lie markers of tables.
_FRAME_MARKERS = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)


@dataclass(frozen=True)
class Codestream:
    """Sizes in pixels, bits of a sample."""

    width: int
    height: int
    components: int
    bits: int
    jpeg2000: bool


def look_at(data: bytes) -> Codestream | None:
    """None where it is no such stream, or says nothing. Raises `ImageError` for boxes and markers that lead nowhere.

    >>> look_at(b"RLE")
    """
    if data.startswith(b"\xff\xd8"):
        return _of_jpeg(data)
    at = _first_box(data) if data.startswith(_JP2) else 0
    if data[at : at + 4] != _START or len(data) < at + 43:
        return None
    right, bottom, left, top = (int.from_bytes(data[at + i : at + i + 4], "big") for i in (8, 12, 16, 20))
    components = int.from_bytes(data[at + 40 : at + 42], "big")
    return Codestream(right - left, bottom - top, components, (data[at + 42] & 0x7F) + 1, jpeg2000=True)


def _first_box(data: bytes) -> int:
    """Where the codestream begins in a JP2 file."""
    at = 0
    while at + 8 <= len(data):
        if data[at + 4 : at + 8] == b"jp2c":
            return at + 8
        length = int.from_bytes(data[at : at + 4], "big")
        if length < 8:  # a search that trusted it would never end
            break
        at += length
    raise ImageError("unreadable", "JP2 without a codestream")


def _of_jpeg(data: bytes) -> Codestream:
    """Its frame header. Markers must lead to it and on to the scan: a decoder that has to search may crash."""
    found = None
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        marker = data[at + 1]
        if marker in _FRAME_MARKERS:
            height, width = (int.from_bytes(data[at + i : at + i + 2], "big") for i in (5, 7))
            found = Codestream(width, height, data[at + 9], data[at + 4], jpeg2000=False)
        # Fill bytes, and markers without a length.
        at += 1 if marker == 0xFF else 2 if 0xD0 <= marker <= 0xD8 else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    if found is None or data[at : at + 2] != b"\xff\xda":
        raise ImageError("unreadable", "JPEG without a frame or a scan")
    return found
