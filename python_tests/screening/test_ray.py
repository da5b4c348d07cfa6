# SPDX-License-Identifier: Apache-2.0
"""`screen --engine ray`: the table of the local engine, whatever dies. One cluster of two workers serves all."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import texture
from PIL import Image
from run_folders import below, loaded, rows, wait_for

from scrd_fast.cli import main

# Before Ray is imported: nobody else on this machine is to use the cluster of these tests.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
pytest.importorskip("ray.data", reason="needs the extra [ray]")
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.xdist_group("ray"),  # one cluster, not one a process
]

CLUSTER = """
import sys, ray
ray.init(address="local", num_cpus=5, num_gpus=0, object_store_memory=100 * 2**20, include_dashboard=False,
         log_to_driver=False, logging_level=50)
print(ray.get_runtime_context().gcs_address, ray._private.worker._global_node.get_session_dir_path(), flush=True)
sys.stdin.read()
"""
FLAGS = ["--overlays", "2", "--device", "cpu", "--workers", "2", "--max-failures", "0.5", "--shard-size", "16", "-q"]
TIMES = {"seconds", "seconds_to_start", "seconds_by_stage", "images_per_second", "bottleneck", "processes_replaced"}


class Cluster(NamedTuple):
    pid: int
    session: Path  # Ray's logs


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A Ray of this machine, which RAY_ADDRESS names."""
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    command = [sys.executable, "-c", CLUSTER]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        address, session = process.stdout.readline().split()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_ADDRESS", address)
            yield Cluster(process.pid, Path(session))
        process.communicate("")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, files of several pages, bad files, and archives that are none: a shard of these has nothing to read."""
    made = tmp_path_factory.mktemp("in") / "KANARIE"
    made.mkdir()
    generator = np.random.default_rng(1)
    for i in range(60):
        Image.fromarray(texture(generator)).save(made / f"{i:03d}.png")
    for i in (3, 40):
        pages = [Image.fromarray(texture(generator)) for _ in range(3)]
        pages[0].save(made / f"{i:03d}-pages.tif", save_all=True, append_images=pages[1:])
    (made / "007.png").write_text("no image")
    (made / "020.png").unlink()
    (made / "020.png").symlink_to("gone")
    for i in range(18):
        (made / f"z{i:02d}.zip").write_text("no archive")
    return made


def arguments(run: Path, inputs: Path, out: Path, *flags: str) -> list[str]:
    return ["screen", str(run), str(inputs), "--out", str(out), *FLAGS, *flags]


def by_ray(run: Path, inputs: Path, out: Path, *flags: str, devices: int = 1) -> list[str]:
    return arguments(run, inputs, out, "--engine", "ray", "--devices", str(devices), *flags)


@pytest.fixture(scope="module")
def whole(trained: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the local engine makes of it, with a key."""
    made = tmp_path_factory.mktemp("whole")
    assert main(arguments(trained, folder, made / "out", "--maps", "npz", "--hash-paths", str(made / "key"))) == 0
    return made


def begin(command: list[str], *, before: str = "", **environment: str) -> subprocess.Popen[str]:
    """A process of its own: what goes wrong within Ray can end the process that is connected to it."""
    code = f"import sys\nfrom scrd_fast.cli import main\n{before}\nsys.exit(main({command!r}))"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(command: list[str], **how: str) -> tuple[int, str]:
    """The exit code of a command and what it said on stderr."""
    with begin(command, **how) as process:
        try:
            _, text = process.communicate(timeout=300)
        finally:
            process.kill()
    return process.returncode, text


def contents(out: Path) -> dict[str, bytes]:
    """Files of a run that do not say when and how long it ran."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name not in ("run.json", "summary.json", "report.html")
    }


def test_all_files_are_those_of_the_local_engine_and_no_path_is_left_anywhere(
    trained: Path, folder: Path, whole: Path, cluster: Cluster, tmp_path: Path
) -> None:
    out = tmp_path / "out #1 ü%20"
    key = whole / "key"
    assert ended(by_ray(trained, folder, out, "--maps", "npz", "--hash-paths", str(key), devices=2)) == (0, "")
    ours = contents(out)
    assert ours == contents(whole / "out")
    assert len([name for name in ours if name.startswith("results/")]) == 5
    assert len([name for name in ours if name.startswith("overlays/")]) == 2
    pages = [row for row in rows(out) if row["frame"] == 2]
    assert len(pages) == 2
    summaries = [loaded(path / "summary.json") for path in (out, whole / "out")]
    a, b = ({name: value for name, value in summary.items() if name not in TIMES} for summary in summaries)
    assert a == b
    assert min(summaries[0]["seconds_by_stage"].values()) > 0
    assert main(["report", str(out), "-q", "--fpr", "0.5", "--compact"]) == 0
    logs = [path.read_bytes() for path in cluster.session.rglob("*") if path.is_file()]
    assert any(b"Screening" in log for log in logs)
    assert not [word for word in (b"KANARIE", key.read_bytes().strip()) for log in logs if word in log]


@pytest.mark.usefixtures("cluster")
def test_a_record_of_rays_that_is_wrong_neither_loses_nor_doubles_a_row(
    trained: Path, folder: Path, whole: Path, tmp_path: Path
) -> None:
    """Ray says that all is done, and that a part is to be removed; but one part is missing, and the others are good."""
    out = shutil.copytree(whole / "out", tmp_path / "out")
    ids = [{"input_id": row["input_id"]} for row in rows(out)]
    before = contents(out)
    (out / "results" / "part-000001.parquet").unlink()
    stamps = {path: path.stat().st_mtime_ns for path in (out / "results").iterdir()}
    (out / "ray-checkpoint").mkdir()
    for name in ("done.parquet", "part-000000.pending.parquet"):
        pq.write_table(pa.Table.from_pylist(ids), out / "ray-checkpoint" / name)
    flags = ("--maps", "npz", "--hash-paths", str(whole / "key"))
    assert ended(by_ray(trained, folder, out, *flags)) == (0, "")
    assert contents(out) == before
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


@pytest.fixture(scope="module")
def many(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough for something to be under way when the first part is there."""
    made = tmp_path_factory.mktemp("many") / "in"
    made.mkdir()
    files = sorted(path for path in folder.glob("*.png") if path.is_file())
    for i in range(320):
        os.link(files[i % len(files)], made / f"{i:03d}.png")
    return made


@pytest.mark.slow
def test_a_killed_worker_and_a_killed_command_change_nothing(
    trained: Path, many: Path, cluster: Cluster, tmp_path: Path
) -> None:
    out, expected = tmp_path / "out", tmp_path / "expected"
    process = begin(by_ray(trained, many, out, devices=2))
    parts = (out / "results").glob
    wait_for(lambda: list(parts("part-*.parquet")) or process.poll() is not None, 120)
    workers = [pid for pid, text in below(cluster.pid).items() if "Screening" in text]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    wait_for(lambda: len(list(parts("part-*.parquet"))) > 2 or process.poll() is not None, 120)
    process.kill()
    process.communicate()
    assert 0 < len(rows(out)) < 320
    assert not (out / "worklist.csv").exists()
    assert ended(by_ray(trained, many, out)) == (0, "")
    assert main(arguments(trained, many, expected)) == 0
    assert contents(out) == contents(expected)


@pytest.mark.release
def test_a_killed_command_takes_its_own_cluster_along(trained: Path, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = begin(by_ray(trained, many, out), RAY_ADDRESS="")
    wait_for(lambda: list((out / "results").glob("part-*.parquet")) or process.poll() is not None, 120)
    children = below(process.pid)
    assert any("raylet" in text for text in children.values())
    process.kill()
    process.communicate()
    wait_for(lambda: not [pid for pid in children if (Path("/proc") / str(pid)).exists()], 120)
    assert 0 < len(rows(out)) < 320


@pytest.mark.release
@pytest.mark.usefixtures("cluster")
def test_a_shard_on_which_workers_always_die_is_named_and_others_are_kept(
    trained: Path, many: Path, cluster: Cluster, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = begin(by_ray(trained, many, out))
    while process.poll() is None:
        for pid, text in below(cluster.pid).items():
            if "Screening" in text and any("forkserver" in reader for reader in below(pid).values()):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    _, text = process.communicate()
    assert process.returncode == 4, text
    assert "processes died twice on shards 0, " in text
    assert ended(by_ray(trained, many, out)) == (0, "")
    assert len(rows(out)) == 320


@pytest.mark.usefixtures("cluster")
def test_a_machine_that_does_not_see_the_files_ends_the_run_and_says_so(
    trained: Path, folder: Path, tmp_path: Path
) -> None:
    patch = f"""
from pathlib import Path
from scrd_fast.screening import ray_engine
ray_engine._witnesses = lambda manifest: (Path({str(tmp_path)!r}) / "here-alone.png",)
"""
    code, told = ended(by_ray(trained, folder, tmp_path / "out"), before=patch)
    assert code == 4
    assert "inputs that the command itself sees cannot be seen there: RUN, OUT and the inputs must lie" in told
    assert len(told.strip().splitlines()) == 1
    assert not rows(tmp_path / "out")


@pytest.mark.release
@pytest.mark.usefixtures("cluster")
def test_too_many_failures_stop_a_run_that_then_goes_on(trained: Path, folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    for i in range(400):
        (bad / f"{i:03d}.png").write_text("no image")
    shutil.copy(folder / "000.png", bad)
    flags = ("--stop-on-failures", "--max-failures", "0.1")
    assert ended(by_ray(trained, bad, tmp_path / "out", *flags))[0] == 3
    assert len(rows(tmp_path / "out")) < 400
    assert not (tmp_path / "out" / "worklist.csv").exists()
    assert ended(by_ray(trained, bad, tmp_path / "out", "--max-failures", "1")) == (0, "")
    assert len(rows(tmp_path / "out")) == 400


@pytest.mark.parametrize(
    ("flags", "address", "text"),
    [
        (("--shard", "0/2"), "", "--shard: with --engine ray the cluster divides the shards"),
        (("--devices", "auto"), "", "--devices: with --engine ray expected how many actors"),
        ((), "ray://head:10001", "RAY_ADDRESS: expected the address of a cluster that this machine belongs to"),
    ],
)
def test_what_ray_cannot_do_is_one_line(
    trained: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    address: str,
    text: str,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    capsys.readouterr()
    assert main(by_ray(trained, folder, tmp_path / "out", *flags)) == 2
    told = capsys.readouterr().err
    assert text in told
    assert len(told.strip().splitlines()) == 1


@pytest.mark.usefixtures("cluster")
def test_a_cluster_that_is_too_small_is_not_waited_for(trained: Path, folder: Path, tmp_path: Path) -> None:
    code, told = ended(by_ray(trained, folder, tmp_path / "out", "--devices", "3"))
    assert code == 4
    assert "--devices 3 needs 6 CPUs; the Ray cluster has 5 CPUs" in told


def test_without_ray_the_extra_is_named_before_anything_is_written(trained: Path, folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules['ray'] = None\nfrom scrd_fast.cli import main\n"
        f"sys.exit(main({by_ray(trained, folder, tmp_path / 'out')!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert done.stderr == "error: ray[data] is not installed; install this package with its [ray] extra\n"
    assert not (tmp_path / "out").exists()


def test_what_ray_takes_to_its_own_processes_brings_no_torch_along() -> None:
    code = "import sys, scrd_fast.screening.ray_tasks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


BAR = """
import os, sys
from scrd_fast.console import Console
from scrd_fast.screening.ray_engine import quiet_terminal
with quiet_terminal(), Console().progress(10, "inputs") as advance:
    advance(10, "2 failed")
    os.write(2, b"RAYS")
    print("OURS", file=sys.stderr)
"""


@pytest.mark.release
def test_a_progress_bar_is_seen_where_ray_is_silent() -> None:
    ours, theirs = os.openpty()
    done = subprocess.run([sys.executable, "-c", BAR], stderr=theirs, check=True)
    os.close(theirs)
    told = os.read(ours, 65536)
    os.close(ours)
    assert done.returncode == 0
    assert [word in told for word in (b"2 failed", b"OURS", b"RAYS")] == [True, True, False]
