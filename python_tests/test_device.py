# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from conftest import TRAIN_FLAGS

from scrd_fast.cli import main
from scrd_fast.device import SLOW_BFLOAT16


@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_bfloat16_that_is_only_imitated_is_warned_of(
    tree: Path,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    capability: str,
    precision: str,
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    expected = precision == "bf16" and capability == "AVX2"
    flags = ["--precision", precision, "--device", "cpu"]
    assert main(["train", str(tree), "--out", str(tmp_path / "run"), *TRAIN_FLAGS, "--iterations", "1", *flags]) == 0
    assert (f"warning: {SLOW_BFLOAT16}" in capsys.readouterr().err) == expected
    image = str(tree / "test" / "good" / "000.png")
    assert main(["screen", str(trained), image, "--out", str(tmp_path / "out"), *flags]) == 0
    assert (f"warning: {SLOW_BFLOAT16}" in capsys.readouterr().err) == expected
