# SPDX-License-Identifier: Apache-2.0
"""Time and memory of a training step: ours against the authors', each in a process of its own.

`python -m scrd_fast.bench.train CONTENDER JSON` is such a process; `measure` starts them in turns.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from scrd_fast.bench.authors_step import AuthorsStep
from scrd_fast.bench.roofline import best_seconds
from scrd_fast.budget import Budget, peak_bytes
from scrd_fast.data.cache import TensorCache
from scrd_fast.data.reading import normalise
from scrd_fast.device import pick_device
from scrd_fast.distributed import launch
from scrd_fast.memory import keep_freed_memory
from scrd_fast.ops import synthesize_anomalies
from scrd_fast.settings import TrainSettings
from scrd_fast.step import Step, mix
from scrd_fast.synthesis import draw_anomalies
from scrd_fast.training import new_model

__all__ = ["CONTENDERS", "Setup", "measure", "run"]

AUTHORS = "authors, float32"
CONTENDERS = (AUTHORS, "scrd_fast, float32", "scrd_fast, bfloat16", "scrd_fast, bfloat16, cached features")
LONGEST_PRODUCT = 0.5  # seconds


Timed = Callable[[int], tuple[Tensor, Tensor, Tensor]]  # iteration -> loss and both distances


@dataclasses.dataclass(frozen=True)
class Setup:
    """`rounds` processes for each contender, each with `steps` timed steps after one that is not."""

    teacher: str = "wide_resnet50_2"
    size: int = 256
    batch_size: int = 8
    device: str = "cpu"
    steps: int = 3
    rounds: int = 2
    threads: int = 2

    def settings(self, contender: str) -> TrainSettings:
        return TrainSettings(
            teacher=self.teacher,
            teacher_weights="random",
            objective="authors",
            size=self.size,
            batch_size=self.batch_size,
            precision="bf16" if "bfloat16" in contender else "32",
            cache_features="memory" if "cached" in contender else "off",
            device=self.device,  # type: ignore[arg-type]
        )


def measure(setup: Setup, log: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each contender: medians of seconds and of peak memory, the first step's loss, the budget."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for turn in range(setup.rounds):
        for name in CONTENDERS:
            log(f"round {turn + 1} of {setup.rounds}: {name}")
            command = [sys.executable, "-m", "scrd_fast.bench.train", name, json.dumps(dataclasses.asdict(setup))]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"{name}: {done.stderr.strip()[-2000:]}")
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
    rows = [_row(name, found) for name, found in results.items()]
    for row in rows:
        row["times faster"] = rows[0]["seconds"] / row["seconds"]
        row["memory share"] = row["peak_bytes"] / rows[0]["peak_bytes"]
    return rows


def _row(name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    times = sorted(t for result in found for t in result["times"])
    return found[-1] | {
        "contender": name,
        "seconds": statistics.median(times),
        "times": times,
        "peak_bytes": statistics.median(result["peak_bytes"] for result in found),
        "floor_share": statistics.median(r["flops"] / r["matmul_rate"] for r in found) / statistics.median(times),
    }


def run(contender: str, setup: Setup) -> dict[str, Any]:
    """In this process. The memory is what came on top of that after the imports."""
    torch.set_num_threads(setup.threads)
    device = pick_device(setup.device)
    before = 0 if device.type == "cuda" else peak_bytes(device)
    step, budget = _authors(setup, device) if contender == AUTHORS else _ours(contender, setup, device)
    first = [float(x) for x in step(0)]
    if budget is not None:
        budget.seconds = dict.fromkeys(budget.seconds, 0.0)
        budget.steps = 0
    times = []
    for iteration in range(1, setup.steps + 1):
        start = time.perf_counter()
        loss, *_ = step(iteration)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    if budget is not None:
        budget.settle()
    peak = peak_bytes(device) - before
    del step
    gc.collect()
    side, rate = matmul_rate(torch.bfloat16 if "bfloat16" in contender else torch.float32, device)
    return {
        "times": times,
        "first_loss": first[0],
        "first_distances": first[1:],
        "last_loss": float(loss),
        "peak_bytes": peak,
        "budget": None if budget is None else {k: v / setup.steps for k, v in budget.seconds.items()},
        "flops": count_flops(setup, cached="cached" in contender),
        "matmul_side": side,
        "matmul_rate": rate,
    }


def images_of(setup: Setup, device: torch.device) -> Tensor:
    return torch.rand(setup.batch_size, 3, setup.size, setup.size, generator=torch.Generator().manual_seed(7)).to(
        device
    )


def _authors(setup: Setup, device: torch.device) -> tuple[Timed, None]:
    settings = setup.settings(AUTHORS)
    model = new_model(settings).to(device)
    images = normalise(images_of(setup, device), model.config.preprocessing)
    generator = torch.Generator(device).manual_seed(mix(settings.seed, 2, 0))
    boxes, seeds = draw_anomalies(setup.batch_size, setup.size, generator)
    std = torch.tensor(model.config.preprocessing.std, device=device)
    noisy = synthesize_anomalies(images, boxes, seeds, strength=settings.strength, std=std)
    step = AuthorsStep(model)
    return lambda iteration: step(images, noisy), None


def _ours(contender: str, setup: Setup, device: torch.device) -> tuple[Timed, Budget]:
    settings = setup.settings(contender)
    model = new_model(settings)
    numbers, cache = list(range(setup.batch_size)), None
    if settings.cache_features != "off":
        shapes = model.teacher.shapes(setup.size)
        cache = TensorCache(len(numbers), shapes, torch.bfloat16, "memory", what="features", channels_last=True)
    budget = Budget(device)
    step = Step(launch(device, settings.precision), model, settings, cache, budget)
    model.train()
    images = images_of(setup, device)

    def timed(iteration: int) -> tuple[Tensor, Tensor, Tensor]:
        loss, d_clean, d_noisy, _ = step(iteration, images, numbers)
        assert d_noisy is not None  # for the type checker: this objective has noise
        return loss, d_clean.mean(0).sum(), d_noisy.mean(0).sum()

    return timed, budget


def count_flops(setup: Setup, cached: bool = False) -> int:
    """Of convolutions and matrix products in one step that does nothing twice: the teacher on clean and noisy images
    (on noisy ones alone where the clean features are kept), the rest forward and backward."""
    model = new_model(dataclasses.replace(setup, batch_size=2).settings(""))
    images = torch.rand(2, 3, setup.size, setup.size)
    with FlopCounterMode(display=False) as teacher, torch.no_grad():
        features = model.teacher(images)
    with FlopCounterMode(display=False) as rest:
        student, _ = model.reconstruct(features)
        torch.autograd.backward([s.sum() for s in student])
    share = setup.batch_size / 2
    return int(share * ((1 if cached else 2) * teacher.get_total_flops() + rest.get_total_flops()))


def matmul_rate(dtype: torch.dtype, device: torch.device) -> tuple[int, float]:
    """Of a product of two square matrices: how many rows they have, and operations a second. Small ones where the next
    larger ones would take long.

    A CPU without instructions for bfloat16 multiplies such matrices up to a hundred times slower than float32's.
    """
    n, largest = 256, 8192 if device.type == "cuda" else 2048
    while True:
        a = torch.rand(n, n, device=device).to(dtype)
        seconds = best_seconds(functools.partial(torch.mm, a, a), device, repeats=8)
        if n == largest or 8 * seconds > LONGEST_PRODUCT:
            return n, 2 * n**3 / seconds
        n *= 2


if __name__ == "__main__":
    if "bfloat16" in sys.argv[1]:
        keep_freed_memory()  # as `scrd-fast train` does
    print(json.dumps(run(sys.argv[1], Setup(**json.loads(sys.argv[2])))))
