# SPDX-License-Identifier: Apache-2.0
"""One run of inputs of every kind: its table, worklist, summary, plan and maps, and reports of it."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import texture
from PIL import Image
from run_folders import loaded, png, rows, screened, worklist

from scrd_fast.calibration import Calibration
from scrd_fast.cli import main
from scrd_fast.screening.inputs import list_inputs
from scrd_fast.screening.writers import SCHEMA, read_part

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")

from dicom_files import stacked, written  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="makes pipes")

FLAGS = ["-q", "--device", "cpu", "--workers", "2"]
SCORES = [name for name in SCHEMA.names if name.startswith(("score", "scale", "weight", "percentile", "peak"))]


def screen(run: Path, inputs: list[Path], out: Path, *flags: str) -> int:
    return main(["screen", str(run), *map(str, inputs), "--out", str(out), *FLAGS, *flags])


def volume(path: Path, values: np.ndarray[Any, Any]) -> None:
    image = nibabel.Nifti1Image(values.astype(np.int16), np.diag([-1.0, -1.0, 2.0, 1.0]))
    path.write_bytes(gzip.compress(image.to_bytes()))


class Expected(NamedTuple):
    """Of an input: how many frames it has, or the code of its error."""

    frames: int = 1
    code: str | None = None
    status: str = "ok"


def failed(code: str) -> Expected:
    return Expected(0, code, "failed")


UNSAFE = Expected(0, "unsafe-name", "refused")


def every_kind(folder: Path) -> tuple[list[Path], dict[str, Expected]]:
    """Inputs, and what is to become of them, by name."""
    generator = np.random.default_rng(7)
    pictures = [texture(generator) for _ in range(9)]
    (folder / "in").mkdir()
    (folder / "in/plain.png").write_bytes(png(pictures[0]))
    (folder / "in/cut.png").write_bytes(png(pictures[1])[:900])
    (folder / "in/empty.png").touch()
    os.mkfifo(folder / "in/pipe.png")
    (folder / "in/frames").write_bytes(written(stacked(np.stack(pictures[2:5]).astype(np.uint16) * 16)))
    pages = [Image.fromarray(pixels) for pixels in pictures[5:7]]
    pages[0].save(folder / "in/pages.tif", save_all=True, append_images=pages[1:])
    stack = np.stack([pictures[7], pictures[7] // 2, pictures[8], pictures[8] // 3], axis=2)  # [64, 70, 4]
    stack[20:40, 10:30, 1] = 250
    volume(folder / "in/volume.nii.gz", stack)
    with zipfile.ZipFile(folder / "in/some.zip", "w") as archive:
        archive.writestr("a/good.png", png(pictures[3]))
        archive.writestr("broken.png", "no image")
        archive.writestr("../out.png", png(pictures[3]))
    with tarfile.open(folder / "in/some.tar.gz", "w:gz") as tar:
        for name, content in (("good.png", png(pictures[4])), ("broken.dcm", b"none"), ("../out.png", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (folder / "below").mkdir()
    (folder / "list.txt").write_text("in/plain.png\ngone.png\nbelow\n")
    return [folder / "in", folder / "list.txt"], {
        "plain.png": Expected(),
        "cut.png": failed("unreadable"),
        "empty.png": failed("not-an-image"),
        "pipe.png": failed("not-a-file"),
        "frames": Expected(3),
        "pages.tif": Expected(2),
        "volume.nii.gz": Expected(4),
        "some.zip!/a/good.png": Expected(),
        "some.zip!/broken.png": failed("not-an-image"),
        "some.zip!/../out.png": UNSAFE,
        "some.tar.gz!/good.png": Expected(),
        "some.tar.gz!/broken.dcm": failed("not-an-image"),
        "some.tar.gz!/../out.png": UNSAFE,
        "gone.png": failed("missing"),
        "below": failed("not-a-file"),
    }


class Run(NamedTuple):
    inputs: list[Path]
    expected: dict[str, Expected]  # by path
    out: Path


@pytest.fixture(scope="module")
def run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Of inputs of every kind. Not to be changed."""
    folder = tmp_path_factory.mktemp("every")
    inputs, expected = every_kind(folder)
    flags = ("--max-failures", "1", "--overlays", "0", "--maps", "npz", "--shard-size", "4")
    assert screen(trained, inputs, folder / "out", *flags) == 0
    at = {name: f"{folder}/{'' if name in ('gone.png', 'below') else 'in/'}{name}" for name in expected}
    return Run(inputs, {at[name]: what for name, what in expected.items()}, folder / "out")


def test_inputs_of_every_kind_end_in_rows_of_their_frames_or_their_error(run: Run) -> None:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows(run.out):
        found.setdefault(row["path"], []).append(row)
    assert list(found) == [str(entry.source) for entry in list_inputs(run.inputs)]
    assert found.keys() == run.expected.keys()
    for path, expected in run.expected.items():
        assert [row["frame"] for row in found[path]] == (list(range(expected.frames)) or [None]), path
        assert {row["status"] for row in found[path]} == {expected.status}, path
        assert {row["error"] and row["error"].partition(": ")[0] for row in found[path]} == {expected.code}, path
    everything = [row for some in found.values() for row in some]
    assert len({row["sample_id"] for row in everything}) == len(everything)
    assert len({row["input_id"] for row in everything}) == len(found)


def test_numbers_of_a_row_are_there_with_its_picture_alone(run: Run) -> None:
    for row in rows(run.out):
        numbers = [row[name] for name in SCORES]
        if row["status"] != "ok":
            assert numbers == [None] * len(SCORES)
            continue
        assert np.isfinite(numbers).all()
        assert (row["height"], row["width"]) == (64, 70)
        assert 0 <= row["peak_row"] < 64
        assert 0 <= row["peak_column"] < 70
        assert row["geometry"] == ("LPS" if row["path"].endswith(".nii.gz") else None)
        assert row["burned_in"] == ("unknown" if row["path"].endswith("/frames") else None)


def test_parts_hold_the_schema_and_shards_hold_as_many_inputs_as_asked_for(run: Run) -> None:
    parts = sorted((run.out / "results").iterdir())
    assert [path.name for path in parts] == [f"part-{k:06d}.parquet" for k in range(4)]
    for path in parts:
        assert pq.read_schema(path).equals(SCHEMA)
    assert [len({row["input_id"] for row in read_part(path)}) for path in parts] == [4, 4, 4, 3]


def test_the_worklist_has_a_line_per_input_led_by_its_highest_frame(run: Run) -> None:
    lines = {line["path"]: line for line in worklist(run.out)}
    assert lines.keys() == run.expected.keys()
    assert len(lines) == len(worklist(run.out))
    for path, expected in run.expected.items():
        own = [row for row in rows(run.out) if row["path"] == path]
        lead = max(own, key=lambda row: row["score"] or -1)
        line = lines[path]
        assert int(line["frames"]) == max(expected.frames, 1)
        assert line["frame"] == ("" if lead["frame"] is None else str(lead["frame"]))
        assert line["score"] == ("" if lead["score"] is None else repr(lead["score"]))
        assert (line["status"], line["decision"]) == (expected.status, lead["decision"] or "")
    (line,) = (line for path, line in lines.items() if path.endswith(".nii.gz"))
    assert line["frame"] == "1"  # the slice with the square


def test_the_summary_counts_every_listed_input_once(run: Run) -> None:
    summary = loaded(run.out / "summary.json")
    status = {name: sum(e.status == name for e in run.expected.values()) for name in ("failed", "ok", "refused")}
    assert summary["status"] == status
    assert summary["inputs"] == sum(status.values()) == len(list(list_inputs(run.inputs)))
    assert summary["rows"] == len(rows(run.out)) == sum(max(e.frames, 1) for e in run.expected.values())
    codes = [e.code for e in run.expected.values() if e.code]
    assert summary["errors"] == {code: codes.count(code) for code in codes}


def test_the_plan_says_of_inputs_of_every_kind_what_the_run_then_finds(
    trained: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert screen(trained, run.inputs, tmp_path / "out", "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "out").exists()
    known = {path: e._replace(frames=1, code=None, status="ok") if path.endswith("/cut.png") else e
             for path, e in run.expected.items()}  # fmt: skip  # only decoding would tell that it is cut
    assert plan["inputs"] == len(known)
    assert plan["pictures"] == sum(e.frames for e in known.values())
    assert plan["status"] == {s: sum(e.status == s for e in known.values()) for s in ("ok", "failed", "refused")}
    assert plan["types"] == {".png": 4, "without ending": 1, ".tif": 1, ".nii.gz": 1}
    found = {row["path"]: row["error"] for row in rows(run.out) if row["error"]}
    told = {problem["path"]: problem["error"] for problem in plan["problems"]}
    assert told == {path: error for path, error in found.items() if not path.endswith("/cut.png")}


def test_an_exact_map_is_the_screeners(trained: Path, run: Run) -> None:
    expected = screened(trained, run.inputs)
    files = set()
    for row in rows(run.out):
        if row["status"] != "ok":
            assert row["map"] is None
            continue
        with np.load(run.out / row["map"]) as file:
            found = file["map"]
        files.add(row["map"])
        result = expected[row["path"], row["frame"]]
        assert result.map is not None
        assert found.dtype == np.float32
        torch.testing.assert_close(torch.from_numpy(found), result.map, atol=1e-5, rtol=0)
        assert found.max() == pytest.approx(row["score_max"], abs=1e-6)
    assert {f"maps/{path.name}" for path in (run.out / "maps").iterdir()} == files


def test_a_report_decides_by_the_scores_of_the_table(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(run.out, out)
    table = rows(out)
    best = {row["path"]: max(r["score"] for r in table if r["path"] == row["path"])
            for row in table if row["score"] is not None}  # fmt: skip
    calibration = Calibration.load(out / "calibration.json")
    middle = float(np.median(list(best.values())))
    for flags, threshold in (
        (["--threshold", repr(middle)], middle),
        (["--fpr", "0.3", "--compact"], calibration.at(fpr=0.3).threshold),
    ):
        assert main(["report", str(out), *flags, "-q"]) == 0
        assert loaded(out / "summary.json")["threshold"] == threshold
        verdicts = {line["path"]: line["decision"] for line in worklist(out)}
        assert verdicts == {
            path: "" if path not in best else "abnormal" if best[path] > threshold else "normal"
            for path in run.expected
        }
    assert rows(out) == table
    whole = pq.read_table(out / "results.parquet").to_pylist()
    for row in table:
        row["decision"] = row["score"] and ("abnormal" if row["score"] > threshold else "normal")
    assert whole == table
