# SPDX-License-Identifier: Apache-2.0
"""Every CUDA kernel once, on small odd sizes: what compute-sanitizer runs (benchmarks/gpu.sh). Needs torch alone."""

from __future__ import annotations

import torch

from scrd_fast.ops import simplex_noise, synthesize_anomalies

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


def main() -> None:
    for variant in ("opensimplex", "hashed"):
        for count, size in SIZES:
            noise = simplex_noise(torch.arange(count, device="cuda"), size, variant=variant, backend="native")
            assert torch.isfinite(noise).all()
        images = torch.zeros(len(BOXES), 3, 40, 37, device="cuda")
        boxes = torch.tensor(BOXES, dtype=torch.int32, device="cuda")
        seeds = torch.arange(len(BOXES), device="cuda")
        for target in (images, images.to(memory_format=torch.channels_last), images[:, :, ::2, 1:]):
            synthesize_anomalies(target, boxes, seeds, variant=variant, backend="native")
        synthesize_anomalies(images, boxes, seeds, variant=variant, inplace=True, backend="native")
        print(f"ran {variant}")
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
