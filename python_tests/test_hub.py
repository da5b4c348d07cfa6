# SPDX-License-Identifier: Apache-2.0
"""Models go to a hub and come back, by huggingface_hub's own code and a small hub on this machine."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save
from stub_hub import TOKEN, Hub, running_hub

from scrd_fast import SCRD, Screener
from scrd_fast.calibration import Calibration
from scrd_fast.cli import main
from scrd_fast.errors import MissingExtraError, ScrdFastError, UnavailableError
from scrd_fast.hub import FILES, located
from scrd_fast.screening.screener import load

pytestmark = pytest.mark.xdist_group("hub")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """What HF_ENDPOINT, HF_HUB_CACHE and HF_HUB_DISABLE_XET would set, had they been there at the import."""
    constants = huggingface_hub.constants
    with running_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture(scope="module")
def files(trained: Path) -> dict[str, bytes]:
    """Of the trained model, with a card."""
    return {p.name: p.read_bytes() for p in (trained / "model").iterdir()} | {"README.md": b"# a model"}


def fails(action: Callable[[], Any], kind: type[ScrdFastError] = ScrdFastError) -> str:
    """The text of the error, which is one line."""
    with pytest.raises(ScrdFastError) as caught:
        action()
    assert type(caught.value) is kind
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_what_is_pushed_comes_back(hub: Hub, trained: Path, tmp_path: Path) -> None:
    model, calibration = load(trained)
    assert calibration is not None
    card = f"---\nlicense: unknown\n---\n# A model\n{model.fingerprint()}\n"
    url = model.push_to_hub("me/model", calibration=calibration, card=card)
    assert url == f"{hub.address}/me/model/commit/{hub.branches['me/model']['main']}"
    assert sum("/commit/" in request for request in hub.requests) == 1
    assert hub.private == {"me/model"}
    assert set(hub.files("me/model")) - {".gitattributes"} == set(FILES)
    assert hub.files("me/model")["README.md"] == card.encode()

    again = Screener.from_pretrained("me/model", device="cpu")
    assert again.model.fingerprint() == model.fingerprint()
    assert again.calibration is not None
    assert again.calibration.id == calibration.id
    assert not again.model.training
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(again.model.predict(images).map, model.predict(images).map)
    assert SCRD.from_pretrained("me/model").config == model.config
    cached = next((tmp_path / "cache").glob("models--me--model/snapshots/*/README.md"))
    assert cached.read_text() == card


def test_a_public_model_is_asked_for_and_a_second_push_leaves_nothing_of_the_first(hub: Hub, trained: Path) -> None:
    model, calibration = load(trained)
    model.push_to_hub("me/model", calibration=calibration, private=False)
    assert not hub.private
    assert "calibration.json" in hub.files("me/model")
    model.push_to_hub("me/model")
    assert set(hub.files("me/model")) == {".gitattributes", "config.json", "model.safetensors"}
    assert Screener.from_pretrained("me/model", device="cpu").calibration is None


def test_names_of_devices_stay_here(hub: Hub, trained: Path) -> None:
    model, calibration = load(trained)
    assert calibration is not None
    assert calibration.pictures is not None
    tags = {"MANUFACTURER": {"CANARY": calibration.count}, "device_model": {"CANARY": calibration.count}}
    tags = {name.lower(): counts for name, counts in tags.items()}
    named = calibration.model_copy(update={"pictures": calibration.pictures.model_copy(update={"tags": tags})})
    model.push_to_hub("me/model", calibration=named)
    assert "CANARY" in named.model_dump_json()
    published = hub.files("me/model")["calibration.json"]
    assert b"CANARY" not in published
    assert Calibration.model_validate(json.loads(published)).id == named.id


def test_a_revision_is_a_branch_or_a_commit(hub: Hub, trained: Path, files: dict[str, bytes]) -> None:
    first = hub.put("me/model", files)
    model, _ = load(trained)
    model.config = model.config.model_copy(update={"score": "max"})
    model.push_to_hub("me/model", branch="next")
    assert SCRD.from_pretrained("me/model").config.score == "combined"
    assert SCRD.from_pretrained("me/model", revision="next").config.score == "max"
    assert SCRD.from_pretrained("me/model", revision=first).config.score == "combined"
    text = fails(lambda: SCRD.from_pretrained("me/model", revision="v9"))
    assert text == f"me/model: no revision v9 at {hub.address}"


def test_only_what_is_needed_is_fetched(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.put("me/model", files | {"pytorch_model.bin": b"pickle", "model.py": b"evil", "big/weights.safetensors": b"1"})
    SCRD.from_pretrained("me/model", cache_dir=tmp_path / "mine")
    fetched = {r.rsplit("/", 1)[1] for r in hub.requests if "/resolve/" in r}
    assert fetched == set(FILES)
    assert not (tmp_path / "cache").exists()
    assert sum(p.is_file() for p in (tmp_path / "mine").glob("*/snapshots/*/**/*")) == len(FILES)


def test_what_is_not_there_is_said_in_a_line(hub: Hub, files: dict[str, bytes]) -> None:
    text = fails(lambda: SCRD.from_pretrained("me/modle"))
    assert text.startswith(f"me/modle: no folder here and no model at {hub.address}")
    hub.put("me/pickled", {"config.json": files["config.json"], "pytorch_model.bin": b"\x80\x04."})
    text = fails(lambda: SCRD.from_pretrained("me/pickled"))
    assert text == f"me/pickled: no model.safetensors at {hub.address}; other formats are not read"
    assert not any("pytorch_model.bin" in request for request in hub.requests)
    hub.put("me/empty", {"notes.txt": b""})
    assert "no config.json" in fails(lambda: SCRD.from_pretrained("me/empty"))
    hub.put("me/newer", files | {"config.json": b'{"format_version": 2}'})
    assert "format_version" in fails(lambda: SCRD.from_pretrained("me/newer"))


def test_damaged_weights_are_refused(hub: Hub, trained: Path, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.put("me/cut", files | {"model.safetensors": files["model.safetensors"][:5000]})
    assert "damaged" in fails(lambda: SCRD.from_pretrained("me/cut"))
    state = load_file(trained / "model" / "model.safetensors")
    name = next(n for n in state if n.startswith("teacher.") and state[n].is_floating_point())
    hub.put("me/other", files | {"model.safetensors": save(state | {name: state[name] + 1e-3})})
    assert "not those the model was trained with" in fails(lambda: SCRD.from_pretrained("me/other"))

    hub.put("me/model", files)
    SCRD.from_pretrained("me/model")
    cached = next((tmp_path / "cache").glob("models--me--model/snapshots/*/model.safetensors")).resolve()
    name = next(n for n in state if n.startswith("student.") and state[n].is_floating_point())
    cached.write_bytes(save(state | {name: state[name] + 1e-3}))  # whole in form
    text = fails(lambda: SCRD.from_pretrained("me/model", local_files_only=True))
    assert text == f"me/model: model.safetensors is damaged, it is not what the hub has; remove {cached}"


def test_a_private_model_wants_the_token(hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("me/model", files, private=True)
    monkeypatch.delenv("HF_TOKEN")
    assert "private one that the token does not open" in fails(lambda: SCRD.from_pretrained("me/model", token=False))
    SCRD.from_pretrained("me/model", token=TOKEN)
    text = fails(lambda: load_model_and_push("wrong"))
    assert "refuses the token" in text
    assert "wrong" not in text
    hub.put("me/gated", files)
    hub.gated.add("me/gated")
    text = fails(lambda: SCRD.from_pretrained("me/gated"))
    assert text == f"me/gated: access is restricted; ask for it at {hub.address}/me/gated"


def load_model_and_push(token: str) -> str:
    return SCRD.create("resnet18", weights="random", size=64).push_to_hub("me/model", token=token)


def test_without_the_hub_the_cache_serves(hub: Hub, files: dict[str, bytes], trained: Path) -> None:
    hub.put("me/model", files)
    missing = fails(lambda: SCRD.from_pretrained("me/model", local_files_only=True), UnavailableError)
    assert missing.startswith("me/model: not in the cache")
    assert not hub.requests
    SCRD.from_pretrained("me/model")
    hub.down = True
    sha256 = SCRD.from_pretrained(trained / "model").fingerprint()
    assert SCRD.from_pretrained("me/model").fingerprint() == sha256
    hub.requests.clear()
    assert SCRD.from_pretrained("me/model", local_files_only=True).fingerprint() == sha256
    assert not hub.requests
    assert "not in the cache" in fails(lambda: SCRD.from_pretrained("me/other"), UnavailableError)
    assert "could not be published" in fails(lambda: load_model_and_push(TOKEN), UnavailableError)


def test_a_folder_is_a_folder_whatever_its_name(hub: Hub, here: Path, trained: Path) -> None:
    shutil.copytree(trained / "model", here / "me" / "model")
    expected = SCRD.from_pretrained(trained / "model").fingerprint()
    assert SCRD.from_pretrained("me/model").fingerprint() == expected
    text = fails(lambda: SCRD.from_pretrained("me/model", revision="main"))
    assert text == "revision: me/model names a folder here, which has none, got 'main'"
    for local in (Path("you/model"), "model", "/you/model", "./you/model", "you/model/"):
        assert located(local) == Path(local)
        fails(lambda local=local: SCRD.from_pretrained(local))  # type: ignore[misc]
    assert not hub.requests


def test_without_huggingface_hub_folders_work(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert Screener.from_pretrained(trained, device="cpu").calibration is not None
    text = fails(lambda: SCRD.from_pretrained("me/model"), MissingExtraError)
    assert text == "huggingface_hub is not installed; install this package with its [export] extra"
    model = SCRD.from_pretrained(trained / "model")
    assert fails(lambda: model.push_to_hub("me/model"), MissingExtraError) == text


def test_a_card_or_a_calibration_of_another_model_is_not_published(hub: Hub, trained: Path) -> None:
    model, calibration = load(trained)
    assert calibration is not None
    assert "does not name this model" in fails(lambda: model.push_to_hub("me/model", card="# Another"))
    other = calibration.model_copy(update={"model_sha256": "0" * 64})
    assert "made with another model" in fails(lambda: model.push_to_hub("me/model", calibration=other))
    assert "expected user/model" in fails(lambda: model.push_to_hub("model"))
    assert not hub.requests


def test_the_command_line_speaks_to_the_hub(
    hub: Hub, trained: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card, out = tmp_path / "card.md", tmp_path / "out"
    assert main(["card", str(trained), "--out", str(card), "-q"]) == 0
    capsys.readouterr()
    assert main(["push", str(trained), "me/model", "--card", str(card), "-q"]) == 0
    assert capsys.readouterr() == (f"{hub.address}/me/model/commit/{hub.branches['me/model']['main']}\n", "")
    assert hub.files("me/model")["README.md"] == card.read_bytes()
    assert main(["screen", "hf://me/model@main", str(tree / "test"), "--out", str(out), "--dry-run", "-q"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["screen", "hf://me/model@v9", str(tree), "--out", str(out), "-q"]) == 2
    assert capsys.readouterr().err == f"error: me/model: no revision v9 at {hub.address}\n"
    assert main(["screen", "hf://model", str(tree), "--out", str(out), "-q"]) == 2
    assert capsys.readouterr().err == "error: model: no model of a hub; expected user/model\n"
    assert main(["calibrate", "hf://me/model", str(tree), "-q"]) == 2
    assert "hf download me/model --local-dir DIR" in capsys.readouterr().err


def test_the_blocks_of_the_documentation_run(hub: Hub, trained: Path, tree: Path, here: Path) -> None:
    shutil.copytree(trained, "run")
    shutil.copytree(tree, "data")
    shutil.copytree(tree / "test" / "good", "normals_of_my_site")
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(here / "cache")}
    text = (Path(__file__).parents[1] / "docs" / "hub.md").read_text()
    done = []
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.M | re.S):
        if language == "python":
            exec(compile(block, "hub.md", "exec"), {})
        for command in map(shlex.split, block.splitlines() if language == "bash" else []):
            if command[0] == "hf":
                call = [sys.executable, "-m", "huggingface_hub.cli.hf", *command[1:]]
                subprocess.run(call, check=True, env=environment, capture_output=True)
            else:
                assert main([*command[1:], "-q"]) == 0
            done.append(command[:2][-1])
    assert done == ["evaluate", "card", "push", "screen", "download", "calibrate"]
    assert Screener.from_pretrained("my_model", device="cpu").calibration.site == "my-site"  # type: ignore[union-attr]
    assert all(name in hub.files("me/model") for name in FILES)


def test_a_slip_below_a_folder_asks_no_hub(hub: Hub, here: Path) -> None:
    (here / "run").mkdir()
    with pytest.raises(ScrdFastError, match="run/model: no such folder, though run is one"):
        SCRD.from_pretrained("run/model")
    assert hub.requests == []
