# SPDX-License-Identifier: Apache-2.0
"""Pages, and what is told of each picture."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scrd_fast.config import Preprocessing
from scrd_fast.data.arrays import read_array
from scrd_fast.data.frames import Frame, Source
from scrd_fast.data.reading import count_frames, is_image_name, read_frames, read_image, read_mask
from scrd_fast.errors import ImageError

SMALL = Preprocessing(size=32)


def pages(path: Path, pictures: list[np.ndarray[Any, Any]], **options: Any) -> Path:
    first, *rest = (Image.fromarray(picture) for picture in pictures)
    first.save(path, save_all=True, append_images=rest, **options)
    return path


def noise(count: int, *shape: int, dtype: Any = np.uint8) -> list[np.ndarray[Any, Any]]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, np.iinfo(dtype).max, shape, dtype=dtype) for _ in range(count)]


@pytest.mark.parametrize("name", ["a.tif", "a.webp", "a.png"])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_pages_are_frames_in_their_order(tmp_path: Path, name: str, as_bytes: bool) -> None:
    pictures = noise(4, 32, 32, 3)
    path = pages(tmp_path / name, pictures, **({"lossless": True} if name == "a.webp" else {}))
    source: Any = path.read_bytes() if as_bytes else path
    frames = list(read_frames(source, SMALL))
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert count_frames(source) == 4
    for frame, picture in zip(frames, pictures, strict=True):
        np.testing.assert_array_equal(frame.pixels, picture.transpose(2, 0, 1).astype(np.float32) / np.float32(255))
    (third,) = read_frames(source, SMALL, 2)
    assert torch.equal(third.pixels, frames[2].pixels)
    assert [frame.index for frame in read_frames(source, SMALL, {1, 3})] == [1, 3]
    assert torch.equal(read_image(source, SMALL, 3), frames[3].pixels)


def test_pages_may_differ_in_size_and_kind(tmp_path: Path) -> None:
    pictures = [noise(1, 40, 50)[0], noise(1, 64, 32, 3)[0], noise(1, 33, 33, dtype=np.uint16)[0]]
    abouts = [frame.about for frame in read_frames(pages(tmp_path / "a.tif", pictures), SMALL)]
    assert [(about.height, about.width, about.colour) for about in abouts] == [
        (40, 50, False), (64, 32, True), (33, 33, False),
    ]  # fmt: skip


@pytest.mark.parametrize("intensity", ["auto", "percentile", "range"])
def test_the_rule_that_showed_a_picture_is_told(tmp_path: Path, intensity: Any) -> None:
    preprocessing = Preprocessing(size=32, intensity=intensity)
    gray, colour, deep = noise(1, 32, 32)[0], noise(1, 32, 32, 3)[0], noise(1, 32, 32, dtype=np.uint16)[0]
    rule = {"gray": "range", "colour": "range", "deep": "percentile"}
    for name, pixels in {"gray": gray, "colour": colour, "deep": deep}.items():
        expected = rule[name] if intensity == "auto" else intensity
        (frame,) = read_frames(pages(tmp_path / f"{name}.tif", [pixels]), preprocessing)
        in_memory = read_array(pixels, preprocessing)
        assert isinstance(in_memory, Frame)
        assert (frame.about.shown, in_memory.about.shown) == (expected, expected)


def test_frames_come_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scrd_fast.data import pictures as module

    decoded: list[int] = []
    real = module._decode
    monkeypatch.setattr(module, "_decode", lambda *a: decoded.append(1) or real(*a))  # type: ignore[func-returns-value]
    frames = read_frames(pages(tmp_path / "a.tif", noise(5, 32, 32)), SMALL)
    assert isinstance(frames, Iterator)
    assert decoded == []
    next(frames)
    next(frames)
    assert len(decoded) == 2


def test_what_came_before_a_bad_frame_holds(tmp_path: Path) -> None:
    path = pages(tmp_path / "a.tif", noise(3, 64, 64), compression="tiff_deflate")
    content = bytearray(path.read_bytes())
    with Image.open(path) as image:
        image.seek(1)
        (at,) = image.tag_v2[273]  # where its pixels begin
    content[at : at + 200] = bytes(200)
    frames = read_frames(bytes(content), SMALL)
    assert next(frames).index == 0
    with pytest.raises(ImageError) as caught:
        next(frames)
    assert caught.value.code == "unreadable"
    assert [frame.index for frame in read_frames(bytes(content), SMALL, 2)] == [2]


def test_a_page_is_asked_for_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no image number 3, counted from 0") as caught:
        read_image(pages(tmp_path / "a.tif", noise(3, 32, 32)), SMALL, 3)
    assert caught.value.code == "no-frame"


def test_a_picture_is_described(tmp_path: Path) -> None:
    gray = np.tile(np.linspace(0, 200, 64).round().astype(np.uint8), (48, 1))
    off = np.dstack([gray, gray, gray + 1])  # by one level: compression does that to gray
    tinted = np.dstack([gray, gray, gray + 3])
    abouts = {}
    for name, picture in {"gray": gray, "off": off, "tinted": tinted, "seven": gray * 0 + 7, "zero": gray * 0}.items():
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
        (frame,) = read_frames(tmp_path / f"{name}.png", SMALL)
        abouts[name] = about = frame.about
        assert (about.height, about.width) == (48, 64)
        assert about.low == frame.pixels.min()
        assert about.high == frame.pixels.max()
        assert about.mean == pytest.approx(float(frame.pixels.mean()), abs=1e-6)
        assert (about.geometry, about.burned_in, about.modality, about.study) == (None, None, None, None)
    assert {name: about.colour for name, about in abouts.items() if about.colour} == {"tinted": True}
    assert {name: about.flags for name, about in abouts.items() if about.flags} == {
        "seven": ("constant",), "zero": ("all-zero", "constant"),
    }  # fmt: skip


def test_a_constant_picture_is_one_also_where_it_is_padded(tmp_path: Path) -> None:
    Image.new("L", (40, 20), 100).save(tmp_path / "a.png")
    (frame,) = read_frames(tmp_path / "a.png", Preprocessing(size=32, fit="pad"))
    assert frame.about.flags == ("constant",)
    assert (frame.about.low, frame.about.high) == (0, pytest.approx(100 / 255))


def test_size_is_that_of_the_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(1, 40, 60, 3)[0]).save(tmp_path / "a.jpg", exif=exif)
    (frame,) = read_frames(tmp_path / "a.jpg", SMALL)
    assert (frame.about.height, frame.about.width) == (60, 40)


def test_what_exceeds_a_cap_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pages(tmp_path / "a.tif", [*noise(1, 20, 20), *noise(1, 30, 40)])
    limits = {"MAX_PIXELS": (1000, "40 x 30"), "MAX_BYTES": (100, "bytes, at most 100"), "MAX_FRAMES": (1, "2 images")}
    for name, (limit, reason) in limits.items():
        with monkeypatch.context() as patch:
            patch.setattr(f"scrd_fast.data.limits.{name}", limit)
            for source in (path, path.read_bytes()):
                with pytest.raises(ImageError, match=reason) as caught:
                    list(read_frames(source, SMALL))
                assert (caught.value.code, caught.value.refused) == ("too-large", True)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path, kind in ((tmp_path / "pipe.png", "pipe"), (tmp_path, "folder")):
        for read in (lambda path=path: count_frames(path), lambda path=path: read_image(path, SMALL)):
            with pytest.raises(ImageError, match=f"expected a file, got a {kind}") as caught:
                read()
            assert caught.value.code == "not-a-file"


def test_reasons_name_no_paths(tmp_path: Path) -> None:
    (tmp_path / "canary.png").write_bytes(b"nothing")
    (tmp_path / "canary.tif").write_bytes(b"II*\0" + bytes(50))
    for name in ("canary.png", "canary.tif", "canary-gone.png", f"{'canary' * 100}.png"):
        with pytest.raises(ImageError) as caught:
            read_image(Source(tmp_path / name), SMALL)
        assert "canary" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.eps", "a.gif", "a.ppm"])
def test_formats_that_are_not_promised_are_not_opened(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / name)
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / name, SMALL)
    assert caught.value.code == "not-an-image"


def test_names_of_images() -> None:
    assert all(is_image_name(name) for name in ("a.png", "x/a.DCM", "b.nii", "c.NII.GZ", "d.dicom"))
    assert not any(is_image_name(name) for name in ("a.gz", "a.nii.bz2", ".a.png", "x/.a.nii.gz", "png", "a.txt"))


def test_a_page_of_a_mask(tmp_path: Path) -> None:
    path = pages(tmp_path / "m.tif", [np.zeros((32, 32), np.uint8), np.full((32, 32), 255, np.uint8)])
    assert [read_mask(path, SMALL, frame).mean() for frame in (None, 0, 1)] == [0, 0, 1]
