# SPDX-License-Identifier: Apache-2.0
"""A model's card says what the files say, and nothing else."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from scrd_fast.calibration import Calibration
from scrd_fast.card import TEMPLATE, _teacher_licence, make_card
from scrd_fast.cli import main
from scrd_fast.config import TeacherConfig
from scrd_fast.data.known import KNOWN
from scrd_fast.errors import ScrdFastError

pytestmark = pytest.mark.xdist_group("hub")

HASH = re.compile(r"`([0-9a-f]{12,64})`")
NUMBER = re.compile(r"(?<![\w.,-])-?\d[\d,]*(?:\.\d+)*(?:e[+-]?\d+)?(?!\w)")


@pytest.fixture(scope="module")
def evaluated(trained: Path, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of data whose names nobody should read in a card."""
    data = tmp_path_factory.mktemp("data") / "CANARY-hospital"
    shutil.copytree(tree, data)
    for path in list(data.glob("test/*/*.png")):
        path.rename(path.with_name(f"CANARY-{path.name}"))
    for path in list(data.glob("ground_truth/*/*.png")):
        path.rename(path.with_name(f"CANARY-{path.name}"))
    out = tmp_path_factory.mktemp("evaluations") / "lab"
    assert main(["evaluate", str(trained), str(data), "--out", str(out), "--device", "cpu", "-q"]) == 0
    return out


@pytest.fixture
def evaluation(evaluated: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(evaluated, tmp_path / "lab")


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    else:
        yield value


def failures(evaluation: Path, threshold: float) -> dict[str, list[tuple[float, str]]]:
    """By label, of the table alone."""
    rows = list(csv.DictReader((evaluation / "scores.csv").open()))
    missed = sorted((float(r["combined"]), r["path"]) for r in rows if r["label"] == "1")
    alarms = sorted(((float(r["combined"]), r["path"]) for r in rows if r["label"] == "0"), reverse=True)
    return {"1": [x for x in missed if x[0] <= threshold], "0": [x for x in alarms if x[0] > threshold]}


def unexplained(card: str, run: Path, evaluation: Path) -> list[str]:
    """Numbers and hashes of a card that are in none of the files, nor follow from them."""
    files = [run / "run.json", *(run / "model").glob("*.json"), *evaluation.glob("*.json")]
    contents = [json.loads(file.read_text()) for file in files]
    values = [leaf for content in contents for leaf in leaves(content | {"pictures": None})]
    texts = [value for value in values if isinstance(value, str)]
    calibration = Calibration.load(run / "model" / "calibration.json")
    decision = calibration.decision
    numbers: list[float] = [v for v in values if isinstance(v, int | float)]
    numbers += [x for x in (decision.expected_fpr, decision.fpr_low, decision.fpr_high) if x is not None]
    for failed in failures(evaluation, decision.threshold).values():
        numbers += [len(failed), *(score for score, _ in failed)]
    fixed = {x.strip(",.") for x in NUMBER.findall(TEMPLATE.read_text())}
    hashes = [x for x in HASH.findall(card) if x not in (*texts, calibration.id)]

    def explained(text: str) -> bool:
        digits = len(text.partition(".")[2])
        return text in fixed or text in texts or any(text in (f"{n:.4g}", f"{n:.{digits}f}", repr(n)) for n in numbers)

    body = HASH.sub("", card)
    for text in sorted(texts, key=len, reverse=True):  # notes and versions
        body = body.replace(text, "") if len(text) > 4 else body
    return hashes + [x for x in (x.strip(",.") for x in NUMBER.findall(body)) if not explained(x)]


def test_every_number_of_a_card_is_in_the_files(trained: Path, evaluation: Path) -> None:
    card = make_card(trained, [evaluation])
    assert len(NUMBER.findall(card)) > 100
    assert unexplained(card, trained, evaluation) == []


def test_a_number_that_is_in_no_file_would_be_found(trained: Path, evaluation: Path) -> None:
    card = make_card(trained, [evaluation])
    metrics = json.loads((evaluation / "metrics.json").read_text())
    value = f"{metrics['pixel']['aupro']['value']:.3f}"
    assert f"| aupro of pixels | {value} (" in card
    wrong = f"{float(value) - 0.0321:.3f}"
    assert unexplained(card.replace(f"| {value} (", f"| {wrong} ("), trained, evaluation) == [wrong]
    sha256 = json.loads((evaluation / "run.json").read_text())["identity"]["model_sha256"]
    assert unexplained(card.replace(sha256, "0" * 64), trained, evaluation) == ["0" * 64]


def test_the_header_holds_the_metrics_exactly(trained: Path, evaluation: Path) -> None:
    text = make_card(trained, [evaluation], licence="cc-by-nc-4.0")
    data = ModelCard(text).data
    assert (data.library_name, data.license) == ("scrd_fast", "cc-by-nc-4.0")
    assert {"anomaly-detection", "medical-imaging"} <= set(data.tags)
    metrics = json.loads((evaluation / "metrics.json").read_text())
    at = metrics["at_threshold"]
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found == {
        "roc_auc": metrics["auroc"]["value"],
        "average_precision": metrics["auprc"]["value"],
        "f1": at["f1"]["value"],
        "accuracy": at["accuracy"]["value"],
        "recall": at["sensitivity"]["value"],
        "specificity": at["specificity"]["value"],
    }
    assert {result.dataset_name for result in data.eval_results} == {"lab"}
    assert "| weights of this model | cc-by-nc-4.0 |" in text


def test_what_is_not_known_is_called_unknown(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "model", tmp_path / "model")
    (tmp_path / "model" / "calibration.json").unlink()
    card = make_card(tmp_path / "model")
    for line in (
        "| normal images trained on | unknown |",
        "| SHA-256 of all of them | unknown |",
        "The settings are unknown",
        "None: there is no threshold.",
        "None: this card was made without an evaluation.",
        "Unknown: this card was made without an evaluation.",
        "nothing is known of how well it finds anomalies",
        "| weights of this model | unknown |",
        "| training data | unknown |",
    ):
        assert line in card
    data = ModelCard(card).data
    assert data.license == "unknown"
    assert not data.eval_results
    assert "Not a medical device" in card


def test_failures_are_those_of_the_table(trained: Path, evaluation: Path) -> None:
    threshold = Calibration.load(trained / "model" / "calibration.json").threshold
    table = (evaluation / "scores.csv").read_text().splitlines()
    header, rows = table[0].split(","), [line.split(",") for line in table[1:]]
    for i, row in enumerate(rows):  # half of each class on the wrong side
        row[header.index("combined")] = repr(threshold + (0.25 if i % 2 else -0.25) * (1 + i))
    (evaluation / "scores.csv").write_text("\n".join(map(",".join, [header, *rows])) + "\n")
    failed = failures(evaluation, threshold)
    card = make_card(trained, [evaluation])
    for label, kind, of in (("1", "negatives", "abnormal"), ("0", "positives", "normal")):
        scores = sorted(score for score, _ in failed[label])
        assert len(scores) == 3
        line = f"- false {kind}: 3 of 6 {of} images, scores {scores[0]:.4g} to {scores[-1]:.4g}\n"
        assert line in card
    assert "CANARY" not in card
    named = make_card(trained, [evaluation], names=True)
    places = [named.index(f"  - `{path}`: {score:.4g}\n") for label in "10" for score, path in failed[label]]
    assert places == sorted(places)  # the most extreme first
    assert "CANARY-hospital" not in named


def test_data_with_a_published_split_has_its_licence(trained: Path, evaluation: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    change(run / "run.json", split="isic2018 (by hash; not MedIAnomaly's)")
    change(evaluation / "metrics.json", split="brain_tumor (MedIAnomaly)")
    card = make_card(run, [evaluation])
    isic, brain = KNOWN["isic2018"], KNOWN["brain_tumor"]
    assert f"{isic.title}; name and split: `isic2018 (by hash; not MedIAnomaly's)`. Source: {isic.source}." in card
    assert f"| training data | {isic.licence} |" in card
    assert isic.split not in card
    assert "### `brain_tumor (MedIAnomaly)`" in card
    assert f"Licence: {brain.licence}." in card
    result = ModelCard(card).data.eval_results[0]
    assert (result.dataset_type, result.dataset_name) == ("brain_tumor", "brain_tumor (MedIAnomaly)")


def refused(run: Path, *evaluations: Path) -> str:
    with pytest.raises(ScrdFastError) as caught:
        make_card(run, evaluations)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_evaluations_of_something_else_are_refused(trained: Path, evaluation: Path, tmp_path: Path) -> None:
    assert "no finished evaluation" in refused(trained, trained)
    assert "no finished evaluation" in refused(trained, tmp_path / "nothing")
    assert "two are of lab" in refused(trained, evaluation, evaluation)
    run = shutil.copytree(trained, tmp_path / "run")
    calibration = Calibration.load(run / "model" / "calibration.json")
    Calibration.fit(calibration.scores[1:], calibration.score).save(run / "model" / "calibration.json")
    assert "another calibration" in refused(run, evaluation)
    config = json.loads((run / "model" / "config.json").read_text())
    (run / "model" / "config.json").write_text(json.dumps(config | {"sigma": 3.0}))
    assert "of another model" in refused(run, evaluation)
    change(evaluation / "run.json", status="running")
    assert "no finished evaluation" in refused(trained, evaluation)


def test_names_that_others_chose_are_no_markdown(trained: Path, evaluation: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    path = run / "model" / "calibration.json"
    calibration = Calibration.load(path)
    calibration.model_copy(update={"site": "a`|<b>\n# x"}).save(path)
    change(evaluation / "metrics.json", calibration_id=Calibration.load(path).id)
    assert "| site | `a??<b>?# x` |" in make_card(run, [evaluation])


def test_licences_of_teachers_are_those_that_are_recorded() -> None:
    assert _teacher_licence(TeacherConfig(name="resnet18", source="random")) == "none needed: random numbers"
    assert _teacher_licence(TeacherConfig(name="resnet18", source="path")) == "unknown"
    pretrained = _teacher_licence(TeacherConfig(name="wide_resnet50_2", source="pretrained"))
    assert re.fullmatch(r"apache-2\.0, as timm [\d.]+ records it", pretrained)
    assert _teacher_licence(TeacherConfig(name="tf_efficientnet_lite0", source="package")) == "unknown"


def test_the_verb_writes_it(
    trained: Path, evaluation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "MODEL_CARD.md"
    assert main(["card", str(trained), str(evaluation), "--out", str(out), "-q"]) == 0
    assert capsys.readouterr() == (f"{out}\n", "")
    assert out.read_text() == make_card(trained, [evaluation])
    assert main(["card", str(trained), str(evaluation), "--out", str(out), "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out) == {"card": str(out), "evaluations": [str(evaluation)]}
    assert main(["card", str(trained), str(trained), "--out", str(out), "-q"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {trained}: no finished evaluation")
    assert main(["card", "hf://me/model", "--out", str(out), "-q"]) == 2
    assert "a folder of your own is needed" in capsys.readouterr().err


@pytest.mark.parametrize(("package", "extra"), [("huggingface_hub", "export"), ("jinja2", "model")])
def test_without_what_makes_it_a_line_says_so(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    package: str,
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["card", str(trained), "--out", str(tmp_path / "card.md"), "-q"]) == 4
    text = f"error: {package} is not installed; install this package with its [{extra}] extra\n"
    assert capsys.readouterr().err == text
