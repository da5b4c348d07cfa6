# SPDX-License-Identifier: Apache-2.0
"""DICOM of several frames against pydicom; the matrix of photometrics, windows and depths; what headers tell."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pydicom = pytest.importorskip("pydicom")

from dicom_files import SHAPE, made, stacked, table, written  # noqa: E402
from pydicom.data import get_testdata_file, get_testdata_files  # noqa: E402
from pydicom.dataset import Dataset  # noqa: E402
from pydicom.encaps import encapsulate, generate_frames  # noqa: E402
from pydicom.pixels import pixel_array  # noqa: E402
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless  # noqa: E402

from scrd_fast.config import Preprocessing  # noqa: E402
from scrd_fast.data.dicom import read_dicom  # noqa: E402
from scrd_fast.data.reading import count_frames, read_frames, read_image  # noqa: E402
from scrd_fast.errors import ImageError  # noqa: E402

SMALL = Preprocessing(size=32)
FILES = sorted(file for file in get_testdata_files() if Path(file).is_file())
STACK = np.random.default_rng(0).integers(0, 4096, (5, 40, 33))


def pictures(dataset: Dataset, intensity: str = "auto") -> list[np.ndarray[Any, Any]]:
    return [picture.pixels for _, picture in read_dicom(written(dataset), intensity, range(1000))]


def group(name: str, **values: Any) -> Dataset:
    item, frame = Dataset(), Dataset()
    for key, value in values.items():
        setattr(item, key, value)
    setattr(frame, name, [item])
    return frame


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize("offsets", [True, False])
def test_frames_are_those_of_pydicom(syntax: str | None, offsets: bool) -> None:
    dataset = stacked(STACK, WindowCenter=2000, WindowWidth=3000, VOILUTFunction="LINEAR_EXACT")
    if syntax is not None:
        dataset.compress(syntax)
        if not offsets:
            streams = list(generate_frames(dataset.PixelData, number_of_frames=len(STACK)))
            dataset.PixelData = encapsulate(streams, has_bot=False)
    content = written(dataset)
    frames = list(read_frames(content, Preprocessing(size=64)))
    assert count_frames(content) == len(frames) == len(STACK)
    for i, found in enumerate(pictures(dataset)):
        stored = pixel_array(pydicom.dcmread(io.BytesIO(content)), index=i)
        np.testing.assert_array_equal(stored, STACK[i])
        np.testing.assert_allclose(found[1], ((stored - 2000.0) / 3000 + 0.5).clip(0, 1), atol=1e-6)
    (third,) = read_frames(content, Preprocessing(size=64), 3)
    assert third.index == 3
    assert torch.equal(third.pixels, frames[3].pixels)


def test_each_frame_has_the_window_and_the_rescaling_of_its_own() -> None:
    own = []
    for i in range(len(STACK)):
        frame = group(
            "FrameVOILUTSequence", WindowCenter=1000 + 300 * i, WindowWidth=900 + i, VOILUTFunction="LINEAR_EXACT"
        )
        frame.update(group("PixelValueTransformationSequence", RescaleSlope=1 + i, RescaleIntercept=-10 * i))
        own.append(frame)
    shared = group("FrameVOILUTSequence", WindowCenter=5, WindowWidth=7)
    dataset = stacked(
        STACK,
        PerFrameFunctionalGroupsSequence=own,
        SharedFunctionalGroupsSequence=[shared],
        WindowCenter=9,
        WindowWidth=3,
    )
    for i, found in enumerate(pictures(dataset)):
        values = STACK[i] * (1 + i) - 10.0 * i
        np.testing.assert_allclose(found[0], ((values - 1000 - 300 * i) / (900 + i) + 0.5).clip(0, 1), atol=1e-6)


def test_what_is_of_no_frame_is_of_all() -> None:
    shared = group("FrameVOILUTSequence", WindowCenter=1500, WindowWidth=700, VOILUTFunction="LINEAR_EXACT")
    dataset = stacked(STACK, PerFrameFunctionalGroupsSequence=[Dataset()], SharedFunctionalGroupsSequence=[shared])
    for i, found in enumerate(pictures(dataset)):
        np.testing.assert_allclose(found[0], ((STACK[i] - 1500) / 700 + 0.5).clip(0, 1), atol=1e-6)


def test_a_center_and_a_width_of_two_places_are_no_window() -> None:
    frame = group("FrameVOILUTSequence", WindowCenter=1500)
    mixed = stacked(STACK[:1], PerFrameFunctionalGroupsSequence=[frame], WindowWidth=10)
    np.testing.assert_array_equal(pictures(mixed), pictures(stacked(STACK[:1])))


def test_without_a_window_each_frame_has_its_own_percentiles() -> None:
    found = pictures(stacked(STACK // np.array([1, 2, 3, 4, 5])[:, None, None]))
    for i, picture in enumerate(found):
        low, high = np.percentile(STACK[i] // (i + 1), (0.5, 99.5))
        np.testing.assert_allclose(picture[0], ((STACK[i] // (i + 1) - low) / (high - low)).clip(0, 1), atol=1e-6)


@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_missing_frames_end_the_file_after_those_that_are_there(syntax: str | None) -> None:
    dataset = stacked(STACK)
    if syntax is not None:
        dataset.compress(syntax)
        dataset.NumberOfFrames = len(STACK) + 2
    content = written(dataset)[: None if syntax else -10]
    frames = read_frames(content, SMALL)
    assert [next(frames).index for _ in STACK if syntax] == [i for i in range(len(STACK)) if syntax]
    with pytest.raises(ImageError) as caught:
        next(frames)
    assert caught.value.code == "unreadable"


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless])
def test_more_frames_than_announced_are_refused(syntax: str | None) -> None:
    dataset = stacked(STACK)
    if syntax is not None:
        dataset.compress(syntax)
    dataset.NumberOfFrames = 3
    with pytest.raises(ImageError, match="holds 5 images, but announces 3") as caught:
        list(read_frames(written(dataset), SMALL))
    assert (caught.value.code, caught.value.refused) == ("multi-frame", True)


def test_frames_without_number_are_refused_by_the_header() -> None:
    with pytest.raises(ImageError, match="images, at most 100000") as caught:
        count_frames(written(made(NumberOfFrames=2_000_000_000)))
    assert caught.value.refused


def _stream_of(**fields: tuple[int, int]) -> bytes:
    """A JPEG 2000 file of 37 x 48 with other bytes in its SIZ marker: {name: (offset, 32-bit value)}."""
    dataset = made()
    dataset.compress(JPEG2000Lossless)
    (stream,) = generate_frames(dataset.PixelData, number_of_frames=1)
    changed = bytearray(stream)
    for at, value in fields.values():
        changed[at : at + 4] = value.to_bytes(4, "big")
    dataset.PixelData = encapsulate([bytes(changed)])
    return written(dataset)


def test_a_stream_that_is_larger_than_its_header_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_image(_stream_of(), SMALL).shape == (3, 32, 32)
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.as_array", lambda *_, **__: pytest.fail("decoded"))
    for fields in ({"width": (8, 60_000)}, {"height": (12, 60_000)}):
        with pytest.raises(ImageError, match=r"compressed .*60000.*, the header says 37 x 48") as caught:
            read_image(_stream_of(**fields), SMALL)
        assert (caught.value.code, caught.value.refused) == ("too-large", True)


def test_a_jpeg_that_is_larger_than_its_header_is_not_decoded() -> None:
    dataset = pydicom.dcmread(get_testdata_file("SC_rgb_jpeg_dcmtk.dcm"))
    assert read_image(written(dataset), SMALL).shape == (3, 32, 32)
    dataset.Rows //= 2
    with pytest.raises(ImageError, match="the header says 100 x 50"):
        read_image(written(dataset), SMALL)


@pytest.mark.parametrize(("offset", "value"), [(4, 72), (9, 4)])  # bits, samples
def test_a_jpeg_that_would_crash_its_decoder_does_not_reach_it(offset: int, value: int) -> None:
    dataset = pydicom.dcmread(get_testdata_file("SC_rgb_jpeg_gdcm.dcm"))
    (stream,) = generate_frames(dataset.PixelData, number_of_frames=1)
    changed = bytearray(stream)
    changed[stream.index(b"\xff\xc3") + offset] = value  # start of frame of JPEG Lossless
    dataset.PixelData = encapsulate([bytes(changed)])
    with pytest.raises(ImageError, match="which the header does not say") as caught:
        read_image(written(dataset), SMALL)
    assert caught.value.code == "unreadable"


def test_boxes_that_lead_nowhere_do_not_hang() -> None:
    dataset = made()
    dataset.compress(JPEG2000Lossless)
    dataset.PixelData = encapsulate([b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(64)])
    with pytest.raises(ImageError, match="JP2 without a codestream"):
        read_image(written(dataset), SMALL)


def test_a_precision_that_is_not_that_of_the_header_is_flagged() -> None:
    dataset = made()
    dataset.compress(JPEG2000Lossless)
    (frame,) = read_frames(written(dataset), SMALL)
    assert frame.about.flags == ()
    (frame,) = read_frames(get_testdata_file("693_J2KR.dcm"), SMALL)  # 14 bits in a header that says 16
    assert frame.about.flags == ("j2k-precision",)


def test_flags_and_facts_of_a_header() -> None:
    (frame,) = read_frames(
        written(made(PixelData=bytes(SHAPE[0] * SHAPE[1] * 2), Modality="dx", BodyPartExamined="CHEST ",
                     ViewPosition="PA", StudyInstanceUID="1.2.3.4", BurnedInAnnotation="YES")), SMALL
    )  # fmt: skip
    about = frame.about
    assert about.flags == ("all-zero", "constant")
    assert (about.modality, about.body_part, about.view, about.study) == ("DX", "CHEST", "PA", "1.2.3.4")
    assert (about.height, about.width, about.colour, about.geometry) == (*SHAPE, False, None)
    for value, expected in (("YES", "yes"), ("NO", "no"), ("", "unknown"), ("MAYBE", "unknown"), (None, "unknown")):
        dataset = made(**({} if value is None else {"BurnedInAnnotation": value}))
        (frame,) = read_frames(written(dataset), SMALL)
        assert frame.about.burned_in == expected
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (frame,) = read_frames(written(made(BodyPartExamined="Doe^John, born 1970", Modality="")), SMALL)
    assert (frame.about.body_part, frame.about.modality, frame.about.view, frame.about.study) == (None,) * 4


WINDOWS: dict[str, dict[str, Any]] = {
    "window": {"WindowCenter": "middle", "WindowWidth": "third"},
    "lut": {"VOILUTSequence": "table"},
    "both": {"WindowCenter": "middle", "WindowWidth": "third", "VOILUTSequence": "table"},
    "none": {},
    "empty": {"WindowCenter": None, "WindowWidth": None},
    "width 0": {"WindowCenter": "middle", "WindowWidth": 0},
}
PRESENTED = "1.2.840.10008.5.1.4.1.1.1.1"  # digital X-ray, for presentation


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("shown", WINDOWS)
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (16, False), (8, True), (12, True), (16, True)])
@pytest.mark.parametrize("presented", [False, True])
def test_gray_follows_its_window_then_its_table_then_itself(
    kind: str, shown: str, bits: int, signed: bool, presented: bool
) -> None:
    low = -(2 ** (bits - 1)) if signed else 0
    meant = {"middle": low + 2 ** (bits - 1), "third": 2**bits // 3}
    elements = {name: meant.get(value, value) for name, value in WINDOWS[shown].items()}
    if "VOILUTSequence" in elements:
        elements["VOILUTSequence"] = [_table(low, bits)]
    dataset = made(bits, signed, kind, VOILUTFunction="LINEAR_EXACT", **elements)
    if presented:
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = PRESENTED
        dataset.PresentationIntentType = "FOR PRESENTATION"
    stored = pixel_array(dataset).astype(np.float64)
    if shown in ("window", "both"):
        expected = (stored - meant["middle"]) / meant["third"] + 0.5
    elif shown == "lut":
        expected = ((stored - low) / (2**bits - 1)) ** 2
    else:
        least, largest = np.percentile(stored, (0.5, 99.5))
        expected = (stored - least) / (largest - least)
    expected = expected.clip(0, 1)
    (found,) = pictures(dataset)
    np.testing.assert_allclose(found[0], 1 - expected if kind == "MONOCHROME1" else expected, atol=2e-3)


def _table(low: int, bits: int) -> Dataset:
    """A square over the whole range, in 10 bits."""
    item = table()
    entries = np.linspace(0, 1, 2**bits) ** 2 * 1023
    item.LUTDescriptor = [2**bits % 65536, low, 10]
    item.LUTData = entries.round().astype(np.uint16).tobytes()
    item["LUTDescriptor"].VR = "SS" if low < 0 else "US"
    if low < 0:
        item.LUTDescriptor = [np.uint16(2**bits % 65536).astype(np.int16).item(), low, 10]
    return item


@pytest.mark.parametrize("shown", WINDOWS)
@pytest.mark.parametrize("kind", ["RGB", "YBR_FULL", "PALETTE COLOR"])
def test_colour_is_what_pydicom_makes_of_it_whatever_the_window(kind: str, shown: str) -> None:
    meant = {"middle": 128, "third": 85, "table": [table()]}
    elements = {name: meant.get(value, value) for name, value in WINDOWS[shown].items()}
    values = np.random.default_rng(0).integers(0, 256, (*SHAPE, 1 if kind == "PALETTE COLOR" else 3), dtype=np.uint8)
    dataset = made(8, kind=kind, SamplesPerPixel=values.shape[2], PixelData=values.tobytes(), **elements)
    if kind == "PALETTE COLOR":
        tables = np.random.default_rng(1).integers(0, 256, (3, 256), dtype=np.uint8)
        for name, entries in zip(("Red", "Green", "Blue"), tables, strict=True):
            setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 8])
            setattr(dataset, f"{name}PaletteColorLookupTableData", entries.tobytes())
            dataset[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
        expected = tables[:, values[..., 0]] / 255
    else:
        dataset.PlanarConfiguration = 0
        rgb = pixel_array(dataset)
        assert kind != "YBR_FULL" or (rgb != values).any()
        expected = rgb.transpose(2, 0, 1) / 255
    (found,) = pictures(dataset)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    (frame,) = read_frames(written(dataset), SMALL)
    assert frame.about.colour


def test_every_frame_of_pydicoms_collection_is_read_or_refused() -> None:
    """Frames are those that pydicom counts; a flag that is known, or a code."""
    read, several, codes = 0, 0, set()
    for file in FILES:
        try:
            frames = list(read_frames(file, SMALL))
        except ImageError as error:
            codes.add(error.code)
            continue
        assert [frame.index for frame in frames] == list(range(count_frames(file)))
        for frame in frames:
            assert frame.pixels.shape == (3, 32, 32)
            assert torch.isfinite(frame.pixels).all()
            assert 0 <= frame.about.low <= frame.about.mean <= frame.about.high <= 1
            assert set(frame.about.flags) <= {"constant", "all-zero", "j2k-precision"}
        read += 1
        several += len(frames) > 1
    assert codes <= {"no-pixels", "multi-frame", "unreadable", "unsupported", "not-an-image", "too-large"}
    assert read > 120
    assert several > 20


CANARIES = {
    "PatientName": "CANARY^NAME", "PatientID": "CANARYID", "PatientBirthDate": "18990101", "StudyDate": "18990102",
    "StudyInstanceUID": "9.8.7.6.5", "SeriesInstanceUID": "9.8.7.6.6", "InstitutionName": "CANARY clinic",
}  # fmt: skip


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless])
def test_nothing_of_a_header_stands_in_errors_or_warnings(
    syntax: str | None, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = stacked(STACK[:2], **CANARIES)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "9.8.7.6.7"
    if syntax is not None:
        dataset.compress(syntax, generate_instance_uid=False)
    content = written(dataset)
    generator = np.random.default_rng(0)
    texts = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        from scrd_fast.data.dicom import _quiet_pydicom

        _quiet_pydicom.cache_clear()
        for _ in range(150):
            changed = bytearray(content[: generator.integers(140, len(content))])
            changed[generator.integers(132, min(len(changed), 900))] = generator.integers(256)
            try:
                list(read_frames(bytes(changed), SMALL))
            except ImageError as error:
                texts.append(str(error))
    assert len(texts) > 50
    texts += [caplog.text, *capfd.readouterr(), *(str(w.message) for w in caught)]
    assert [text for text in texts for word in ("CANARY", "1899", "9.8.7") if word in text] == []
