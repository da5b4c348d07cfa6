# SPDX-License-Identifier: Apache-2.0
"""The shards of a run on a Ray cluster.

    manifest -> a block a shard, a row an input -> actors with a model each -> a row an input -> parts

Batches must follow from the manifest alone and never cross a shard: the last bits of a score may depend on its batch.
So the unit of Ray's work is a whole shard. One read task makes its one block, which nothing may split or join
(`target_max_block_size` is None), `map_batches` with `batch_size=None` hands it over as it is, and within the actor
the same `Shards` as without Ray makes rows of it. All pictures of an input stay in one row, `rows`, until the sink
writes the part, by the code that writes it without Ray. An actor looks whether what it was handed is its shard.

Ray's checkpoint holds ids of inputs (`id_column="input_id"`), but rows are there or missing by the part. Two records of
one fact may disagree: after a kill between the two, or when someone removes a part. So ours decides. Only shards
without a part are handed out, and what Ray asks of its checkpoint is answered by a look at the parts (`Finished`,
`Unfinished`) when the shard's turn comes. That keeps memory flat too, as Ray would load the ids of millions of inputs
into each of its filters, and passes over what another command has done meanwhile. What Ray itself records lies in
OUT/ray-checkpoint and is removed. A part that is written twice has the same rows.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from pyarrow.fs import LocalFileSystem

from scrd_fast.errors import MissingExtraError, ScrdFastError, UnavailableError, error_of
from scrd_fast.screening.manifest import Manifest
from scrd_fast.screening.shards import Progress, Task
from scrd_fast.screening.writers import CHECKPOINT, part_path

try:
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.data.checkpoint import CheckpointConfig
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError:
    raise MissingExtraError("ray[data]", "ray") from None

from scrd_fast.screening.ray_actor import Place, Screening
from scrd_fast.screening.ray_board import Board, State
from scrd_fast.screening.ray_tasks import STOPPING, Finished, ManifestSource, PartSink, Stop, Unfinished

__all__ = ["quiet_terminal", "screen_on_ray"]


ATTEMPTS = 2  # actors that may die of one shard
POLL = 0.25  # seconds
GRACE = 60  # seconds for Ray's threads to end
STORE = 256 * 2**20  # bytes: ids and rows are all that passes through it
FILTER = 100 * 2**20  # bytes, of an actor that looks at parts
WRITERS = 4  # parts that are written at a time
SPARE = 3  # CPUs, in Ray's books, of what reads the list, looks at parts, and writes
WITNESSES = 8


def screen_on_ray(
    task: Task, kind: str, facts: dict[str, str], manifest: Manifest, numbers: list[int], progress: Progress
) -> dict[str, float]:
    """Screen the shards `numbers` on the cluster that RAY_ADDRESS names, or on this machine. Returns `Shards.costs`.

    Raises `UnavailableError`, after all other shards are done, where two actors died of a shard, and `ScrdFastError`
    for what ended one in order.
    """
    task = dataclasses.replace(task, run=task.run.absolute(), out=task.out.absolute())
    with _cluster(task.settings.devices, kind) as local:
        needs = _needs(task.settings.devices, kind, local)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        board = ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()
        threads = max(torch.get_num_threads() // task.settings.devices, 1) if local else None
        place = Place(kind, threads, str(Path.cwd()), _witnesses(manifest))
        errors: list[BaseException] = []

        def work() -> None:
            try:
                _run(task, place, facts, numbers, needs, board)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work, daemon=True)
        STOPPING.clear()
        thread.start()
        try:
            costs = _watch(thread, board, progress)
        finally:  # a thread of Ray's that is left when the connection ends would end this process, without a word
            STOPPING.set()
            thread.join(GRACE)
        if errors:
            raise UnavailableError(f"Ray: {_first_line(errors[0])}; the same command goes on") from None
    lost = [str(number) for number in numbers if not part_path(task.out, number).is_file()]
    if lost:
        named = ", ".join(lost[:20]) + (", ..." if len(lost) > 20 else "")
        raise UnavailableError(f"processes died twice on shards {named}; the same command tries again")
    return costs


def _watch(thread: threading.Thread, board: Any, progress: Progress) -> dict[str, float]:
    """Tell of the work until it ends. Raises what an actor says cannot go on."""
    told: tuple[int, ...] = (0, 0, 0)
    going = True
    while going:
        thread.join(POLL)
        going = thread.is_alive()  # before it is asked: what was told last is heard
        try:
            state: State = ray.get(board.state.remote())
        except ray.exceptions.RayError as error:
            raise UnavailableError(f"Ray: {_first_line(error)}; the same command goes on") from None
        if state.counts != told:
            progress(*(now - before for now, before in zip(state.counts, told, strict=True)))
            told = state.counts
        if state.failure is not None:
            raise error_of(*state.failure)
    return state.costs


def _run(
    task: Task, place: Place, facts: dict[str, str], numbers: list[int], needs: dict[str, float], board: Any
) -> None:
    """The work as Ray Data sees it. Shards that are lost are passed over: others are not to wait for them."""
    folder = task.out / CHECKPOINT
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    context = DataContext.get_current().copy()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.target_max_block_size = None
    context.max_errored_blocks = -1
    context.custom_execution_callback_classes = [Stop]
    context.checkpoint_config = CheckpointConfig(
        "input_id",
        str(folder),
        override_filesystem=LocalFileSystem(),
        checkpoint_manager_cls=Finished,
        checkpoint_filter_cls=Unfinished,
    )
    context.checkpoint_config.checkpoint_actor_memory_bytes = FILTER
    actors = ActorPoolStrategy(size=task.settings.devices, max_tasks_in_flight_per_actor=1)
    with DataContext.current(context):
        inputs = ray.data.read_datasource(
            ManifestSource(task.out, task.key, numbers), override_num_blocks=len(numbers), concurrency=1
        )
        rows = inputs.map_batches(
            Screening,
            batch_size=None,
            batch_format="pyarrow",
            compute=actors,
            fn_constructor_args=(task, place, board),
            max_task_retries=ATTEMPTS - 1,
            **needs,
        )
        rows.write_datasink(PartSink(task.out, facts, board), concurrency=WRITERS)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _cluster(devices: int, kind: str) -> Iterator[bool]:
    """Be connected; whether to a cluster of our own, which ends with this."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_worker_niceness", "0")  # of a cluster of our own: as without Ray, not 15
    address = os.environ.get("RAY_ADDRESS", "")
    local = address in ("", "local")
    if address.startswith("ray://"):
        raise ScrdFastError(
            f"RAY_ADDRESS: expected the address of a cluster that this machine belongs to, got {address}; "
            "run the command on one of its machines, by `ray job submit`, for instance"
        )
    own = {
        "num_cpus": devices + SPARE,
        "num_gpus": min(devices, torch.cuda.device_count()) if kind == "cuda" else 0,
        "object_store_memory": STORE,
        "include_dashboard": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ray.init(
                address="local" if local else "auto",
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                **(own if local else {}),
            )
        except Exception as error:
            raise UnavailableError(f"Ray: {_first_line(error)}") from None
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        try:
            yield local
        finally:
            with suppress(Exception):
                ray.shutdown()


@contextmanager
def quiet_terminal() -> Iterator[None]:
    """What Ray's C++ code says on stderr, which no setting stops, goes nowhere; what Python says there stays.

    To be entered before a progress bar begins, which keeps the stderr that it finds.
    """
    before = sys.stderr
    before.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    captured = before if before is not sys.__stderr__ else None  # by who takes what Python says: that goes on
    with os.fdopen(os.dup(kept), "w", encoding="utf-8", errors="backslashreplace", buffering=1) as ours:
        os.dup2(nowhere, 2)
        sys.stderr = captured or ours
        try:
            yield
        finally:
            sys.stderr = before
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


def _needs(devices: int, kind: str, local: bool) -> dict[str, float]:
    """What Ray sets aside for an actor. Raises `UnavailableError` where there is none of it."""
    wanted = {"CPU": devices + SPARE} | ({"GPU": devices} if kind == "cuda" else {})
    have = {name: int(ray.cluster_resources().get(name, 0)) for name in wanted}
    if not local and any(have[name] < count for name, count in wanted.items()):  # it would be waited for, for ever
        needed, there = (", ".join(f"{n} {name}s" for name, n in counts.items()) for counts in (wanted, have))
        raise UnavailableError(f"--devices {devices} needs {needed}; the Ray cluster has {there}")
    if kind == "cuda":
        if not have["GPU"]:
            raise UnavailableError("device cuda: the Ray cluster has no GPU")
        return {"num_gpus": 1, "num_cpus": 1}
    if local:
        return {"num_cpus": 1}
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    return {"num_cpus": max(int(min(max(nodes), (sum(nodes) - SPARE) // devices)), 1)}


def _witnesses(manifest: Manifest) -> tuple[Path, ...]:
    """A few inputs that are there."""
    step = max(manifest.shards // WITNESSES, 1)
    firsts = (manifest.shard(number)[0].source.path for number in range(0, manifest.shards, step))
    return tuple(path for path in firsts if os.path.lexists(path))


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"
