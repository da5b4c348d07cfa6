# SPDX-License-Identifier: Apache-2.0
"""A file of AOTInductor: most of a minute of compiling, so that one is made for all tests."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from documented import blocks_of
from export_files import run_alone, same_outputs

from scrd_fast.cli import main
from scrd_fast.export.check import bundled_batches, compare
from scrd_fast.export.detector import Detector
from scrd_fast.export.formats import open_file, read_metadata
from scrd_fast.screening.screener import Screener, load

pytestmark = [pytest.mark.xdist_group("aoti"), pytest.mark.release]


@pytest.fixture(scope="module")
def folder(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aoti")
    out = folder / "detector.pt2"
    assert main(["export", str(trained), "--format", "aoti", "--out", str(out), "-q"]) == 0
    return folder


def test_any_batch_and_any_size_say_what_the_screener_says(folder: Path, trained: Path) -> None:
    run = open_file("aoti", folder / "detector.pt2")
    sizes = [(1, 1, 1), (1, 2, 2), (2, 1, 9), (3, 500, 2), (7, 33, 65), (1, 64, 64)]
    generator = torch.Generator().manual_seed(5)
    batches = [torch.rand(n, 3, h, w, generator=generator) for n, h, w in sizes]
    with Screener.from_pretrained(trained, device="cpu") as screener:
        found = compare(run, screener, [*batches, *bundled_batches(64)])
    assert found.images == 30
    assert max(found.scores, found.map) <= 1e-4
    assert found.decisions == 0


def test_it_says_what_the_module_says_and_gives_the_same_bits_again(folder: Path, trained: Path) -> None:
    model, calibration = load(trained)
    assert calibration is not None
    images = torch.rand(5, 3, 70, 90, generator=torch.Generator().manual_seed(6))
    with torch.inference_mode():
        expected = Detector(model, calibration).eval()(images)
    first, second = (open_file("aoti", folder / "detector.pt2")(images) for _ in range(2))
    same_outputs(first, expected)
    assert list(first) == list(expected)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_compiled_anew_after_another_format_it_gives_the_same_bits(
    folder: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    for kind in ("torch", "aoti"):
        out = tmp_path / f"{kind}.pt2"
        assert main(["export", str(trained), "--format", kind, "--out", str(out), "-q"]) == 0
    first, again = (open_file("aoti", path) for path in (folder / "detector.pt2", tmp_path / "aoti.pt2"))
    for batch in bundled_batches(64):
        ours, theirs = first(batch), again(batch)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_our_operators_are_called(folder: Path) -> None:
    with zipfile.ZipFile(folder / "detector.pt2") as archive:
        text = b"".join(archive.read(name) for name in archive.namelist() if name.endswith((".json", ".cpp")))
    assert b"scrd_fast::anomaly_map" in text
    assert b"scrd_fast::cosine_distances" in text


def test_metadata_says_what_the_file_is(folder: Path) -> None:
    facts = json.loads(read_metadata("aoti", folder / "detector.pt2"))
    assert (facts["format"], facts["precision"], facts["device"]) == ("aoti", "32", "cpu")
    assert facts["preprocessing"]["size"] == 64


def test_the_documented_example_imports_the_operators_alone(folder: Path, tree: Path) -> None:
    blocked = ("timm", "scrd_fast.model", "scrd_fast.export", "scrd_fast.screening", "scrd_fast.config")
    said = run_alone(blocks_of("export.md", "python")[3], folder, tree / "test" / "good" / "000.png", blocked)
    assert len(said) == 4
