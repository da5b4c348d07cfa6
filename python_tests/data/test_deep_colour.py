# SPDX-License-Identifier: Apache-2.0
"""16-bit colour: every level of every channel arrives."""

from __future__ import annotations

import contextlib
import io
import sys
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from scrd_fast.config import Preprocessing
from scrd_fast.data.reading import read_frame, read_image
from scrd_fast.errors import ImageError

Pixels = npt.NDArray[np.uint16]
RANGE = Preprocessing(size=256, intensity="range")
COLOUR_TYPES = {2: 4, 3: 2, 4: 6}  # channels: PNG's number


def png(pixels: Pixels, *more: bytes) -> bytes:
    """uint16 [H, W, C] as PNG, with `more` chunks ahead of the pixels."""
    height, width, channels = pixels.shape
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, COLOUR_TYPES[channels], 0, 0, 0])
    rows = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(more) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def ramps(channels: int, top: int = 65535) -> Pixels:
    """256 levels a channel, each channel with a direction or height of its own; the last is the alpha's, if any."""
    ramp = np.tile(np.linspace(0, top, 256).round().astype(np.uint16), (256, 1))
    return np.stack([ramp, ramp[:, ::-1], (ramp // 2).T, ramp[::-1].T][:channels], axis=-1)


@pytest.mark.parametrize("channels", [3, 4])
def test_colour_keeps_all_levels(channels: int) -> None:
    pixels = ramps(channels)
    image = read_image(png(pixels), RANGE).numpy()
    assert [len(np.unique(plane)) for plane in image] == [256, 256, 256]
    np.testing.assert_allclose(image, pixels[..., :3].transpose(2, 0, 1) / 65535.0, rtol=1e-6)


def test_levels_closer_than_8_bits_are_told_apart() -> None:
    pixels = 30000 + ramps(3, 255)
    frame = read_frame(png(pixels), Preprocessing(size=256))
    assert [len(np.unique(plane)) for plane in frame.pixels.numpy()] == [255, 255, 128]  # 0.5-99.5 %
    assert (frame.about.shown, frame.about.colour, frame.about.flags) == ("percentile", True, ())


def test_one_window_serves_all_channels() -> None:
    pixels = ramps(3, 4000)
    low, high = np.percentile(pixels, [0.5, 99.5])
    expected = ((pixels - low) / (high - low)).clip(0, 1).transpose(2, 0, 1)
    np.testing.assert_allclose(read_image(png(pixels), Preprocessing(size=256)).numpy(), expected, atol=1e-6)


def test_alpha_is_ignored() -> None:
    seen, hidden = ramps(4), ramps(4)
    hidden[..., 3] = 0
    assert (read_image(png(seen), RANGE) == read_image(png(hidden), RANGE)).all()
    gray = read_image(png(ramps(2)), RANGE).numpy()
    np.testing.assert_allclose(gray, np.broadcast_to(ramps(2)[..., 0] / 65535.0, gray.shape), rtol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_as_to_8_bits(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    shallow = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(shallow).save(buffer, "png", exif=exif)
    deep = png(shallow.astype(np.uint16) * 257, chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    frames = [read_frame(content, RANGE) for content in (deep, buffer.getvalue())]
    assert len({(frame.about.height, frame.about.width) for frame in frames}) == 1
    np.testing.assert_allclose(frames[0].pixels, frames[1].pixels, atol=1e-6)


def test_black_is_flagged() -> None:
    flags = read_frame(png(np.zeros((8, 8, 3), np.uint16)), RANGE).about.flags
    assert {"all-zero", "constant"} == set(flags)


def test_hostile_bytes_are_an_image_error() -> None:
    good = png(np.random.default_rng(0).integers(0, 65536, (8, 8, 3)).astype(np.uint16))
    rng = np.random.default_rng(1)
    for at in range(8, len(good) - 16, 11):  # up to the last of the pixels
        with pytest.raises(ImageError):
            read_image(good[:at], RANGE)
        spoilt = bytearray(good)
        spoilt[at] ^= int(rng.integers(1, 256))
        with contextlib.suppress(ImageError):  # an error of another kind would get through
            assert read_image(bytes(spoilt), RANGE).isfinite().all()


def test_a_size_above_the_limit_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    content = png(ramps(3))
    monkeypatch.setattr("scrd_fast.data.limits.MAX_PIXELS", 1000)
    monkeypatch.setattr("scrd_fast.data.pictures._decode_png", lambda _: pytest.fail("was decoded"))
    with pytest.raises(ImageError, match="256 x 256 pixels, at most 1000 are read"):
        read_image(content, RANGE)


def test_a_second_header_does_not_get_past_the_limit() -> None:
    """Pillow obeys the last header, libpng the first."""
    huge = chunk(b"IHDR", (500_000).to_bytes(4, "big") * 2 + bytes([16, 2, 0, 0, 0]))
    content = png(ramps(3))
    with pytest.raises(ImageError):
        read_image(content[:8] + huge + content[8:], RANGE)


def test_without_torchvision_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.io", None)
    with pytest.raises(ImageError, match=r"needs torchvision: .*\[model\] extra") as caught:
        read_image(png(ramps(3)), RANGE)
    assert caught.value.code == "unsupported"


@pytest.mark.parametrize("kind", ["tiff", "animation"])
def test_what_would_be_cut_to_8_bits_is_refused(kind: str) -> None:
    content = _tiff(ramps(3)) if kind == "tiff" else _animation(ramps(3))
    with pytest.raises(ImageError, match="16-bit colour is read from PNG of one image alone") as caught:
        read_image(content, RANGE, frame=0)
    assert caught.value.code == "unsupported"


def _animation(pixels: Pixels) -> bytes:
    """Of two pictures, the second of which is not there."""
    height, width, _ = pixels.shape
    sizes = b"".join(number.to_bytes(4, "big") for number in (0, width, height, 0, 0))
    return png(
        pixels, chunk(b"acTL", (2).to_bytes(4, "big") + bytes(4)), chunk(b"fcTL", sizes + bytes([0, 1, 0, 1, 0, 0]))
    )


def _tiff(pixels: Pixels) -> bytes:
    height, width, channels = pixels.shape
    data = pixels.astype("<u2").tobytes()
    bits = 8 + len(data)
    entries: list[tuple[int, int, int, Any]] = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, channels, bits),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 8),
        (277, 3, 1, channels),
        (278, 3, 1, height),
        (279, 4, 1, len(data)),
    ]
    directory = len(entries).to_bytes(2, "little") + b"".join(
        tag.to_bytes(2, "little")
        + kind.to_bytes(2, "little")
        + count.to_bytes(4, "little")
        + value.to_bytes(4, "little")
        for tag, kind, count, value in entries
    )
    depths = (16).to_bytes(2, "little") * channels
    head = b"II*\0" + (bits + len(depths)).to_bytes(4, "little")
    return head + data + depths + directory + bytes(4)
