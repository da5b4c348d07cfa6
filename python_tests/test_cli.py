# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TRAIN_FLAGS

from scrd_fast.calibration import Calibration
from scrd_fast.cli import main
from scrd_fast.evaluation import metrics_from_csv
from scrd_fast.model.scrd import SCRD

VERBS = ("info", "data", "train", "evaluate", "calibrate", "screen", "report", "export", "card", "push", "serve")


def fails(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that an error prints."""
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in captured.err
    return lines[0]


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_imports_nothing_heavy(verb: str) -> None:
    code = (
        "import sys\nfrom scrd_fast.cli import main\n"
        f"code = main({[verb, '--help'] if verb else ['--help']!r})\n"
        "print(code, sorted({'torch', 'numpy', 'timm', 'PIL', 'pyarrow', 'sklearn'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "0 []"
    assert "Usage: scrd-fast" in result.stdout


@pytest.mark.parametrize("module", ["scrd_fast", "scrd_fast.info", "scrd_fast.cli"])
def test_imports_that_must_work_without_torch_or_extras(module: str) -> None:
    """They bring nothing but the standard library, and typer for the command line."""
    code = f"import sys\nbefore = set(sys.modules)\nimport {module}\nprint(*set(sys.modules) - before)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    brought = {name.partition(".")[0] for name in result.stdout.split()} - set(sys.stdlib_module_names)
    allowed = {"scrd_fast", "typer", "click", "shellingham", "rich", "typing_extensions", "annotated_doc", "colorama"}
    assert brought <= (allowed if module == "scrd_fast.cli" else {"scrd_fast"})


def test_python_m_is_the_same_command() -> None:
    command = [sys.executable, "-m", "scrd_fast", "screen", "--out"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")


def test_unknown_flags_verbs_and_files_get_the_nearest_match(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--batch-size" in fails(["screen", "r", "i", "--out", "o", "--batch-siz", "3"], 2, capsys)
    assert "train" in fails(["trian"], 2, capsys)
    (tmp_path / "xrays").mkdir()
    text = fails(["screen", str(trained), str(tmp_path / "xray"), "--out", str(tmp_path / "o")], 2, capsys)
    assert "did you mean" in text
    assert str(tmp_path / "xrays") in text
    text = fails(["train", str(tmp_path), "--out", str(tmp_path / "o"), "--teacher", "resnet19"], 2, capsys)
    assert "not a data set" in text


def test_wrong_values_name_their_flag(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["train", str(tree), "--out", str(tmp_path / "o"), *TRAIN_FLAGS]
    for flag, value in (
        ("--size", "100"),
        ("--batch-size", "1"),
        ("--lr", "0"),
        ("--calibration-fraction", "0.9"),
    ):
        assert flag in fails([*base, flag, value], 2, capsys)
    assert "objective" in fails([*base, "--objective", "best"], 2, capsys)
    assert "trains the scale weights" in fails([*base, "--map-weights", "on"], 2, capsys)
    assert "resnet19" in fails([*base, "--teacher", "resnet19"], 2, capsys)


@pytest.mark.skipif("not __import__('torch').cuda.is_available() is False", reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_exit_code_4(
    trained: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = fails(["screen", str(trained), str(tree), "--out", str(tmp_path / "o"), "--device", "cuda"], 4, capsys)
    assert "device cuda" in text
    fails(["train", str(tree), "--out", str(tmp_path / "t"), *TRAIN_FLAGS, "--device", "cuda"], 4, capsys)


def test_errors_are_json_too_where_the_log_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["screen", "nowhere", "nothing", "--out", "o", "--log-json"]) == 2
    record = json.loads(capsys.readouterr().err)
    assert record["level"] == "error"
    assert "nowhere" in record["text"]


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["screen", "nowhere", "nothing", "--out", "o", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "data", "--out", "o", "--batch-size", "8", "--map-weights", "off", "--objective", "paper"],
        ["evaluate", "run", "data", "--out", "o", "--precision", "bf16"],
        ["calibrate", "run", "a", "b", "--fpr", "0.1", "--site", "here"],
        ["screen", "run", "a", "b", "--out", "o", "--overlays", "3"],
        ["report", "out", "--fpr", "0.1", "--compact"],
    ],
    ids=lambda a: a[0],
)
def test_a_printed_config_runs_identically(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--print-config"]) == 0
    printed = capsys.readouterr().out
    path = tmp_path / "c.yaml"
    path.write_text(printed)
    assert main([arguments[0], "--config", str(path), "--print-config"]) == 0
    assert capsys.readouterr().out == printed


def test_flags_override_the_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data: d\nout: o\nbatch_size: 8\nlr: 0.01\n")
    assert main(["train", "--config", str(path), "--lr", "0.5", "--print-config"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert (settings["batch_size"], settings["lr"], settings["data"]) == (8, 0.5, "d")


def test_a_config_may_be_written_as_people_write_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data: d\nout: o\nmap_weights: off\n")
    assert main(["train", "--config", str(path), "--print-config"]) == 0
    assert "map_weights: 'off'" in capsys.readouterr().out
    path.write_text("run: r\ninputs: folder\nout: o\ndry_run: true\n")
    assert main(["screen", "--config", str(path), "--print-config"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["inputs"] == ["folder"]
    assert settings["dry_run"] is True


def test_a_bad_config_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    for content, text in (
        ("batchsize: 3", "did you mean batch_size"),
        ("- a", "expected"),
        ("a: [", "c.yaml"),
    ):
        path.write_text(content)
        assert text in fails(["train", "--config", str(path)], 2, capsys)
    assert "none.yaml" in fails(["train", "--config", str(tmp_path / "none.yaml")], 2, capsys)


def test_stdout_holds_the_result_alone(
    trained: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(trained), str(tree)]
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    plain = capsys.readouterr()
    assert plain.out == f"{tmp_path / 'a' / 'metrics.json'}\n"
    assert "AUROC" in plain.err
    assert main([*command, "--out", str(tmp_path / "b"), "--json", "-q"]) == 0
    quiet = capsys.readouterr()
    assert json.loads(quiet.out) == json.loads((tmp_path / "b" / "metrics.json").read_text())
    assert quiet.err == ""
    assert main([*command, "--out", str(tmp_path / "c"), "--log-json"]) == 0
    for line in capsys.readouterr().err.splitlines():
        assert json.loads(line)["level"] == "info"


def test_no_environment_variable_is_needed(trained: Path, tree: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "scrd_fast",
        "screen",
        str(trained),
        str(tree),
        "--out",
        str(tmp_path / "o"),
        "-q",
    ]
    kept = {k: os.environ[k] for k in ("PATH", "PYTHONPATH", "HOME") if k in os.environ}
    assert subprocess.run(command, env=kept).returncode == 0


def test_evaluate_measures_pixels_and_equals_its_csv(trained: Path, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "e"
    assert main(["evaluate", str(trained), str(tree), "--out", str(out), "-q"]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["counts"] == {"normal": 6, "abnormal": 6}
    for name in ("auroc", "auprc", "f1", "accuracy"):
        assert metrics[name]["low"] <= metrics[name]["value"] <= metrics[name]["high"]
    assert {"auroc", "aupro", "dice"} <= metrics["pixel"].keys()
    assert json.loads((out / "run.json").read_text())["status"] == "finished"
    assert {"f1", "accuracy", "sensitivity", "specificity"} <= metrics["at_threshold"].keys()
    assert metrics["by_score"].keys() == {"mean", "max", "top1", "top5", "combined"}
    calibration = Calibration.load(trained / "model" / "calibration.json")
    again = json.loads(json.dumps(metrics_from_csv(out / "scores.csv", calibration, metrics["score"], 0)))
    for name in again.keys() - {"pixel", "notes"}:  # the table has no pixels
        assert again[name] == metrics[name]
    for name in ("roc.png", "histogram.png", "gallery.png", "scores.csv"):
        assert (out / name).stat().st_size > 0


def test_evaluate_wants_every_test_image(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from conftest import make_tree

    root = make_tree(tmp_path / "d", train=0)
    (root / "test" / "good" / "001.png").write_bytes(b"broken")
    assert main(["evaluate", str(trained), str(root), "--out", str(tmp_path / "e"), "-q"]) == 2
    assert "001.png" in capsys.readouterr().err
    assert not (tmp_path / "e" / "metrics.json").exists()


def test_calibrate_replaces_the_threshold(trained: Path, tree: Path, tmp_path: Path) -> None:
    import shutil

    run = shutil.copytree(trained, tmp_path / "run")
    before = Calibration.load(run / "model" / "calibration.json")
    assert main(["calibrate", str(run), str(tree / "test" / "good"), "--fpr", "0.2", "-q"]) == 0
    after = Calibration.load(run / "model" / "calibration.json")
    assert (after.count, after.fpr) == (6, 0.2)
    assert after.id != before.id
    assert after.model_sha256 == before.model_sha256 == SCRD.from_pretrained(run / "model").fingerprint()


def test_calibrate_says_what_to_expect_and_of_which_site(
    trained: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    run = shutil.copytree(trained, tmp_path / "run")
    command = ["calibrate", str(run), str(tree / "test" / "good"), "--fpr", "0.4"]
    assert main([*command, "--site", "North wing", "--json"]) == 0
    captured = capsys.readouterr()
    shown = json.loads(captured.out)
    calibration = Calibration.load(run / "model" / "calibration.json")
    assert (shown["site"], shown["count"], shown["id"]) == (calibration.site, 6, calibration.id)
    assert calibration.site == "North wing"
    assert shown["threshold_low"] <= shown["threshold"] == calibration.threshold  # the fifth of six
    assert shown["threshold_high"] is None
    assert shown["expected_fpr"] == pytest.approx(2 / 7)
    assert shown["fpr_low"] < 2 / 7 < shown["fpr_high"]
    for text in (
        "of North wing",
        calibration.id,
        "from 6 normal images",
        f"threshold {shown['threshold']:.4g}",
        "false-positive rate 0.2857 (",
    ):
        assert text in captured.err
    assert "site must have" in fails([*command, "--site", "", "-q"], 2, capsys)


def test_info_shows_every_operator(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {"simplex_noise", "anomaly_map", "contrastive_distance"} <= facts["operators"].keys()
    assert main(["info"]) == 0
    assert "simplex_noise" in capsys.readouterr().out


def test_info_answers_for_one_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--backend", "native-cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "usable with native-cpu: yes"
    assert main(["info", "--backend", "native-cuda"]) == (0 if torch.cuda.is_available() else 4)
    found = capsys.readouterr().out.splitlines()[-1]
    assert found.startswith("usable with native-cuda: " + ("yes" if torch.cuda.is_available() else "no"))
    assert "--backend" in fails(["info", "--backend", "native"], 2, capsys)
