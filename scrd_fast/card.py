# SPDX-License-Identifier: Apache-2.0
"""A model's card: what it was trained on and measured at, from the files of its run and of its evaluations alone.

What these files do not say is called unknown. Header and template are huggingface_hub's (`ModelCard`); the text is that
of `model_card.md.jinja`.
"""

from __future__ import annotations

import csv
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scrd_fast.calibration import Calibration, Decision
from scrd_fast.config import TeacherConfig
from scrd_fast.data.known import KNOWN, Known
from scrd_fast.errors import MissingExtraError, ScrdFastError
from scrd_fast.evaluation import LEADING
from scrd_fast.files import read_record
from scrd_fast.hub import library
from scrd_fast.model.scrd import SCRD
from scrd_fast.model.teacher import PACKAGES
from scrd_fast.screening.screener import load

__all__ = ["Evaluation", "Failures", "make_card"]

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
UNKNOWN = "unknown"
SHOWN = 5  # failures of each kind
LOCAL = ("teacher_weights", "unlabelled", "device")  # settings that name a path or a machine
TYPES = {  # the hub's names
    "auroc": "roc_auc",
    "auprc": "average_precision",
    "f1": "f1",
    "accuracy": "accuracy",
    "sensitivity": "recall",
    "specificity": "specificity",
}


@dataclass(frozen=True)
class Failures:
    """Test images of one class on the wrong side of the threshold, the most extreme first."""

    total: int  # of that class
    scores: list[float]
    names: list[str]  # empty unless asked for

    @property
    def examples(self) -> list[tuple[str, float]]:
        return list(zip(self.names, self.scores, strict=False))[:SHOWN]


@dataclass(frozen=True)
class Evaluation:
    """One folder of `scrd-fast evaluate`."""

    name: str  # of the data set and its split, or of the folder
    known: Known | None
    metrics: dict[str, Any]
    precision: str
    missed: Failures | None  # None: no threshold
    false_alarms: Failures | None

    @property
    def at_threshold(self) -> dict[str, dict[str, float]]:
        """Its metrics, without the threshold itself."""
        return {name: value for name, value in (self.metrics["at_threshold"] or {}).items() if isinstance(value, dict)}


def make_card(run: Path, evaluations: Sequence[Path] = (), *, names: bool = False, licence: str | None = None) -> str:
    """The text of the card of a run's model: Markdown under the hub's header.

    `evaluations` are folders of `scrd-fast evaluate`; `names` lists the files of the worst failures, `licence` (an
    identifier of the hub, "apache-2.0") is what the weights are published under. Raises `ScrdFastError` where there is
    no model, and for an evaluation that is not finished, of another model or calibration, or of a data set that another
    one is of; `MissingExtraError` without huggingface_hub or jinja2.
    """
    hub = library()
    model, calibration = load(run)
    sha256 = model.fingerprint()
    measured = [_evaluation(folder, sha256, calibration, names) for folder in evaluations]
    twice = {e.name for e in measured if [o.name for o in measured].count(e.name) > 1}
    if twice:
        raise ScrdFastError(f"evaluations: two are of {', '.join(sorted(twice))}; give one of each data set")
    record = read_record(run / "run.json")
    title = f"SCRD4AD with {model.config.teacher.name}, {model.config.preprocessing.size} px"
    data = hub.ModelCardData(
        license=licence or UNKNOWN,
        library_name="scrd_fast",
        tags=["anomaly-detection", "medical-imaging", "unsupervised", "reverse-distillation", "pytorch"],
        model_name=title,
        eval_results=[result for e in measured for result in _results(hub, e)] or None,
    )
    try:
        card = hub.ModelCard.from_template(
            data,
            template_path=str(TEMPLATE),
            title=title,
            sha256=sha256,
            config=model.config,
            teacher_licence=_teacher_licence(model.config.teacher),
            record=record,
            settings=_settings(record),
            training_data=_known(record.get("split")),
            calibration=calibration,
            decision=calibration.decision if calibration else None,
            evaluations=measured,
            limits=_limits(model, calibration, measured),
            licence=licence or UNKNOWN,
            number=_number,
            bound=lambda value: "no bound" if value is None else _number(value),
            interval=_interval,
            rate=_rate,
            code=_code,
        )
    except ImportError:
        raise MissingExtraError("jinja2", "model") from None
    return str(card)


def _evaluation(folder: Path, sha256: str, calibration: Calibration | None, names: bool) -> Evaluation:
    record, metrics = read_record(folder / "run.json"), read_record(folder / "metrics.json")
    identity = record.get("identity", {})
    if identity.get("command") != "evaluate" or record.get("status") != "finished" or not metrics:
        raise ScrdFastError(f"{folder}: no finished evaluation; expected a folder that `scrd-fast evaluate` wrote")
    if identity.get("model_sha256") != sha256:
        raise ScrdFastError(
            f"{folder}: an evaluation of another model (SHA-256 {str(identity.get('model_sha256'))[:12]}, this one's "
            f"is {sha256[:12]})"
        )
    if metrics["calibration_id"] != (calibration.id if calibration else None):
        raise ScrdFastError(
            f"{folder}: an evaluation with another calibration ({metrics['calibration_id']}, the model's is "
            f"{calibration.id if calibration else None}); evaluate again"
        )
    about = _known(metrics["split"])
    missed = false_alarms = None
    if metrics["at_threshold"]:
        decision = Decision(metrics["at_threshold"]["threshold"])
        rows = _rows(folder / "scores.csv", metrics["score"])
        missed, false_alarms = (_failures(rows, decision, label, names) for label in (1, 0))
    # A folder's name was chosen for this command; the data's own path may say more than is meant to be published.
    name = metrics["split"] or folder.resolve().name
    return Evaluation(name, about, metrics, str(identity.get("precision")), missed, false_alarms)


def _known(split: str | None) -> Known | None:
    """The data set that `split_name` named."""
    return KNOWN.get(split.partition(" (")[0]) if split else None


def _rows(path: Path, score: str) -> list[tuple[str, int, float]]:
    """File, label and score of each test image."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = [(Path(row[LEADING[0]]), int(row[LEADING[1]]), float(row[score])) for row in csv.DictReader(file)]
    return [(path.name if path.is_absolute() else str(path), label, value) for path, label, value in rows]


def _failures(rows: list[tuple[str, int, float]], decision: Decision, label: int, names: bool) -> Failures:
    wrong = "normal" if label else "abnormal"
    of_class = [(score, path) for path, truth, score in rows if truth == label]
    failed = sorted((x for x in of_class if decision.verdict(x[0]) == wrong), reverse=label == 0)
    return Failures(len(of_class), [score for score, _ in failed], [path for _, path in failed] if names else [])


def _results(hub: Any, evaluation: Evaluation) -> list[Any]:
    """For the header. F1 and accuracy are those of the threshold that no test label chose."""
    measured = {name: evaluation.metrics[name] for name in ("auroc", "auprc")} | evaluation.at_threshold
    return [
        hub.EvalResult(
            task_type="image-classification",
            task_name="anomaly detection",
            dataset_type=evaluation.name.partition(" (")[0],
            dataset_name=evaluation.name,
            dataset_split="test",
            metric_type=TYPES[name],
            metric_name=f"{name}, 95 % interval {value['low']:.3f} to {value['high']:.3f}"
            + (", at the threshold from normal images" if name in evaluation.at_threshold else ""),
            metric_value=value["value"],
        )
        for name, value in measured.items()
    ]


def _settings(record: dict[str, Any]) -> dict[str, Any]:
    """Those of training, without paths of the machine that trained."""
    settings = record.get("identity", {}).get("settings", {})
    return {name: value for name, value in settings.items() if name not in LOCAL and value is not None}


def _teacher_licence(teacher: TeacherConfig) -> str:
    """By those who publish the weights, as far as it is recorded on this machine."""
    if teacher.source == "random":
        return "none needed: random numbers"
    if teacher.source == "package" and teacher.name in PACKAGES:
        about = importlib.metadata.metadata(PACKAGES[teacher.name][0])
        found = next((about[field] for field in ("License-Expression", "License") if field in about), UNKNOWN)
        return found if found.lower() != UNKNOWN else UNKNOWN
    if teacher.source == "pretrained":
        import timm

        record = timm.models.get_pretrained_cfg(teacher.name)
        if record is not None and record.license:
            return f"{record.license}, as timm {timm.__version__} records it"
    return UNKNOWN


def _limits(model: SCRD, calibration: Calibration | None, evaluations: list[Evaluation]) -> list[str]:
    """Those that follow from the files."""
    limits = []
    if not evaluations:
        limits.append("It was measured on no labelled images: nothing is known of how well it finds anomalies.")
    elif not all(e.known for e in evaluations):
        limits.append("Some results are of data that cannot be had: nobody else can repeat them.")
    if calibration is None:
        limits.append("It has no calibration: there is no threshold, only scores.")
    elif not calibration.reachable:
        limits.append("Its calibration images are too few for the rate of false alarms that was asked for.")
    if model.config.teacher.source == "random":
        limits.append("Its teacher has random weights: such a model is for tests of software.")
    return limits


def _number(value: float | None) -> str:
    """Four significant digits, whole numbers in full."""
    if value is None:
        return UNKNOWN
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _interval(value: dict[str, float]) -> str:
    """
    >>> _interval({"value": 0.9512, "low": 0.9, "high": 1.0})
    '0.951 (0.900 to 1.000)'
    """
    return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def _rate(decision: Decision) -> str:
    return _interval({"value": decision.expected_fpr, "low": decision.fpr_low, "high": decision.fpr_high})  # type: ignore[dict-item]


def _code(text: object) -> str:
    """A name that others chose, as code: none of its letters is Markdown.

    >>> _code("a`b|c")
    '`a?b?c`'
    """
    return "`" + "".join(x if x.isprintable() and x not in "`|" else "?" for x in str(text)) + "`"
