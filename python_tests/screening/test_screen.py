# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import torch
from conftest import texture
from PIL import Image
from run_folders import rows

import scrd_fast
from scrd_fast.calibration import Calibration
from scrd_fast.cli import main
from scrd_fast.data.reading import read_image
from scrd_fast.errors import ScrdFastError
from scrd_fast.model.reference import combined_score
from scrd_fast.screening.inputs import list_inputs
from scrd_fast.screening.writers import SCHEMA


def screen(run: Path, inputs: list[Path], out: Path, *flags: str) -> int:
    return main(["screen", str(run), *map(str, inputs), "--out", str(out), "-q", "--device", "cpu", *flags])


@pytest.fixture
def mixed(tree: Path, tmp_path: Path) -> Path:
    """Twelve good images and three bad ones."""
    folder = tmp_path / "mixed"
    shutil.copytree(tree / "test", folder)
    (folder / "text.png").write_text("not an image")
    (folder / "empty.png").touch()
    data = (folder / "good" / "000.png").read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    return folder


def test_every_input_becomes_one_row(trained: Path, mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert screen(trained, [mixed], out, "--max-failures", "0.5") == 0
    table = rows(out)
    assert [r["path"] for r in table] == [str(entry.source) for entry in list_inputs([mixed])]
    assert len({r["input_id"] for r in table}) == len({r["sample_id"] for r in table}) == 15
    failed = {Path(r["path"]).name: r for r in table if r["status"] == "failed"}
    assert failed.keys() == {"text.png", "empty.png", "cut.png"}
    for row in failed.values():
        assert row["error"]
        assert (row["frame"], row["score"], row["percentile"], row["decision"]) == (None, None, None, None)
    calibration = Calibration.load(trained / "model" / "calibration.json")
    for row in (r for r in table if r["status"] == "ok"):
        assert row["frame"] == 0
        assert row["percentile"] == calibration.percentile([row["score"]])[0]
        assert row["decision"] == ("abnormal" if row["score"] > calibration.threshold else "normal")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["status"] == {"ok": 12, "failed": 3}
    assert summary["errors"] == {"not-an-image": 2, "unreadable": 1}


def test_too_many_failures_are_exit_code_3_and_keep_everything(trained: Path, mixed: Path, tmp_path: Path) -> None:
    assert screen(trained, [mixed], tmp_path / "out") == 3
    assert len(rows(tmp_path / "out")) == 15


def test_the_worklist_puts_the_most_suspicious_first(trained: Path, mixed: Path, tmp_path: Path) -> None:
    screen(trained, [mixed], tmp_path / "out", "--overlays", "4")
    with (tmp_path / "out" / "worklist.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    scores = [float(r["score"]) for r in table if r["score"]]
    assert scores == sorted(scores, reverse=True)
    assert [r["status"] for r in table[-3:]] == ["failed"] * 3
    exact = {r["path"]: r["score"] for r in rows(tmp_path / "out")}
    assert all(float(r["score"]) == exact[r["path"]] for r in table if r["score"])
    overlays = sorted((tmp_path / "out" / "overlays").iterdir())
    assert len(overlays) == 4
    first = next(r for r in rows(tmp_path / "out") if r["path"] == table[0]["path"])
    assert overlays[0].name == f"001-{first['sample_id']}.png"


def test_the_schema_is_as_documented_and_pandas_reads_it(trained: Path, tree: Path, tmp_path: Path) -> None:
    screen(trained, [tree / "test"], tmp_path / "out")
    part = tmp_path / "out" / "results" / "part-000000.parquet"
    assert pq.read_schema(part).equals(SCHEMA)
    assert pq.read_schema(part).metadata[b"scrd_fast.schema_version"] == b"3"
    frame = pandas.read_parquet(tmp_path / "out" / "results")
    assert list(frame.columns) == SCHEMA.names
    assert frame["score"].notna().all()
    reference = scrd_fast.SCRD.from_pretrained(trained / "model").config.reference
    assert reference is not None
    scales = torch.from_numpy(frame[["scale_1", "scale_2", "scale_3"]].to_numpy(copy=True))
    combined = combined_score(reference, scales, torch.from_numpy(frame["score_top1"].to_numpy(copy=True)))
    np.testing.assert_allclose(frame["score"], combined, rtol=1e-4, atol=1e-4)


def test_pixel_statistics_are_numpys_of_what_the_network_is_given(trained: Path, mixed: Path, tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    Image.fromarray(colour).save(mixed / "colour.png")
    assert screen(trained, [mixed], tmp_path / "out", "--max-failures", "1") == 0
    preprocessing = scrd_fast.SCRD.from_pretrained(trained / "model").config.preprocessing
    names = ("pixel_mean", "pixel_std", "pixel_p01", "pixel_p50", "pixel_p99")
    for row in rows(tmp_path / "out"):
        if row["status"] == "failed":
            assert [row[name] for name in names] == [None] * 5
            continue
        gray = read_image(row["path"], preprocessing).numpy().astype(np.float64).mean(0)
        expected = (gray.mean(), gray.std(), *np.quantile(gray, (0.01, 0.5, 0.99)))
        assert [row[name] for name in names] == pytest.approx(expected, rel=1e-12, abs=1e-15)
    flags = ("--max-failures", "1", "--shard-size", "4", "--batch-size", "3", "--workers", "1")
    assert screen(trained, [mixed], tmp_path / "other", *flags) == 0
    for a, b in zip(rows(tmp_path / "out"), rows(tmp_path / "other"), strict=True):
        assert [a[name] for name in names] == [b[name] for name in names]  # to the last bit


def test_shards_do_not_change_the_numbers(trained: Path, mixed: Path, tmp_path: Path) -> None:
    screen(trained, [mixed], tmp_path / "one", "--max-failures", "1")
    screen(trained, [mixed], tmp_path / "many", "--max-failures", "1", "--shard-size", "4", "--batch-size", "3")
    assert len(list((tmp_path / "many" / "results").iterdir())) == 4
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "many"), strict=True):
        assert a["path"] == b["path"]
        assert a["decision"] == b["decision"]
        assert a["score"] == pytest.approx(b["score"], abs=1e-5)


def test_a_finished_shard_is_not_screened_again(trained: Path, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    screen(trained, [tree / "test"], out, "--shard-size", "5")
    before = rows(out)
    part = out / "results" / "part-000001.parquet"
    kept = out / "results" / "part-000000.parquet"
    stamp = kept.stat().st_mtime_ns
    part.unlink()
    assert screen(trained, [tree / "test"], out, "--shard-size", "5") == 0
    assert rows(out) == before
    assert kept.stat().st_mtime_ns == stamp


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_stopped_run_goes_on_to_the_same_rows(
    trained: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    generator = np.random.default_rng(1)
    for i in range(200):
        Image.fromarray(texture(generator)).save(folder / f"{i:03d}.png")
    flags = ["--shard-size", "5", "--overlays", "0"]
    command = [sys.executable, "-m", "scrd_fast", "screen", str(trained), str(folder), "--out", str(tmp_path / "cut")]
    process = subprocess.Popen([*command, *flags, "-q", "--device", "cpu"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cut" / "results").glob("part-*.parquet")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, text = process.communicate()
    assert process.returncode == code
    assert number == signal.SIGKILL or "the same command goes on" in text
    assert 0 < len(rows(tmp_path / "cut")) < 200
    assert screen(trained, [folder], tmp_path / "cut", *flags) == 0
    assert screen(trained, [folder], tmp_path / "whole", *flags) == 0
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_another_model_or_list_in_the_same_folder_is_refused(
    trained: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert screen(trained, [tree / "test"], out) == 0
    assert screen(trained, [tree / "test" / "good"], out) == 2
    assert "inputs: there" in capsys.readouterr().err
    other = shutil.copytree(trained, tmp_path / "run")
    main(["calibrate", str(other), str(tree / "test" / "good"), "-q"])
    capsys.readouterr()
    assert screen(other, [tree / "test"], out) == 2
    assert "calibration" in capsys.readouterr().err
    model = scrd_fast.SCRD.from_pretrained(trained / "model")
    with torch.no_grad():
        next(model.trainable_parameters()).add_(1e-3)
    model.save_pretrained(other / "model")
    shutil.copy(trained / "model" / "calibration.json", other / "model")
    assert screen(other, [tree / "test"], out) == 2
    assert "model_sha256: there" in capsys.readouterr().err


def test_without_a_calibration_there_are_scores_but_no_decisions(trained: Path, tree: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "model" / "calibration.json").unlink()
    assert screen(run, [tree / "test"], tmp_path / "out") == 0
    for row in rows(tmp_path / "out"):
        assert row["score"] is not None
        assert (row["percentile"], row["decision"]) == (None, None)


def test_a_dry_run_writes_nothing_and_loads_no_model(
    trained: Path,
    mixed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("scrd_fast.screening.screener.Screener.from_pretrained", never)
    out = tmp_path / "out"
    assert screen(trained, [mixed, Path(__file__)], out, "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["inputs"] == 16
    assert plan["types"] == {".png": 13}
    assert plan["status"] == {"ok": 13, "failed": 3, "refused": 0}
    assert plan["pictures"] == 13
    assert {Path(f["path"]).name for f in plan["problems"]} == {"text.png", "empty.png", Path(__file__).name}
    assert plan["estimated_seconds"] > 0
    assert plan["estimated_disk_bytes"] > 0
    assert not out.exists()


def test_inputs_are_listed_once_in_a_fixed_order(tree: Path) -> None:
    good = tree / "test" / "good"
    first = good / "003.png"
    listed = [entry.source.path for entry in list_inputs([first, good])]
    assert listed == [first, *(p for p in sorted(good.iterdir()) if p != first)]
    with pytest.raises(ScrdFastError, match="no images there"):
        list(list_inputs([Path(__file__).parent]))


def test_a_runs_own_results_and_hidden_files_are_not_inputs(trained: Path, tree: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tree / "test" / "good", tmp_path / "in")
    (folder / "._000.png").write_bytes(b"made by a Mac")
    for _ in range(2):
        assert screen(trained, [folder], folder / "out") == 0
    assert len(rows(folder / "out")) == 6


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_utf8_are_screened_and_drawn(trained: Path, tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i, name in enumerate((b"a.png", b"b\xff.png", b"c.png")):
        shutil.copy(tree / "test" / "square" / f"{i:03d}.png", os.fsencode(folder) + b"/" + name)
    assert screen(trained, [folder], tmp_path / "out") == 0
    ranked = sorted(rows(tmp_path / "out"), key=lambda r: -r["score"])
    drawn = sorted(p.name for p in (tmp_path / "out" / "overlays").iterdir())
    assert drawn == [f"{rank:03d}-{r['sample_id']}.png" for rank, r in enumerate(ranked, start=1)]
    assert {r["path"].rsplit("/", 1)[1] for r in ranked} == {"a.png", "b\\udcff.png", "c.png"}


def test_the_python_interface_yields_as_it_goes(trained: Path, tree: Path) -> None:
    screener = scrd_fast.Screener.from_pretrained(trained, device="cpu", batch_size=2)
    asked: list[str] = []

    def paths() -> Any:
        for path in sorted((tree / "train" / "good").iterdir()):
            asked.append(path.name)
            yield path

    results = screener.screen(paths())
    first = next(results)
    assert first.status == "ok"
    assert first.map is not None
    assert first.map.shape == (64, 64)
    results.close()


def test_an_unfinished_run_says_so(
    trained: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(run / "model")
    assert screen(run, [tree / "test"], tmp_path / "out") == 2
    assert "training is not finished" in capsys.readouterr().err
