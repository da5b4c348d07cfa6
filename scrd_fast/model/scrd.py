# SPDX-License-Identifier: Apache-2.0
"""SCRD: the whole model, from normalised images to anomaly maps and scores, and its folder on disk."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from scrd_fast.config import ModelConfig, Objective, Precision, Preprocessing, Score, TeacherConfig
from scrd_fast.data.reading import normalise
from scrd_fast.errors import ScrdFastError, UnavailableError
from scrd_fast.files import write_atomically
from scrd_fast.hub import located, upload
from scrd_fast.model.blocks import Architecture, Bottleneck, ScaleAdaptation, Student
from scrd_fast.model.objectives import objective_loss
from scrd_fast.model.prediction import Prediction, prediction_of
from scrd_fast.model.teacher import Teacher, load_safetensors
from scrd_fast.model.tiling import predict_tiles
from scrd_fast.ops import contrastive_distance

if TYPE_CHECKING:
    from scrd_fast.calibration import Calibration

__all__ = ["SCRD", "LossParts", "read_config"]


class LossParts(NamedTuple):
    """The loss of a batch and what it was made of."""

    loss: Tensor  # scalar
    d_clean: Tensor  # [N, 3]
    d_noisy: Tensor | None  # [N, 3]
    weights: Tensor  # [N, 3]


class SCRD(nn.Module):
    """Scale-aware contrastive reverse distillation (Li et al., ICLR 2025).

    Images are float [N, 3, S, S], normalised with the config's mean and std, S a multiple of `teacher.multiple`.

    >>> import torch, scrd_fast
    >>> model = scrd_fast.SCRD.create("resnet18", weights="random", size=64).eval()
    >>> prediction = model(torch.zeros(2, 3, 64, 64))
    >>> prediction.map.shape, sorted(prediction.scores)
    (torch.Size([2, 1, 64, 64]), ['max', 'mean', 'top1', 'top5'])
    """

    def __init__(self, config: ModelConfig, teacher: Teacher) -> None:
        super().__init__()
        teacher.require_size(config.preprocessing.size)
        self.config = config
        self.teacher = teacher
        arch = Architecture.of(teacher)
        self.bottleneck = Bottleneck(arch)
        self.student = Student(arch)
        self.scale_adaptation = ScaleAdaptation(arch)

    @classmethod
    def create(
        cls,
        teacher: str = "wide_resnet50_2",
        *,
        weights: str = "pretrained",
        size: int = 256,
        objective: Objective = "scrd",
        score: Score = "top5",
        map_weights: bool | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> SCRD:
        """A new model. `weights` of the teacher: pretrained, random, package, or a file's path.

        `map_weights=None` weights the maps by scale exactly where the objective trains those weights. Raises
        `ScrdFastError` for an unknown teacher, unfit weights or a size that the teacher does not take,
        `UnavailableError` where weights cannot be had.
        """
        encoder = Teacher(teacher, weights)
        config = ModelConfig(
            teacher=TeacherConfig(name=teacher, source=encoder.source, sha256=encoder.fingerprint()),  # type: ignore[arg-type]
            preprocessing=preprocessing or Preprocessing(size=size),
            objective=objective,
            map_weights=objective == "paper" if map_weights is None else map_weights,
            score=score,
        )
        return cls(config, encoder)

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        return (p for p in self.parameters() if p.requires_grad)

    def reconstruct(self, features: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Student maps [N, C_k, H_k, W_k] and scale weights [N, 3] from clean teacher features."""
        embedding = self.bottleneck(features)
        return self.student(embedding), self.scale_adaptation(embedding)

    def _reconstruct_like(self, features: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """`reconstruct` in the features' dtype: under autocast a teacher may end in a layer that stays in float32."""
        student, weights = self.reconstruct(features)
        return [s.to(f.dtype) for s, f in zip(student, features, strict=True)], weights

    def forward(self, images: Tensor) -> Prediction:
        features = self.teacher(images)
        student, weights = self._reconstruct_like(features)
        return prediction_of(self.config, features, student, weights, (images.shape[2], images.shape[3]))

    @torch.inference_mode()
    def predict(self, images: Tensor, *, precision: Precision = "32") -> Prediction:
        """`forward` of images [N, 3, P, P] in [0, 1], as the reading function gives them, on the model's device.

        P is `config.preprocessing.canvas`; where that is of several tiles they are looked at one after the other.
        """
        device = next(self.parameters()).device
        inputs = normalise(images.to(device), self.config.preprocessing)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            return predict_tiles(inputs, self.config, lambda x: self(x.contiguous(memory_format=torch.channels_last)))

    def training_loss(self, images: Tensor, noisy: Tensor | None) -> LossParts:
        """Loss of a batch of normal images and the same images with synthetic anomalies.

        Both go through the teacher in one batch; bottleneck and student see the clean ones alone.
        """
        n = images.shape[0]
        with torch.no_grad():
            features = self.teacher(images if noisy is None else torch.cat([images, noisy]))
        clean = [f[:n] for f in features]
        distorted = None if noisy is None else [f[n:] for f in features]
        student, weights = self._reconstruct_like(clean)
        d_clean, d_noisy = contrastive_distance(clean, distorted, student)
        return LossParts(objective_loss(self.config.objective, d_clean, d_noisy, weights), d_clean, d_noisy, weights)

    def fingerprint(self) -> str:
        """SHA-256 of all weights, the teacher's included, and of the config."""
        digest = hashlib.sha256(self.config.model_dump_json(exclude_none=True).encode())
        for tensor in self.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors` and `config.json`; each file appears whole or not at all."""
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        if not self.config.teacher.carried:
            state = {k: v for k, v in state.items() if not k.startswith("teacher.")}
        write_atomically(folder / "model.safetensors", save(state))
        self.save_config(folder)

    def save_config(self, folder: Path) -> None:
        """Write `config.json` alone."""
        write_atomically(folder / "config.json", (self.config.model_dump_json(indent=2) + "\n").encode())

    def push_to_hub(
        self,
        repo_id: str,
        *,
        calibration: Calibration | None = None,
        card: str | None = None,
        private: bool = True,
        token: str | bool | None = None,
        branch: str | None = None,
        commit_message: str = "Model of scrd_fast",
    ) -> str:
        """Publish the model as "user/model" on the hub, in one commit whose URL is returned.

        With it go its `calibration`, without the names of devices, and its `card`, the text of `scrd-fast card`, as
        README.md; what the hub has of another calibration or card goes. A new repository is private unless `private`
        is False, an old one stays as it is. `token` and `branch` as in `from_pretrained`; a new branch is made.
        Raises `ScrdFastError` for a card or a calibration of another model, and what `scrd_fast.hub.fetch` raises.
        """
        sha256 = self.fingerprint()
        if calibration is not None and (problems := calibration.mismatch(sha256)):
            raise ScrdFastError(f"calibration: {', '.join(problems)}; `scrd-fast calibrate` makes one that fits")
        if card is not None and sha256 not in card:
            raise ScrdFastError(f"card: does not name this model, SHA-256 {sha256}; `scrd-fast card` makes one")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            self.save_pretrained(folder)
            if calibration is not None:
                calibration.without_devices().save(folder / "calibration.json")
            if card is not None:
                (folder / "README.md").write_text(card, encoding="utf-8")
            return upload(folder, repo_id, private=private, token=token, branch=branch, commit_message=commit_message)

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> SCRD:
        """Load a saved model in eval mode. Stops where the teacher's weights are not those it was trained with.

        A text "user/model" that is no folder here is a model of the hub; for these alone are `revision` (branch, tag or
        commit), `token`, `cache_dir` (of huggingface_hub) and `local_files_only`: see `scrd_fast.hub.fetch`.
        """
        folder = located(
            name_or_folder, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        config = read_config(folder)
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise ScrdFastError(f"{folder}: no model.safetensors; other formats are not read")
        named = config.teacher
        teacher = _teacher_of(named, folder)
        model = cls(config, teacher)
        try:
            missing, unexpected = model.load_state_dict(load_safetensors(weights), strict=False)
        except RuntimeError as error:  # a wrong shape
            raise ScrdFastError(f"{weights}: not the weights of this model: {' '.join(str(error).split())}") from None
        lacking = [k for k in missing if named.carried or not k.startswith("teacher.")]
        if lacking or unexpected:
            raise ScrdFastError(f"{weights}: not the weights of this model: {(lacking + unexpected)[0]} does not fit")
        if teacher.fingerprint() != named.sha256:
            raise ScrdFastError(
                f"{folder}: the weights of the teacher {named.name} ({named.source}) are not those the model was "
                f"trained with (SHA-256 {teacher.fingerprint()[:12]}, expected {named.sha256[:12]})"
            )
        return model.eval().to(device)


def _teacher_of(named: TeacherConfig, folder: Path) -> Teacher:
    try:
        teacher = Teacher(named.name, "random" if named.carried else named.source)
    except UnavailableError as error:
        raise UnavailableError(
            f"{folder}: the model was trained with the {named.source} weights of {named.name}, which it does not "
            f"carry and this machine does not have: {error}"
        ) from None
    teacher.source = named.source
    return teacher


def read_config(folder: Path) -> ModelConfig:
    """Of a model's folder. Raises `ScrdFastError`."""
    path = folder / "config.json"
    if not path.is_file():
        raise ScrdFastError(f"{folder}: no config.json; expected a folder that `save_pretrained` or `train` wrote")
    try:
        return ModelConfig.model_validate(json.loads(path.read_text()))
    except (ValidationError, json.JSONDecodeError) as error:
        detail = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(str(x) for x in detail["loc"]) or "the file"
        raise ScrdFastError(f"{path}: {where}: {detail['msg']}") from None
