# SPDX-License-Identifier: Apache-2.0
"""Cases of the anomaly map: their inputs, their right answers, and how far the rivals may be from them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from made import CPU
from scipy.ndimage import gaussian_filter
from torch import Tensor

from scrd_fast.bench import maps
from scrd_fast.bench.cases import find, select
from scrd_fast.bench.harness import Schedule, quick, worst
from scrd_fast.bench.run import Session, chosen, variants
from scrd_fast.ops import anomaly_map

ONE = find("anomaly_map", "1 image, float32, NCHW")


@pytest.fixture(scope="module")
def features() -> maps.Features:
    return maps.draw(3, 2, torch.float32, "NCHW", CPU)


def test_every_batch_dtype_and_layout_has_a_case() -> None:
    names = {case.name for case in select(["anomaly_map"])}
    images = ("1 image", "8 images", "64 images")
    parts = itertools.product(images, ("float32", "bfloat16"), ("NCHW", "channels-last"))
    assert names == {", ".join(part) for part in parts}
    assert {case.name for case in select(["anomaly_map"], quick=True)} == {
        "1 image, float32, NCHW",
        "8 images, bfloat16, channels-last",
    }
    for case in select(["anomaly_map"]):
        assert {"scrd_fast", "eager", "torch.compile", "torch.compile, max-autotune", "authors", "anomalib"} <= {
            c.name for c in case.contenders
        }
        assert variants(case) == ["map", "mean", "read", "map, mirror"]
        assert set(case.rivals) <= {c.name for c in case.contenders} | {"reference"}


def test_layouts_hold_the_same_features() -> None:
    drawn = [maps.draw(1, 3, torch.bfloat16, layout, CPU) for layout in ("NCHW", "channels-last")]
    for plain, last in zip(*(f.teacher + f.student for f in drawn), strict=True):
        assert torch.equal(plain, last)
        assert plain.is_contiguous()
        assert last.is_contiguous(memory_format=torch.channels_last)
    assert [tuple(t.shape) for t in drawn[0].teacher] == [(3, *scale) for scale in maps.SCALES]


def test_a_read_goes_through_all_features_and_little_else() -> None:
    features = maps.draw(6, 1, torch.float32, "NCHW", CPU)
    call = next(c for c in ONE.contenders if c.name == "read").build(ONE, CPU)(features)
    assert torch.equal(call()().double(), maps._oracle(features, "read"))
    numbers = sum(x.numel() for x in features.teacher + features.student)
    assert numbers < features.memory.numel() < 1.01 * numbers
    for x in features.teacher + features.student:
        x[-1, -1, -1, -1] = 10  # of each the last is there
        assert call()() == x[-1, -1, -1, -1].view(torch.int32)
        x[-1, -1, -1, -1] = 0


def test_a_read_is_counted_as_nothing_else() -> None:
    """Or a fast one would pass for a wrong count of operations."""
    work = ONE.work(0, "read")
    assert work.bytes == 2 * 4 * sum(c * h * w for c, h, w in maps.SCALES)
    assert work.flops32 == work.int_ops == work.fused == 0 < ONE.work(0, "mean").flops32


def test_seeds_and_images_are_told_apart(features: maps.Features) -> None:
    """A contender that took another image, or another set, would be wrong by far in map and mean."""
    other = maps.draw(4, 2, torch.float32, "NCHW", CPU).right("reflect")
    mine = features.right("reflect")
    for a, b in ((mine[0], mine[1]), (mine[0], other[0])):
        assert (a[:-3] - b[:-3]).abs().max() > 1e-2
        assert (a[-3] - b[-3]).abs() > 1e-4


def test_the_right_answer_is_the_operators(features: maps.Features) -> None:
    exact = [[x.double() for x in side] for side in (features.teacher, features.student)]
    for border, variant in (("reflect", "map"), ("mirror", "map, mirror")):
        found = anomaly_map(*exact, None, (256, 256), border=border, top=0.05, backend="reference")
        parts = [found.map, found.mean, found.max, found.top]
        joined = torch.cat([x.reshape(2, -1) for x in parts if x is not None], dim=1)
        torch.testing.assert_close(maps._oracle(features, variant), joined, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(maps._oracle(features, "mean"), maps._oracle(features, "map")[:, -3])
    borders = features.right("reflect") - features.right("mirror")
    assert borders.abs().max() > 1e-3  # neither answer passes for the other


def test_the_right_answer_needs_no_scipy(features: maps.Features, monkeypatch: pytest.MonkeyPatch) -> None:
    with_scipy = features.right("reflect")
    monkeypatch.setitem(sys.modules, "scipy.ndimage", None)
    without = maps.Features(features.teacher, features.student, features.memory).right("reflect")
    torch.testing.assert_close(without, with_scipy, rtol=1e-9, atol=1e-9)


def _in_bfloat16(f: maps.Features) -> Tensor:
    pairs = zip(f.teacher, f.student, strict=True)
    scales = [(1 - F.cosine_similarity(t, s))[:, None] for t, s in pairs]
    upsampled = [F.interpolate(d, (256, 256), mode="bilinear", align_corners=True) for d in scales]
    blurred = torch.from_numpy(gaussian_filter(torch.stack(upsampled).sum(0)[0, 0].double().numpy(), 4.0))
    return torch.cat([blurred.flatten(), maps._oracle(f, "map")[0, -3:]])[None]


def test_bfloat16_arithmetic_would_fail() -> None:
    """The reason why rivals are given float32."""
    f = maps.draw(0, 1, torch.bfloat16, "NCHW", CPU)
    assert worst(_in_bfloat16(f), maps._oracle(f, "map"), maps._tolerance("map")) > 10


def test_each_device_has_its_contenders() -> None:
    def names(case_name: str, device: str) -> set[str]:
        return {c.name for c in chosen(find("anomaly_map", case_name), torch.device(device), short=False)}

    tuned = "torch.compile, max-autotune"
    assert tuned in names("8 images, float32, NCHW", "cpu")
    assert tuned not in names("1 image, float32, NCHW", "cpu")
    assert tuned in names("64 images, float32, NCHW", "cuda")
    assert "scrd_fast triton" in names("64 images, float32, NCHW", "cuda")
    assert "scrd_fast avx2" in names("8 images, float32, NCHW", "cpu")
    assert "scrd_fast avx2" not in names("64 images, float32, NCHW", "cpu")


def test_large_sets_are_few() -> None:
    session = Session(CPU, Schedule(rotations=3), 5, 1)
    assert session.seeds(ONE) == [5, 1005, 2005]
    assert session.seeds(find("anomaly_map", "64 images, float32, NCHW")) == [5]


# A stand-in for the package: a generator whose map is the right one for its border.
GENERATOR = """
import enum
from scrd_fast.ops import anomaly_map

class AnomalyMapGenerationMode(str, enum.Enum):
    ADD = "add"

class AnomalyMapGenerator:
    def __init__(self, image_size, sigma, mode):
        assert (image_size, sigma, mode) == ((256, 256), 4, AnomalyMapGenerationMode.ADD)

    def __call__(self, student, teacher):
        return anomaly_map(teacher, student, None, (256, 256), border="mirror", backend="reference").map + OFFSET
"""


@pytest.mark.parametrize(("offset", "right"), [("0", True), ("1e-3", False)])
def test_a_rival_of_another_environment_runs_there(
    offset: str, right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "anomalib" / "models" / "image" / "reverse_distillation"
    folder.mkdir(parents=True)
    (folder / "anomaly_map.py").write_text(GENERATOR.replace("OFFSET", offset))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    session = Session(CPU, quick(Schedule()), 0, torch.get_num_threads(), {"anomalib": sys.executable})
    contender = next(c for c in ONE.contenders if c.name == "anomalib")
    try:
        (runner,) = session.runners(ONE, [contender])
        runner.open()
        assert (runner.check() <= 1) is right
        assert session.environments()["anomalib"]["torch"] == importlib.metadata.version("torch")
    finally:
        session.close()


@pytest.mark.skipif(importlib.util.find_spec("anomalib") is None, reason="needs anomalib")
def test_anomalib_is_right() -> None:
    contender = next(c for c in ONE.contenders if c.name == "anomalib")
    inputs = ONE.inputs(0, CPU)
    found = contender.build(ONE, CPU)(inputs)()
    assert worst(found, ONE.oracle(inputs, contender.variant), ONE.tolerance(contender.variant)) <= 1


def test_an_environment_without_the_package_has_a_row_that_says_so(tmp_path: Path) -> None:
    """A Python that cannot run the harness at all ends its process; the run goes on without its versions."""
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    session = Session(CPU, quick(Schedule()), 0, 1, {"anomalib": str(broken)})
    (runner,) = session.runners(ONE, [next(c for c in ONE.contenders if c.name == "anomalib")])
    with pytest.raises(RuntimeError, match="its process ended with exit code 3"):
        runner.open()
    assert session.environments() == {}
    session.close()
