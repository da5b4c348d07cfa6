# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from scrd_fast import memory

KIB = 2**10


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("level", ["", "job", "job/step"])
def test_a_control_group_leaves_less(version: int, level: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """That of the process, or one that it is in."""
    free = memory.free_memory()
    lines = "3:cpu,cpuacct:/elsewhere\n7:memory:/job/step\n" if version == 1 else "0::/job/step\n"
    read_text = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda p: lines if str(p) == "/proc/self/cgroup" else read_text(p))
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    group = (tmp_path / "memory" if version == 1 else tmp_path) / level
    group.mkdir(parents=True, exist_ok=True)
    limit, used = ("limit_in_bytes", "usage_in_bytes") if version == 1 else ("max", "current")
    (group / f"memory.{used}").write_text(f"{8 * KIB}\n")
    (group / f"memory.{limit}").write_text(f"{10 * KIB}\n")
    assert memory.free_memory() == 2 * KIB
    cached = "total_inactive_file" if version == 1 else "inactive_file"
    (group / "memory.stat").write_text(f"anon 5\n{cached} {3 * KIB}\nactive_file 7\n")
    assert memory.free_memory() == 5 * KIB
    assert memory.memory_limit() == 10 * KIB
    (group / f"memory.{limit}").write_text("9223372036854771712\n" if version == 1 else "max\n")
    assert memory.memory_limit() is None
    assert memory.free_memory() > free / 2


def test_what_there_is_is_looked_up() -> None:
    assert 2**20 < memory.free_memory() < memory.total_memory() < 2**50
