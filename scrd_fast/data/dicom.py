# SPDX-License-Identifier: Apache-2.0
"""DICOM files as pixels in [0, 1]: what a viewer would show first, decoded by pydicom.

Nothing of a patient goes into errors or logs: they name sizes, counts, kinds of pixels and transfer syntaxes alone.
"""

from __future__ import annotations

import functools
import io
import logging
import re
import warnings
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scrd_fast.data.codestreams import Codestream, look_at
from scrd_fast.data.dicom_header import Headers
from scrd_fast.data.dicom_values import shown
from scrd_fast.data.frames import Picture
from scrd_fast.data.limits import check_frames, check_pixels
from scrd_fast.errors import ImageError

__all__ = ["count_dicom", "is_dicom", "is_unnamed_dicom", "may_be_dicom", "read_dicom"]

_MISSING = "DICOM files need pydicom: install this package with its [dicom] extra"
# One of these decodes, the first that is there; to try the others too would end in gdcm, which stops the process on
# some broken JPEGs. It decodes JPEG Lossless, which nothing else does.
_DECODERS = ("pydicom", "pylibjpeg", "pyjpegls", "pillow", "gdcm")
_NO_DEVICE = set("^=[]")  # they part the names of people, or show that there were several values
TAG_LENGTH = 64  # characters of a value that are kept, as many as DICOM allows
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_OTHERS = (b"\x89PNG", b"\xff\xd8", b"BM", b"RIFF", b"GIF8")  # so do other images begin; TIFF may be DICOM too


# Endings of files that lie beside images: they are not opened.
_NO_DICOM = re.compile(
    "bval|bvec|c|cfg|conf|cpp|css|csv|db|docx?|gif|gz|h|h5|hdf5|html?|ini|ipynb|js|jsonl?|log|mat|md|md5|mov|mp4|np[yz]|"
    "odt|onnx|parquet|pdf|pkl|pptx?|pth?|pyc?|rst|rtf|safetensors|sh|sha256|so|sqlite|svg|tex|toml|tsv|txt|xlsx?|xml|ya?ml"
)


def is_dicom(source: str | Path | bytes) -> bool:
    """Whether it begins as a DICOM file does: with a preamble, or without one with the elements of group 2 or 8."""
    head = _head(source, 132)
    if head.startswith(_OTHERS):
        return False
    bare = head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00"  # little-endian
    return head[128:] == b"DICM" or bare


def may_be_dicom(name: str) -> bool:
    """Whether a file is worth opening where a folder is listed and its name is no image's.

    >>> [may_be_dicom(name) for name in ("IM0001", "1.2.840.7", "scan.IMA", "notes.txt", "DICOMDIR", ".hidden")]
    [True, True, True, False, False, False]
    """
    return name[0] != "." and not _NO_DICOM.fullmatch(_ending(name)) and name.upper() != "DICOMDIR"


def is_unnamed_dicom(name: str, head: bytes) -> bool:
    """Whether a file that `may_be_dicom` is, by its first 132 bytes.

    Without an ending, or with one of digits (the last ones of a UID), as `is_dicom` says; with another the preamble is
    wanted, since what is not DICOM may well begin with the few bytes that are left to go by.
    """
    ending = _ending(name)
    return is_dicom(head) if not ending or ending.isdigit() else head[128:132] == b"DICM"


def _ending(name: str) -> str:
    _, dot, ending = name.rpartition(".")
    return ending.lower() if dot else ""


def _head(source: str | Path | bytes, count: int) -> bytes:
    if isinstance(source, bytes):
        return source[:count]
    with Path(source).open("rb") as file:
        return file.read(count)


def read_dicom(
    source: Path | bytes, intensity: str, wanted: Container[int], headers: bool = False
) -> Iterator[tuple[int, Picture]]:
    """Number and picture of each frame that is wanted, decoded one by one.

    Gray: modality LUT or rescaling, the first window where it is valid, else the VOI LUT, else the 0.5-99.5 percentiles
    of what is no padding, then MONOCHROME1 inverted; windows and rescalings are those of the very frame. `intensity`
    "percentile" overrules window and LUT, "range" divides by what the stored bits can hold. Colour: divided by its
    range. With `headers` each picture has its own. Raises `ImageError`.
    """
    with _failures():
        dataset = _header(source)
        count = _count(dataset)
        facts = _facts(dataset)
        kept = Headers(dataset, count) if headers else None
        opened = io.BytesIO(source) if isinstance(source, bytes) else source
        dataset = _quiet_pydicom().dcmread(opened, force=True)
        for index, pixels, flags in _frames(dataset, count, wanted):
            flags = flags if pixels.any() else (*flags, "all-zero")
            scaled, rule = shown(dataset, pixels, intensity, index)
            yield index, Picture(scaled, flags, {**facts, "shown": rule}, None if kept is None else kept.of(index))


def count_dicom(source: Path | bytes) -> int:
    """NumberOfFrames of the header. Raises `ImageError`, also for what `read_dicom` would refuse by the header."""
    with _failures():
        return _count(_header(source))


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except (ImageError, MemoryError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # its text could hold values of the header
        raise ImageError("unreadable", f"DICOM that pydicom cannot read ({type(error).__name__})") from None


@functools.cache
def _quiet_pydicom() -> Any:
    """pydicom, without the warnings and lines of log that name values of a header; who set another level keeps it.

    Once for the process: files are read by several threads, and the filters of warnings belong to all.
    """
    import pydicom

    warnings.filterwarnings("ignore", module=r"pydicom\b")
    log = logging.getLogger("pydicom")
    if log.level in (logging.NOTSET, logging.WARNING):  # as pydicom leaves it
        log.setLevel(logging.CRITICAL + 1)
    return pydicom


def _header(source: Path | bytes) -> Any:
    """Without pixels, and refused before they are read, where it says so."""
    try:
        pydicom = _quiet_pydicom()
    except ImportError:
        raise ImageError("unsupported", _MISSING) from None
    if _DEFLATED in _head(source, 1024):
        raise ImageError("unsupported", "deflated DICOM: how large it grows is not known before", refused=True)
    opened = io.BytesIO(source) if isinstance(source, bytes) else source
    dataset = pydicom.dcmread(opened, force=True, stop_before_pixels=True)
    if dataset.get("Rows") and dataset.get("Columns"):
        check_pixels(int(dataset.Columns), int(dataset.Rows))
    bits = dataset.get("BitsStored")
    if bits and int(dataset.get("HighBit", bits - 1)) != bits - 1:
        raise ImageError("unsupported", "DICOM whose high bit is not the last of the stored bits")
    if any(str(element.keyword).startswith("Segmented") for element in dataset if element.tag.group == 0x28):
        raise ImageError("unsupported", "DICOM with a segmented palette")
    return dataset


def _count(dataset: Any) -> int:
    count = int(dataset.get("NumberOfFrames") or 1)
    check_frames(count)
    return max(count, 1)


def _facts(dataset: Any) -> dict[str, str | None]:
    """The parts of `About` that stand in the header. A code is a code: free text is not passed on.

    The makers' names of a device are text of one line, cut to 64 characters; one that is built as names of people are
    is not passed on.
    """

    def text(name: str) -> str:
        return str(dataset.get(name) or "").strip()

    def code(name: str) -> str | None:
        return text(name).upper() if re.fullmatch("[A-Z0-9_ ]{1,16}", text(name).upper()) else None

    def device(name: str) -> str | None:
        words = " ".join(text(name).upper().split())[:TAG_LENGTH].rstrip()
        return words if words.isprintable() and not set(words) & _NO_DEVICE else None

    burned_in = {"YES": "yes", "NO": "no"}.get(code("BurnedInAnnotation") or "", "unknown")
    return {
        "burned_in": burned_in,
        "modality": code("Modality"),
        "body_part": code("BodyPartExamined"),
        "view": code("ViewPosition"),
        "study": text("StudyInstanceUID") or None,
        "series": text("SeriesInstanceUID") or None,
        "manufacturer": device("Manufacturer") or None,
        "device_model": device("ManufacturerModelName") or None,
    }


def _frames(
    dataset: Any, count: int, wanted: Container[int]
) -> Iterator[tuple[int, npt.NDArray[Any], tuple[str, ...]]]:
    """Number, decoded pixels and flags."""
    from pydicom import uid

    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ImageError("no-pixels", "DICOM without an image")
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:  # a file without its meta header, so not a compressed one
        little = dataset.original_encoding[1] is not False
        syntax = uid.ImplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    return (_compressed if syntax.is_compressed else _native)(dataset, count, wanted)


def _native(
    dataset: Any, count: int, wanted: Container[int]
) -> Iterator[tuple[int, npt.NDArray[Any], tuple[str, ...]]]:
    from pydicom.pixels.utils import pixel_array

    names = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")
    one = int(np.prod([int(dataset.get(name) or 1) for name in names], dtype=object)) / 8
    _refuse_excess(int(len(dataset.get("PixelData") or b"") // max(one, 1)), count)
    for index in range(count):
        if index in wanted:
            yield index, pixel_array(dataset, index=index), ()


def _compressed(
    dataset: Any, count: int, wanted: Container[int]
) -> Iterator[tuple[int, npt.NDArray[Any], tuple[str, ...]]]:
    """Streams are taken out in their order: to ask for each by its number would count from the first every time."""
    from pydicom.encaps import encapsulate, generate_frames, parse_basic_offsets
    from pydicom.pixels.utils import as_pixel_options

    decoder, plugin = _decoder(dataset.file_meta.TransferSyntaxUID)
    options = as_pixel_options(dataset, number_of_frames=1, decoding_plugin=plugin)
    offsets = options.pop("extended_offsets", None)

    def streams() -> Iterator[bytes]:
        return generate_frames(dataset.PixelData, number_of_frames=count, extended_offsets=offsets)

    found = max(sum(1 for _ in streams()), len(parse_basic_offsets(dataset.PixelData)))
    _refuse_excess(found, count)
    for index, stream in enumerate(streams()):
        if index in wanted:
            flags = _checked(look_at(stream), dataset)
            yield index, decoder.as_array(encapsulate([stream], has_bot=False), index=0, **options)[0], flags
    if found < count:
        raise ImageError("unreadable", f"holds {found} images of the {count} that it announces")


def _refuse_excess(found: int, count: int) -> None:
    if found > count:
        raise ImageError("multi-frame", f"holds {found} images, but announces {count}", refused=True)


def _checked(stream: Codestream | None, dataset: Any) -> tuple[str, ...]:
    """Flags. Raises `ImageError` where a decoder would be led to take more memory than the header says, or to crash."""
    if stream is None:
        return ()
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if stream.width > columns or stream.height > rows or stream.components > 4:
        text = f"compressed {stream.width} x {stream.height} of {stream.components}, the header says {columns} x {rows}"
        raise ImageError("too-large", text, refused=True)
    if stream.components != int(dataset.SamplesPerPixel) or not (stream.jpeg2000 or 2 <= stream.bits <= 16):
        text = f"compressed {stream.components} samples of {stream.bits} bits, which the header does not say"
        raise ImageError("unreadable", text)
    return ("j2k-precision",) if stream.jpeg2000 and stream.bits != int(dataset.BitsStored) else ()


def _decoder(syntax: Any) -> tuple[Any, str]:
    """pydicom's for this transfer syntax, and the name of the plug-in that it is to use."""
    from pydicom.pixels.decoders.base import get_decoder

    try:
        decoder = get_decoder(syntax)
        plugins = decoder.available_plugins
    except NotImplementedError:  # of video and the like
        decoder, plugins = None, ()
    plugin = next((name for name in _DECODERS if name in plugins), None)
    if plugin is None:
        name = syntax if syntax.name == syntax else f"{syntax} ({syntax.name})"
        text = f"no decoder for the transfer syntax {name}: install this package with its [dicom] extra"
        raise ImageError("unsupported", text)
    return decoder, plugin
