# SPDX-License-Identifier: Apache-2.0
"""The numbers of docs/kernels.md are those of the committed results."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from scrd_fast.bench.roofline import map_work

ROOT = Path(__file__).parents[2]
SCALES = [(256, 64, 64), (512, 32, 32), (1024, 16, 16)]


@pytest.fixture(scope="module")
def made() -> ModuleType:
    spec = importlib.util.spec_from_file_location("roofline_table", ROOT / "benchmarks" / "roofline_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_the_page_follow_from_the_results(made: ModuleType) -> None:
    page = made.PAGE.read_text()
    assert made.with_tables(page) == page, "run python benchmarks/roofline_table.py"


def test_every_operator_and_machine_has_a_row(made: ModuleType) -> None:
    rows = list(made.rows(made.found()))
    assert {row["op"] for _, row in rows} == made.CASES.keys()
    assert {name for name, _ in rows} == {made.machine(result) for result in made.found()}


def test_no_share_is_beyond_the_limit_and_the_largest_is_bold(made: ModuleType) -> None:
    for name, row in made.rows(made.found()):
        largest = max(row["percent"].values())
        assert 0 < largest <= 105
        assert f"**{largest:.0f} %**" in made.line(name, row)


@pytest.mark.parametrize(("itemsize", "said"), [(4, "14.7 MB in float32"), (2, "7.3 MB in bfloat16")])
def test_the_bytes_of_features_that_the_page_names(made: ModuleType, itemsize: int, said: str) -> None:
    work = map_work(1, SCALES, (256, 256), itemsize, return_map=False)
    assert said.startswith(f"{work.bytes / 1e6:.1f} MB")
    assert said in " ".join(made.PAGE.read_text().split())
