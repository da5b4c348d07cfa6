# SPDX-License-Identifier: Apache-2.0
"""SCRD for anomalib's `Engine`: training with synthetic anomalies, tests, predictions and exports.

The model is this package's own, `Scrd.model.scrd`, and so are synthesis, objectives and operators. Loops, data,
metrics, thresholds and files are anomalib's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from anomalib import LearningType
from anomalib.data import Batch, InferenceBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch import Tensor, nn
from torchvision.transforms.v2 import Compose, Normalize, Resize

from scrd_fast.choices import Noise, Objective, Score
from scrd_fast.config import ModelConfig, Preprocessing
from scrd_fast.errors import ScrdFastError
from scrd_fast.model.objectives import needs_noise, trains_weights
from scrd_fast.model.scrd import SCRD
from scrd_fast.step import mix
from scrd_fast.synthesis import add_anomalies, draw_anomalies

__all__ = ["Scrd", "ScrdModel"]

CONFIG = "scrd_config"  # where a checkpoint keeps the model's config


class ScrdModel(nn.Module):
    """Normalised images [N, 3, S, S] to anomalib's `InferenceBatch`: the stored score [N], the map [N, 1, S, S]."""

    def __init__(self, scrd: SCRD) -> None:
        super().__init__()
        self.scrd = scrd
        scrd.scale_adaptation.requires_grad_(trains_weights(scrd.config.objective))  # several processes wait for all

    def forward(self, images: Tensor) -> InferenceBatch:
        prediction = self.scrd(images)
        return InferenceBatch(pred_score=prediction.scores[self.scrd.config.score], anomaly_map=prediction.map)


class Scrd(AnomalibModule):  # type: ignore[misc]
    """Scale-aware contrastive reverse distillation (Li et al., ICLR 2025) as an anomalib model.

    `backbone` and `weights` are the teacher: a timm name, and pretrained, random, package or a file's path.
    `objective`, `score`, `noise`, `strength` and `lr` mean what they mean for `scrd-fast train`; the score "combined"
    is there for models of `from_pretrained` alone, since held-out normal images make it. The other arguments are those
    of every anomalib model. The pre-processor says how large the images are, square, and how they are normalised.

    Synthetic anomalies follow from the seed that `lightning.seed_everything` sets, and from process, epoch and batch.

    Raises `ScrdFastError` for a pre-processor that does not resize to squares, an unknown backbone, unfit weights or a
    size that the teacher does not take, `UnavailableError` where weights cannot be had.
    """

    def __init__(
        self,
        backbone: str = "wide_resnet50_2",
        weights: str = "pretrained",
        objective: Objective = "scrd",
        score: Score = "top5",
        noise: Noise = "opensimplex",
        strength: float = 0.2,
        lr: float = 1e-3,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        self.noise, self.strength, self.lr = noise, strength, lr
        preprocessing = _preprocessing_of(self)
        scrd = SCRD.create(backbone, weights=weights, objective=objective, score=score, preprocessing=preprocessing)
        self.model = ScrdModel(scrd)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> Scrd:
        """The model that `scrd-fast train` or `SCRD.save_pretrained` wrote, with `options` of the constructor.

        Raises `ScrdFastError` as `SCRD.from_pretrained` does, and for a model that looks at tiles or pads pictures.
        """
        scrd = SCRD.from_pretrained(folder)
        config, shape = scrd.config, scrd.config.preprocessing
        if shape.tiles > 1 or shape.fit != "stretch":
            raise ScrdFastError(f"{folder}: anomalib needs tiles 1 and fit stretch, got {shape.tiles} and {shape.fit}")
        transform = Compose([Resize((shape.size, shape.size), antialias=True), Normalize(shape.mean, shape.std)])
        own = {"backbone": config.teacher.name, "weights": "random", "objective": config.objective}
        module = cls(**(own | {"pre_processor": PreProcessor(transform)} | options))
        module.model = ScrdModel(scrd)
        return module

    @classmethod
    def load_from_checkpoint(cls, *arguments: Any, **options: Any) -> Scrd:
        """As anomalib's; since a checkpoint has the teacher's weights, too, these are not looked for elsewhere."""
        module: Scrd = super().load_from_checkpoint(*arguments, **({"weights": "random"} | options))
        return module

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[CONFIG] = self.model.scrd.config.model_dump_json()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.model.scrd.config = ModelConfig.model_validate_json(checkpoint[CONFIG])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.scrd.trainable_parameters(), lr=self.lr, betas=(0.5, 0.999))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        images = batch.image.as_subclass(Tensor)
        parts = self.model.scrd.training_loss(images, self._noisy(images, batch_idx))
        self.log("train_loss", parts.loss.detach(), on_epoch=True, prog_bar=True, batch_size=len(images))
        return {"loss": parts.loss}

    def _noisy(self, images: Tensor, batch_idx: int) -> Tensor | None:
        config = self.model.scrd.config
        if not needs_noise(config.objective):
            return None
        place = mix(torch.initial_seed(), self.global_rank, self.current_epoch)
        generator = torch.Generator(images.device).manual_seed(mix(place, 2, batch_idx))
        boxes, seeds = draw_anomalies(len(images), images.shape[2], generator)
        std = torch.tensor(config.preprocessing.std, device=images.device)
        return add_anomalies(self.noise, images, boxes, seeds, strength=self.strength, std=std)

    def validation_step(self, batch: Batch, batch_idx: int) -> Batch:
        del batch_idx
        return batch.update(**self.model(batch.image)._asdict())

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        return {"num_sanity_val_steps": 0}

    @property
    def learning_type(self) -> LearningType:
        return LearningType.ONE_CLASS


def _preprocessing_of(module: Scrd) -> Preprocessing:
    """What the pre-processor does, as the model's config keeps it: seen as a black and a white pixel go through."""
    size = module.input_size
    if size is None or size[0] != size[1] or size[0] % 32:
        got = "no size" if size is None else f"{size[0]} x {size[1]}"
        raise ScrdFastError(f"pre_processor must resize to squares of a multiple of 32 pixels, got {got}")
    shades = torch.stack([torch.zeros(3, 1, 1), torch.ones(3, 1, 1)])
    black, white = module.pre_processor.transform(shades)[:, :, 0, 0].double()
    std = 1 / (white - black)
    mean, std = (values.tolist() for values in ((-black * std).round(decimals=6), std.round(decimals=6)))
    return Preprocessing(size=size[0], mean=mean, std=std)
