# SPDX-License-Identifier: Apache-2.0
"""Screens the series that arrive at an Orthanc server and stores the results there, in the same studies.

python poller.py RUN --modality DX,CR --state DIR [--url URL] [--once] [-- flags of `scrd-fast screen`]

It stands outside of Orthanc and knows its REST interface alone: /changes says which series are complete, /instances
gives files and takes results. ORTHANC_USER and ORTHANC_PASSWORD, if set, say who asks. DIR holds what is done, and the
pictures that are being screened; nobody else should be able to read it.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import csv
import http.client
import io
import json
import logging
import os
import shutil
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scrd_fast.cli import main as scrd_fast
from scrd_fast.files import write_atomically

OURS = "scrd_fast"  # Manufacturer of the results: they are not screened again
TOGETHER = 50  # series that are screened together, with the model loaded once
GONE = (404, 410)  # HTTP status
TRIES = 3  # starts of a group that did not end, before it is divided or given up
REFUSALS = 5  # errors of the server itself, for one request, before it is given up
LONGEST_WAIT = 60.0  # seconds between two requests to a server that is away
AWAY = {502, 503, 504}  # what a proxy says of it
log = logging.getLogger("poller")


class Orthanc:
    """Its REST interface. Where it is away it is asked until it is back, after longer and longer waits."""

    def __init__(self, url: str) -> None:
        self._url, self._headers = url.rstrip("/"), {}
        if user := os.environ.get("ORTHANC_USER"):
            word = base64.b64encode(f"{user}:{os.environ.get('ORTHANC_PASSWORD', '')}".encode()).decode()
            self._headers["Authorization"] = f"Basic {word}"

    def json(self, path: str) -> Any:
        return json.loads(self.ask(path))

    def ask(self, path: str, body: bytes | None = None) -> bytes:
        """The answer to GET, or with a body to POST. Raises `HTTPError` where it is there and refuses."""
        request = urllib.request.Request(self._url + path, body, self._headers)
        wait, refusals = 1.0, 0
        while True:
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return bytes(answer.read())
            except urllib.error.HTTPError as error:
                if error.code in (401, 403):
                    log.error("%s: denied (%d); set ORTHANC_USER and ORTHANC_PASSWORD", self._url, error.code)
                    sys.exit(2)
                refusals += error.code not in AWAY
                if error.code < 500 or refusals == REFUSALS:
                    raise
                reason = f"answers {error.code}"
            except (OSError, http.client.HTTPException) as error:
                reason = str(error) or type(error).__name__
            log.warning("%s: %s; again in %.0f s", self._url, reason, wait)
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)


@dataclass
class State:
    """What is done and what is next, on disk: whatever kills us, the next start goes on, and nothing is left out."""

    path: Path
    last: int | None = None  # change of the server up to which all series are in `groups` or done
    groups: list[list[str]] = field(default_factory=list)  # series that are to be screened together
    number: int = 0  # of the first of them: how many are done
    tries: int = 0  # how often that was begun
    unread: list[str] = field(default_factory=list)  # series of which the server did not give everything

    @classmethod
    def load(cls, path: Path) -> State:
        return cls(path, **json.loads(path.read_bytes())) if path.exists() else cls(path)

    def save(self) -> None:
        known = {name: value for name, value in asdict(self).items() if name != "path"}
        write_atomically(self.path, json.dumps(known).encode())

    def next_group(self) -> None:
        self.groups, self.number, self.tries = self.groups[1:], self.number + 1, 0
        self.save()


class Poller:
    """Follows one server. Its folder holds `state.json`, `work/`, and `undelivered/` with results that were refused."""

    def __init__(self, orthanc: Orthanc, folder: Path, run: Path, modality: str, flags: Sequence[str]) -> None:
        self.orthanc, self.folder, self.run = orthanc, folder, run
        self.modalities, self.flags = {word.strip().upper() for word in modality.split(",")}, flags
        self.state = State.load(folder / "state.json")

    def begin(self, everything: bool) -> None:
        """At the first start: with what is stored already, or with what comes from now on. Later with what was left."""
        if self.state.unread:
            self.state.groups.append(self.state.unread)
            self.state.unread = []
            self.state.save()
        if self.state.last is None:
            self.state.last = 0 if everything else self.orthanc.json("/changes?last")["Last"]
            self.state.save()

    def look(self) -> bool:
        """Make a group of series that became complete since then. Whether there may be more."""
        series: dict[str, None] = {}  # in their order
        last, done = self.state.last or 0, False
        while not done and len(series) < TOGETHER:
            page = self.orthanc.json(f"/changes?since={last}&limit=100")
            if page["Last"] < last:
                log.warning("the server's log of changes is younger than ours: beginning with its first change")
                last = 0
                continue
            series |= {c["ID"]: None for c in page["Changes"] if c["ChangeType"] == "StableSeries"}
            last, done = page["Last"], page["Done"]
        if last != self.state.last:
            self.state.last = last
            self.state.groups += [list(series)] if series else []
            self.state.save()
        return not done

    def work(self) -> None:
        """Do the first group, unless it has been begun too often."""
        state, group = self.state, self.state.groups[0]
        if state.tries < TRIES:
            state.tries += 1
            state.save()
            try:
                self._screened(group)
            except (KeyboardInterrupt, SystemExit, OSError):  # stopped, or nothing works at all: not the group's fault
                state.tries -= 1
                state.save()
                raise
            except Exception as error:
                log.error("a group of %d series: %s", len(group), error)
                return
        elif len(group) > 1:
            log.error("a group of %d series fails again and again: one by one", len(group))
            state.groups[1:1] = [[one] for one in group]
        else:
            log.error("series %s fails again and again: given up", group[0])
        state.next_group()
        shutil.rmtree(self.folder / "work", ignore_errors=True)

    def _screened(self, group: Sequence[str]) -> None:
        """From the server to the server. Raises `RuntimeError` where the screening ends in a way that it should not."""
        place = self.folder / "work" / str(self.state.number)
        for old in (self.folder / "work").glob("*"):
            if old != place:
                shutil.rmtree(old)
        files, out = place / "in", place / "out"
        files.mkdir(parents=True, exist_ok=True)
        for series in group:
            self._fetch(series, files)
        if not any(files.iterdir()):
            return
        before, code = out.exists(), self._screen(files, out)
        if code == 2 and before:  # begun by another model, or with fewer files
            shutil.rmtree(out)
            code = self._screen(files, out)
        if code == 130:
            raise KeyboardInterrupt
        if code in (2, 4):  # settings or this machine, whatever the pictures are; it has said what
            sys.exit(code)
        if code not in (0, 3):
            raise RuntimeError(f"the screening ended with code {code}")
        self._deliver(out)

    def _screen(self, files: Path, out: Path) -> int:
        wanted = ("--modality", ",".join(sorted(self.modalities)), "--overlays", "0", "-q")
        with contextlib.redirect_stdout(io.StringIO()):  # the table that it names will soon be gone
            return scrd_fast(["screen", str(self.run), str(files), "--out", str(out), *wanted, *self.flags])

    def _fetch(self, series: str, files: Path) -> None:
        """Files of a series that is to be screened, each named as Orthanc names the instance."""
        try:
            about = self.orthanc.json(f"/series/{series}")
        except urllib.error.HTTPError as error:
            self._missed(series, f"series {series}", error)
            return
        tags = about["MainDicomTags"]
        if tags.get("Manufacturer") == OURS or tags.get("Modality", "").upper() not in self.modalities:
            return
        for instance in about["Instances"]:
            path = files / f"{instance}.dcm"
            try:
                if not path.exists():
                    write_atomically(path, self.orthanc.ask(f"/instances/{instance}/file"))
            except urllib.error.HTTPError as error:
                self._missed(series, f"instance {instance}", error)

    def _missed(self, series: str, what: str, error: urllib.error.HTTPError) -> None:
        """What was deleted by now is done; all else is tried again at the next start."""
        log.warning("%s: %s", what, error)
        if error.code not in GONE and series not in self.state.unread:
            self.state.unread.append(series)
            self.state.save()

    def _deliver(self, out: Path) -> None:
        """Store the results. Those that are there already, Orthanc knows by their UIDs."""
        counts = {"Success": 0, "AlreadyStored": 0}
        for path in sorted((out / "dicom").glob("*/*.dcm")):
            try:
                status = json.loads(self.orthanc.ask("/instances", path.read_bytes()))["Status"]
            except urllib.error.HTTPError as error:
                status = "refused"
                kept = self.folder / "undelivered" / f"{self.state.number}-{path.parent.name}-{path.name}"
                kept.parent.mkdir(exist_ok=True)
                shutil.copy(path, kept)
                log.error("%s: %s", kept, error)
            counts[status] = counts.get(status, 0) + 1
        with (out / "worklist.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            if row["error"]:
                log.warning("instance %s: %s", Path(row["path"]).stem, row["error"])
        abnormal = sum(row["decision"] == "abnormal" for row in rows)
        stored = ", ".join(f"{count} {status}" for status, count in counts.items())
        log.info("%d pictures screened, %d abnormal; results: %s", len(rows), abnormal, stored)


def main(arguments: Sequence[str]) -> int:
    own, flags = list(arguments), []
    if "--" in own:
        own, flags = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="a trained and calibrated model's folder")
    parser.add_argument("--modality", required=True, metavar="A,B", help="series of these are screened, no others")
    parser.add_argument("--state", required=True, type=Path, metavar="DIR", help="where we remember what is done")
    parser.add_argument("--url", default="http://127.0.0.1:8042", help="of Orthanc; default: %(default)s")
    parser.add_argument("--interval", type=float, default=5, metavar="S", help="seconds between two looks")
    parser.add_argument("--everything", action="store_true", help="at the first start: also what is there already")
    parser.add_argument("--once", action="store_true", help="end when all that is complete is done")
    given = parser.parse_args(own)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    os.umask(0o077)
    given.state.mkdir(parents=True, exist_ok=True)
    if not any(flag.partition("=")[0] == "--dicom" for flag in flags):
        flags += ["--dicom", "sc,sr"]
    poller = Poller(Orthanc(given.url), given.state, given.run, given.modality, flags)
    poller.begin(given.everything)
    log.info("following %s from change %s", given.url, poller.state.last)
    while True:
        more = bool(poller.state.groups) or poller.look()
        if poller.state.groups:
            poller.work()
        elif not more:
            if given.once:
                return 0
            time.sleep(given.interval)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is done stays done
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
