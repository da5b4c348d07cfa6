# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from experiments import METHODS, TRAIN, content, write

from scrd_fast.cli import main
from scrd_fast.errors import DataError, ScrdFastError
from scrd_fast.reproduce.config import load_experiments
from scrd_fast.reproduce.plan import data_of, runs_of
from scrd_fast.reproduce.run import plan

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seedz": [1]}, "seedz"),
        ({"seeds": [1, 1]}, "seeds: each must be given once"),
        ({"seeds": []}, "seeds"),
        ({"train": {"iterations": 0}}, "train.iterations"),
        ({"train": {"iteration": 5}}, "train.iteration"),
        ({"methods": {"a": {"objective": "best"}}, "studies": {"main": {}}}, "methods.a.objective"),
        ({"methods": {"a": {"baseline": "knn", "lr": 0.1}}, "studies": {"main": {}}}, "methods.a.lr: has no effect"),
        ({"methods": {"a": {"baseline": "knn", "anomalib": "Cflow"}}, "studies": {"main": {}}}, "exclude each other"),
        ({"methods": {"a": {"baseline": ["knn"]}}, "studies": {"main": {}}}, "methods.a.baseline"),
        ({"methods": {"a": {"seed": 3}}, "studies": {"main": {}}}, "methods.a.seed"),
        ({"train": {"seed": 3}}, "train.seed"),
        (
            {"methods": {"a": {"seeds": 3}}, "studies": {"main": {}}},
            "methods.a.seeds: expected how many of the file's 2",
        ),
        ({"methods": {"a": {"seeds": [0]}}, "studies": {"main": {}}}, "methods.a.seeds"),
        (
            {"methods": {"a": {"baseline": "knnn"}}, "studies": {"main": {}}},
            "methods.a.baseline: expected one of patchcore",
        ),
        ({"methods": {"a": {"baseline": "knn", "score": "combined"}}, "studies": {"main": {}}}, "methods.a.score"),
        ({"methods": {"a": {"anomalib": "Cflow"}}, "train": {"tiles": 2}, "studies": {"main": {}}}, "methods.a.tiles"),
        ({"methods": {"a": {"baseline": "knn"}}, "studies": {"selection": {}}}, "studies.selection.methods"),
        ({"methods": {"../a": {}}, "studies": {"main": {}}}, "methods.../a"),
        ({"studies": {"main": {"methods": ["nobody"]}}}, "studies.main: no method 'nobody'"),
        ({"studies": {"main": {"compare": "nobody"}}}, "studies.main.compare"),
        ({"studies": {}}, "studies: at least one"),
        ({"studies": {"strength": {"method": "plain", "values": [-1.0]}}}, "studies.strength.values.0"),
        ({"studies": {"table": {}}}, "studies.table"),
        ({"data": {}}, "data"),
    ],
)
def test_a_mistake_is_named_with_file_and_field(
    changes: dict[str, Any], named: str, tree: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "wrong.yaml", content(tree, **changes))
    with pytest.raises(DataError) as caught:
        load_experiments(path)
    assert str(caught.value).startswith(str(path))
    assert named in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "", "!!python/object/apply:os.system ['true']\n", "\0"])
def test_a_file_that_is_no_such_yaml_is_an_error_that_names_it(text: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=r"wrong\.yaml"):
        load_experiments(path)


def test_a_data_set_that_is_not_there_is_named_or_skipped(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_FOLDER", raising=False)
    monkeypatch.setenv("IMAGES", str(tree.parent))
    data = {"far": "nowhere", "unset": "$NO_SUCH_FOLDER/x", "textures": f"$IMAGES/{tree.name}"}
    path = write(tmp_path / "file.yaml", content(tree, data=data))
    experiments = load_experiments(path)
    with pytest.raises(ScrdFastError, match=r"file\.yaml: data\.far: no folder .*nowhere"):
        data_of(path, experiments, skip_missing=False)
    found, missing = data_of(path, experiments, skip_missing=True)
    assert [one.name for one in found] == ["textures"]
    assert "environment variable" in missing["unset"]
    (only_missing,) = ({"far": "nowhere"},)
    alone = write(tmp_path / "alone.yaml", content(tree, data=only_missing))
    with pytest.raises(DataError, match="no data set is there"):
        data_of(alone, load_experiments(alone), skip_missing=True)


def test_a_run_is_known_by_what_its_result_depends_on(tree: Path, tmp_path: Path) -> None:
    def ids(**changes: Any) -> dict[str, str]:
        path = write(tmp_path / "file.yaml", content(tree, **changes))
        experiments = load_experiments(path)
        data, _ = data_of(path, experiments, skip_missing=False)
        return {str(run): run.id for run in runs_of(experiments, data, experiments.asked())}

    before = ids()
    assert len(set(before.values())) == 4
    assert ids(title="Another", data={"textures": str(tree)}) == before
    fewer = ids(methods={"plain": METHODS["plain"] | {"seeds": 1}, "scales": METHODS["scales"]})
    assert fewer == {name: one for name, one in before.items() if name != "textures, plain, seed 1"}
    longer = ids(train=TRAIN | {"iterations": 5})
    assert longer.keys() == before.keys()
    assert not set(longer.values()) & set(before.values())
    baseline: dict[str, Any] = {"methods": {"knn": {"baseline": "knn"}}, "studies": {"main": {}}}
    assert ids(**baseline) == ids(**baseline, train=TRAIN | {"lr": 0.5})  # which a baseline does not have
    assert ids(**baseline) != ids(**baseline, train=TRAIN | {"size": 96})


def test_a_run_of_several_studies_is_listed_once(tree: Path, tmp_path: Path) -> None:
    studies = {"main": {}, "roc": {}, "strength": {"method": "scales", "values": [0.1, 0.2]}}
    path = write(tmp_path / "file.yaml", content(tree, studies=studies))
    planned = plan(path, tmp_path / "out")
    # Two methods and one more strength; 0.2 is the method's own.
    assert len(planned) == 3 * 2
    assert len(plan(path, tmp_path / "out", only=["roc"])) == 2 * 2
    assert not (tmp_path / "out").exists()


def test_changed_pixels_are_another_data_set(tmp_path: Path) -> None:
    from conftest import make_tree

    root = make_tree(tmp_path / "data", test=2)
    path = write(tmp_path / "file.yaml", content(root))
    before = {planned.run.id for planned in plan(path, tmp_path / "out")}
    (root / "test" / "good" / "000.png").write_bytes((root / "train" / "good" / "001.png").read_bytes())
    assert not before & {planned.run.id for planned in plan(path, tmp_path / "out")}


def test_usage_errors_are_one_line(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "file.yaml", content(tree))
    command = ["reproduce", str(path), "--out", str(tmp_path / "out")]
    assert main([*command, "--only", "table"]) == 2
    assert "--only table: no such study; the file asks for main" in capsys.readouterr().err
    assert main([*command, "--anomalib", "/no/python"]) == 2
    assert "--anomalib /no/python: no such program" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    assert main(command) == 2
    assert "holds no runs of this command" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_the_files_that_come_with_the_package_are_valid(path: Path) -> None:
    experiments = load_experiments(path)
    assert "main" in experiments.asked()


@pytest.mark.parametrize("name", ["cpu.yaml", "paper.yaml"])
def test_the_files_of_the_whole_comparison_have_the_figures_of_the_paper(name: str) -> None:
    asked = load_experiments(ROOT / "configs" / name).asked()
    assert set(asked) >= {"ablation", "strength", "distributions", "timing", "roc", "gallery"}
