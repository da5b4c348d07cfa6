# SPDX-License-Identifier: Apache-2.0
"""Lists of inputs: text, tables, and what is none."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_inputs import listed, touch

from scrd_fast.data.frames import Source
from scrd_fast.errors import ScrdFastError
from scrd_fast.screening.inputs import Input, list_inputs


def test_lists_count_from_their_own_folder_and_name_files_alone(here: Path) -> None:
    touch(here, "lists/sub/a.png")
    lines = ["# a comment", "", "sub/a.png", "gone.png", "sub", "/abs/b.png", "../up.png", " #x .png", "x.zip!/m/n.png"]
    Path("lists/l.txt").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    expected = ["sub/a.png", "gone.png", "sub [not-a-file]", "/abs/b.png", "../up.png", " #x .png", "x.zip!/m/n.png"]
    assert listed("lists/l.txt") == [e if e[0] == "/" else f"lists/{e}" for e in expected]


@pytest.mark.usefixtures("here")
def test_tables_give_their_column_path_or_their_first() -> None:
    for name, delimiter in (("t.csv", ","), ("t.tsv", "\t")):
        with Path(name).open("w", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows([["label", "path"], ["x", "a.png"], [], ["y", "b c.png"]])
        assert listed(name) == ["a.png", "b c.png"]
    Path("first.csv").write_text("a.png,1\nb.png,2\n")
    assert listed("first.csv") == ["a.png", "b.png"]
    table = pa.table({"label": [1, 2, 3], "path": pa.array(["a.png", None, "b.png"]).dictionary_encode()})
    pq.write_table(table, "t.parquet", row_group_size=2)
    assert listed("t.parquet") == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("README.txt", b"# Study\n\nAnna Miller: see a.png, right\na.png\n"),
        ("README.txt", "Miller\n".encode("utf-16")),
        ("README.txt", b"x" * 100_000),
        ("labels.csv", b"name,label\nMiller,1\n"),
        ("labels.tsv", b"\nMiller\t1\n"),
    ],
)
def test_notes_and_labels_are_no_lists(here: Path, name: str, content: bytes) -> None:
    touch(here, "data/a.png")
    touch(here / "data", name, content=content)
    wrong = Input(Source(Path("data", name)), "not-a-list: its first entry names no image")
    assert list(list_inputs([f"data/{name}", "data/a.png"])) == [wrong, Input(Source(Path("data/a.png")))]
    assert listed("data/*") == listed("data") == ["data/a.png"]
    with pytest.raises(ScrdFastError, match="no file matches"):
        listed("data/*.[tc]*")


@pytest.mark.parametrize("first", ["gone.png", "gone.nii.gz", "gone.zip", "gone.tar!/IM1", "IM1", "../lists/IM1"])
def test_a_first_entry_that_may_be_an_image_makes_a_list(here: Path, first: str) -> None:
    touch(here, "lists/IM1")
    for name in ("l.txt", "l.csv"):
        (here / "lists" / name).write_text(f"\n{first}\nMiller\n")
        assert listed(f"lists/{name}")[1:] == ["lists/Miller"]


def test_a_column_path_makes_a_list_whatever_is_in_it(here: Path) -> None:
    touch(here, "t.csv", content=b"label,path\n1,IM1\n")
    pq.write_table(pa.table({"path": ["IM2"]}), "t.parquet")
    assert listed("t.csv", "t.parquet") == ["IM1", "IM2"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("l.csv", b"label,path\nx\n", "line 2: has 1 columns, expected at least 2"),
        ("l.csv", b'path\n"' + b"x" * 200_000, "line 2: field larger"),
        ("l.txt", b"a.png\nb\0.png\n", "NUL"),
        ("l.parquet", b"PAR1 nothing", "cannot be read as a list"),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_list_that_cannot_be_read_is_an_error_that_names_it(name: str, content: bytes, reason: str) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(ScrdFastError, match=f"^{name}: .*{reason}"):
        listed(name)


@pytest.mark.usefixtures("here")
def test_a_parquet_list_needs_a_column_path_of_text() -> None:
    pq.write_table(pa.table({"file": ["a.png"]}), "l.parquet")
    assert listed("l.parquet") == ["l.parquet [not-a-list]"]
    no_text = pa.StringArray.from_buffers(1, pa.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0])), pa.py_buffer(b"\xff"))
    pq.write_table(pa.table({"path": no_text}), "l.parquet")
    with pytest.raises(ScrdFastError, match=r"^l.parquet: cannot be read as a list: .*utf-8"):
        listed("l.parquet")
    pq.write_table(pa.table({"path": [1]}), "l.parquet")
    with pytest.raises(ScrdFastError, match=r"^l.parquet: the column `path` holds int"):
        listed("l.parquet")
