# SPDX-License-Identifier: Apache-2.0
"""A run against its calibration: what alarms, what must not, and what is said where something is not known."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_tables import PIXELS, SCHEMA_2, TAGS, row, write_parts
from PIL import Image
from run_folders import loaded
from scipy import stats

from scrd_fast.calibration import Calibration
from scrd_fast.cli import main
from scrd_fast.data.facts import PictureFacts
from scrd_fast.data.reading import read_image
from scrd_fast.errors import DataError
from scrd_fast.model.scrd import SCRD

Rows = list[dict[str, Any]]


def some(count: int, seed: int, *, shift: float = 0.0, **tags: Any) -> Rows:
    """Rows of normal pictures; `shift` brightens them by standard deviations."""
    random = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        pixels = dict(zip(PIXELS, np.clip(random.normal(0.5 + 0.05 * shift, 0.05, 5), 0, 1).tolist(), strict=True))
        rows.append(row(f"{seed}-{i}.png", float(random.normal()), **pixels, **tags))
    return rows


def calibration(rows: Rows, pictures: bool = True) -> Calibration:
    facts = PictureFacts(
        pixels={name: tuple(sorted(r[name] for r in rows)) for name in PIXELS},  # type: ignore[misc]
        tags={t: {w: sum((r.get(t) or "") == w for r in rows) for w in {r.get(t) or "" for r in rows}} for t in TAGS},  # type: ignore[misc]
    )
    return Calibration.fit([r["score"] for r in rows], "mean", pictures=facts if pictures else None)


def run(out: Path, *shards: Rows, normals: Rows | None = None, **more: Any) -> Path:
    write_parts(out, *shards, **more)
    if normals is not None:
        calibration(normals).save(out / "calibration.json")
    return out


def drift(out: Path, *flags: str) -> int:
    return main(["drift", str(out), "-q", *flags])


def quantities(out: Path) -> dict[str, dict[str, Any]]:
    return {q["name"]: q for q in loaded(out / "drift.json")["quantities"]}


def test_pictures_like_those_of_the_calibration_raise_no_alarm(tmp_path: Path) -> None:
    normals, new = some(60, 0, modality="DX"), some(80, 1, modality="DX")
    failed = [row("a.png", None, None, error="missing: no such file"), row("b.png", None, status="refused")]
    out = run(tmp_path / "out", new[:30] + failed, new[30:], normals=normals)
    assert drift(out) == 0
    found = loaded(out / "drift.json")
    assert (found["alarm"], found["reasons"], found["bound"]) == (False, [], 0.1)
    assert found["run"] == {"kind": "run", "pictures": 80, "compared": 80}
    assert found["reference"]["id"] == Calibration.load(out / "calibration.json").id
    for name in ("score", *PIXELS):
        test, told = stats.ks_2samp([r[name] for r in new], [r[name] for r in normals]), quantities(out)[name]
        assert (told["effect"], told["p"]) == (test.statistic, test.pvalue)
        assert (told["n"], told["n_reference"], told["verdict"]) == (80, 60, "undecided")
        assert 0 <= told["low"] < 0.1 < told["high"]
    assert quantities(out)["modality"]["verdict"] == "alike"
    assert quantities(out)["view"]["verdict"] == "not-compared"
    assert quantities(out)["view"]["note"] == "no picture of the run and the reference has it"
    with Image.open(out / "drift.png") as picture:
        assert picture.size[0] > 1000


def test_brighter_pictures_of_another_device_alarm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    normals = some(60, 0, modality="DX", manufacturer="A")
    out = run(tmp_path / "out", some(80, 1, shift=2, modality="DX", manufacturer="B"), normals=normals)
    assert drift(out, "--json") == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found == loaded(out / "drift.json")
    verdicts = {q["name"]: q["verdict"] for q in found["quantities"]}
    assert {name for name, verdict in verdicts.items() if verdict == "shifted"} == {*PIXELS, "manufacturer"}
    assert len(found["reasons"]) == 6
    assert found["reasons"][0].startswith("pixel_mean has shifted: median 0.60")
    assert "manufacturer has shifted: B in 100 % of the pictures, 0 % of the reference's" in found["reasons"][-1]
    assert all(f"warning: {text}" in captured.err for text in found["reasons"])
    assert drift(out, "--bound", "1") == 0  # no distance is larger
    assert main(["drift", str(out)]) == 1
    assert "pixel_mean         80     60" in capsys.readouterr().err


def test_a_fifth_of_abnormal_pictures_shifts_the_score_and_raises_no_alarm(tmp_path: Path) -> None:
    normals, new = some(200, 0), some(320, 1)
    abnormal = [r | {"score": r["score"] + 6} for r in some(80, 2)]
    out = run(tmp_path / "out", new + abnormal, normals=normals)
    assert drift(out) == 0
    found = quantities(out)
    assert (found["score"]["verdict"], found["score"]["note"]) == (
        "shifted",
        "moved by abnormal pictures too: raises no alarm",
    )
    assert found["score_low"]["verdict"] == "undecided"
    middle = np.median([r["score"] for r in normals])
    low = [np.minimum([r["score"] for r in rows], middle) for rows in (new + abnormal, normals)]
    assert found["score_low"]["effect"] == stats.ks_2samp(*low).statistic
    other = run(tmp_path / "other", [r | {"score": r["score"] + 1} for r in new], normals=normals)
    assert drift(other) == 1  # all of them higher
    assert quantities(other)["score_low"]["verdict"] == "shifted"
    share = np.mean([r["score"] + 1 < middle for r in new])
    assert f"{100 * share:.3g} % of the scores lie below" in loaded(other / "drift.json")["reasons"][0]


def test_the_order_of_rows_does_not_matter_not_even_of_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scrd_fast.screening.drift.SAMPLE", 50)
    normals, new = some(40, 0, view="PA"), some(90, 1, view="PA") + some(10, 2, view="AP")
    order = np.random.default_rng(0).permutation(100)
    one = run(tmp_path / "one", new, normals=normals)
    other = run(tmp_path / "other", *([new[i] for i in order[k::3]] for k in range(3)), normals=normals[::-1])
    assert drift(one) == drift(other) == 0
    assert (one / "drift.json").read_bytes() == (other / "drift.json").read_bytes()
    found = loaded(one / "drift.json")
    assert found["run"] == {"kind": "run", "pictures": 100, "compared": 50}
    assert {q["n"] for q in found["quantities"] if "n" in q} == {50}


def test_an_old_calibration_or_table_is_compared_by_its_scores_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    normals = some(40, 0)
    for name, whose, schema in (("calibration", "reference", {}), ("table", "run", {"schema": SCHEMA_2})):
        known = [{k: v for k, v in r.items() if k not in PIXELS} for r in some(50, 1)] if schema else some(50, 1)
        out = run(tmp_path / name, known, normals=normals, **schema)
        if not schema:
            calibration(normals, pictures=False).save(out / "calibration.json")
        assert drift(out) == 0
        assert "made by an earlier version, without pixel statistics: scores alone" in capsys.readouterr().err
        found = quantities(out)
        assert found["score_low"]["n"] == 50
        note = f"not known of the {whose}"
        assert [found[q]["note"] for q in (*PIXELS, *TAGS)] == [note] * 10


def test_another_run_as_reference(tmp_path: Path) -> None:
    before = run(tmp_path / "before", some(60, 0, modality="DX"))
    after = run(tmp_path / "after", some(60, 1, modality="CT", shift=2))
    assert drift(after, "--reference", str(before)) == 1
    assert loaded(after / "drift.json")["reference"]["kind"] == "run"
    assert {"pixel_mean", "modality"} <= {n for n, q in quantities(after).items() if q["verdict"] == "shifted"}
    for out, model in ((before, "a"), (after, "b")):
        (out / "run.json").write_text(json.dumps({"identity": {"model_sha256": model}, "status": "running"}))
    assert drift(after, "--reference", str(before)) == 1
    assert {quantities(after)[name]["note"] for name in ("score", "score_low")} == {"scored by two models"}


def test_what_cannot_be_compared_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(tmp_path / "out", some(4, 1))
    for flags, text in (
        ([], "has no calibration to be compared with; --reference names another run"),
        (["--reference", str(tmp_path / "oute")], "no finished part"),
        (["--bound", "2"], "--bound"),
    ):
        assert drift(out, *flags) == 2
        assert text in capsys.readouterr().err
    assert not (out / "drift.json").exists()
    assert drift(run(tmp_path / "few", some(4, 1), normals=some(40, 0))) == 0
    assert "nothing could be compared" in capsys.readouterr().err
    assert {q["note"] for q in quantities(tmp_path / "few").values()} == {
        "fewer than 5 pictures",
        "no picture of the run and the reference has it",
    }


def test_training_and_calibrating_keep_what_later_runs_are_compared_with(
    trained: Path, tree: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(trained, tmp_path / "run")
    first = Calibration.load(model / "model" / "calibration.json").pictures
    assert first is not None
    assert {len(values) for values in first.pixels.values()} == {12}
    good = sorted((tree / "train" / "good").iterdir())
    assert main(["calibrate", str(model), *map(str, good[:12]), "-q", "--device", "cpu"]) == 0
    pictures = Calibration.load(model / "model" / "calibration.json").pictures
    assert pictures is not None
    preprocessing = SCRD.from_pretrained(model / "model").config.preprocessing
    means = sorted(float(read_image(path, preprocessing).double().mean()) for path in good[:12])
    assert pictures.pixels["pixel_mean"] == pytest.approx(means, rel=1e-12)
    assert pictures.tags["modality"] == {"": 12}
    bright = tmp_path / "bright"
    bright.mkdir()
    for path in good[12:]:
        with Image.open(path) as image:
            image.point(lambda value: min(value + 90, 255)).save(bright / path.name)
    for name, inputs, code in (("half", good[12:], 0), ("bright", [bright], 1)):
        out = tmp_path / f"{name}-out"
        flags = ["--out", str(out), "-q", "--device", "cpu", "--overlays", "0", "--workers", "1"]
        assert main(["screen", str(model), *map(str, inputs), *flags]) == 0
        assert drift(out) == code
    assert any("pixel_mean has shifted" in text for text in loaded(out / "drift.json")["reasons"])


def test_facts_of_pictures_round_and_names_of_devices_stay_out(tmp_path: Path) -> None:
    known = calibration(some(20, 0, modality="DX", manufacturer="A"))
    assert known.pictures is not None
    without = known.without_devices()
    assert without.id == known.id == calibration(some(20, 0), pictures=False).id
    without.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == without
    assert without.pictures is not None
    assert {*without.pictures.tags} == {"modality", "body_part", "view"}
    text = (tmp_path / "calibration.json").read_text()
    for change, problem in (
        ({"pixels": {**known.pictures.pixels, "pixel_std": [0.1] * 19}}, "as many images as there are scores, 20"),
        ({"pixels": {**known.pictures.pixels, "pixel_std": [0.2, *[0.1] * 19]}}, "values must be sorted"),
        ({"tags": {"modality": {"DX": 19}}}, "as many images as there are scores, 20"),
    ):
        content = json.loads(text)
        content["pictures"] |= change
        (tmp_path / "calibration.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=problem):
            Calibration.load(tmp_path / "calibration.json")


def test_drift_loads_neither_a_model_nor_torch(tmp_path: Path) -> None:
    out = run(tmp_path / "out", some(20, 1), normals=some(20, 0))
    code = (
        "import sys\nfrom scrd_fast.cli import main\n"
        f"print(main(['drift', {str(out)!r}, '-q']), 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "0 False"
