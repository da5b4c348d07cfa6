# SPDX-License-Identifier: Apache-2.0
"""Every CUDA kernel once, on small odd sizes: what compute-sanitizer runs (benchmarks/gpu.sh). Needs torch alone."""

from __future__ import annotations

import torch

from scrd_fast.ops import anomaly_map, cosine_distances, simplex_noise, synthesize_anomalies

SIZES = ((1, (1, 1, 1)), (3, (3, 7, 13)), (5, (2, 31, 29)), (2, (3, 32, 32)))


# Inside; at the corner; over the border; wholly outside, with numbers whose sums leave 32 bits.
BOXES = (
    (5, 7, 3, 1),
    (0, 0, 10, 12),
    (33, 30, 12, 15),
    (-4, -5, 9, 9),
    (2**31 - 1, 2**31 - 1, 2**31 - 1, 2**31 - 1),
    (-(2**31), 0, -1, 5),
    (0, -(2**31), 5, -1),
)


# Features of several scales, and the map's size: several tiles, chunks and runs with ragged ends; one pixel; more
# scales than a launch takes.
MAPS = (
    (((3, 40, 17, 13), (3, 300, 7, 5), (3, 521, 3, 2)), (61, 67)),
    (((1, 1, 1, 1),), (1, 1)),
    (((2, 3, 5, 4),) * 9, (9, 35)),
    (((2, 8, 37, 2),), (31, 3)),
)


def run_noise(variant: str) -> None:
    for count, size in SIZES:
        noise = simplex_noise(torch.arange(count, device="cuda"), size, variant=variant, backend="native")
        assert torch.isfinite(noise).all()
    images = torch.zeros(len(BOXES), 3, 40, 37, device="cuda")
    boxes = torch.tensor(BOXES, dtype=torch.int32, device="cuda")
    seeds = torch.arange(len(BOXES), device="cuda")
    for target in (images, images.to(memory_format=torch.channels_last), images[:, :, ::2, 1:]):
        synthesize_anomalies(target, boxes, seeds, variant=variant, backend="native")
    synthesize_anomalies(images, boxes, seeds, variant=variant, inplace=True, backend="native")


def run_maps(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    for shapes, size in MAPS:
        teacher, student = (
            [
                torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=memory_format).requires_grad_()
                for shape in shapes
            ]
            for _ in range(2)
        )
        parts = [x[:, -3:] for x in teacher]  # strides that are not dense, memory off a boundary
        cosine_distances(parts, parts, backend="native")
        accumulator = torch.promote_types(dtype, torch.float32)
        weights = torch.rand(shapes[0][0], len(shapes), device="cuda", dtype=accumulator, requires_grad=True)
        for border, sigma, top in (("reflect", 4.0, (0.01, 0.3)), ("mirror", 60.0, None)):
            result = anomaly_map(teacher, student, weights, size, sigma=sigma, border=border, top=top, backend="native")
            assert result.map is not None
            (result.map.sum() + result.mean.sum()).backward()
        mean = anomaly_map(teacher, student, None, size, return_map=False, backend="native").mean
        mean.sum().backward()
        assert all(torch.isfinite(x).all() for x in (mean, *(x.grad for x in (*teacher, *student, weights))))


def main() -> None:
    for variant in ("opensimplex", "hashed"):
        run_noise(variant)
        print(f"ran {variant}")
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            run_maps(dtype, memory_format)
        print(f"ran the maps of {dtype}")
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
