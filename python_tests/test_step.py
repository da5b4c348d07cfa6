# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TRAIN_FLAGS
from test_training import curve, same, settings, weights
from torch import Tensor, nn

from scrd_fast import SCRD
from scrd_fast.budget import Budget, peak_bytes
from scrd_fast.cli import main
from scrd_fast.data.cache import TensorCache
from scrd_fast.data.datasets import open_dataset
from scrd_fast.distributed import launch
from scrd_fast.step import Step
from scrd_fast.training import new_model, train

CPU = torch.device("cpu")


def made(cache: TensorCache | None = None, device: torch.device = CPU, **changes: Any) -> tuple[Step, SCRD]:
    asked = settings(device=device.type, **changes)
    model = new_model(asked)
    step = Step(launch(device, asked.precision), model, asked, cache, Budget(device))
    model.train()
    return step, model


def images(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def trained_weights(model: SCRD) -> list[Tensor]:
    return [p.detach() for p in model.trainable_parameters()]


def test_a_batch_in_parts_has_the_mean_of_their_gradients() -> None:
    """Of two equal parts, whose batch-norms see the same, that is the gradient of one."""
    half = images(4)
    one, whole = made(objective="rd4ad")
    one(0, half, list(range(4)))
    two, parts = made(objective="rd4ad", accumulate=2, batch_size=8)
    loss = two(0, torch.cat([half, half]), list(range(8)))
    assert loss.d_clean.shape == (8, 3)
    for a, b in zip(trained_weights(whole), trained_weights(parts), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


class Counted(nn.Module):
    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module, self.seen = module, 0

    def forward(self, x: Tensor) -> Any:
        self.seen += len(x)
        return self.module(x)


@pytest.mark.parametrize(("objective", "each"), [("rd4ad", 0), ("scrd", 4)])
def test_kept_features_spare_the_teacher_the_clean_images(objective: Any, each: int) -> None:
    shapes = [(64, 16, 16), (128, 8, 8), (256, 4, 4)]
    cache = TensorCache(6, shapes, torch.bfloat16, "memory", what="features", channels_last=True)
    step, model = made(cache, objective=objective, cache_features="memory")
    plain, other = made(objective=objective)
    step.teacher = counted = Counted(step.teacher)
    everything, seen = images(6), []
    for iteration, numbers in enumerate(([0, 1, 2, 3], [4, 5, 0, 1], [2, 3, 4, 5], [5, 1, 1, 0])):
        loss = step(iteration, everything[numbers], numbers).loss
        torch.testing.assert_close(loss, plain(iteration, everything[numbers], numbers).loss, rtol=2e-2, atol=0)
        seen.append(counted.seen)
    assert seen == [4 + each, 6 + 2 * each, 6 + 3 * each, 6 + 4 * each]
    assert not all(torch.equal(a, b) for a, b in zip(trained_weights(model), trained_weights(other), strict=True))


def test_runs_keep_features_where_they_are_told(tree: Path, tmp_path: Path) -> None:
    for place in ("memory", "disk"):
        flags = [*TRAIN_FLAGS, "--cache-features", place, "--cache", place, "-q"]
        assert main(["train", str(tree), "--out", str(tmp_path / place), *flags]) == 0
    assert curve(tmp_path / "memory") == curve(tmp_path / "disk")
    assert not list(tmp_path.rglob("*.cache"))


def test_where_images_are_kept_is_no_part_of_a_run() -> None:
    assert settings(cache="off").identity() == settings(cache="disk").identity()
    assert settings(cache_features="memory").identity() != settings().identity()


def test_bfloat16_follows_float32(tree: Path, tmp_path: Path) -> None:
    for precision in ("32", "bf16"):
        train(open_dataset(tree), tmp_path / precision, settings(precision=precision))
    for (_, a), (_, b) in zip(curve(tmp_path / "32"), curve(tmp_path / "bf16"), strict=True):
        assert a == pytest.approx(b, rel=0.03)
        assert a != b


def test_a_compiled_run_follows_the_eager_one(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a backend that traces but generates no code, for which there is no time."""
    compiled: list[nn.Module] = []
    compile_ = torch.compile

    def traced(module: nn.Module, mode: str | None = None, **_: Any) -> Any:
        assert mode is None  # reduce-overhead is for GPUs
        compiled.append(module)
        return compile_(module, backend="aot_eager")

    train(open_dataset(tree), tmp_path / "eager", settings())
    monkeypatch.setattr(torch, "compile", traced)
    train(open_dataset(tree), tmp_path / "compiled", settings(compile=True))
    assert len(compiled) >= 2  # fabric compiles again what it has wrapped
    for (_, a), (_, b) in zip(curve(tmp_path / "eager"), curve(tmp_path / "compiled"), strict=True):
        assert a == pytest.approx(b, rel=5e-3)


def test_a_full_disk_loses_nothing_that_was_saved(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", str(tree), "--out", str(tmp_path / "run"), *TRAIN_FLAGS, "--checkpoint-every", "2", "-q"]
    write = __import__("scrd_fast.runs", fromlist=["write_atomically"]).write_atomically

    def full(path: Path, data: Any) -> None:
        if path.name == "iteration-00000004.pt":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    with monkeypatch.context() as patched:
        patched.setattr("scrd_fast.runs.write_atomically", full)
        assert main(command) == 2
    error = capsys.readouterr().err
    assert "the checkpoint of iteration 4 could not be written (No space left on device)" in error
    assert "nothing that was saved before is lost: the last good checkpoint is" in error
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["iteration-00000002.pt"]
    assert main(command) == 0
    whole = [*command[:3], str(tmp_path / "whole"), *command[4:]]
    assert main(whole) == 0
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_a_run_says_where_its_time_went(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tree), "--out", str(tmp_path / "run"), *TRAIN_FLAGS]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    parts = {"load", "noise", "teacher", "student", "loss", "backward", "optimizer"}
    assert set(record["step_seconds"]) == parts
    assert all(seconds > 0 for seconds in record["step_seconds"].values())
    assert 10**8 < record["peak_memory_bytes"] <= peak_bytes(CPU)
    text = capsys.readouterr().err
    assert "a step took" in text
    assert all(f"{part} " in text for part in parts)


def test_parts_must_divide_the_batch(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", str(tree), "--out", str(tmp_path / "run"), *TRAIN_FLAGS]
    assert main([*command, "--accumulate", "3"]) == 2
    assert "--batch-size must be a multiple of 3, and at least 6, for 1 processes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_automatic_batch_size_is_that_of_the_run_or_a_gpus(
    trained: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f for f in TRAIN_FLAGS if f not in ("--batch-size", "4")]
    assert main(["train", str(tree), "--out", str(tmp_path / "run"), *flags, "--batch-size", "auto"]) == 2
    assert "--batch-size auto needs a CUDA device, got cpu" in capsys.readouterr().err
    assert main(["train", str(tree), "--out", str(trained), *flags, "--batch-size", "auto"]) == 0
    assert "batch size 4" in capsys.readouterr().err
    assert main(["train", str(tree), "--out", str(tmp_path / "run"), *flags, "--batch-size", "many"]) == 2
    assert "--batch-size" in capsys.readouterr().err


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept() -> None:
    """A large tensor lies in the heap, not in a mapping of its own, and the heap stays as large when it goes."""
    code = (
        "import ctypes, sys, torch; from scrd_fast.memory import keep_freed_memory\n"
        "if sys.argv[1] == 'keep': assert keep_freed_memory()\n"
        "sbrk = ctypes.CDLL(None).sbrk; sbrk.restype = ctypes.c_void_p; sbrk.argtypes = [ctypes.c_long]\n"
        "tensor = torch.ones(2**26); end = sbrk(0); inside = tensor.data_ptr() < end\n"
        "del tensor; print(inside and sbrk(0) == end)"
    )
    found = [
        subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True).stdout
        for how in ("keep", "new")
    ]
    assert found == ["True\n", "False\n"]
