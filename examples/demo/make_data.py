# SPDX-License-Identifier: Apache-2.0
"""A small data set of real anatomy with made lesions, for `make demo`.

The anatomy is the MNI152 T1 template (ICBM 2009a, the mean of 152 healthy heads) that nilearn carries in
its wheel, so nothing is downloaded. Every image is an axial slice of it under its own position, tilt, smooth
warp, tissue contrast, coil shading and noise. Half of the test images get a lesion, which is **made** by this
file; normal and abnormal images are otherwise drawn alike.

    python examples/demo/make_data.py OUT --size 128 --seed 0

writes OUT/train/good, OUT/test/good, OUT/test/<kind> and OUT/ground_truth/<kind>/<stem>_mask.png.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates

Array = NDArray[np.float32]
FIELD_MM = 205.0  # width and height of the field of view; the template's brain is about 145 x 180 mm
SLICES_MM = (91.0, 98.0)  # template planes through the side ventricles
MADE_BY = "examples/demo/make_data.py"
SPLITS = {"train": 0, "normal": 1, "abnormal": 2}


@dataclass(frozen=True)
class Scene:
    """One slice before shading and noise; maps are [size, size], lengths in mm."""

    signal: Array  # tissue signal, white matter near 0.8
    grey: Array  # grey-matter share, 0 to 1
    white: Array  # white-matter share, 0 to 1
    brain: NDArray[np.bool_]
    spacing: float  # mm per pixel

    @property
    def tissue(self) -> Array:
        return np.clip(self.grey + self.white, 0, 1)


@dataclass(frozen=True)
class Sample:
    """8-bit images [size, size]; `twin` is `image` without its lesion, pixel for pixel."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]  # 0 or 255
    twin: NDArray[np.uint8]
    brain: NDArray[np.bool_]


@lru_cache(maxsize=1)
def load_template() -> tuple[Array, Array, Array]:
    """T1, grey-matter and white-matter volumes [x, y, z], 1 mm, 0 to 1, from nilearn's wheel."""
    loaders = (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template)
    t1, grey, white = (np.asarray(load(resolution=1).dataobj, dtype=np.float32) for load in loaders)
    return t1, grey, white


def smooth_field(rng: np.random.Generator, size: int, sigma: float) -> Array:
    """Gaussian-filtered white noise [size, size] of unit standard deviation; sigma in pixels."""
    field = gaussian_filter(rng.standard_normal((size, size), dtype=np.float32), sigma)
    return field / field.std()


def slice_plane(rng: np.random.Generator, size: int) -> Array:
    """Template coordinates [3, size, size] in mm of a tilted, affinely and elastically warped axial slice."""
    spacing = FIELD_MM / size
    axis = (np.arange(size, dtype=np.float32) - (size - 1) / 2) * spacing
    down, right = np.meshgrid(axis, axis, indexing="ij")
    turn = np.deg2rad(rng.uniform(-3, 3))
    scale_x, scale_y = rng.uniform(0.97, 1.03, 2)
    shear = rng.uniform(-0.02, 0.02)
    x = scale_x * (np.cos(turn) * right - np.sin(turn) * down) + shear * down
    y = scale_y * (np.sin(turn) * right + np.cos(turn) * down)
    # Two lengths of warp: the large one changes head and ventricle shape, the small one the folds.
    for sigma_mm, amplitude_mm in ((22.0, 1.4), (8.0, 0.5)):
        x = x + amplitude_mm * smooth_field(rng, size, sigma_mm / spacing)
        y = y + amplitude_mm * smooth_field(rng, size, sigma_mm / spacing)
    tilt_x, tilt_y = np.tan(np.deg2rad(rng.uniform(-2, 2, 2)))
    z = rng.uniform(*SLICES_MM) + tilt_x * x + tilt_y * y
    shift_x, shift_y = rng.uniform(-2, 2, 2)
    # The front of the head is up: the template's y axis points forward, image rows go down.
    return np.stack([98.0 + shift_x + x, 116.0 + shift_y - y, z]).astype(np.float32)


def make_scene(rng: np.random.Generator, size: int) -> Scene:
    """A healthy slice: the template in a random plane with random tissue contrast."""
    plane = slice_plane(rng, size)
    t1, grey, white = (map_coordinates(volume, plane, order=1) for volume in load_template())
    spacing = FIELD_MM / size
    brain = t1 > 0.08
    # The template averages 152 heads and is smoother than any one of them: give back some fine texture.
    texture = 0.012 * smooth_field(rng, size, 1.3 / spacing)
    signal = t1 ** rng.uniform(1.2, 1.35) + rng.uniform(-0.015, 0.015) * grey + texture
    return Scene(np.where(brain, signal, 0).astype(np.float32), grey, white, brain, spacing)


# --- lesions: each returns the new signal and the share (0 to 1) of each pixel that it changed ----


def pick_centre(rng: np.random.Generator, scene: Scene, weight: Array, clearance: float) -> tuple[float, float]:
    """Row and column in pixels, drawn in proportion to `weight`, `clearance` mm from the brain's edge."""
    depth = distance_transform_edt(scene.brain) * scene.spacing
    chance = np.where(depth >= min(clearance, 0.8 * depth.max()), weight, 0).ravel().astype(np.float64)
    if chance.sum() == 0:  # none of the wanted tissue is that deep
        chance = (depth.ravel() >= 0.8 * depth.max()).astype(np.float64)
    row, column = divmod(int(rng.choice(chance.size, p=chance / chance.sum())), scene.brain.shape[1])
    return row + rng.uniform(-0.5, 0.5), column + rng.uniform(-0.5, 0.5)


def polar(scene: Scene, centre: tuple[float, float]) -> tuple[Array, Array]:
    """Distance in mm and angle in radians of every pixel from `centre` (row, column)."""
    rows, columns = np.indices(scene.signal.shape, dtype=np.float32)
    down, right = (rows - centre[0]) * scene.spacing, (columns - centre[1]) * scene.spacing
    return np.hypot(down, right), np.arctan2(down, right)


def blob_depth(rng: np.random.Generator, scene: Scene, centre: tuple[float, float], radius: float) -> Array:
    """How far each pixel lies inside (positive) an uneven outline of mean `radius`, in mm."""
    distance, angle = polar(scene, centre)
    outline = np.ones_like(angle)
    for order in range(2, 6):
        outline += rng.normal(0, 0.16 / order**0.5) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    return radius * np.clip(outline, 0.55, 1.5) - distance


def soft(depth: Array, edge: float) -> Array:
    """0 outside, rising smoothly to 1 at `edge` mm inside."""
    t = np.clip(depth / edge, 0, 1)
    return t * t * (3 - 2 * t)


def trim(share: Array) -> Array:
    """Cut the faint tail off, so that the mask ends where the eye sees the lesion end."""
    return np.clip((share - 0.1) / 0.9, 0, 1)


def local_level(scene: Scene, share: Array) -> float:
    """Mean signal of the tissue that the lesion takes the place of."""
    weight = share * scene.tissue
    return float((scene.signal * weight).sum() / max(float(weight.sum()), 1e-6))


def mass(rng: np.random.Generator, scene: Scene) -> tuple[Array, Array]:
    """A bright mass with a soft edge in a wider, darker oedema that keeps to white matter."""
    radius = rng.uniform(12, 19)
    centre = pick_centre(rng, scene, scene.grey, radius)
    depth = blob_depth(rng, scene, centre, radius)
    core = trim(soft(depth, 4.0) * scene.brain)
    oedema = trim(soft(depth + rng.uniform(8, 13), 5.0) * scene.white)
    grain = 0.03 * smooth_field(rng, scene.signal.shape[0], 2.0 / scene.spacing)
    level = local_level(scene, core) * (1 + rng.uniform(0.22, 0.34))
    signal = scene.signal * (1 - rng.uniform(0.30, 0.42) * oedema)
    return signal * (1 - core) + core * (level + grain), np.maximum(core, oedema)


def necrosis(rng: np.random.Generator, scene: Scene) -> tuple[Array, Array]:
    """A dark, dead core inside an uneven brighter rim."""
    radius = rng.uniform(13, 19)
    centre = pick_centre(rng, scene, scene.tissue, radius + 2)
    depth = blob_depth(rng, scene, centre, radius)
    whole = trim(soft(depth, 2.5) * scene.brain)
    core = soft(depth - rng.uniform(3, 4.5), 2.5)
    _, angle = polar(scene, centre)
    rim = rng.uniform(0.06, 0.16) * (1 + 0.5 * np.cos(angle + rng.uniform(0, 2 * np.pi)))
    level = local_level(scene, whole)
    inside = level * ((1 + rim) * (1 - core) + rng.uniform(0.32, 0.52) * core)
    return scene.signal * (1 - whole) + whole * inside, whole


def diffuse(rng: np.random.Generator, scene: Scene) -> tuple[Array, Array]:
    """Tissue whose grey-white border is washed out and whose texture is coarse; the mean level stays."""
    radius = rng.uniform(21, 29)
    centre = pick_centre(rng, scene, scene.white, radius * 0.6)
    share = trim(soft(blob_depth(rng, scene, centre, radius), 7.0) * scene.tissue)
    tissue = np.maximum(gaussian_filter(scene.tissue, 5.0 / scene.spacing), 1e-3)
    washed = gaussian_filter(scene.signal * scene.tissue, 5.0 / scene.spacing) / tissue
    coarse = smooth_field(rng, scene.signal.shape[0], rng.uniform(1.6, 2.6) / scene.spacing)
    changed = washed * (1 + rng.uniform(0.21, 0.28) * coarse)
    return scene.signal * (1 - share) + share * changed, share


def stroke(rng: np.random.Generator, scene: Scene) -> tuple[Array, Array]:
    """A darker wedge that widens from the depth to the cortex, as where one artery is shut."""
    apex = pick_centre(rng, scene, scene.white, 28.0)
    distance, angle = polar(scene, apex)
    middle = (np.argwhere(scene.brain).mean(0) - apex) * -1.0
    heading = np.arctan2(*middle) + rng.normal(0, 0.35)
    turned = np.abs((angle - heading + np.pi) % (2 * np.pi) - np.pi)
    half_width = rng.uniform(0.42, 0.62) + 0.05 * smooth_field(rng, angle.shape[0], 5.0 / scene.spacing)
    sides = (half_width - turned) * np.minimum(distance, 45.0)
    share = trim(soft(sides, 4.0) * soft(distance, 6.0) * soft(55.0 - distance, 8.0) * scene.tissue)
    level = local_level(scene, share)
    paler = 0.6 * scene.signal + 0.4 * level  # swelling hides part of the grey-white border
    return scene.signal * (1 - share) + share * paler * (1 - rng.uniform(0.32, 0.42)), share


def spots(rng: np.random.Generator, scene: Scene) -> tuple[Array, Array]:
    """Several small foci: all dark in white matter, or all bright in grey matter."""
    dark = rng.random() < 0.5
    change = -rng.uniform(0.45, 0.60) if dark else rng.uniform(0.45, 0.60)
    place = scene.white**2 if dark else scene.grey**2
    total = np.zeros_like(scene.signal)
    for _ in range(int(rng.integers(7, 12))):
        radius = rng.uniform(5.0, 7.5)
        depth = blob_depth(rng, scene, pick_centre(rng, scene, place, 10.0), radius)
        total = np.maximum(total, trim(soft(depth, 2.0) * scene.brain))
    return scene.signal * (1 + change * total), total


KINDS: dict[str, Callable[[np.random.Generator, Scene], tuple[Array, Array]]] = {
    "mass": mass, "necrosis": necrosis, "diffuse": diffuse, "stroke": stroke, "spots": spots,
}  # fmt: skip


# --- from signal to an 8-bit image ----------------------------------------------------------------


def acquire(rng: np.random.Generator, scene: Scene) -> Callable[[Array], NDArray[np.uint8]]:
    """One scanner session: what it returns turns a signal into an 8-bit image, always with the same noise.

    The display window comes from the healthy slice, so a lesion changes no pixel outside its mask; its upper
    end lies just below the brightest tissue, so every image has some white pixels, lesion or not.
    """
    size = scene.signal.shape[0]
    shading = np.exp(0.05 * smooth_field(rng, size, 40.0 / scene.spacing)).astype(np.float32)
    top = np.percentile((scene.signal * shading)[scene.brain], 99.0) * rng.uniform(0.97, 1.03)
    real, imaginary = rng.standard_normal((2, size, size), dtype=np.float32) * rng.uniform(0.010, 0.014)

    def picture(signal: Array) -> NDArray[np.uint8]:
        shown = np.hypot(signal * shading / top + real, imaginary)  # a magnitude image: Rician noise
        return np.rint(255 * np.clip(np.where(scene.brain, shown, 0), 0, 1)).astype(np.uint8)

    return picture


def make_sample(kind: str | None, *, split: str, index: int, seed: int = 0, size: int = 128) -> Sample:
    """The image `index` of a split ("train", "normal", "abnormal"); `kind` is a key of KINDS or None."""
    # Three streams: a lesion must not move the draws of anatomy or noise, or the twin would differ.
    key = [seed, SPLITS[split], index]
    anatomy, scanner, lesion = (np.random.default_rng([*key, stream]) for stream in range(3))
    scene = make_scene(anatomy, size)
    picture = acquire(scanner, scene)
    twin = picture(scene.signal)
    if kind is None:
        return Sample(twin, np.zeros_like(twin), twin, scene.brain)
    signal, share = KINDS[kind](lesion, scene)
    mask = (share > 0) & scene.brain
    image = picture(np.where(mask, signal, scene.signal))
    return Sample(image, mask.astype(np.uint8) * 255, twin, scene.brain)


def clear(out: Path) -> None:
    """Remove an earlier data set of this program; leave anything else alone."""
    about = out / "about.json"
    if not out.exists() or not any(out.iterdir()):
        return
    if not about.is_file() or json.loads(about.read_text(encoding="utf-8")).get("made_by") != MADE_BY:
        raise SystemExit(f"{out} is not empty and was not made by {MADE_BY}: choose another folder")
    for name in ("train", "test", "ground_truth"):
        shutil.rmtree(out / name, ignore_errors=True)


def save(array: NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def make_data(
    out: Path,
    *,
    size: int = 128,
    seed: int = 0,
    train: int = 400,
    test_normal: int = 80,
    test_abnormal: int = 80,
) -> None:
    """Write the data set; the same arguments give the same bytes. `size` in pixels."""
    clear(out)
    for i in range(train):
        save(make_sample(None, split="train", index=i, seed=seed, size=size).image,
             out / "train" / "good" / f"train_{i:04d}.png")  # fmt: skip
    for i in range(test_normal):
        save(make_sample(None, split="normal", index=i, seed=seed, size=size).image,
             out / "test" / "good" / f"normal_{i:04d}.png")  # fmt: skip
    for i in range(test_abnormal):
        kind = list(KINDS)[i % len(KINDS)]
        sample = make_sample(kind, split="abnormal", index=i, seed=seed, size=size)
        save(sample.image, out / "test" / kind / f"{kind}_{i:04d}.png")
        save(sample.mask, out / "ground_truth" / kind / f"{kind}_{i:04d}_mask.png")
    about = {
        "made_by": MADE_BY,
        "anatomy": "MNI152 T1 template (ICBM 2009a nonlinear symmetric), as bundled with nilearn",
        "lesions": "made by the program, not real",
        "size": size,
        "seed": seed,
        "train": train,
        "test_normal": test_normal,
        "test_abnormal": test_abnormal,
    }
    (out / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Slices of the MNI152 template, some with made lesions.")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--size", type=int, default=128, help="image side in pixels (default 128)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=400, help="normal images to train on (default 400)")
    parser.add_argument("--test-normal", type=int, default=80)
    parser.add_argument("--test-abnormal", type=int, default=80)
    args = parser.parse_args(arguments)
    if args.size < 32:
        parser.error(f"--size must be at least 32, got {args.size}")
    make_data(
        args.out, size=args.size, seed=args.seed,
        train=args.train, test_normal=args.test_normal, test_abnormal=args.test_abnormal,
    )  # fmt: skip
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
