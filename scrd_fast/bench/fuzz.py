# SPDX-License-Identifier: Apache-2.0
"""Files of every format that are cut off, have flipped bits or are noise: each has to end as a row, none as an end.

One intact file of each format is among them: where that is not read, its broken ones prove nothing.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import random
import tarfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from scrd_fast.bench.processes import environment, observe
from scrd_fast.bench.screen_limits import rows_of
from scrd_fast.bench.screen_made import Setup, make_run, screen_command

__all__ = ["KINDS", "break_bytes", "fuzz", "intact", "write_files"]

KINDS = ("truncated", "flipped", "random")
PICTURES = {"png": "PNG", "jpg": "JPEG", "tif": "TIFF", "bmp": "BMP", "webp": "WEBP"}
# Transfer syntax -> a file that comes with pydicom.
DICOM = {
    "dicom": "MR_small.dcm",
    "dicom-jpeg": "SC_rgb_small_odd_jpeg.dcm",
    "dicom-jpeg-lossless": "SC_rgb_jpeg_gdcm.dcm",
    "dicom-jpeg-2000": "MR_small_jp2klossless.dcm",
    "dicom-jpeg-ls": "MR_small_jpeg_ls_lossless.dcm",
    "dicom-rle": "MR_small_RLE.dcm",
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "tar.gz": functools.partial(gzip.compress, mtime=0),
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
}
ENDINGS = dict.fromkeys(DICOM, ".dcm") | {"nifti": ".nii", "nifti-gz": ".nii.gz", "tif-pages": ".tif"}
MEMBERS = "members"  # the format whose files lie, broken, in an intact archive
MOST_FLIPS = 20  # bits


def intact(seed: int = 0) -> dict[str, bytes]:
    """A small file of each format."""
    from pydicom.data import get_testdata_file

    coarse = np.random.default_rng(seed).integers(40, 200, (6, 6), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((48, 40), Image.Resampling.BICUBIC)
    found = {}
    for name, kind in PICTURES.items():
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        found[name] = buffer.getvalue()
    buffer = io.BytesIO()
    picture.save(buffer, "TIFF", save_all=True, append_images=[picture.rotate(180), picture.rotate(90, expand=True)])
    found["tif-pages"] = buffer.getvalue()
    for name, file in DICOM.items():
        path = get_testdata_file(file, download=False)
        if path is None:
            raise RuntimeError(f"{file} is not among pydicom's test files")
        found[name] = Path(str(path)).read_bytes()
    found["nifti"] = _nifti(np.asarray(picture))
    found["nifti-gz"] = gzip.compress(found["nifti"], mtime=0)
    members = {"a/picture.png": found["png"], "b.bmp": found["bmp"]}
    found["zip"] = _zip(members)
    found["tar"] = _tar(members)
    return found | {name: pack(found["tar"]) for name, pack in PACKERS.items()}


def _nifti(picture: npt.NDArray[np.uint8]) -> bytes:
    import nibabel as nib  # type: ignore[import-not-found, import-untyped, unused-ignore]

    volume = np.stack([picture, picture.T.reshape(picture.shape), picture], axis=2).astype(np.int16)
    image: Any = nib.Nifti1Image(volume, np.eye(4))  # type: ignore[no-untyped-call]
    return bytes(image.to_bytes())


def _zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def _tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def break_bytes(content: bytes, kind: str, draw: random.Random) -> bytes:
    """Cut off anywhere; with up to twenty bits flipped, half of the time all in the first 200 bytes; or noise."""
    if kind == "truncated":
        return content[: draw.randrange(len(content))]
    if kind == "random":
        return draw.randbytes(draw.randrange(1, 2 * len(content)))
    broken = bytearray(content)
    reach = 8 * (min(200, len(content)) if draw.random() < 0.5 else len(content))
    for bit in draw.sample(range(reach), draw.randint(1, MOST_FLIPS)):  # distinct, or two would undo each other
        broken[bit // 8] ^= 1 << bit % 8
    return bytes(broken)


def write_files(folder: Path, count: int, seed: int = 0) -> dict[str, tuple[str, str]]:
    """`count` broken files of each format and an intact one. By the path that a row has: format and kind."""
    folder.mkdir(parents=True)
    expected: dict[str, tuple[str, str]] = {}
    contents = intact(seed)
    for name, content in contents.items():
        for kind, number, broken in _broken(content, count, random.Random(f"{seed} {name}")):
            path = folder / f"{name}-{kind}-{number:04d}{ENDINGS.get(name, '.' + name)}"
            path.write_bytes(broken)
            expected[str(path)] = name, kind
    inside = {
        f"{kind}-{number:04d}.png": (kind, broken)
        for kind, number, broken in _broken(contents["png"], count, random.Random(f"{seed} {MEMBERS}"))
    }
    archive = folder / f"{MEMBERS}.zip"
    archive.write_bytes(_zip({name: broken for name, (_, broken) in inside.items()}))
    return expected | {f"{archive}!/{name}": (MEMBERS, kind) for name, (kind, _) in inside.items()}


def _broken(content: bytes, count: int, draw: random.Random) -> Iterator[tuple[str, int, bytes]]:
    yield "intact", 0, content
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        yield kind, number, break_bytes(content, kind, draw)


def fuzz(setup: Setup, count: int, folder: Path, limit: float, log: Callable[[str], None]) -> dict[str, Any]:
    """One run over all of them: whether it ended, which inputs have no row, and counts by format."""
    run, out = make_run(folder / "run", setup), folder / "out"
    expected = write_files(folder / "files", count, setup.seed)
    log(f"{len(expected)} inputs")
    command = screen_command(run, folder / "files", out, setup, "32", "--max-failures", "1")
    done = observe(command, environment(setup.threads), limit=limit)
    seen: set[str] = set()
    formats: dict[str, Counter[str]] = defaultdict(Counter)
    unread = set()
    for row in rows_of(out):
        # An archive that can be opened has rows for its members; else it has one itself.
        known = next((p for p in (row["path"], row["path"].split("!/")[0]) if p in expected), None)
        if known is None:
            formats["unknown"][row["status"]] += 1
            continue
        seen.add(known)
        name, kind = expected[known]
        formats[name][" ".join([row["status"], *(row["error"] or "").split(":")[:1]]).strip()] += 1
        if kind == "intact" and row["status"] != "ok":
            unread.add(name)
    return {
        "inputs": len(expected),
        "ended": done.code == 0,
        "exit_code": done.code,
        "seconds": done.seconds,
        "peak_bytes": done.peak_bytes,
        "largest_process_bytes": done.largest_bytes,
        "traceback": "Traceback" in done.stderr + done.stdout,
        "without_a_row": [Path(path).name for path in sorted(expected.keys() - seen)],
        "intact_but_not_read": sorted(unread),
        "formats": {name: dict(counts) for name, counts in sorted(formats.items())},
        "stderr": done.stderr[-2000:].replace(str(folder), ""),
    }
