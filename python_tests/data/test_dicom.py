# SPDX-License-Identifier: Apache-2.0
"""DICOM by way of what pydicom makes of it, and of its own collection of files."""

from __future__ import annotations

import csv
import io
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pydicom = pytest.importorskip("pydicom")

from dicom_files import SHAPE, made, table, written  # noqa: E402
from pydicom.data import get_testdata_files  # noqa: E402
from pydicom.dataset import Dataset  # noqa: E402
from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing, pixel_array  # noqa: E402
from pydicom.uid import (  # noqa: E402
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from scrd_fast.cli import main  # noqa: E402
from scrd_fast.config import Preprocessing  # noqa: E402
from scrd_fast.data.dicom import _quiet_pydicom, is_dicom, read_dicom  # noqa: E402
from scrd_fast.data.dicom_values import Window, voi  # noqa: E402
from scrd_fast.data.reading import read_frames, read_image  # noqa: E402
from scrd_fast.errors import ImageError  # noqa: E402

FILES = sorted(file for file in get_testdata_files() if Path(file).is_file())


def decode(source: Path | bytes, intensity: str = "auto") -> np.ndarray[Any, Any]:
    """The one picture, of its own size."""
    ((_, picture),) = read_dicom(source, intensity, {0})
    return picture.pixels


def read(dataset: Dataset, intensity: str = "auto") -> np.ndarray[Any, Any]:
    pixels = decode(written(dataset), intensity)
    assert pixels.dtype == np.float32
    assert pixels.shape == (3, *SHAPE)
    assert 0 <= pixels.min() <= pixels.max() <= 1
    assert (pixels == pixels[:1]).all()
    return pixels[0]


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (8, True), (12, False), (12, True), (16, False), (16, True)])
@pytest.mark.parametrize("slope", [None, 2.0])
def test_a_window_is_what_pydicom_makes_of_it(function: str, bits: int, signed: bool, slope: float | None) -> None:
    middle = 0 if signed else 2 ** (bits - 1)
    dataset = made(bits, signed, VOILUTFunction=function, WindowCenter=[middle + 9, 1], WindowWidth=[2**bits // 3, 7])
    if slope:
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, -5
    values = apply_modality_lut(pixel_array(dataset), dataset)
    expected = apply_windowing(values, dataset)
    # pydicom spreads the window over what the stored bits can hold.
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if slope:
        low, high = low * slope - 5, high * slope - 5
    np.testing.assert_allclose(read(dataset), (expected - low) / (high - low), atol=1e-6)


def test_the_first_window_comes_before_the_lut_and_the_lut_before_percentiles() -> None:
    percentiles = read(made())
    lut = read(made(VOILUTSequence=[table()]))
    window = read(made(WindowCenter=1000, WindowWidth=300))
    both = read(made(WindowCenter=1000, WindowWidth=300, VOILUTSequence=[table()]))
    np.testing.assert_array_equal(both, window)
    assert not np.allclose(window, lut, atol=0.05)
    dataset = made(VOILUTSequence=[table()])
    np.testing.assert_allclose(lut, apply_voi(pixel_array(dataset), dataset) / 1023, atol=1e-6)
    stored = pixel_array(made()).astype(np.float64)
    low, high = np.percentile(stored, (0.5, 99.5))
    np.testing.assert_allclose(percentiles, ((stored - low) / (high - low)).clip(0, 1), atol=1e-6)


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_the_rule_that_showed_a_picture_is_told(kind: str) -> None:
    window: dict[str, Any] = {"WindowCenter": 1000, "WindowWidth": 300}
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "percentile"),
        ({"VOILUTSequence": [table()]}, "lut"),
        (window, "window"),
        (window | {"VOILUTSequence": [table()]}, "window"),
        (window | {"WindowWidth": 0}, "percentile"),
    ]
    for elements, expected in cases:
        for intensity in ("auto", "percentile", "range"):
            source = written(made(PhotometricInterpretation=kind, **elements))
            (frame,) = read_frames(source, Preprocessing(size=32, intensity=intensity))
            assert frame.about.shown == (expected if intensity == "auto" else intensity)


@pytest.mark.parametrize(
    ("center", "width"), [(None, None), ("", ""), (40, None), (40, 0), (40, -3), (40, 0.5), (None, 400), ([], [])]
)
def test_a_window_that_is_none_is_not_used(center: Any, width: Any) -> None:
    np.testing.assert_array_equal(read(made(WindowCenter=center, WindowWidth=width)), read(made()))


def test_a_width_of_one_is_a_threshold() -> None:
    stored = pixel_array(made())
    np.testing.assert_array_equal(read(made(WindowCenter=1000, WindowWidth=1)), stored > 999.5)


@pytest.mark.parametrize("intensity", ["auto", "percentile", "range"])
@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_an_image_and_its_negative_are_one(intensity: str, windowed: bool, bits: int) -> None:
    """Stored the other way round, with its window mirrored, MONOCHROME1 shows what MONOCHROME2 does."""
    top = 2**bits - 1
    positive, negative = made(bits), made(bits, kind="MONOCHROME1")
    negative.PixelData = (top - pixel_array(positive)).astype(pixel_array(positive).dtype).tobytes()
    if windowed:
        positive.WindowCenter, positive.WindowWidth, positive.VOILUTFunction = top / 3, top / 4, "LINEAR_EXACT"
        negative.WindowCenter, negative.WindowWidth, negative.VOILUTFunction = top - top / 3, top / 4, "LINEAR_EXACT"
    np.testing.assert_allclose(read(negative, intensity), read(positive, intensity), atol=1e-6)
    assert read(positive, intensity).std() > 0.1


@pytest.mark.parametrize("signed", [False, True])
def test_intensity_overrules_the_header(signed: bool) -> None:
    dataset = made(signed=signed, WindowCenter=100, WindowWidth=50, RescaleSlope=3, RescaleIntercept=-7)
    np.testing.assert_allclose(read(dataset, "range"), np.linspace(0, 1, SHAPE[0] * SHAPE[1]).reshape(SHAPE), atol=2e-4)
    np.testing.assert_allclose(read(dataset, "percentile"), read(made(signed=signed)), atol=1e-6)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compression_changes_nothing(syntax: str) -> None:
    plain, packed = made(WindowCenter=1000, WindowWidth=3000), made(WindowCenter=1000, WindowWidth=3000)
    packed.compress(syntax)
    np.testing.assert_array_equal(read(packed), read(plain))


@pytest.mark.parametrize("name", ["no preamble", "no meta header", "no types", "no ending"])
def test_a_file_is_known_by_what_is_in_it(name: str, tmp_path: Path) -> None:
    content = written(made())
    if name == "no preamble":
        content = content[132:]
    elif name in ("no meta header", "no types"):
        bare = made()
        del bare.file_meta
        out = io.BytesIO()
        bare.save_as(out, implicit_vr=name == "no types", little_endian=True)
        content = out.getvalue()
    (tmp_path / "scan").write_bytes(content)
    assert is_dicom(tmp_path / "scan")
    np.testing.assert_array_equal(decode(tmp_path / "scan")[0], read(made()))
    assert not is_dicom(b"\x89PNG\r\n\x1a\n" + b"\0" * 200)
    assert not is_dicom(b"")


@pytest.mark.parametrize(
    ("elements", "code", "reason"),
    [
        ({"PixelData": None}, "no-pixels", "DICOM without an image"),
        ({"NumberOfFrames": 3}, "multi-frame", "holds 3 images, expected one a file"),
        ({"Rows": 60000, "Columns": 60000}, "too-large", "60000 x 60000 pixels, at most 100000000 are read"),
        ({"PixelData": b"12"}, "unreadable", "DICOM that pydicom cannot read (ValueError)"),
    ],
)
def test_what_cannot_be_read_has_a_code_and_a_reason(elements: dict[str, Any], code: str, reason: str) -> None:
    dataset = made(**elements)
    if elements.get("PixelData", b"") is None:
        del dataset.PixelData
    with pytest.raises(ImageError) as caught:
        read_image(written(dataset), Preprocessing(size=32))
    assert (caught.value.code, str(caught.value)) == (code, reason)


def test_a_syntax_that_nothing_decodes_is_named() -> None:
    dataset = made()
    dataset.compress(RLELossless)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG2
    with pytest.raises(ImageError, match=r"transfer syntax 1\.2\.840\.10008\.1\.2\.4\.100 .*\[dicom\] extra") as caught:
        read_image(written(dataset), Preprocessing(size=32))
    assert caught.value.code == "unsupported"


def test_without_pydicom_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    _quiet_pydicom.cache_clear()
    with pytest.raises(ImageError, match=r"install this package with its \[dicom\] extra"):
        list(read_dicom(b"", "auto", {0}))


def test_neither_errors_nor_logs_nor_warnings_say_anything_of_the_patient(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A value that does not fit its type is what pydicom would log and warn of."""
    dataset = made(PatientName="CANARY^NAME", PatientID="CANARYID", StudyDate="19991231")
    content = written(dataset).replace(b"1.2.3", b"CANAR")
    log = pydicom.config.logger
    log.setLevel("WARNING")  # as pydicom leaves it
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        str(pydicom.dcmread(io.BytesIO(content)))
        assert "CANAR" in caplog.text + str([str(w.message) for w in caught])  # it does
    caplog.clear()
    capfd.readouterr()
    _quiet_pydicom.cache_clear()
    texts = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for cut in [*range(200, len(content), 7), len(content)]:
            try:
                read_image(content[:cut], Preprocessing(size=32))
            except ImageError as error:
                texts.append(str(error))
    assert len(texts) > 50
    texts += [caplog.text, *capfd.readouterr(), *(str(w.message) for w in caught)]
    assert [text for text in texts if "CANAR" in text or "1999" in text] == []


def test_threads_leave_the_filters_of_warnings_alone() -> None:
    content = written(made())
    read_image(content, Preprocessing(size=32))
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: read_image(content, Preprocessing(size=32)), range(200)))
    assert warnings.filters == before


def enhanced(**values: Any) -> Dataset:
    """Its window lies in a functional group."""
    group, frame = Dataset(), Dataset()
    for name, value in values.items():
        setattr(group, name, value)
    frame.FrameVOILUTSequence = [group]
    return made(SharedFunctionalGroupsSequence=[frame])


def test_the_window_of_a_functional_group_is_found() -> None:
    np.testing.assert_array_equal(
        read(enhanced(WindowCenter=1000, WindowWidth=300)), read(made(WindowCenter=1000, WindowWidth=300))
    )


@pytest.mark.parametrize(("elements", "slope", "intercept"), [
    ({"RescaleSlope": 2}, 2, 0), ({"RescaleIntercept": -1024}, 1, -1024),
    ({"RescaleSlope": "", "RescaleIntercept": ""}, 1, 0), ({"RescaleSlope": 0.5, "RescaleIntercept": 3}, 0.5, 3),
])  # fmt: skip
def test_half_a_rescaling_is_one(elements: dict[str, Any], slope: float, intercept: float) -> None:
    dataset = made(WindowCenter=500, WindowWidth=700, VOILUTFunction="LINEAR_EXACT", **elements)
    measured = pixel_array(dataset).astype(np.float64) * slope + intercept
    np.testing.assert_allclose(read(dataset), ((measured - 500) / 700 + 0.5).clip(0, 1), atol=1e-6)


def test_a_modality_lut_comes_first() -> None:
    item = table(16)
    item.ModalityLUTType = "OD"
    dataset = made(ModalityLUTSequence=[item], WindowCenter=20000, WindowWidth=30000, VOILUTFunction="LINEAR_EXACT")
    measured = apply_modality_lut(pixel_array(dataset), dataset).astype(np.float64)
    np.testing.assert_allclose(read(dataset), ((measured - 20000) / 30000 + 0.5).clip(0, 1), atol=1e-6)


def test_padding_does_not_count_in_percentiles() -> None:
    dataset = made(signed=True, bits=16, PixelPaddingValue=-32768, PixelPaddingRangeLimit=-32000)
    dataset["PixelPaddingValue"].VR = dataset["PixelPaddingRangeLimit"].VR = "SS"
    stored = np.linspace(0, 1000, SHAPE[0] * SHAPE[1]).round().astype(np.int16).reshape(SHAPE)
    stored[: SHAPE[0] // 2] = -32768
    stored[0, 0] = -32100
    dataset.PixelData = stored.tobytes()
    seen = read(dataset)
    assert (seen[: SHAPE[0] // 2] == 0).all()
    assert seen[SHAPE[0] // 2 :].min() < 0.02 < 0.98 < seen.max()


def test_a_voi_lut_stays_within_its_range() -> None:
    item = table(12)
    item.LUTDescriptor = [4096, 0, 10]  # values of 12 bits that are called 10
    item["LUTDescriptor"].VR = "US"
    assert read(made(VOILUTSequence=[item])).max() == 1


@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_frames_that_are_not_counted_are_seen(syntax: str | None) -> None:
    dataset = made()
    if syntax is None:
        dataset.PixelData *= 3
    else:
        frames = [pixel_array(made())] * 3
        dataset.NumberOfFrames = 3
        dataset.compress(syntax, np.stack(frames))
        del dataset.NumberOfFrames
    with pytest.raises(ImageError, match="holds 3 images, but announces 1"):
        read_image(written(dataset), Preprocessing(size=32))


@pytest.mark.parametrize("kind", ["HSV", "YBR_PARTIAL_420", "YBR_RCT", "YBR_ICT", "CANARY"])
def test_other_colour_spaces_are_refused(kind: str) -> None:
    dataset = made(8, kind=kind, SamplesPerPixel=3, PlanarConfiguration=0, PixelData=bytes(SHAPE[0] * SHAPE[1] * 3))
    with pytest.raises(ImageError) as caught:
        read_image(written(dataset), Preprocessing(size=32))
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"HighBit": 15}, "high bit"),
        ({"SegmentedRedPaletteColorLookupTableData": b"1234"}, "segmented palette"),
        ({"RescaleSlope": 0}, "rescale slope of 0"),
    ],
)
def test_what_would_mislead_or_hang_is_refused(elements: dict[str, Any], reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        read_image(written(made(**elements)), Preprocessing(size=32))


def test_deflated_files_are_refused_before_they_grow() -> None:
    dataset = made()
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    with pytest.raises(ImageError, match="deflated"):
        read_image(written(dataset), Preprocessing(size=32))


def test_other_images_are_not_taken_for_dicom(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((64, 64), np.uint8))
    image.save(tmp_path / "x.bmp")
    content = bytearray((tmp_path / "x.bmp").read_bytes())
    content[128:132] = b"DICM"
    assert read_image(bytes(content), Preprocessing(size=32)).shape == (3, 32, 32)


def test_every_file_of_pydicoms_collection_is_read_or_refused() -> None:
    """What is read is an image; what is not has a code. At least one file of each compression is read."""
    syntaxes, codes = set(), {}
    for file in FILES:
        try:
            image = read_image(file, Preprocessing(size=32))
        except ImageError as error:
            codes[Path(file).name] = error.code
            continue
        assert image.shape == (3, 32, 32)
        assert torch.isfinite(image).all()
        meta = getattr(pydicom.dcmread(file, force=True, stop_before_pixels=True), "file_meta", {})
        syntaxes.add(str(meta.get("TransferSyntaxUID")) if is_dicom(file) else "not DICOM")
    assert set(codes.values()) <= {"no-pixels", "multi-frame", "unreadable", "unsupported", "not-an-image", "too-large"}
    assert len(FILES) - len(codes) > 60
    for ending in ("1.2.5", "4.50", "4.70", "4.80", "4.90", "4.91"):
        assert any(syntax.endswith(ending) for syntax in syntaxes), (ending, sorted(syntaxes))


def test_colour_is_divided_by_its_range() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
    dataset = made(8, kind="RGB", SamplesPerPixel=3, PlanarConfiguration=0, PixelData=rgb.tobytes())
    np.testing.assert_allclose(decode(written(dataset)), rgb.transpose(2, 0, 1) / 255, atol=1e-7)


def test_windows_of_headers() -> None:
    assert voi(Dataset()) is None
    found = voi(made(WindowCenter=[40, 600], WindowWidth=[400, 2000]))
    assert isinstance(found, Window)
    assert (found.center, found.width, found.function) == (40, 400, "LINEAR")
    assert voi(made(WindowCenter=40, WindowWidth=400, VOILUTFunction="CUBIC")) is None


def test_a_folder_of_dicom_is_screened(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.dcm").write_bytes(written(made(WindowCenter=1000 + i, WindowWidth=3000)))
    (folder / "bad.dcm").write_bytes(written(made(NumberOfFrames=3)))
    assert main(["screen", str(trained), str(folder), "--out", str(tmp_path / "out"), "-q", "--max-failures", "1"]) == 0
    with (tmp_path / "out" / "worklist.csv").open() as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert {name: row["status"] for name, row in rows.items()} == {
        "0.dcm": "ok", "1.dcm": "ok", "2.dcm": "ok", "bad.dcm": "failed",
    }  # fmt: skip
    assert rows["bad.dcm"]["error"].startswith("unreadable: ")
