# SPDX-License-Identifier: Apache-2.0
"""anomalib's models by `Engine.predict`, in an environment that has them: `python -m ... CONTENDER JSON`.

Nothing else of this package is imported here. Backbones have random weights, nothing is trained, no picture is drawn
and no metric is computed. Loaders have a worker for each thread; each file is resized as it is read.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["RIVALS"]

SAME, DEEP, DEEPER = ("layer1", "layer2", "layer3"), ("layer2", "layer3"), ("layer2", "layer3", "layer4")
# Name -> class, layers: once those of ours, once anomalib's defaults, which are coarser and so faster.
RIVALS: dict[str, tuple[str, tuple[str, ...]]] = {
    "anomalib ReverseDistillation": ("ReverseDistillation", SAME),
    "anomalib PatchCore": ("Patchcore", DEEP),
    "anomalib PatchCore, layers 1-3": ("Patchcore", SAME),
    "anomalib CFlow": ("Cflow", DEEPER),
    "anomalib CFlow, layers 1-3": ("Cflow", SAME),
}
FITTED_ON = 24  # images of PatchCore's memory; its size alone decides how long a search takes


def run(contender: str, setup: dict[str, Any]) -> dict[str, Any]:
    import torch
    from anomalib.data import PredictDataset  # type: ignore[import-not-found]
    from anomalib.engine import Engine  # type: ignore[import-not-found]
    from torchvision.transforms.v2 import Resize  # type: ignore[import-untyped]

    torch.set_num_threads(setup["threads"])
    torch.manual_seed(setup["seed"])
    size = (setup["size"], setup["size"])
    data = PredictDataset(Path(setup["data"]), transform=Resize(size, antialias=True))

    def loader(count: int) -> Any:
        return torch.utils.data.DataLoader(
            torch.utils.data.Subset(data, range(min(count, len(data)))),
            batch_size=setup["batch_size"],
            collate_fn=data.collate_fn,
            num_workers=setup["threads"],
        )

    model = _model(contender, setup["teacher"], size)
    fit = time.perf_counter()
    rows = _fill_memory(model, loader(FITTED_ON), setup["bank"]) if "PatchCore" in contender else None
    with tempfile.TemporaryDirectory(prefix="scrd_fast_bench_") as folder:
        accelerator = "gpu" if setup["device"] == "cuda" else "cpu"
        options: dict[str, Any] = {"accelerator": accelerator, "devices": 1, "default_root_dir": folder}
        engine = Engine(logger=False, enable_progress_bar=False, **options)
        engine.predict(model, dataloaders=loader(setup["batch_size"]))  # warms up
        start = time.perf_counter()
        batches = engine.predict(model, dataloaders=loader(len(data)))
        seconds = time.perf_counter() - start
    scores = torch.cat([batch.pred_score.flatten().cpu() for batch in batches])
    assert len(scores) == len(data)
    return {
        "images": len(data),
        "seconds": seconds,
        "images_per_second": len(data) / seconds,
        "apart_seconds": start - fit,
        "layers": list(RIVALS[contender][1]),
        "memory_bank": rows,
        "finite": bool(scores.isfinite().all()),
        "versions": {name: version(name) for name in ("anomalib", "torch", "torchvision", "lightning", "timm")},
    }


def _model(contender: str, backbone: str, size: tuple[int, int]) -> Any:
    import anomalib.models  # type: ignore[import-not-found]

    name, layers = RIVALS[contender]
    kind = getattr(anomalib.models, name)
    pre_processor = kind.configure_pre_processor(image_size=size)
    options: dict[str, Any] = {"pre_trained": False, "visualizer": False, "evaluator": False}
    return kind(backbone=backbone, layers=list(layers), pre_processor=pre_processor, **options)


def _fill_memory(model: Any, loader: Any, rows: int) -> list[int]:
    """PatchCore's own way without a trainer: features of all patches, then a coreset of so many. [rows, channels]."""
    import torch

    model.model.train()
    with torch.no_grad():
        for batch in loader:
            model.model(model.pre_processor.transform(batch.image))
    patches = sum(len(features) for features in model.model.embedding_store)
    model.model.subsample_embedding(min(rows / patches, 1.0))
    model.model.eval()
    return list(model.model.memory_bank.shape)


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], json.loads(sys.argv[2]))))
