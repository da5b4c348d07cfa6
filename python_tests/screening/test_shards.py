# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import texture
from PIL import Image
from run_folders import below, command, rows, wait_for

from scrd_fast.cli import main
from scrd_fast.screening import writers
from scrd_fast.screening.writers import read_part, write_part

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

FLAGS = ["--shard-size", "8", "--overlays", "0", "--device", "cpu", "--workers", "2", "-q"]


def arguments(run: Path, inputs: Path, out: Path, *flags: str) -> list[str]:
    return ["screen", str(run), str(inputs), "--out", str(out), *FLAGS, *flags]


def begin(*given: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "scrd_fast", *arguments(*given)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images, two of which are bad, and archives that are not: a shard of theirs has nothing to read."""
    made = tmp_path_factory.mktemp("in")
    generator = np.random.default_rng(1)
    for i in range(40):
        Image.fromarray(texture(generator)).save(made / f"{i:03d}.png")
    (made / "007.png").write_text("no image")
    (made / "020.png").unlink()
    (made / "020.png").symlink_to("gone")
    for i in range(24):
        (made / f"z{i:02d}.zip").write_text("no archive")
    return made


@pytest.fixture(scope="module")
def whole(trained: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(arguments(trained, folder, out, "--max-failures", "0.5")) == 0
    return rows(out)


def test_shares_at_the_same_time_give_the_table_of_one_run(
    trained: Path, folder: Path, whole: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    more = ("--max-failures", "1", "--shard")
    working = [begin(trained, folder, out, *more, share) for share in ("0/3", "1/3", "2/3", "2/3")]
    for process in working:
        _, text = process.communicate()
        assert process.returncode == 0, text
    assert rows(out) == whole
    assert (out / "worklist.csv").is_file()
    assert json.loads((out / "summary.json").read_text())["inputs"] == 64
    stamps = {path: path.stat().st_mtime_ns for path in (out / "results").iterdir()}
    assert main(arguments(trained, folder, out, *more, "1/3")) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "results").iterdir()} == stamps


def test_shares_one_after_the_other_end_with_a_summary(
    trained: Path, folder: Path, whole: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for k in (2, 0, 1):
        assert not (out / "worklist.csv").exists()
        assert main(arguments(trained, folder, out, "--max-failures", "1", "--shard", f"{k}/3")) == 0
    assert rows(out) == whole
    assert (out / "worklist.csv").is_file()


def test_a_device_process_that_is_killed_is_replaced_and_the_table_is_that_of_one_device(
    trained: Path, folder: Path, whole: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = begin(trained, folder, out, "--max-failures", "0.5", "--devices", "2")
    wait_for(lambda: list((out / "results").glob("part-*")) or process.poll() is not None, 60)
    devices = [pid for pid, text in below(process.pid).items() if "spawn_main" in text]
    if devices:  # it may be done already
        os.kill(devices[0], signal.SIGKILL)
    _, text = process.communicate()
    assert process.returncode == 0, text
    assert rows(out) == whole


@pytest.mark.slow
def test_shards_on_which_processes_always_die_are_named_and_done_later(
    trained: Path, folder: Path, tmp_path: Path
) -> None:
    few, out = tmp_path / "in", tmp_path / "out"
    few.mkdir()
    for path in (*sorted(folder.glob("*.png"))[:12], *sorted(folder.glob("*.zip"))[:12]):
        (few / path.name).symlink_to(path)
    process = begin(trained, few, out, "--max-failures", "1", "--devices", "2")
    killed: set[int] = set()
    while process.poll() is None:
        for pid, text in below(process.pid).items():
            if "spawn_main" in text and pid not in killed and _has_readers(pid):
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        time.sleep(0.01)
    _, text = process.communicate()
    assert process.returncode == 4, text
    assert "processes died twice on shard " in text
    assert "(signal 9)" in text
    assert len(killed) >= 2
    assert main(arguments(trained, few, out, "--max-failures", "1", "--devices", "1")) == 0
    assert len(rows(out)) == 24


def _has_readers(pid: int) -> bool:
    return sum("forkserver" in text for text in below(pid).values()) > 1


def kill_at(process: subprocess.Popen[str], out: Path, delay: float, begins: bool) -> None:
    """While it begins, or soon after its next part; and see what it started end too."""
    before = len(list((out / "results").glob("part-*")))

    def reached() -> bool:
        there = out.exists() if begins else len(list((out / "results").glob("part-*"))) > before
        return there or process.poll() is not None

    wait_for(reached, 60)
    time.sleep(delay)
    children = below(process.pid)
    process.kill()
    process.communicate()
    wait_for(lambda: not [pid for pid, text in children.items() if text and command(pid) == text], 20)


def test_a_run_that_is_killed_at_any_moment_goes_on_to_the_same_rows(
    trained: Path, folder: Path, whole: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    chance = random.Random(5)
    for attempt in range(6):
        process = begin(trained, folder, out, "--max-failures", "0.5")
        kill_at(process, out, chance.uniform(0, 0.1), begins=attempt % 2 == 0)
        for part in (out / "results").glob("part-*.parquet"):
            read_part(part)
    assert main(arguments(trained, folder, out, "--max-failures", "0.5")) == 0
    assert rows(out) == whole
    assert (out / "calibration.json").is_file()
    assert json.loads((out / "run.json").read_text())["status"] == "finished"


def test_what_a_process_left_that_was_killed_as_it_began_is_no_other_run(
    trained: Path, folder: Path, whole: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".run.json.123-abcdef01.tmp").write_text("{")
    assert main(arguments(trained, folder, out, "--max-failures", "0.5")) == 0
    assert rows(out) == whole


def test_a_full_disk_is_told_and_what_was_finished_is_kept(
    trained: Path,
    folder: Path,
    whole: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, before = tmp_path / "out", below(os.getpid())

    def full(path: Path, tables: Any, facts: Any) -> None:
        if path.name == "part-000002.parquet":
            raise OSError(errno.ENOSPC, "No space left on device")
        write_part(path, tables, facts)

    with monkeypatch.context() as patch:
        patch.setattr(writers, "write_part", full)
        assert main(arguments(trained, folder, out)) == 2
    assert "No space left on device; what was finished before is kept" in capsys.readouterr().err
    assert rows(out) == whole[:16]
    left = {pid: text for pid, text in below(os.getpid()).items() if pid not in before}
    assert sum("forkserver" in text for text in left.values()) <= 1  # the one that makes readers stays
    assert main(arguments(trained, folder, out, "--max-failures", "0.5")) == 0
    assert rows(out) == whole


@pytest.mark.parametrize("devices", ["1", "2"])
def test_too_many_failures_stop_a_run_that_then_goes_on(
    trained: Path, tmp_path: Path, folder: Path, devices: str
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    for i in range(96):  # more shards than two devices have at hand when the limit is reached
        (bad / f"{i:02d}.png").write_text("no image")
    for path in sorted(folder.iterdir())[:4]:
        (bad / f"a{path.name}").symlink_to(path)
    out = tmp_path / "out"
    flags = ("--stop-on-failures", "--max-failures", "0.2", "--devices", devices)
    process = begin(trained, bad, out, *flags)
    _, text = process.communicate(timeout=300)
    assert process.returncode == 3, text
    assert "stopped" in text
    assert len(rows(out)) < 100
    assert not (out / "worklist.csv").exists()
    assert main(arguments(trained, bad, out, "--max-failures", "1", "--devices", "1")) == 0
    assert len({row["input_id"] for row in rows(out)}) == len(rows(out)) == 100
