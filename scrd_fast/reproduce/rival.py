# SPDX-License-Identifier: Apache-2.0
"""One of anomalib's models, fitted and applied in an environment that has anomalib: `python -m ... JOB`.

JOB is a folder: `job.json` (model, backbone, layers, size, seed, threads, batch_size, iterations, device),
`backbone.safetensors`, and the pictures `train/`, `held_out/` and `test/` as PNG files of that size.
What comes back: `held_out.csv` and `test.csv` (name, score), `test_maps.npy` where the model gives maps, `done.json`.

Nothing else of this package is imported here. The score is the model's own; anomalib's scaling of scores by labelled
validation images is switched off, and so are its metrics and pictures.
"""

from __future__ import annotations

import csv
import inspect
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__: list[str] = []


def run(job: Path) -> dict[str, Any]:
    import numpy as np
    import torch
    from anomalib.data import Folder, PredictDataset  # type: ignore[import-not-found]
    from anomalib.engine import Engine  # type: ignore[import-not-found]
    from lightning.pytorch import seed_everything  # type: ignore[import-not-found]

    setup = json.loads((job / "job.json").read_text())
    torch.set_num_threads(setup["threads"])
    seed_everything(setup["seed"], workers=True)
    model = _model(setup, job / "backbone.safetensors")
    options: dict[str, Any] = {"train_batch_size": setup["batch_size"], "num_workers": 0}
    # Nothing of the test images is seen while it is fitted: neither for validation nor for a test.
    data = Folder("job", root=job, normal_dir="train", test_split_mode="none", val_split_mode="none", **options)
    count = len(list((job / "train").iterdir()))
    with tempfile.TemporaryDirectory(prefix="scrd_fast_rival_") as folder:
        engine = Engine(
            max_epochs=max(1, round(setup["iterations"] * setup["batch_size"] / count)),
            accelerator="gpu" if setup["device"] == "cuda" else "cpu",
            devices=1,
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
        )
        engine.fit(model, datamodule=data)
        seconds = 0.0
        for part in ("held_out", "test"):
            pictures = PredictDataset(job / part)
            loader = torch.utils.data.DataLoader(pictures, setup["batch_size"], collate_fn=pictures.collate_fn)
            start = time.perf_counter()
            batches = engine.predict(model, dataloaders=loader)
            seconds = time.perf_counter() - start
            scores = torch.cat([batch.pred_score.flatten().float().cpu() for batch in batches])
            names = [Path(path).name for batch in batches for path in batch.image_path]
            _write(job / f"{part}.csv", names, scores.tolist())
            if part == "test" and batches[0].anomaly_map is not None:
                maps = [batch.anomaly_map.float().cpu().reshape(-1, setup["size"], setup["size"]) for batch in batches]
                np.save(job / "test_maps.npy", torch.cat(maps).numpy())
    return {
        "predict_seconds_per_image": seconds / len(names),
        "peak_memory_bytes": _peak_bytes(),
        "rival_versions": {name: version(name) for name in ("anomalib", "torch", "lightning", "timm")},
    }


def _model(setup: dict[str, Any], backbone: Path) -> Any:
    import anomalib.models  # type: ignore[import-not-found]

    kind = getattr(anomalib.models, setup["model"])
    known = inspect.signature(kind).parameters
    size = (setup["size"], setup["size"])
    given = {"backbone": setup["backbone"], "layers": setup["layers"], "pre_trained": False, "input_size": size}
    options: dict[str, Any] = {name: value for name, value in given.items() if name in known}
    pre_processor = kind.configure_pre_processor(image_size=size)
    options |= {"pre_processor": pre_processor, "post_processor": False, "evaluator": False, "visualizer": False}
    model = kind(**options)
    if "backbone" in known:
        _load(model, backbone)
    return model


def _load(model: Any, path: Path) -> None:
    """Put the teacher's weights where the model has that backbone. A model that has it nowhere is an error."""
    from safetensors.torch import load_file

    weights = load_file(path)
    for module in model.modules():
        own = module.state_dict()
        if own and own.keys() <= weights.keys() and all(own[k].shape == weights[k].shape for k in own):
            module.load_state_dict({k: weights[k] for k in own})
            return
    raise SystemExit(f"{type(model).__name__}: no part of it takes the teacher's weights")


def _peak_bytes() -> int | None:
    """Of this process. Linux alone says so without counting the process that started it."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def _write(path: Path, names: list[str], scores: list[float]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "score"])
        writer.writerows(zip(names, scores, strict=True))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "done.json").write_text(json.dumps(run(folder)))
