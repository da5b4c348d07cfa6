# SPDX-License-Identifier: Apache-2.0
"""Every file that pydicom tests itself with is screened, failed or refused with a reason, in one run."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from run_folders import loaded, rows

from scrd_fast.cli import main

pytest.importorskip("pydicom")
from pydicom.data import get_testdata_files


def test_each_file_of_pydicom_ends_in_rows(trained: Path, tmp_path: Path) -> None:
    files = sorted({file for file in get_testdata_files() if Path(file).is_file()})
    (tmp_path / "list.txt").write_text("\n".join(files))
    flags = ["--device", "cpu", "--workers", "2", "--max-failures", "1", "--overlays", "0", "-q"]
    out = tmp_path / "out"
    assert main(["screen", str(trained), str(tmp_path / "list.txt"), "--out", str(out), *flags]) == 0
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows(out):
        found[row["path"]].append(row)
    assert found.keys() == set(files)
    assert len(files) > 150
    scored = 0
    for path, own in found.items():
        for row in own:
            if row["status"] == "ok":
                scored += 1
                assert row["score"] is not None, path
            else:
                assert row["status"] in ("failed", "refused"), path
                assert row["error"], path
                assert row["score"] is None, path
    assert scored > 150
    summary = loaded(out / "summary.json")
    assert summary["processes_replaced"] == 0
    assert sum(summary["status"].values()) == len(files)  # an input once, by its worst row
