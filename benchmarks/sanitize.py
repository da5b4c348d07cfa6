# SPDX-License-Identifier: Apache-2.0
"""Every CUDA kernel once, on small odd sizes: what compute-sanitizer runs (benchmarks/gpu.sh). Needs torch alone."""

from __future__ import annotations

import torch

from scrd_fast.ops import simplex_noise, synthesize_anomalies

SIZES = ((1, (1, 1, 1)), (3, (3, 7, 13)), (5, (2, 31, 29)), (2, (3, 32, 32)))


def main() -> None:
    for variant in ("opensimplex", "hashed"):
        for count, size in SIZES:
            seeds = torch.arange(count, device="cuda")
            try:
                noise = simplex_noise(seeds, size, variant=variant, backend="native")
            except ValueError as error:  # a variant that this version does not have
                if "variant must be one of" not in str(error):
                    raise
                print(f"skipped: {error}")
                break
            assert torch.isfinite(noise).all()
        else:
            images = torch.zeros(3, 3, 40, 37, device="cuda")
            # The third leaves the image: the kernel cuts it.
            boxes = torch.tensor([[0, 0, 10, 12], [5, 7, 3, 1], [33, 30, 12, 15]], dtype=torch.int32, device="cuda")
            seeds = torch.arange(3, device="cuda")
            for target in (images, images.to(memory_format=torch.channels_last), images[:, :, ::2, 1:]):
                synthesize_anomalies(target, boxes, seeds, variant=variant)
            synthesize_anomalies(images, boxes, seeds, variant=variant, inplace=True)
            print(f"ran {variant}")
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
