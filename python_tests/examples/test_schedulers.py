# SPDX-License-Identifier: Apache-2.0
"""The files for Kubernetes and Slurm: their own commands, run as these would run them, give the table of one run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from scrd_fast.cli import main
from scrd_fast.screening.writers import read_part

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = ["--shard-size", "2", "--device", "cpu", "--workers", "1", "--overlays", "0", "-q"]


@pytest.fixture
def job() -> dict[str, Any]:
    return dict(yaml.safe_load((EXAMPLES / "kubernetes" / "indexed-job.yaml").read_text()))


def of_pod(job: dict[str, Any], index: int, places: dict[str, Path]) -> list[str]:
    """The command as the kubelet starts it in the pod of that index, with folders of this machine for the volumes."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    given = [word.replace("$(JOB_COMPLETION_INDEX)", str(index)) for word in container["command"]]
    assert given[0] == "scrd-fast"
    assert places.keys() <= mounts & set(given)
    return [str(places.get(word, word)) for word in given[1:]]


@pytest.fixture
def places(trained: Path, tree: Path, tmp_path: Path) -> dict[str, Path]:
    return {"/run": trained, "/images": tree / "test", "/results": tmp_path / "results"}


def rows(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((out / "results").glob("part-*.parquet")) for row in read_part(path)]


@pytest.fixture(scope="module")
def whole(trained: Path, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(["screen", str(trained), str(tree / "test"), "--out", str(out), *SMALL]) == 0
    return rows(out)


@pytest.mark.slow
def test_all_pods_of_the_job_give_the_table_of_one_run_also_when_one_is_killed(
    job: dict[str, Any], places: dict[str, Path], whole: list[dict[str, Any]]
) -> None:
    spec, out = job["spec"], places["/results"]
    commands = [of_pod(job, index, places) for index in range(spec["completions"])]
    assert len({tuple(command) for command in commands}) == spec["completions"]
    killed = process(commands[1])
    wait_for_a_part(out, killed)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert 0 < len(rows(out)) < len(whole) / 2
    with ThreadPoolExecutor(spec["parallelism"]) as pool:  # the killed one once more, too
        codes = list(pool.map(lambda command: process(command).wait(), commands))
    assert codes == [0] * spec["completions"]
    assert rows(out) == whole
    assert (out / "worklist.csv").is_file()


def process(command: list[str], *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "scrd_fast", *command, *SMALL, *words], stdout=subprocess.DEVNULL)


def wait_for_a_part(out: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not list((out / "results").glob("part-*.parquet")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


def permanent(job: dict[str, Any]) -> set[int]:
    """Exit codes after which Kubernetes does not try a share again."""
    rules = [rule for rule in job["spec"]["podFailurePolicy"]["rules"] if rule["action"] == "FailIndex"]
    names = {container["name"] for container in job["spec"]["template"]["spec"]["containers"]}
    assert {rule["onExitCodes"]["containerName"] for rule in rules} <= names
    return {code for rule in rules for code in rule["onExitCodes"]["values"]}


def test_exit_codes_that_no_repetition_changes_are_those_of_the_policy(
    job: dict[str, Any], places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = shutil.copytree(places["/images"], tmp_path / "bad")
    for path in (bad / "good").iterdir():
        path.write_text("no image")
    too_many = main([*of_pod(job, 0, places | {"/images": bad}), *SMALL])
    no_input = main([*of_pod(job, 0, places | {"/images": tmp_path / "none"}), *SMALL])
    no_gpu = main([*of_pod(job, 0, places), *SMALL, "--device", "cuda"])
    with monkeypatch.context() as patch:
        patch.setattr("scrd_fast.screening.command.run_screening", interrupted)
        stopped = main([*of_pod(job, 0, places), *SMALL])
    assert (too_many, no_input, no_gpu, stopped) == (3, 2, 4, 130)
    assert permanent(job) == {too_many}  # 2 is what a full volume gives too


def interrupted(*_: object, **__: object) -> int:
    raise KeyboardInterrupt


def test_the_job_is_one_that_kubernetes_takes(job: dict[str, Any]) -> None:
    """What its documentation demands of backoffLimitPerIndex and podFailurePolicy."""
    spec = job["spec"]
    assert (job["apiVersion"], job["kind"], spec["completionMode"]) == ("batch/v1", "Job", "Indexed")
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert 0 not in permanent(job)
    assert spec["maxFailedIndexes"] <= spec["completions"]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"][-1] == f"$(JOB_COMPLETION_INDEX)/{spec['completions']}"
    volumes = {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


ARRAY = EXAMPLES / "slurm" / "array.sh"


def tasks() -> Iterator[dict[str, str]]:
    """What Slurm sets for each task of the array that the file asks for."""
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", ARRAY.read_text(), flags=re.M))
    assert "requeue" in options
    first, last = map(int, options["array"].split("-"))
    assert first == 0
    for number in range(last + 1):
        yield {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": str(last + 1)}


def on_path(folder: Path, script: str) -> str:
    """A PATH on which `scrd-fast` is that script."""
    folder.mkdir()
    (folder / "scrd-fast").write_text(script)
    (folder / "scrd-fast").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def given(places: dict[str, Path]) -> dict[str, str]:
    names = {"RUN": "/run", "IMAGES": "/images", "OUT": "/results"}
    return {name: str(places[place]) for name, place in names.items()}


def test_tasks_of_the_array_run_what_pods_of_the_job_run(
    job: dict[str, Any], places: dict[str, Path], given: dict[str, str], tmp_path: Path
) -> None:
    path = on_path(tmp_path / "bin", "#!/bin/bash\nprintf '%s\\n' \"$@\"\necho $PPID >&2\nexit 3\n")
    found = []
    for task in tasks():
        done = subprocess.run(
            ["bash", str(ARRAY)], env=os.environ | given | task | {"PATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 3  # that of the command
        assert int(done.stderr) == os.getpid()  # no shell between Slurm and what it sends signals to
        found.append(done.stdout.splitlines())
    assert found == [of_pod(job, index, places) for index in range(job["spec"]["completions"])]


@pytest.mark.release
def test_all_tasks_of_the_array_give_the_table_of_one_run_also_when_one_is_killed(
    places: dict[str, Path], given: dict[str, str], whole: list[dict[str, Any]], tmp_path: Path
) -> None:
    script = f'#!/bin/bash\nexec {sys.executable} -m scrd_fast "$@" {" ".join(SMALL)}\n'
    environment = os.environ | given | {"PATH": on_path(tmp_path / "bin", script)}
    out = places["/results"]

    def begin(task: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["bash", str(ARRAY)], env=environment | task, stdout=subprocess.DEVNULL)

    array = list(tasks())
    killed = begin(array[1])
    wait_for_a_part(out, killed)
    killed.kill()
    killed.wait()
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda task: begin(task).wait(), array)) == [0] * len(array)
    assert rows(out) == whole
    assert (out / "worklist.csv").is_file()
