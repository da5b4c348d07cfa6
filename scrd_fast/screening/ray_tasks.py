# SPDX-License-Identifier: Apache-2.0
"""What runs on the machines of a Ray cluster beside the models: it hands shards out, and writes their parts.

`ray_engine` says how it fits together. Wants Ray Data, and imports no torch: Ray starts several processes for these.
"""

from __future__ import annotations

import functools
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.fs import LocalFileSystem
from ray.data import Datasource
from ray.data.block import BlockAccessor, BlockMetadata
from ray.data.checkpoint import CheckpointFilter, CheckpointManager
from ray.data.datasource import BlockBasedFileDatasink, ReadTask

from scrd_fast.screening.manifest import MANIFEST, Manifest
from scrd_fast.screening.ray_board import telling
from scrd_fast.screening.writers import RESULTS, SCHEMA, commit_part, part_path, shown_id

__all__ = ["STOPPING", "Finished", "ManifestSource", "PartSink", "Stop", "Unfinished"]

STOPPING = threading.Event()  # of the command's own process

_INPUTS = pa.schema([("shard", pa.int64()), ("input_id", pa.string())])


class ManifestSource(Datasource):  # type: ignore[misc]
    """The manifest's shards `numbers`, a block each; a row is an input, known by its id in the table.

    Paths stay in the manifest, and so out of Ray's store and whatever it spills to disk.
    """

    def __init__(self, out: Path, key: bytes | None, numbers: list[int]) -> None:
        super().__init__()
        self._out, self._key, self._numbers = out, key, numbers

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None) -> Any:  # noqa: ARG002
        about = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None)
        read = functools.partial(_read, self._out, self._key)
        return [ReadTask(functools.partial(read, number), about, _INPUTS) for number in self._numbers]


def _read(out: Path, key: bytes | None, number: int) -> list[pa.Table]:
    ids = [shown_id(entry, key) for entry in _manifest(out / MANIFEST).shard(number)]
    return [pa.table([[number] * len(ids), ids], schema=_INPUTS)]


_manifest = functools.lru_cache(maxsize=1)(Manifest.open)  # a process reads many shards of one run


class Finished(CheckpointManager):  # type: ignore[misc]
    """What Ray asks for the ids that are done. Ours are told by the parts, so that the filter gets the folder alone."""

    def load_checkpoint(self, data_file_dir: Any = None, data_file_filesystem: Any = None) -> tuple[Any, int]:  # noqa: ARG002
        return str(Path(self.checkpoint_path).parent), 0  # no reference, which a filter that is restarted might miss


class Unfinished(CheckpointFilter):  # type: ignore[misc]
    """Lets a shard pass if its part is not there when its turn comes."""

    def __init__(self, config: Any, checkpoint_ref: Any) -> None:
        super().__init__(config, checkpoint_ref)
        self._out = Path(checkpoint_ref)

    def filter_rows_for_block(self, block: pa.Table) -> pa.Table:
        there = {number for number in block["shard"].unique().to_pylist() if part_path(self._out, number).is_file()}
        return block.filter(pa.array([number not in there for number in block["shard"].to_pylist()], pa.bool_()))


class PartSink(BlockBasedFileDatasink):  # type: ignore[misc]
    """Writes what `Screening` gives by the code that writes parts without Ray: a part is there whole or not at all."""

    def __init__(self, out: Path, facts: dict[str, str], board: Any) -> None:
        super().__init__(str(out / RESULTS), filesystem=LocalFileSystem())
        self._out, self._facts, self._board = out, facts, board

    def write_block(self, block: BlockAccessor, block_index: int, ctx: Any) -> None:  # noqa: ARG002
        table, clock = block.to_arrow(), time.perf_counter()
        with telling(self._board):
            for number in table["shard"].unique().to_pylist():
                rows = table.filter(pc.equal(table["shard"], number))["rows"]
                parts = [pa.Table.from_arrays(chunk.flatten().flatten(), schema=SCHEMA) for chunk in rows.chunks]
                commit_part(self._out, number, parts, self._facts)
        self._board.spent.remote({"write": time.perf_counter() - clock})


class Stop:
    """What Ray calls each time around its loop (an `ExecutionCallback`): ends it when the command has seen enough."""

    def before_execution_starts(self, executor: Any) -> None: ...

    def on_execution_step(self, executor: Any) -> None:  # noqa: ARG002
        if STOPPING.is_set():
            raise RuntimeError("stopped")

    def after_execution_succeeds(self, executor: Any) -> None: ...

    def after_execution_fails(self, executor: Any, error: Exception) -> None: ...
