# SPDX-License-Identifier: Apache-2.0
"""The manifest: what was written is read, shard by shard; several may create it; damage is told."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scrd_fast.data.frames import Source
from scrd_fast.errors import ScrdFastError
from scrd_fast.screening.inputs import Input
from scrd_fast.screening.manifest import Manifest, input_id

INPUTS = [
    Input(Source(Path("a.png"))),
    Input(Source(Path(os.fsdecode(b"caf\xe9.png")))),
    Input(Source(Path("b.zip"), "x/\udce9.dcm")),
    Input(Source(Path("b.zip"), "../y.dcm"), "unsafe-name: leads out", refused=True),
    Input(Source(Path("gone")), "unreadable: permission denied"),
]


def entries(manifest: Manifest) -> list[tuple[Any, ...]]:
    return [tuple(entry) for k in range(manifest.shards) for entry in manifest.shard(k)]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    manifest = Manifest.create(tmp_path / "manifest.parquet", INPUTS, 2)
    assert (manifest.count, manifest.shard_size, manifest.shards) == (5, 2, 3)
    assert [len(manifest.shard(k)) for k in range(3)] == [2, 2, 1]
    assert entries(manifest) == [(input_id(i.source), *i) for i in INPUTS]
    opened = Manifest.open(tmp_path / "manifest.parquet")
    assert entries(opened) == entries(manifest)
    assert (opened.count, opened.sha256, opened.shard_size) == (5, manifest.sha256, 2)
    assert os.listdir(tmp_path) == ["manifest.parquet"]  # noqa: PTH208


def test_the_hash_is_that_of_the_list_alone(tmp_path: Path) -> None:
    variants = {
        "same": (INPUTS, 3),
        "order": (INPUTS[::-1], 2),
        "less": (INPUTS[:-1], 2),
        "member": ([Input(Source(Path("a.png"), "x")), *INPUTS[1:]], 2),
    }
    made = {n: Manifest.create(tmp_path / n, inputs, size).sha256 for n, (inputs, size) in variants.items()}
    assert made["same"] == Manifest.create(tmp_path / "two", INPUTS, 2).sha256
    assert len(set(made.values())) == 4


def test_the_id_is_the_hash_of_path_and_member() -> None:
    assert input_id(Source(Path("in/a.png"))) == hashlib.sha256(b"in/a.png").hexdigest()[:16]
    assert input_id(Source(Path("a"), "b")) == hashlib.sha256(b"a\0b").hexdigest()[:16]


def test_a_manifest_that_is_there_stays(tmp_path: Path) -> None:
    first = Manifest.create(tmp_path / "m", INPUTS, 2)
    second = Manifest.create(tmp_path / "m", INPUTS[:1], 7)
    assert (second.sha256, second.shard_size) == (first.sha256, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def _create(path: Path, start: Any, name: str, results: Any) -> None:
    def inputs() -> Iterator[Input]:
        yield from (Input(Source(Path(f"{name}-{i}.png"))) for i in range(3000))
        start.wait()  # both are about to finish

    manifest = Manifest.create(path, inputs(), 100)
    results.put((manifest.sha256, manifest.shard(29)[99].source))


def test_of_several_processes_the_first_makes_the_manifest(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_create, args=(tmp_path / "m", start, name, results)) for name in "ab"]
    for worker in workers:
        worker.start()
    got = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert got[0] == got[1]
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_where_there_are_no_hard_links_it_is_made_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    first = Manifest.create(tmp_path / "m", INPUTS, 2)
    assert Manifest.create(tmp_path / "m", INPUTS[:1], 2).sha256 == first.sha256
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_an_error_in_the_listing_leaves_nothing_behind(tmp_path: Path) -> None:
    def inputs() -> Iterator[Input]:
        yield from INPUTS
        raise ScrdFastError("gone.png: no such file")

    with pytest.raises(ScrdFastError, match=r"gone.png"):
        Manifest.create(tmp_path / "m", inputs(), 2)
    assert not list(tmp_path.iterdir())


def test_any_damage_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m"
    wanted = entries(Manifest.create(path, INPUTS, 2))
    whole = path.read_bytes()
    silent = 0
    for position in range(0, len(whole), 3):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        try:
            silent += entries(Manifest.open(path)) != wanted
        except ScrdFastError as error:
            silent += str(path) not in str(error)
    assert silent == 0
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ScrdFastError, match="cannot be read as a manifest"):
        Manifest.open(path)


def test_other_files_are_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ScrdFastError, match="no such manifest"):
        Manifest.open(tmp_path / "gone")
    pq.write_table(pa.table({"path": ["a.png"]}), tmp_path / "list.parquet")
    with pytest.raises(ScrdFastError, match=r"list.parquet: cannot be read as a manifest"):
        Manifest.open(tmp_path / "list.parquet")
