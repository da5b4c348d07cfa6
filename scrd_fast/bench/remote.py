# SPDX-License-Identifier: Apache-2.0
"""Contenders that need a process of their own: the CPU kernel reads its instruction set once, when it is loaded, a
compilation that takes too long can only be given up from outside, and a rival's package may need another environment.

The process waits while the others are measured; a turn's samples are taken inside it, so that the pipe costs
nothing that is timed. One JSON object a line in either direction.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import scrd_fast
from scrd_fast.bench.harness import Case, Contender, LocalRunner
from scrd_fast.bench.machine import installed
from scrd_fast.bench.timing import Samples, clock_for
from scrd_fast.errors import UnavailableError

__all__ = ["RemoteRunner", "Worker"]

STEP_LIMIT = 300.0  # seconds for anything but a compilation


class Worker:
    """A Python process, of the interpreter and with the environment that its contenders need."""

    def __init__(self, environment: dict[str, str], threads: int, python: str = sys.executable) -> None:
        path = os.pathsep.join([str(Path(scrd_fast.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        # A compiler's helpers would outlive a worker that is given up.
        fixed = {"PYTHONPATH": path, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        self._process = subprocess.Popen(
            [python, "-m", "scrd_fast.bench.remote", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | fixed | environment,
            start_new_session=True,
        )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, limit: float, **request: Any) -> Any:
        """The answer. UnavailableError where the worker says so; RuntimeError for its other errors or its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if not self.alive:
            raise RuntimeError(f"its process ended with exit code {self._process.returncode}")
        try:
            self._process.stdin.write((json.dumps(request) + "\n").encode())
            self._process.stdin.flush()
            if not select.select([self._process.stdout], [], [], limit)[0]:
                self.stop()
                raise UnavailableError(f"{request['step']} took more than {limit:.0f} s and was given up")
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise RuntimeError(f"its process ended with exit code {self._process.wait()}")
        answer = json.loads(line)
        if "unavailable" in answer:
            raise UnavailableError(answer["unavailable"])
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["value"]

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its own session: it and what it started, nothing else
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class RemoteRunner:
    """The same steps as LocalRunner, in a worker, which is looked for when it is needed: the one of before may have
    been given up. The right answers travel in a file."""

    def __init__(
        self,
        find_worker: Callable[[], Worker],
        case: Case,
        contender: Contender,
        device: torch.device,
        seeds: Sequence[int],
        expected: Sequence[Tensor],
        compile_limit: Callable[[], float],
    ) -> None:
        self.contender, self.device = contender, device.type
        self._find_worker, self._expected, self._limit = find_worker, expected, compile_limit
        self._worker: Worker | None = None
        self._request = {
            "op": case.op,
            "case": case.name,
            "contender": contender.key,
            "device": str(device),
            "seeds": list(seeds),
        }

    def open(self) -> dict[str, Any]:
        limit = self._limit() if self.contender.compiles else STEP_LIMIT
        if limit <= 0:
            raise UnavailableError("no time is left to compile it")
        self._worker = self._find_worker()
        with tempfile.TemporaryDirectory(prefix="scrd_fast_bench_") as folder:
            file = Path(folder) / "expected.pt"
            torch.save(list(self._expected), file)
            facts: dict[str, Any] = self._worker.ask(limit, step="open", expected=str(file), **self._request)
        return facts

    def check(self) -> float:
        return float(self._ask("check"))

    def sample(self, slot: float) -> Samples:
        samples: Samples = self._ask("sample", slot=slot)
        return samples

    def close(self) -> None:
        if self._worker is not None and self._worker.alive:
            self._ask("close")

    def _ask(self, step: str, **facts: Any) -> Any:
        assert self._worker is not None  # it is open
        return self._worker.ask(STEP_LIMIT, step=step, contender=self.contender.key, **facts)


class _Server:
    """The worker's side. Contenders of one case, such as variants, may be open at once: they share its inputs."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._runners: dict[tuple[str, ...], LocalRunner] = {}
        self._inputs: list[Any] = []
        self._clocks: dict[str, Any] = {}

    def answer(self, request: dict[str, Any]) -> Any:
        step = request["step"]
        if step == "open":
            return self._open(request)
        if step == "versions":
            return {name: installed(name) for name in request["packages"]}
        runner = self._runners.get(tuple(request["contender"]))
        if runner is None:
            if step == "close":
                return None
            raise RuntimeError("it is not open")
        if step == "check":
            return runner.check()
        if step == "sample":
            return runner.sample(request["slot"])
        runner.close()
        del self._runners[tuple(request["contender"])]
        return None

    def _open(self, request: dict[str, Any]) -> dict[str, Any]:
        from scrd_fast.bench.cases import find

        case, device = find(request["op"], request["case"]), torch.device(request["device"])
        contender = next(c for c in case.contenders if list(c.key) == request["contender"])
        if request["device"] not in self._clocks:
            self._clocks[request["device"]] = clock_for(device, self._threads)
        expected = torch.load(request["expected"], weights_only=True)
        if not self._runners:  # the first of its case
            torch.compiler.reset()
            self._inputs = []  # before those of the new case are drawn: they may fill the memory
            self._inputs = [case.inputs(seed, device) for seed in request["seeds"]]
        runner = LocalRunner(case, contender, device, self._inputs, expected, self._clocks[request["device"]])
        facts = runner.open()
        self._runners[contender.key] = runner
        return facts


def _serve(threads: int) -> None:
    # What a compiler prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = _Server(threads)
    for line in sys.stdin:
        try:
            answer = {"value": server.answer(json.loads(line))}
        except (UnavailableError, ImportError) as error:
            answer = {"unavailable": str(error)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:1000]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
