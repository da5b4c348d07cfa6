# SPDX-License-Identifier: Apache-2.0
"""What is in the page of a run; `test_page_in_a_browser` uses it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import texture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from page_runs import HOSTILE, column, embedded, made_row, write_made_pictures, write_run
from PIL import Image
from run_folders import rows
from sklearn.metrics import roc_auc_score

from scrd_fast.calibration import Calibration
from scrd_fast.cli import main
from scrd_fast.plots import OPACITY
from scrd_fast.screening.page_scores import Grid, distribution
from scrd_fast.screening.run import remove_run

NORMALS = Calibration.fit([float(i) for i in range(1, 40)], "mean", map_peaks=[1.0, 2.0])


def report(out: Path, *flags: str) -> int:
    return main(["report", str(out), "-q", *flags])


def screen(run: Path, inputs: Path, out: Path, *flags: str) -> int:
    return main(["screen", str(run), str(inputs), "--out", str(out), "-q", "--device", "cpu", "--workers", "1", *flags])


@pytest.fixture(scope="module")
def images(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images, a file of three, a wide one, a damaged one, and labels of the twelve."""
    folder = tmp_path_factory.mktemp("in") / "KANARIE"
    shutil.copytree(tree / "test", folder)
    generator = np.random.default_rng(4)
    pages = [Image.fromarray(texture(generator)) for _ in range(3)]
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])
    Image.fromarray(texture(generator, 140)[:60]).save(folder / "wide.png")
    (folder / "damaged.png").write_bytes(b"none")
    lines = [f"{path},{int(path.parent.name == 'square')}" for path in sorted(folder.glob("*/*.png"))]
    (folder.parent / "labels.csv").write_text("\n".join(["path,label", *lines, "gone.png,abnormal", ""]))
    return folder


FLAGS = ("--overlays", "4", "--max-failures", "1")


@pytest.fixture(scope="module")
def screened(trained: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "out"
    assert screen(trained, images, out, *FLAGS, "--labels", str(images.parent / "labels.csv")) == 0
    return out


def test_the_rows_are_those_of_the_table_most_suspicious_first(screened: Path) -> None:
    data, table = embedded(screened), rows(screened)
    scored = sorted((r for r in table if r["score"] is not None), key=lambda r: (-r["score"], r["path"], r["frame"]))
    expected = [*scored, *(r for r in table if r["score"] is None)]
    assert (data["rows"], data["listed"], data["counts"]["rows"]) == (17, 16, 17)
    for name in ("sample_id", "path", "status", "error", "shown_by"):
        assert column(data, name) == [r[name] for r in expected]
    assert data["columns"]["score"] == [r["score"] for r in expected]  # exactly
    for name in ("percentile", "scale_1", "weight_3", "score_top5"):
        assert data["columns"][name] == [
            None if r[name] is None else pytest.approx(r[name], rel=1e-5) for r in expected
        ]
    for name in ("frame", "peak_row", "peak_column", "height", "width"):
        assert data["columns"][name] == [r[name] for r in expected]
    calibration = Calibration.load(screened / "calibration.json")
    assert data["decision"]["threshold"] == calibration.threshold
    assert data["normals"] == {"count": calibration.count, "exact": list(calibration.scores)}
    assert data["run"]["finished"]
    assert data["run"]["errors"] == {"not-an-image": 1}


def test_every_scored_row_has_a_picture_and_the_first_have_layers(screened: Path) -> None:
    data, pictures = embedded(screened), embedded(screened, "pictures")
    assert [bool(small) for small in pictures["small"]] == [True] * 16 + [False]
    assert sorted(map(int, pictures["layers"])) == [0, 1, 2, 3]
    for row in range(16):
        size = Image.open(io.BytesIO(base64.b64decode(pictures["small"][row]))).size
        height, width = data["columns"]["height"][row], data["columns"]["width"][row]
        assert max(size) == 64  # the model's: no larger
        assert size[0] / size[1] == pytest.approx(width / height, rel=0.03)


def test_the_layers_are_the_overlay_that_is_drawn(screened: Path) -> None:
    pictures = embedded(screened, "pictures")
    drawn = sorted((screened / "overlays").iterdir())
    for row, path in enumerate(drawn):
        image, heat = (Image.open(io.BytesIO(base64.b64decode(x))) for x in pictures["layers"][str(row)])
        heat = heat.convert("RGBA")
        expected = np.asarray(Image.open(path)).astype(float)
        heat.putalpha(heat.getchannel("A").point(lambda a: round(OPACITY * a)))
        joined = Image.alpha_composite(image.resize(heat.size).convert("RGBA"), heat).convert("RGB")
        difference = np.abs(np.asarray(joined).astype(float) - expected)
        assert difference.mean() < 4  # of 255: WebP, the stored aspect, and 64 levels
    calibration = Calibration.load(screened / "calibration.json")
    assert pictures["scale"] == [calibration.map_low, calibration.map_high]


def test_labels_give_the_auroc_of_sklearn(screened: Path) -> None:
    data, table = embedded(screened), rows(screened)
    found = [(int("/square/" in r["path"]), r["score"]) for r in table if re.search("/(good|square)/", r["path"])]
    labels, scores = np.array(found).T
    told = data["labels"]
    assert told["auroc"]["value"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert told["auroc"]["low"] <= told["auroc"]["value"] <= told["auroc"]["high"]
    assert (told["labels"], told["unmatched"], told["unlabelled"], told["scored"]) == (13, 1, 3, 12)
    assert told["abnormal"]["exact"] == sorted(scores[labels == 1])
    shown = dict(zip(column(data, "path"), data["columns"]["label"], strict=True))
    assert {path: label for path, label in shown.items() if label is not None} == {
        r["path"]: int("/square/" in r["path"]) for r in table if re.search("/(good|square)/", r["path"])
    }


def test_a_new_threshold_makes_the_page_anew_without_the_images(screened: Path, tmp_path: Path) -> None:
    out = shutil.copytree(screened, tmp_path / "out")
    before = embedded(out, "pictures")
    assert report(out, "--threshold", "1.25") == 0
    data = embedded(out)
    assert (data["decision"]["threshold"], data["run"]["decided_by"]) == (1.25, "report --threshold 1.25")
    assert data["labels"] is None  # they are given anew, or not
    assert embedded(out, "pictures") == before
    (out / "page.parquet").unlink()
    assert report(out, "--fpr", "0.5") == 0
    assert embedded(out, "pictures") is None
    write_made_pictures(out, column(data, "sample_id"), 3)  # another run's
    assert report(out) == 0
    assert embedded(out, "pictures") is None


def test_a_run_that_was_stopped_while_it_drew_goes_on_to_the_same_page(
    trained: Path, images: Path, screened: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("scrd_fast.screening.work.write_pictures", stopped)
        assert screen(trained, images, out, *FLAGS) == 130
    assert not {"page.parquet", "report.html"} & {path.name for path in out.iterdir()}
    stamps = [path.stat().st_mtime_ns for path in (out / "results").iterdir()]
    assert screen(trained, images, out, *FLAGS) == 0
    assert [path.stat().st_mtime_ns for path in (out / "results").iterdir()] == stamps
    assert pq.read_table(out / "page.parquet").equals(pq.read_table(screened / "page.parquet"))
    assert embedded(out)["columns"]["score"] == embedded(screened)["columns"]["score"]
    assert remove_run(out)  # as --new-run does
    assert [path.name for path in out.iterdir()] == ["run.json"]


def test_with_a_key_no_path_is_in_the_page_and_pictures_are(trained: Path, images: Path, tmp_path: Path) -> None:
    out, flags = tmp_path / "out", ("--hash-paths", str(tmp_path / "key"))
    assert screen(trained, images, out, *FLAGS, *flags, "--labels", str(images.parent / "labels.csv")) == 0
    assert embedded(out)["labels"]["scored"] == 12
    for _ in range(2):  # and where the page is made anew, without key and manifest
        html = (out / "report.html").read_text()
        assert not [
            word for word in ("KANARIE", str(images), "good/", "square/", "wide.png", "pages.tif") if word in html
        ]
        assert sum(map(bool, embedded(out, "pictures")["small"])) == 16
        assert embedded(out)["run"]["hashed"]
        assert report(out) == 0


def test_what_cannot_be_drawn_costs_that_picture_alone(
    trained: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from scrd_fast.screening import work

    made = work.thumbnail

    def thumbnail(pixels: Any, about: Any, preprocessing: Any) -> bytes:
        if about.width == 140:
            raise OSError("no room")
        return made(pixels, about, preprocessing)

    monkeypatch.setattr(work, "thumbnail", thumbnail)
    assert screen(trained, images, tmp_path / "out", "--overlays", "above", "--max-failures", "1") == 0
    table = rows(tmp_path / "out")
    found = pq.read_table(tmp_path / "out" / "page.parquet").to_pylist()
    wide = next(r["sample_id"] for r in table if r["path"].endswith("wide.png"))
    scored = {r["sample_id"] for r in table if r["score"] is not None}
    assert {r["sample_id"] for r in found if r["thumbnail"]} >= scored - {wide}
    above = {r["sample_id"] for r in table if r["decision"] == "abnormal"}
    assert {r["sample_id"] for r in found if r["heat"]} >= above - {wide}
    assert "cannot be written" not in capsys.readouterr().err


def test_without_jinja_the_run_succeeds_and_without_overlays_there_is_no_picture(
    trained: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "jinja2", None)
        assert screen(trained, images / "good", out, "--overlays", "0") == 0
    assert capsys.readouterr().err.strip().splitlines() == [
        "warning: report.html cannot be written: jinja2 is not installed; install this package with its [model] extra"
    ]
    assert json.loads((out / "run.json").read_text())["status"] == "finished"
    assert not {"page.parquet", "report.html", "overlays"} & {path.name for path in out.iterdir()}
    assert report(out) == 0
    assert embedded(out)["rows"] == 6
    assert embedded(out, "pictures") is None


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def elements(out: Path) -> list[tuple[str, dict[str, str | None]]]:
    parser = _Elements()
    parser.feed((out / "report.html").read_text())
    return parser.found


def test_names_are_data_whatever_they_say(tmp_path: Path) -> None:
    plain = write_run(tmp_path / "plain", [made_row(0, "a.png", 1.0)], NORMALS)
    bad = [made_row(i, name, float(i), flags=[name], study=name) for i, name in enumerate(HOSTILE)]
    bad += [made_row(99, name, None, error=f"code: {name}") for name in HOSTILE]
    out = write_run(tmp_path / "out", bad, NORMALS)
    (out / "drift.json").write_text(json.dumps({"alarm": True, "reasons": HOSTILE}))
    assert report(plain) == report(out) == 0
    assert elements(out) == elements(plain)
    data = embedded(out)
    assert column(data, "path") == [*reversed(HOSTILE), *HOSTILE]
    assert data["drift"] == HOSTILE
    assert data["studies"]["columns"]["study"] == [*reversed(HOSTILE)]
    assert embedded(plain)["studies"] is None


def test_the_page_names_what_may_run_and_allows_no_connection(tmp_path: Path) -> None:
    out = write_run(tmp_path / "out", [made_row(0, "a.png", 1.0)], NORMALS)
    assert report(out) == 0
    html = (out / "report.html").read_text()
    (policy,) = [a["content"] for _, a in elements(out) if a.get("http-equiv") == "Content-Security-Policy"]
    (script,) = re.findall("<script>(.*?)</script>", html, flags=re.S)
    (style,) = re.findall("<style>(.*?)</style>", html, flags=re.S)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style)]
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    addresses = [a.get(name) for _, a in elements(out) for name in ("src", "href", "action") if a.get(name)]
    assert set(addresses) <= {"data:,", "#list"}
    assert set(re.findall(r"\w+://[^\s\"'`<]*", html)) <= {"http://www.w3.org/2000/svg"}
    assert "Research use, not for diagnosis" in html


@pytest.fixture
def cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of which the page tells fifty rows and thirty errors."""
    for name, value in (("page_data.ROWS", 50), ("page_scores.EXACT", 50), ("page_data.ERRORS", 30)):
        monkeypatch.setattr(f"scrd_fast.screening.{name}", value)
    scores = np.random.default_rng(2).normal(30, 9, 2_000).round(1)  # with many equals
    made = [made_row(i, f"{i % 83:03d}/{i}.png", None if i % 20 == 3 else float(s)) for i, s in enumerate(scores)]
    out = write_run(tmp_path / "out", made, NORMALS, shard=300)
    assert report(out) == 0
    return out


def test_of_many_rows_the_page_lists_the_first_and_counts_all(cut: Path) -> None:
    data, table = embedded(cut), f"'{cut}/results/*.parquet'"
    first = duckdb.sql(
        f"SELECT sample_id FROM {table} WHERE score IS NOT NULL ORDER BY score DESC, path, frame LIMIT 50"
    )
    assert column(data, "sample_id")[:50] == [name for (name,) in first.fetchall()]
    assert (data["rows"], data["listed"]) == (80, 50)
    status = duckdb.sql(f"SELECT status, count(*) FROM {table} GROUP BY status")
    assert data["counts"]["status"] == dict(status.fetchall())
    grid = Grid(**data["grid"])
    assert data["scores"]["count"] == data["counts"]["scored"] == 1900
    for k in range(0, grid.steps + 1, 37):
        edge = grid.edges[k]
        above = duckdb.execute(f"SELECT count(*) FROM {table} WHERE score > ?", [edge]).fetchall()
        assert above == [(data["scores"]["above"][k],)]


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=50)
@given(
    st.lists(st.floats(-1e9, 1e9).filter(lambda x: x == 0 or abs(x) > 1e-9), min_size=1, max_size=40),
    st.integers(0, 3),
)
def test_thresholds_are_short_decimals_that_cover_the_scores(values: list[float], cut: int) -> None:
    scores = np.array(values)
    grid = Grid.over(scores.min(), scores.max())
    edges = grid.edges
    assert 0 < grid.steps <= 4098
    assert (np.diff(edges) > 0).all()
    assert edges[0] <= scores.min() + 1e-9 * abs(scores.min())
    assert edges[-1] >= scores.max() - 1e-9 * abs(scores.max())
    k = grid.steps * cut // 3
    assert edges[k] == (grid.first + k) * grid.step / grid.divisor  # as JavaScript computes it
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scrd_fast.screening.page_scores.EXACT", 0)
        found = distribution(grid, [scores[:7], scores[7:]])
    assert found == {"count": len(scores), "above": [int((scores > edge).sum()) for edge in edges]}


def test_a_run_without_rows_or_scores_has_a_page(tmp_path: Path) -> None:
    for name, made in (("none", []), ("failed", [made_row(0, "a.png", None)])):
        out = write_run(tmp_path / name, made)
        assert report(out) == 0
        assert (embedded(out)["rows"], embedded(out)["normals"]) == (len(made), None)
