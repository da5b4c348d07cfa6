# SPDX-License-Identifier: Apache-2.0
"""NIfTI against what nibabel and numpy make of the same file."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

nibabel = pytest.importorskip("nibabel")

from scrd_fast.config import Preprocessing  # noqa: E402
from scrd_fast.data.nifti import is_nifti, read_slices  # noqa: E402
from scrd_fast.data.reading import count_frames, read_frames, read_image, read_mask  # noqa: E402
from scrd_fast.errors import ImageError  # noqa: E402

SHAPE = (40, 33, 7)
TURNED = np.diag([-1.0, -2.0, 3.0, 1.0])  # to the left, to the back, up


def volume(dtype: Any = np.int16, shape: tuple[int, ...] = SHAPE) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(120, 30, shape).clip(1, 255).astype(dtype)


def saved(path: Path, values: np.ndarray[Any, Any], affine: Any = TURNED, kind: Any = nibabel.Nifti1Image) -> Path:
    nibabel.save(kind(values, affine), path)
    return path


def slices(source: Path | bytes, intensity: str = "auto", axis: int = 2) -> list[np.ndarray[Any, Any]]:
    return [picture.pixels for _, picture in read_slices(source, intensity, axis, range(1000))]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64, ">i2"])
def test_slices_are_those_of_nibabel_in_one_window(tmp_path: Path, axis: int, name: str, dtype: Any) -> None:
    path = saved(tmp_path / name, volume(dtype))
    values = nibabel.load(path).get_fdata()
    low, high = np.percentile(values, (0.5, 99.5))
    expected = np.moveaxis(((values - low) / (high - low)).clip(0, 1), axis, 0)
    for source in (path, path.read_bytes()):
        found = slices(source, axis=axis)
        assert count_frames(source, axis) == len(found) == SHAPE[axis]
        for picture, one in zip(found, expected, strict=True):
            np.testing.assert_allclose(picture, np.broadcast_to(one, (3, *one.shape)), atol=1e-6)


@pytest.mark.parametrize("slope", [2.5, -0.5])
def test_scaling_is_applied(tmp_path: Path, slope: float) -> None:
    image = nibabel.Nifti1Image(volume(), TURNED)
    image.header.set_slope_inter(slope, -1000)
    nibabel.save(image, tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[112:120] = np.array([slope, -1000], "<f4").tobytes()  # scl_slope and scl_inter, which saving would choose
    (tmp_path / "a.nii").write_bytes(raw)
    values = nibabel.load(tmp_path / "a.nii").get_fdata()
    low, high = np.percentile(values, (0.5, 99.5))
    np.testing.assert_allclose(
        slices(tmp_path / "a.nii")[3][0], ((values[..., 3] - low) / (high - low)).clip(0, 1), atol=1e-6
    )
    assert values.min() < -500


def test_an_empty_slice_stays_black(tmp_path: Path) -> None:
    values = volume()
    values[..., 2] = values[..., 3] = 0
    values[5, 5, 2] = 1
    frames = list(read_frames(saved(tmp_path / "a.nii", values), Preprocessing(size=32)))
    assert frames[2].pixels.max() < 0.01
    assert [frame.about.flags for frame in frames[1:4]] == [(), (), ("all-zero", "constant")]


def test_a_range_is_that_of_the_type(tmp_path: Path) -> None:
    values = volume(np.uint8)
    np.testing.assert_allclose(
        slices(saved(tmp_path / "a.nii", values), "range")[1][0], values[..., 1] / 255, atol=1e-6
    )
    values = volume(np.int16)
    expected = (values[..., 1] + 32768.0) / 65535
    np.testing.assert_allclose(slices(saved(tmp_path / "b.nii", values), "range")[1][0], expected, atol=1e-6)
    with pytest.raises(ImageError, match="intensity 'range' wants 0 to 1") as caught:
        slices(saved(tmp_path / "c.nii", volume(np.float32)), "range")
    assert caught.value.code == "out-of-range"


@pytest.mark.parametrize(("sform", "qform", "expected"), [(1, 0, "LPS"), (0, 1, "LPS"), (2, 1, "LPS"), (0, 0, None)])
def test_geometry_is_told_where_it_is_known(tmp_path: Path, sform: int, qform: int, expected: str | None) -> None:
    image = nibabel.Nifti1Image(volume(), TURNED)
    image.set_sform(TURNED, sform)
    image.set_qform(TURNED, qform)
    nibabel.save(image, tmp_path / "a.nii.gz")
    frames = list(read_frames(tmp_path / "a.nii.gz", Preprocessing(size=32)))
    assert {frame.about.geometry for frame in frames} == {expected}
    assert {frame.about.shown for frame in frames} == {"percentile"}
    assert [frame.index for frame in frames] == list(range(SHAPE[2]))
    assert (frames[0].about.height, frames[0].about.width, frames[0].about.colour) == (*SHAPE[:2], False)
    assert frames[0].about.burned_in is None


def test_version_2_and_one_slice_and_one_volume_of_time(tmp_path: Path) -> None:
    second = saved(tmp_path / "a.nii", volume(), kind=nibabel.Nifti2Image)
    first = saved(tmp_path / "b.nii", volume())
    np.testing.assert_array_equal(slices(second), slices(first))
    assert count_frames(saved(tmp_path / "c.nii", volume(shape=(40, 33)))) == 1
    assert read_image(tmp_path / "c.nii", Preprocessing(size=32)).shape == (3, 32, 32)
    assert count_frames(saved(tmp_path / "d.nii", volume(shape=(*SHAPE, 1, 1)))) == SHAPE[2]


def test_one_slice_is_the_same_as_among_all(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii.gz", volume())
    preprocessing = Preprocessing(size=32, slice_axis=1)
    frames = list(read_frames(path, preprocessing))
    (one,) = read_frames(path, preprocessing, 20)
    assert torch.equal(one.pixels, frames[20].pixels)
    assert one.about == frames[20].about
    assert torch.equal(read_image(path, preprocessing, 20), one.pixels)
    with pytest.raises(ImageError, match="holds 33 images") as caught:
        read_image(path, preprocessing)
    assert caught.value.code == "multi-frame"
    with pytest.raises(ImageError, match="no image number 33"):
        read_image(path, preprocessing, 33)


def _with_nan() -> np.ndarray[Any, Any]:
    values = volume(np.float32)
    values[3, 3, 3] = np.nan
    return values


@pytest.mark.parametrize(
    ("values", "code", "reason"),
    [
        (volume(shape=(*SHAPE, 2)), "unsupported", "NIfTI of 2 volumes, expected one"),
        (volume(np.float32).astype(np.complex64), "unsupported", "complex"),
        (volume(shape=(9,)), "unsupported", "1 dimensions"),
        (_with_nan(), "not-finite", "NaN"),
    ],
)
def test_what_cannot_be_read_has_a_code_and_a_reason(
    tmp_path: Path, values: np.ndarray[Any, Any], code: str, reason: str
) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        list(read_frames(saved(tmp_path / "a.nii.gz", values), Preprocessing(size=32)))
    assert (caught.value.code, caught.value.refused) == (code, False)


def _announcing(path: Path, shape: tuple[int, int, int]) -> bytes:
    content = bytearray(saved(path, volume()).read_bytes())
    content[42:48] = np.array(shape, "<i2").tobytes()
    return bytes(content)


def test_what_is_too_large_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shape, reason in (
        ((30000, 30000, 30000), "27000000000000 voxels"),
        ((20000, 20000, 1), "20000 x 20000 pixels"),
        ((0, 20, 20), "without voxels"),
        ((-5, 20, 20), "without voxels"),
    ):
        content = _announcing(tmp_path / "a.nii", shape)
        for source in (content, gzip.compress(content)):
            with pytest.raises(ImageError, match=reason) as caught:
                list(read_frames(source, Preprocessing(size=32)))
            assert caught.value.refused == ("without" not in reason)
    monkeypatch.setattr("scrd_fast.data.limits.MAX_BYTES", 10_000)
    bomb = gzip.compress(_announcing(tmp_path / "a.nii", (100, 100, 100)) + bytes(2_000_000))
    assert len(bomb) > 10_000
    with pytest.raises(ImageError, match="at most 10000 are read"):
        list(read_frames(bomb, Preprocessing(size=32)))


def test_a_cut_or_changed_file_is_noticed(tmp_path: Path) -> None:
    plain = saved(tmp_path / "a.nii", volume()).read_bytes()
    packed = bytearray(gzip.compress(plain))
    packed[-6] ^= 1  # of the checksum
    for content in (plain[:-100], gzip.compress(plain)[:-100], bytes(packed)):
        with pytest.raises(ImageError) as caught:
            list(read_frames(content, Preprocessing(size=32)))
        assert caught.value.code == "unreadable"


def test_voxels_in_another_file_are_asked_for_in_one(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Pair(volume(), TURNED), tmp_path / "a.hdr")
    with pytest.raises(ImageError, match="another file"):
        read_image(tmp_path / "a.hdr", Preprocessing(size=32))


def test_without_nibabel_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.nii", volume())
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(ImageError, match=r"need nibabel: install this package with its \[dicom\] extra") as caught:
        read_image(path, Preprocessing(size=32), 0)
    assert caught.value.code == "unsupported"


def test_other_gzip_files_are_not_taken_for_nifti() -> None:
    assert not is_nifti(gzip.compress(b"a text" * 200))
    assert not is_nifti(b"\x1f\x8b")
    assert not is_nifti(b"")


def test_a_mask_is_a_slice_too(tmp_path: Path) -> None:
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[32:, :, 1] = 1
    path = saved(tmp_path / "m.nii.gz", mask)
    found = [read_mask(path, Preprocessing(size=64), frame) for frame in range(3)]
    np.testing.assert_array_equal(found, np.moveaxis(mask, 2, 0) > 0)
    with pytest.raises(ImageError, match="3 slices"):
        read_mask(path, Preprocessing(size=64), 3)
