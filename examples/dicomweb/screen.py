# SPDX-License-Identifier: Apache-2.0
"""Screens series of a DICOMweb server (QIDO, WADO) and stores the results there (STOW), in the same studies.

python screen.py RUN --url URL --find Modality=DX --find StudyDate=20240304 --out DIR [-- flags of `scrd-fast screen`]

The same command goes on where it was stopped, and takes in what has come since. DICOMWEB_USER and DICOMWEB_PASSWORD, if
set, say who asks. DIR holds the pictures and the run; nobody else should be able to read it.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pydicom

from scrd_fast.cli import main as scrd_fast
from scrd_fast.errors import MissingExtraError

try:
    import requests
    from dicomweb_client import DICOMwebClient
    from dicomweb_client.session_utils import create_session_from_user_pass
except ImportError:
    sys.exit(str(MissingExtraError("dicomweb-client", "dicomweb")))

OURS = "scrd_fast"  # Manufacturer of the results: they are not screened again
AS_STORED = (("application/dicom", "*"),)  # in whatever transfer syntax
log = logging.getLogger("dicomweb")


def client_of(url: str) -> Any:
    user = os.environ.get("DICOMWEB_USER")
    session = create_session_from_user_pass(user, os.environ.get("DICOMWEB_PASSWORD", "")) if user else None
    return DICOMwebClient(url, session=session)


def found(client: Any, filters: dict[str, str]) -> Iterable[tuple[str, str]]:
    """UIDs of study and series."""
    for answer in client.search_for_series(search_filters=filters, get_remaining=True):
        about = pydicom.Dataset.from_json(answer)
        yield about.StudyInstanceUID, about.SeriesInstanceUID


def fetch(client: Any, study: str, series: str, files: Path) -> int:
    """Pictures of a series, but for results of ours. How many are new."""
    new = 0
    for dataset in client.iter_series(study, series, media_types=AS_STORED):
        path = files / f"{hashlib.sha256(dataset.SOPInstanceUID.encode()).hexdigest()[:32]}.dcm"
        if "Rows" in dataset and dataset.get("Manufacturer") != OURS and not path.exists():
            dataset.save_as(path.with_suffix(".part"), enforce_file_format=True)
            path.with_suffix(".part").rename(path)
            new += 1
    return new


def store(client: Any, results: Path) -> bool:
    """Whether all were taken."""
    refused = 0
    paths = sorted(results.glob("*/*.dcm"))
    for path in paths:
        try:
            if client.store_instances([pydicom.dcmread(path)]).get("FailedSOPSequence"):
                raise ValueError
        except (requests.HTTPError, ValueError) as error:
            refused += 1
            log.error("%s was refused: %s", path, _reason(error))
    log.info("%d results stored, %d refused", len(paths) - refused, refused)
    return not refused


def _reason(error: Exception) -> str:
    """Without the text, which has the UIDs that were asked for."""
    return str(error.response.status_code) if isinstance(error, requests.HTTPError) else type(error).__name__


def screened(given: argparse.Namespace, flags: Sequence[str]) -> int:
    client, files, out = client_of(given.url), given.out / "in", given.out / "run"
    files.mkdir(parents=True, exist_ok=True)
    new = failed = 0
    for study, series in found(client, dict(text.split("=", 1) for text in given.find)):
        try:
            new += fetch(client, study, series, files)
        except requests.ConnectionError:
            raise
        except Exception as error:  # whatever a server sends; the other series go on
            failed += 1
            log.error("a series could not be fetched: %s", _reason(error))
    log.info("%d new pictures", new)
    if not any(files.glob("*.dcm")):
        return 3 if failed else 0
    again = ["--new-run"] if new and out.exists() else []
    code = scrd_fast(["screen", str(given.run), str(files), "--out", str(out), *again, *flags])
    if code not in (0, 3):
        return code
    return code if store(client, out / "dicom") and not failed else 3


def main(arguments: Sequence[str]) -> int:
    own, flags = list(arguments), []
    if "--" in own:
        own, flags = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="a trained and calibrated model's folder")
    parser.add_argument("--url", required=True, help="of the DICOMweb service")
    parser.add_argument("--find", action="append", required=True, metavar="NAME=VALUE", help="what QIDO searches by")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="pictures and results")
    given = parser.parse_args(own)
    if wrong := [text for text in given.find if "=" not in text]:
        parser.error(f"--find: expected NAME=VALUE, got {wrong[0]!r}")
    logging.basicConfig(format="%(asctime)s %(message)s")
    log.setLevel(logging.INFO)
    logging.getLogger("dicomweb_client").setLevel(logging.CRITICAL)  # it names studies
    os.umask(0o077)
    if not any(flag.partition("=")[0] == "--dicom" for flag in flags):
        flags += ["--dicom", "sc,sr"]
    try:
        return screened(given, flags)
    except requests.RequestException as error:
        log.error("%s: %s; the same command goes on", given.url, _reason(error))
        return 4


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
