# SPDX-License-Identifier: Apache-2.0
"""The file of experiments: data sets, seeds, methods, and the studies that the report is made of."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, StringConstraints, ValidationError, model_validator

from scrd_fast.baselines import METHODS
from scrd_fast.config import Strict
from scrd_fast.errors import DataError, ScrdFastError
from scrd_fast.settings import TrainSettings

__all__ = ["STUDIES", "Experiments", "Method", "data_folder", "load_experiments"]

# Names are folders and columns of tables too.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,60}$")]
Kind = Literal["trained", "baseline", "anomalib"]

_FROZEN = (  # settings that change what a method without a student of ours gives
    "teacher", "teacher_weights", "size", "fit", "intensity", "slice_axis", "batch_size", "score",
    "calibration_fraction", "device", "seed",
)  # fmt: skip
_USED: dict[Kind, tuple[str, ...]] = {"baseline": _FROZEN, "anomalib": (*_FROZEN, "iterations")}


@dataclass(frozen=True)
class Method:
    """One row of a table: how it is made, and with which settings. `model`: of a baseline or of anomalib."""

    name: str
    kind: Kind
    model: str
    settings: TrainSettings
    seeds: tuple[int, ...]  # those of the file, or the first of them

    def identity(self, seed: int) -> dict[str, Any]:
        """All of the method that a result depends on."""
        settings = self.settings.model_copy(update={"seed": seed}).identity()
        if self.kind != "trained":
            settings = {name: settings[name] for name in _USED[self.kind]}
        return {"kind": self.kind, "model": self.model, "settings": settings}

    def with_strength(self, strength: float) -> Method:
        settings = TrainSettings(**(self.settings.model_dump() | {"strength": strength}))
        return replace(self, name=f"{self.name}-strength{strength:g}", settings=settings)


class _Of(Strict):
    """A study of several methods; of all where none is named."""

    methods: tuple[Name, ...] = ()


class _Main(_Of):
    compare: Name | None = None  # against each of the others


class _Strength(Strict):
    method: Name
    values: Annotated[tuple[Annotated[float, Field(ge=0, le=10)], ...], Field(min_length=1)]


class _Lesions(Strict):
    method: Name


class _Timing(_Of):
    rounds: Annotated[int, Field(ge=1)] = 15


class _Gallery(Strict):
    method: Name
    images: Annotated[int, Field(ge=1, le=8)] = 2  # of each class


class Studies(Strict):
    """Which parts the report has, in this order."""

    main: _Main | None = None
    selection: _Of | None = None
    ablation: _Of | None = None
    strength: _Strength | None = None
    distributions: _Of | None = None
    timing: _Timing | None = None
    lesions: _Lesions | None = None
    roc: _Of | None = None
    gallery: _Gallery | None = None


STUDIES = tuple(Studies.model_fields)


class Experiments(Strict):
    """The whole file. `train` holds settings of `scrd-fast train` for every method; a method's own come first."""

    title: str = "Experiments"
    data: Annotated[dict[Name, str], Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)] = (0,)
    train: dict[str, Any] = Field(default_factory=dict)
    methods: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]
    studies: Studies

    @model_validator(mode="after")
    def _methods_and_studies_fit(self) -> Experiments:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: each must be given once, got {list(self.seeds)}")
        if "seed" in self.train:
            raise ValueError("train.seed: seeds stand in the file's own `seeds`")
        _settings("train", self.train)
        for name in self.methods:
            self.method(name)
        for study in self.asked():
            for name in self._named(study):
                if name not in self.methods:
                    raise ValueError(f"studies.{study}: no method {name!r}; known are {', '.join(self.methods)}")
        if not self.asked():
            raise ValueError(f"studies: at least one must be asked for, of {', '.join(STUDIES)}")
        for study in ("strength", "lesions", "gallery"):
            asked = getattr(self.studies, study)
            if asked is not None and self.method(asked.method).kind != "trained":
                raise ValueError(f"studies.{study}.method: must be a trained method, got {asked.method!r}")
        if self.studies.selection and any(m.kind != "trained" for m in self.methods_of("selection")):
            raise ValueError("studies.selection.methods: must be trained methods")
        main = self.studies.main
        if main and main.compare and main.compare not in [m.name for m in self.methods_of("main")]:
            raise ValueError(f"studies.main.compare: must be one of the study's methods, got {main.compare!r}")
        return self

    def asked(self) -> list[str]:
        """Names of the studies that the file asks for."""
        return [name for name in STUDIES if getattr(self.studies, name) is not None]

    def _named(self, study: str) -> tuple[str, ...]:
        asked = getattr(self.studies, study)
        return tuple(asked.methods or self.methods) if isinstance(asked, _Of) else (asked.method,)

    def methods_of(self, study: str) -> list[Method]:
        """All that a study needs a run of, for each data set and seed."""
        if study == "strength":
            assert self.studies.strength is not None
            base = self.method(self.studies.strength.method)
            return [base.with_strength(value) for value in self.studies.strength.values]
        return [self.method(name) for name in self._named(study)]

    def method(self, name: str) -> Method:
        """Raises ValueError, which names the field."""
        own, where = dict(self.methods[name]), f"methods.{name}"
        kinds: list[Kind] = [kind for kind in ("baseline", "anomalib") if kind in own]  # type: ignore[misc]
        if len(kinds) > 1:
            raise ValueError(f"{where}: baseline and anomalib exclude each other")
        kind: Kind = kinds[0] if kinds else "trained"
        model = own.pop(kind, "")
        if kind != "trained" and (not isinstance(model, str) or not model.isidentifier()):
            raise ValueError(f"{where}.{kind}: expected the name of a model, got {model!r}")
        if kind == "baseline" and model not in METHODS:
            raise ValueError(f"{where}.baseline: expected one of {', '.join(METHODS)}, got {model!r}")
        if kind != "trained" and (self.train | own).get("tiles", 1) != 1:
            raise ValueError(f"{where}.tiles: a method of the kind {kind} looks at whole images, so it must be 1")
        if "seed" in own:
            raise ValueError(f"{where}.seed: seeds stand in the file's own `seeds`")
        count = own.pop("seeds", len(self.seeds))
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= len(self.seeds):
            raise ValueError(f"{where}.seeds: expected how many of the file's {len(self.seeds)} seeds, got {count!r}")
        for field in own:
            if kind != "trained" and field in TrainSettings.model_fields and field not in _USED[kind]:
                raise ValueError(f"{where}.{field}: has no effect on a method of the kind {kind}")
        if kind != "trained" and (self.train | own).get("score", "combined") == "combined":
            if own.get("score") == "combined":
                raise ValueError(f"{where}.score: combined is a score of trained methods alone")
            own["score"] = "top5"
        return Method(name, kind, model, _settings(where, self.train | own), self.seeds[:count])


def _settings(where: str, values: dict[str, Any]) -> TrainSettings:
    try:
        return TrainSettings(**values)
    except ValidationError as error:
        raise ValueError("; ".join(f"{where}{'.' if p else ''}{p}: {text}" for p, text in _problems(error))) from None


def _problems(error: ValidationError) -> list[tuple[str, str]]:
    """Field and what is wrong with it, of each problem."""
    found = []
    for problem in error.errors(include_url=False):
        text = problem["msg"].removeprefix("Value error, ")
        if problem["type"] not in ("value_error", "missing"):
            text += f", got {problem['input']!r}"
        found.append((".".join(str(part) for part in problem["loc"] if part != "[key]"), text))
    return found


def load_experiments(path: Path) -> Experiments:
    """Read a YAML file. Raises `DataError`, which names the file and every field at fault."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(path, [" ".join(str(error).split())]) from None
    if not isinstance(content, dict):
        raise DataError(path, [f"expected 'name: value' lines, got {type(content).__name__}"])
    try:
        return Experiments.model_validate(content)
    except ValidationError as error:
        raise DataError(path, [f"{field}: {text}" if field else text for field, text in _problems(error)]) from None


def data_folder(path: Path, name: str, folder: str) -> Path:
    """The folder of a data set: `$NAME` is expanded, and a relative one counts from the file `path`.

    Raises `ScrdFastError` where there is none.
    """
    expanded = Path(os.path.expandvars(folder)).expanduser()
    if "$" in str(expanded):
        raise ScrdFastError(f"{path}: data.{name}: {folder} names an environment variable that is not set")
    root = path.parent / expanded
    if not root.is_dir():
        raise ScrdFastError(f"{path}: data.{name}: no folder {root}")
    return root
