# SPDX-License-Identifier: Apache-2.0
"""The detector follows scikit-learn's conventions, and is the model that `train` makes."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import texture
from documented import blocks_of
from PIL import Image
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import Tags
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import validate_data

from scrd_fast import SCRDDetector, Screener
from scrd_fast.cli import main

SMALL: dict[str, Any] = {
    "teacher": "test_resnet",
    "teacher_weights": "random",
    "size": 32,
    "iterations": 1,
    "batch_size": 4,
    "device": "cpu",
}
Array = np.ndarray[Any, np.dtype[Any]]


class Tabular(SCRDDetector):
    """Rows of numbers as images of one column: most of scikit-learn's checks know nothing else."""

    def fit(self, X: Any, y: object = None) -> Tabular:
        return super().fit(_columns(validate_data(self, X, dtype=np.float64, ensure_min_samples=2)), y)  # type: ignore[return-value]

    def score_samples(self, X: Any) -> Any:
        return super().score_samples(_columns(validate_data(self, X, dtype=np.float64, reset=False)))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array, tags.input_tags.string = True, False, False
        return tags


def _columns(X: Array) -> Array:
    return (0.5 + np.arctan(X) / np.pi)[:, :, None]


NOT_OURS = {
    "check_methods_subset_invariance": "a network rounds by the size of its batch: by the 1e-7 that is asked for",
}


@parametrize_with_checks([Tabular(**SMALL, image_score="top1")], expected_failed_checks=lambda _: NOT_OURS)
def test_scikit_learns_checks(estimator: Tabular, check: Any) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def images() -> Array:
    """[24, 40, 40] of uint8."""
    generator = np.random.default_rng(1)
    return np.stack([texture(generator, 46)[:, :40] for _ in range(24)])


@pytest.fixture(scope="module")
def detector(images: Array) -> SCRDDetector:
    """Not to be changed."""
    return SCRDDetector(**SMALL, fpr=0.25).fit(images)


def test_the_conventions(detector: SCRDDetector, images: Array) -> None:
    scores = detector.score_samples(images)
    assert scores.shape == (24,)
    assert scores.dtype == np.float64
    assert detector.offset_ == -detector.calibration_.threshold
    np.testing.assert_array_equal(detector.decision_function(images), scores - detector.offset_)
    np.testing.assert_array_equal(detector.predict(images), np.where(scores >= detector.offset_, 1, -1))
    assert set(detector.predict(images)) == {1, -1}  # at such a rate some of the normals are above
    assert detector.calibration_.fpr == 0.25


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "colour"])
def test_arrays_files_and_folders_are_the_same_images(
    kind: str, detector: SCRDDetector, images: Array, tmp_path: Path
) -> None:
    pixels = images.astype(np.uint16) * 257 if kind == "uint16" else images
    pixels = np.stack([pixels, pixels, pixels], -1) if kind == "colour" else pixels
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
    arrays = (images / np.float32(255)).astype(np.float32) if kind == "float32" else pixels
    files = sorted(tmp_path.iterdir())
    expected = detector.score_samples(files)
    for same in (arrays, list(arrays), [str(file) for file in files], str(tmp_path)):
        np.testing.assert_array_equal(detector.score_samples(same), expected)
    again = SCRDDetector(**SMALL).fit(files)
    twin = SCRDDetector(**SMALL).fit(list(arrays))
    # What is held out follows from the content of the files, which arrays have not: as many, not the same.
    assert again.calibration_.count == twin.calibration_.count == 12


def test_one_seed_is_one_model(images: Array) -> None:
    first, second, third = (SCRDDetector(**SMALL, random_state=s).fit(images) for s in (5, 5, np.random.RandomState(5)))
    np.testing.assert_array_equal(first.score_samples(images), second.score_samples(images))
    assert (first.score_samples(images) != third.score_samples(images)).any()


def test_it_is_the_model_that_train_makes(tree: Path, tmp_path: Path) -> None:
    flags = ["--teacher", "test_resnet", "--teacher-weights", "random", "--size", "32", "--iterations", "1"]
    flags += ["--batch-size", "4", "--device", "cpu"]
    assert main(["train", str(tree), "--out", str(tmp_path / "run"), *flags, "-q"]) == 0
    files = sorted((tree / "train" / "good").iterdir())
    tests = sorted((tree / "test" / "square").iterdir())
    own, trained = SCRDDetector(**SMALL).fit(files), SCRDDetector.from_pretrained(tmp_path / "run", device="cpu")
    np.testing.assert_array_equal(own.score_samples(tests), trained.score_samples(tests))
    assert own.calibration_.id == trained.calibration_.id
    own.save_pretrained(tmp_path / "saved")
    rows = list(Screener.from_pretrained(tmp_path / "saved", device="cpu").screen(tests))
    np.testing.assert_array_equal([-row.scores["combined"] for row in rows if row.scores], own.score_samples(tests))
    np.testing.assert_array_equal([-1 if row.abnormal else 1 for row in rows], own.predict(tests))


def test_a_pickle_carries_the_model(detector: SCRDDetector, images: Array) -> None:
    content = pickle.dumps(detector)
    np.testing.assert_array_equal(pickle.loads(content).score_samples(images), detector.score_samples(images))


def test_it_works_in_scikit_learns_tools(images: Array) -> None:
    y = np.tile([1, -1], 12)
    bright = np.where(y[:, None, None] == 1, images, 255 - images // 8)
    pipeline = make_pipeline(FunctionTransformer(lambda x: x[:, ::2, ::2]), SCRDDetector(**SMALL, image_score="mean"))
    scores = cross_val_score(pipeline, bright, y, cv=2, scoring="roc_auc")
    assert ((scores >= 0) & (scores <= 1)).all()
    search = GridSearchCV(SCRDDetector(**SMALL, image_score="mean"), {"fpr": [0.1, 0.5]}, cv=2, scoring="roc_auc")
    search.fit(bright, y)
    assert roc_auc_score(y, search.decision_function(bright)) >= 0
    assert search.best_params_["fpr"] in (0.1, 0.5)


def test_what_cannot_be_used_is_named(detector: SCRDDetector, images: Array, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    holey = np.zeros((8, 8), np.float32)
    holey[3, 3] = np.nan
    for X, text in (
        (images[0], r"X must be images \[N, H, W\] or \[N, H, W, 3\], got an array of shape \[40, 40\]"),
        ([], "X holds no images"),
        ([images[0], images[0][0]], r"X\[1\] must be a file or an image"),
        ([images[0], holey], r"X\[1\].*NaN"),
        ([tmp_path / "bad.png"], "bad.png"),
        ([tmp_path / "absent.png"], "absent.png"),
        (tmp_path / "absent", "absent"),
        ([images[0].astype(np.int32)], r"X\[0\].*int32"),
    ):
        with pytest.raises(ValueError, match=text):
            detector.score_samples(X)
        with pytest.raises(ValueError, match=text):
            SCRDDetector(**SMALL, image_score="top1").fit(X)
    with pytest.raises(NotFittedError):
        SCRDDetector(**SMALL).predict(images)
    for name, value in (("fpr", 0.0), ("calibration_fraction", 0.0), ("size", 33), ("objective", "none"), ("lr", -1.0)):
        with pytest.raises(ValueError, match=name):
            SCRDDetector(**SMALL | {name: value}).fit(images)


def test_tensors_are_images_too(detector: SCRDDetector, images: Array) -> None:
    np.testing.assert_array_equal(detector.score_samples(torch.from_numpy(images)), detector.score_samples(images))


def test_without_scikit_learn_one_line_says_so() -> None:
    code = "import sys; sys.modules['sklearn'] = None\nimport scrd_fast\nscrd_fast.SCRDDetector"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MissingExtraError: scikit-learn is not installed" in result.stderr.splitlines()[-1]


@pytest.mark.usefixtures("here")
def test_the_page_runs(tree: Path, here: Path) -> None:
    (here / "data").symlink_to(tree)
    for block in blocks_of("sklearn.md", "python"):
        exec(compile(block, "sklearn.md", "exec"), {})
