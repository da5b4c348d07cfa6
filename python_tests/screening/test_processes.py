# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import os
import signal
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import texture
from PIL import Image
from run_folders import below

from scrd_fast.config import Preprocessing
from scrd_fast.data import archives
from scrd_fast.data.frames import Frame, Source
from scrd_fast.data.reading import read_frames
from scrd_fast.errors import ImageError, UnavailableError
from scrd_fast.screening import processes
from scrd_fast.screening.processes import Processes
from scrd_fast.screening.readers import Job, Reader, Threads

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

PRE = Preprocessing(size=32)


def read_or_die(source: Source, preprocessing: Preprocessing, only: int | None) -> Iterator[Frame]:
    """Does what a file's name says, after its first picture."""
    frames = read_frames(source, preprocessing, only)
    yield next(frames)
    word = source.path.stem.rpartition("-")[2]
    if word == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif word == "once":
        mark = source.path.with_suffix(".mark")
        if not mark.exists():
            mark.touch()
            os._exit(3)
    elif word == "hang":
        time.sleep(600)
    elif word == "eat":
        try:
            np.empty(9 * 2**30, np.uint8)  # untouched, it takes nothing
        except MemoryError:
            raise ImageError("too-large", "not enough memory", refused=True) from None
    elif word == "crawl":
        time.sleep(0.3)
    yield from frames


def read_slowly(source: Source, preprocessing: Preprocessing, only: int | None) -> Iterator[Frame]:
    """As from a stream that unfolds at 10 MiB/s."""

    class Slow(gzip.GzipFile):
        def read(self, size: int | None = -1) -> bytes:
            time.sleep((size or 0) / 10 / 2**20)
            return super().read(size)

    archives._PACKERS[b"\x1f\x8b"] = Slow  # type: ignore[assignment]
    return read_frames(source, preprocessing, only)


class _NotToBeFound:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return __import__, ("no_such_module_anywhere",)


def pages(path: Path, count: int) -> Path:
    generator = np.random.default_rng(count)
    images = [Image.fromarray(texture(generator)) for _ in range(count)]
    images[0].save(path, save_all=True, append_images=images[1:])
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = [pages(tmp_path / f"{i}.tif", count) for i, count in enumerate((1, 9, 1, 2))]
    (tmp_path / "text.png").write_text("no image")
    cut = pages(tmp_path / "cut.tif", 3)
    cut.write_bytes(cut.read_bytes()[:-40])
    return [found[0], tmp_path / "text.png", found[1], cut, tmp_path / "gone.png", *found[2:]]


def of(reader: Reader, paths: list[Path], only: int | None = None) -> list[tuple[int, object]]:
    """What a reader finds, in a form that can be compared."""
    jobs = (Job(i, Source(path), only) for i, path in enumerate(paths))
    found: list[tuple[int, object]] = []
    for job, item in reader.read(jobs):
        if isinstance(item, ImageError):
            found.append((job.number, (item.code, str(item), item.refused)))
        else:
            found.append((job.number, (item.index, item.pixels.clone().numpy().tobytes(), item.about)))
    return found


def frames_of(found: list[tuple[int, object]]) -> list[tuple[int, object]]:
    """Numbers of job and frame, or the code of an error."""
    return [(number, item[0]) for number, item in found]  # type: ignore[index]


def pids(reader: Processes) -> list[int]:
    return [lane._process.pid for lane in reader._lanes]


def test_processes_find_what_threads_find(files: list[Path]) -> None:
    for only in (None, 1):
        expected = of(Threads(PRE), files, only)
        with closing(Processes(PRE, 2, 60)) as reader:
            assert of(reader, files, only) == expected
            assert of(reader, files[::-1], only) == of(Threads(PRE), files[::-1], only)
            assert reader.died == 0
            assert reader.seconds > 0
    assert len(expected) == len(files)


def test_a_file_that_kills_two_processes_fails_and_its_neighbours_are_read(tmp_path: Path) -> None:
    names = ["a", "b-die", "c-once", "d", "e-die", "f"]
    paths = [pages(tmp_path / f"{name}.tif", 3) for name in names]
    with closing(Processes(PRE, 2, 60, read_or_die)) as reader:
        found = of(reader, paths)
        assert reader.died == 5
    three = [0, 1, 2]
    expected = [three, [0, "crashed"], three, three, [0, "crashed"], three]
    assert frames_of(found) == [(i, x) for i, items in enumerate(expected) for x in items]
    assert found[4][1] == ("crashed", "the process that read it died (signal 11)", False)
    whole = of(Threads(PRE), paths)
    assert [f for f in found if f[0] in (0, 2, 3, 5)] == [f for f in whole if f[0] in (0, 2, 3, 5)]


def test_a_file_that_hangs_fails_and_its_neighbours_are_read(tmp_path: Path) -> None:
    paths = [pages(tmp_path / f"{name}.tif", 2) for name in ("a", "b-hang", "c", "d")]
    with closing(Processes(PRE, 1, 1.0, read_or_die)) as reader:
        found = of(reader, paths)
        assert reader.died == 1
    assert frames_of(found) == [(0, 0), (0, 1), (1, 0), (1, "timeout"), (2, 0), (2, 1), (3, 0), (3, 1)]
    assert found[3][1] == ("timeout", "not read within 1 s", False)


def test_a_long_way_to_a_member_is_no_hanging_file(tmp_path: Path) -> None:
    page = pages(tmp_path / "a.tif", 1)
    (tmp_path / "long.bin").write_bytes(bytes(35 * 2**20))
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", compresslevel=1) as archive:
        for path, name in ((tmp_path / "long.bin", "long.bin"), (page, "b.tif"), (page, "c.tif")):
            archive.add(path, name)
    jobs = [Job(i, Source(tmp_path / "a.tar.gz", name)) for i, name in enumerate(("b.tif", "c.tif"))]
    with closing(Processes(PRE, 1, 2.2, read_slowly)) as reader:
        found = [(job.number, getattr(item, "index", item)) for job, item in reader.read(jobs)]
        assert reader.died == 0
    assert found == [(0, 0), (1, 0)]


def test_a_slow_caller_is_no_hanging_file(tmp_path: Path) -> None:
    paths = [pages(tmp_path / f"{i}.tif", 5) for i in range(4)]
    with closing(Processes(PRE, 1, 0.4)) as reader:
        found = []
        for job, item in reader.read(Job(i, Source(path)) for i, path in enumerate(paths)):
            assert isinstance(item, Frame)
            found.append((job.number, item.index))
            if len(found) in (1, 7):
                time.sleep(0.8)
    assert found == [(i, k) for i in range(4) for k in range(5)]


def test_a_file_that_asks_for_too_much_memory_is_an_error(tmp_path: Path) -> None:
    paths = [pages(tmp_path / f"{name}.tif", 2) for name in ("a", "b-eat", "c")]
    with closing(Processes(PRE, 1, 60, read_or_die)) as reader:
        found = of(reader, paths)
    assert [x for x in frames_of(found) if x[0] != 1] == [(0, 0), (0, 1), (2, 0), (2, 1)]
    assert [x for x in frames_of(found) if x[0] == 1] == [(1, 0), (1, "too-large")]


def test_a_process_may_take_a_share_of_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    limits: list[int] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair[0]))
    for free, share in ((30 * 2**30, 6 * 2**30), (0, 4 * 2**30), (10**15, 8 * 2**30)):
        monkeypatch.setattr(processes, "free_memory", lambda free=free: free)
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        processes._limit_memory(4)
        assert abs(limits.pop() - share - int(fields["VmData"].split()[0]) * 1024) < 2**28


def test_a_process_that_is_killed_from_outside_loses_nothing(tmp_path: Path) -> None:
    paths = [pages(tmp_path / f"{i}.tif", 4) for i in range(12)]
    expected = of(Threads(PRE), paths)
    with closing(Processes(PRE, 2, 60)) as reader:
        found = []
        for job, item in reader.read(Job(i, Source(path)) for i, path in enumerate(paths)):
            assert isinstance(item, Frame)
            found.append((job.number, (item.index, item.pixels.clone().numpy().tobytes(), item.about)))
            if len(found) in (2, 21, 38):
                os.kill(pids(reader)[len(found) % 2], signal.SIGKILL)
        assert reader.died >= 2
    assert found == expected


def test_a_reader_that_was_left_early_reads_again(files: list[Path]) -> None:
    with closing(Processes(PRE, 2, 60)) as reader:
        for many in (1, 3):
            found = reader.read(Job(i, Source(path)) for i, path in enumerate([*files, *files]))
            for _ in range(many):
                next(found)
            found.close()
        assert of(reader, files[:3]) == of(Threads(PRE), files[:3])


def test_a_picture_outlives_the_process_that_made_it(tmp_path: Path) -> None:
    path = pages(tmp_path / "a-die.tif", 2)
    with closing(Processes(PRE, 1, 60, read_or_die)) as reader:
        found = reader.read(iter([Job(0, Source(path))]))
        _, frame = next(found)
        assert isinstance(frame, Frame)
        os.kill(pids(reader)[0], signal.SIGKILL)
        expected = next(read_frames(path, PRE)).pixels
        assert torch.equal(frame.pixels, expected)


def test_closing_ends_all_processes(files: list[Path]) -> None:
    reader = Processes(PRE, 3, 60)
    of(reader, files)
    there = set(pids(reader))
    assert there <= set(below(os.getpid()))
    reader.close()
    assert not there & set(below(os.getpid()))
    reader.close()


def test_processes_that_do_not_begin_are_an_error(files: list[Path]) -> None:
    with closing(Processes(PRE, 1, 60)) as reader:
        lane = reader._lanes[0]
        lane._preprocessing = _NotToBeFound()  # type: ignore[assignment]
        lane._preprocessing.canvas = 32  # type: ignore[attr-defined,misc]
        os.kill(pids(reader)[0], signal.SIGKILL)
        with pytest.raises(UnavailableError, match="does not start"):
            of(reader, files)


def test_frames_wait_in_shared_memory_alone(tmp_path: Path) -> None:
    """A process may be some frames ahead, not all of a long file."""
    path = pages(tmp_path / "long.tif", 60)
    with closing(Processes(PRE, 1, 60)) as reader:
        found = reader.read(iter([Job(0, Source(path))]))
        next(found)
        time.sleep(0.5)
        reader._lanes[0].receive()
        assert len(reader._lanes[0].inbox) < processes.SLOTS
        assert sum(1 for _ in found) == 59


def test_files_that_fail_while_one_takes_long_are_not_the_last(tmp_path: Path) -> None:
    """All that was given out is there when the long one ends."""
    sources = [Source(pages(tmp_path / "a-crawl.tif", 2)), *(Source(tmp_path / f"{i}.png") for i in range(60))]
    with closing(Processes(PRE, 2, 60.0, read_or_die)) as reader:
        numbers = [job.number for job, _ in reader.read(Job(i, source) for i, source in enumerate(sources))]
    assert list(dict.fromkeys(numbers)) == list(range(61))


def test_a_reading_ends_when_another_thread_closes_it(tmp_path: Path) -> None:
    """Also in the middle of a file that hangs; and nothing begins anew afterwards."""
    reader = Processes(PRE, 2, 600.0, read_or_die)
    found = reader.read(iter([Job(0, Source(pages(tmp_path / "a-hang.tif", 2)))]))
    next(found)
    started = pids(reader)
    closing_it = threading.Timer(0.5, reader.close)
    closing_it.start()
    assert list(found) == []
    closing_it.join()
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)
    assert not any(lane._process.is_alive() for lane in reader._lanes)
    with pytest.raises(RuntimeError, match="none after the end"):
        next(reader.read(iter([])))
