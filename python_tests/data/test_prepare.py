# SPDX-License-Identifier: Apache-2.0
"""What `scrd-fast data prepare` makes: whole or not at all, linked, checked, recorded, read by every command."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TRAIN_FLAGS
from data_sources import COUNTS, bmad, brain_tumor, brats, isic, listed, picture, record, rsna, run, small, zipped

from scrd_fast.cli import main
from scrd_fast.data.datasets import open_dataset
from scrd_fast.data.known import KNOWN, Counts, split_name

pytest.importorskip("imagehash")
pytestmark = pytest.mark.usefixtures("small")
_ = small  # a fixture


def test_the_list_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list"]) == 0
    shown = capsys.readouterr().out
    assert [line.split(":")[0] for line in shown.splitlines() if not line.startswith(" ")] == list(KNOWN)
    assert main(["data", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == KNOWN.keys()
    for about in found.values():
        assert {"title", "split", "counts", "source", "licence", "citation"} <= about.keys()


def test_the_counts_are_the_published_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert {name: about.counts for name, about in KNOWN.items()} == {
        "rsna": Counts(3851, 1000, 1000),
        "brain_tumor": Counts(1000, 600, 600),
        "isic2018": Counts(6705, 909, 603),
        "isic2018_val": Counts(6705, 123, 70),
        "brats2021": Counts(4211, 828, 1948),
        "rsna_bmad": Counts(8000, 781, 16413, 70, 1420),
    }
    valid = KNOWN["rsna_bmad"].counts
    assert valid.valid_normal + valid.valid_abnormal == 1490
    assert valid.test_normal + valid.test_abnormal == 17194


def test_a_list_is_taken_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = listed(tmp_path / "BrainTumor", COUNTS["brain_tumor"]), tmp_path / "out"
    assert run("brain_tumor", source, out) == 0
    assert capsys.readouterr().out == f"{out}\n"
    there, made = (json.loads((root / "data.json").read_text()) for root in (source, out))
    assert made == {"train": {"0": there["train"]["0"]}, "test": there["test"]}
    about = record(out)
    assert about["name"] == "brain_tumor"
    assert about["split"] == "MedIAnomaly, by the data.json of the source"
    assert about["counts"] == about["published_counts"]
    assert (about["duplicates"]["exact"], about["duplicates"]["near"]) == ([], [])
    assert "Zenodo" in about["source"]
    assert "CC-BY-4.0" in about["licence"]
    assert "Nickparvar" in about["citation"]
    for image in (out / "images").iterdir():
        assert image.samefile(source / "images" / image.name)  # a hard link: nothing was decoded
    open_dataset(out).require(train=True, test=True)


def test_files_are_copied_where_they_cannot_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("another device")

    monkeypatch.setattr(os, "link", refuse)
    source, out = listed(tmp_path / "s", COUNTS["brain_tumor"]), tmp_path / "out"
    assert run("brain_tumor", source, out) == 0
    for image in (out / "images").iterdir():
        assert not image.samefile(source / "images" / image.name)
        assert image.read_bytes() == (source / "images" / image.name).read_bytes()


@pytest.mark.parametrize("name", list(COUNTS))
def test_what_is_made_is_read_and_named(name: str, tmp_path: Path) -> None:
    makers = {"rsna": rsna, "brain_tumor": brain_tumor, "brats2021": brats, "rsna_bmad": bmad}
    if name == "rsna":
        pytest.importorskip("pydicom")
    out = tmp_path / "out"
    assert run(name, makers.get(name, isic)(tmp_path / "source"), out) == 0
    data = open_dataset(out)
    data.require(train=True, test=True)
    labels = [item.label for item in data.test]
    expected = COUNTS[name]
    assert (len(data.train), labels.count(0), labels.count(1)) == (
        expected.train,
        expected.test_normal,
        expected.test_abnormal,
    )
    assert Counts(**record(out)["counts"]) == expected
    assert split_name(out) == f"{name} ({record(out)['split']})"


def test_the_split_reaches_the_run_and_the_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = replace(COUNTS["brain_tumor"], train=24)
    source, out = listed(tmp_path / "s", counts), tmp_path / "out"
    assert run("brain_tumor", source, out, "--allow-other-counts") == 0
    assert "24 train" in record(out)["split"]
    assert main(["train", str(out), "--out", str(tmp_path / "run"), *TRAIN_FLAGS, "-q"]) == 0
    assert main(["evaluate", str(tmp_path / "run"), str(out), "--out", str(tmp_path / "e"), "-q"]) == 0
    for path in (tmp_path / "run" / "run.json", tmp_path / "e" / "metrics.json"):
        assert json.loads(path.read_text())["split"] == f"brain_tumor ({record(out)['split']})"
    capsys.readouterr()


@pytest.mark.parametrize("content", ["", "[]", '{"name": "rsna"}', "\xff"])
def test_other_folders_have_no_split(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_bytes(content.encode("latin-1"))
    assert split_name(tmp_path) is None


def test_other_counts_are_an_error_or_a_split_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = listed(tmp_path / "s", Counts(5, 4, 4)), tmp_path / "out"
    assert run("brain_tumor", source, out) == 2
    error = capsys.readouterr().err
    assert "expected 6 train, 4 test normal, 4 test abnormal; found 5 train, 4 test normal" in error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s"]
    assert run("brain_tumor", source, out, "--allow-other-counts") == 0
    assert "other counts than published (5 train" in record(out)["split"]
    assert record(out)["counts"]["train"] == 5


def test_the_same_again_is_done_already(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = listed(tmp_path / "s", COUNTS["brain_tumor"]), tmp_path / "out"
    command = ["data", "prepare", "brain_tumor", str(source), "--out", str(out)]
    assert main(command) == 0
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in out.rglob("*")}
    assert main([*command, "--json"]) == 0
    captured = capsys.readouterr()
    assert "is done already" in captured.err
    assert json.loads(captured.out.split("\n", 1)[1]) == record(out)
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in out.rglob("*")} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "s"]


def test_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = listed(tmp_path / "s", COUNTS["brain_tumor"]), tmp_path / "out"
    assert run("brain_tumor", source, out) == 0
    other = shutil.copytree(source, tmp_path / "other")
    picture(other / "images" / "n_000.jpg", 1000)
    assert run("brain_tumor", other, out) == 2
    assert "holds another data set (it differs in content_sha256)" in capsys.readouterr().err
    (out / "images" / "n_001.jpg").unlink()
    assert run("brain_tumor", source, out) == 2
    assert "the files themselves" in capsys.readouterr().err
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    assert run("brain_tumor", source, full) == 2
    assert "is not empty" in capsys.readouterr().err
    assert run("brain_tumor", source, source / "out") == 2
    assert "lies in the source" in capsys.readouterr().err
    assert (full / "mine.txt").read_text() == "mine"


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = listed(tmp_path / "s", COUNTS["brain_tumor"]), tmp_path / "deep" / "out"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scrd_fast.data.prepare.perceptual_hashes", stop)
    assert run("brain_tumor", source, out) == 130
    assert list((tmp_path / "deep").iterdir()) == []


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert run("brain_tumor", listed(tmp_path / "s", COUNTS["brain_tumor"]), out) == 0
    assert record(out)["name"] == "brain_tumor"


def test_the_hashes_say_what_is_the_same(tmp_path: Path) -> None:
    """Of the list: names without endings, in any order. Of the content: every byte."""
    counts = COUNTS["brain_tumor"]
    first = listed(tmp_path / "a", counts)
    second = listed(tmp_path / "b", counts, "n_{:03d}.png".format)
    lists = json.loads((second / "data.json").read_text())
    lists["train"]["0"].reverse()
    (second / "data.json").write_text(json.dumps(lists))
    records = []
    for source in (first, second, zipped(tmp_path / "c.zip", first, "BrainTumor/")):
        out = tmp_path / f"out-{source.name}"
        assert run("brain_tumor", source, out) == 0
        records.append(record(out))
    assert len({r["list_sha256"] for r in records}) == 1
    lines = sorted(
        f"{bucket} {Path(name).stem}\n"
        for bucket, names in (("train 0", lists["train"]["0"]), *((f"test {k}", lists["test"][k]) for k in "01"))
        for name in names
    )
    assert records[0]["list_sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert records[0]["content_sha256"] == records[2]["content_sha256"] != records[1]["content_sha256"]
