# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from scrd_fast.config import Preprocessing
from scrd_fast.data.pictures import read_pages
from scrd_fast.data.reading import normalise, read_image, read_mask
from scrd_fast.errors import ImageError

SAME = Preprocessing(size=256)  # a 256 x 256 image is not resized


def ramp(dtype: Any, top: float) -> np.ndarray[Any, Any]:
    """256 levels from 0 to `top`, one a column."""
    return np.tile(np.linspace(0, top, 256), (256, 1)).round().astype(dtype)


def save(path: Path, pixels: np.ndarray[Any, Any] | Image.Image, **options: Any) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


DEEP = {
    "uint16.png": (ramp(np.uint16, 65535), 65535.0),
    "uint16.tif": (ramp(np.uint16, 65535), 65535.0),
    "big-endian.tif": (ramp(">u2", 65535), 65535.0),
    "int32.tif": (ramp(np.int32, 2**31 - 1), 2.0**31 - 1),
    "float.tif": ((ramp(np.float64, 255) / 255).astype(np.float32), 1.0),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_images_keep_all_256_levels(tmp_path: Path, name: str) -> None:
    pixels, top = DEEP[name]
    if name == "big-endian.tif":
        raw = b"MM\x00\x2a" + (8 + pixels.nbytes).to_bytes(4, "big") + pixels.tobytes()
        path = tmp_path / name
        path.write_bytes(raw + _tiff_directory())
    else:
        path = save(tmp_path / name, pixels)
    image = read_image(path, Preprocessing(size=256, intensity="range"))
    assert image.shape == (3, 256, 256)
    assert len(image[0, 0].unique()) == 256
    expected = torch.from_numpy(pixels.astype(np.float64) / top).float()
    torch.testing.assert_close(image[1], expected, rtol=1e-6, atol=1e-7)


def _tiff_directory() -> bytes:
    """The directory of a 256 x 256 uncompressed big-endian 16-bit gray image whose pixels begin at byte 8."""
    entries = [
        (256, 4, 256), (257, 4, 256), (258, 3, 16 << 16), (259, 3, 1 << 16), (262, 3, 1 << 16),
        (273, 4, 8), (277, 3, 1 << 16), (278, 4, 256), (279, 4, 256 * 256 * 2),
    ]  # fmt: skip
    body = b"".join(
        t.to_bytes(2, "big") + k.to_bytes(2, "big") + (1).to_bytes(4, "big") + v.to_bytes(4, "big")
        for t, k, v in entries
    )
    return len(entries).to_bytes(2, "big") + body + bytes(4)


def test_a_twelve_bit_image_is_windowed_and_not_near_black(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", ramp(np.uint16, 4095))
    image = read_image(path, SAME)
    low, high = np.percentile(ramp(np.uint16, 4095), (0.5, 99.5))
    expected = ((ramp(np.float64, 4095) - low) / (high - low)).clip(0, 1)
    torch.testing.assert_close(image[0], torch.from_numpy(expected).float())
    assert read_image(path, Preprocessing(size=256, intensity="range")).max() < 0.07


def test_eight_bit_is_divided_by_255_and_windowed_on_request(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", (ramp(np.uint8, 100)))
    assert read_image(path, SAME).max() == pytest.approx(100 / 255)
    assert read_image(path, Preprocessing(size=256, intensity="percentile")).max() == 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_every_mode_becomes_three_finite_channels(tmp_path: Path, mode: str) -> None:
    gray = Image.fromarray(ramp(np.uint8, 255)).resize((40, 30))
    extension = "tif" if mode in ("CMYK", "YCbCr", "I", "F") else "png"
    result = read_image(save(tmp_path / f"a.{extension}", gray.convert(mode)), Preprocessing(size=32))
    assert result.shape == (3, 32, 32)
    assert result.dtype == torch.float32
    assert result.isfinite().all()
    assert 0 <= result.min() < result.max() <= 1


def test_colours_survive_palettes_and_alpha(tmp_path: Path) -> None:
    red = Image.new("RGB", (64, 64), (200, 30, 60))
    expected = torch.tensor([200, 30, 60]) / 255
    transparent = red.convert("RGBA")
    transparent.putalpha(0)
    variants = {"rgb": red, "palette": red.quantize(4), "rgba": transparent}
    for name, image in variants.items():
        result = read_image(save(tmp_path / f"{name}.png", image), Preprocessing(size=64))
        torch.testing.assert_close(result[:, 5, 5], expected, rtol=0, atol=1e-6)


def test_the_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :10] = 255  # a white left edge
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: the left edge is on top
    path = save(tmp_path / "a.png", pixels, exif=exif)
    ((_, picture),) = read_pages(path, "auto", {0})
    shown = picture.pixels
    assert shown.shape == (3, 60, 40)
    assert shown[:, 2].min() == 1
    assert shown[:, 30].max() == 0


@pytest.mark.parametrize("shape", [(512, 512), (70, 64), (31, 200), (1, 1), (128, 128)])
def test_resizing_equals_torchvision_with_antialias(tmp_path: Path, shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    path = save(tmp_path / "a.png", generator.integers(0, 256, (*shape, 3), dtype=np.uint8))
    pixels = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1) / 255
    expected = tv.resize(pixels, [128, 128], antialias=True)
    torch.testing.assert_close(read_image(path, Preprocessing(size=128)), expected, rtol=0, atol=1e-6)


def test_padding_keeps_the_aspect(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.full((100, 50), 255, np.uint8))
    image = read_image(path, Preprocessing(size=64, fit="pad"))
    torch.testing.assert_close(image[:, :, 16:48], torch.ones(3, 64, 32))
    assert (image[:, :, :16] == 0).all()
    assert (image[:, :, 48:] == 0).all()


def test_normalise_is_imagenets() -> None:
    image = torch.rand(2, 3, 8, 8)
    expected: Tensor = tv.normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(normalise(image, SAME), expected)


def test_constant_images_are_read(tmp_path: Path) -> None:
    for name, pixels in {
        "a.png": np.full((9, 9), 7, np.uint8),
        "b.tif": np.full((9, 9), 3.5, np.float32),
    }.items():
        assert read_image(save(tmp_path / name, pixels), Preprocessing(size=32)).isfinite().all()


def test_bad_files_have_a_code_and_a_reason(tmp_path: Path) -> None:
    good = save(tmp_path / "good.png", ramp(np.uint8, 255)).read_bytes()
    holes = ramp(np.float32, 1)
    holes[3, 3] = np.nan
    cases = {
        "missing": tmp_path / "none.png",
        "not-an-image": _write(tmp_path / "text.png", b"hello"),
        "unreadable": _write(tmp_path / "cut.png", good[: len(good) // 2]),
        "not-finite": save(tmp_path / "nan.tif", holes),
    }
    for code, path in cases.items():
        with pytest.raises(ImageError) as caught:
            read_image(path, SAME)
        assert caught.value.code == code
        assert str(caught.value)
    path = save(tmp_path / "big.tif", ramp(np.float32, 3))
    with pytest.raises(ImageError, match=r"float pixels from 0 to 3; intensity 'range' wants 0 to 1") as caught:
        read_image(path, Preprocessing(size=32, intensity="range"))
    assert caught.value.code == "out-of-range"
    for empty in (b"", good[:20]):
        with pytest.raises(ImageError):
            read_image(empty, SAME)


def test_what_would_be_read_in_part_is_refused(tmp_path: Path) -> None:
    page = Image.fromarray(ramp(np.uint8, 255))
    page.save(tmp_path / "stack.tif", save_all=True, append_images=[page, page])
    with pytest.raises(ImageError, match="holds 3 images") as caught:
        read_image(tmp_path / "stack.tif", SAME)
    assert caught.value.code == "multi-frame"


def test_a_decompression_bomb_is_refused_before_memory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scrd_fast.data.limits.MAX_PIXELS", 1000)
    with pytest.raises(ImageError, match="256 x 256 pixels, at most 1000 are read") as caught:
        read_image(save(tmp_path / "a.png", ramp(np.uint8, 255)), SAME)
    assert caught.value.code == "too-large"


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_masks_follow_their_image(tmp_path: Path) -> None:
    mask = np.zeros((100, 200), np.uint8)
    mask[50:, 100:] = 255
    path = save(tmp_path / "m.png", mask)
    stretched = read_mask(path, Preprocessing(size=64))
    assert stretched.dtype == np.bool_
    assert stretched[32:, 32:].all()
    assert stretched.sum() == 32 * 32
    padded = read_mask(path, Preprocessing(size=64, fit="pad"))
    assert padded.sum() == 16 * 32
    assert padded[32:48, 32:].all()


@pytest.mark.data
def test_the_real_images_are_read(real_data: Path) -> None:
    originals = sorted((real_data / "chest_xray" / "originals").glob("*.png"))
    folders = [
        sorted((real_data / name / "images").iterdir())[:20] for name in ("brain_tumor_mri", "chest_xray", "isic2018")
    ]
    modes = {Image.open(path).mode for path in originals}
    assert {"L", "RGBA"} <= modes
    for path in [*originals, *(p for folder in folders for p in folder)]:
        image = read_image(path, SAME)
        assert image.shape == (3, 256, 256)
        assert image.std() > 0.01
