# SPDX-License-Identifier: Apache-2.0
"""How far a result may be from the float64 reference: one table for all operators, with reasons."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tolerance(NamedTuple):
    """As torch.testing.assert_close takes it: `assert_close(actual, expected, **tolerance._asdict())`."""

    rtol: float
    atol: float


TOLERANCES: dict[tuple[str, torch.dtype], Tolerance] = {
    # Which vertices contribute is decided in float64 exactly as the package decides it, so there is no band of ties.
    # What they add is summed in float32: six octaves of 24 products each, of a sum below 2.4, lose
    # sqrt(144) * 2^-24 * 2.4 = 1.7e-6 where the errors are independent; seen: 8e-7.
    ("simplex_noise", torch.float32): Tolerance(rtol=0.0, atol=3e-6),
    # Sums of up to 2,048 products in float32, against float64 on the same inputs: blocked sums lose about
    # sqrt(2048) * 2^-24 = 3e-6 of a norm, and the cosine of unit vectors is absolute.
    ("cosine_distances", torch.float32): Tolerance(rtol=1e-5, atol=1e-5),
    ("anomaly_map", torch.float32): Tolerance(rtol=1e-5, atol=1e-5),
    ("contrastive_distance", torch.float32): Tolerance(rtol=1e-5, atol=1e-5),
    # Half-precision inputs are exact in float32: what is computed from them loses nothing more.
    ("cosine_distances", torch.float16): Tolerance(rtol=1e-5, atol=1e-5),
    ("cosine_distances", torch.bfloat16): Tolerance(rtol=1e-5, atol=1e-5),
    ("anomaly_map", torch.float16): Tolerance(rtol=1e-5, atol=1e-5),
    ("anomaly_map", torch.bfloat16): Tolerance(rtol=1e-5, atol=1e-5),
    ("contrastive_distance", torch.float16): Tolerance(rtol=1e-5, atol=1e-5),
    ("contrastive_distance", torch.bfloat16): Tolerance(rtol=1e-5, atol=1e-5),
    # float64 throughout: sums of up to 2,048 terms, 2048 * 2^-53 = 2e-13.
    ("cosine_distances", torch.float64): Tolerance(rtol=1e-12, atol=1e-12),
    ("anomaly_map", torch.float64): Tolerance(rtol=1e-12, atol=1e-12),
    ("contrastive_distance", torch.float64): Tolerance(rtol=1e-12, atol=1e-12),
    # 0.2 times the noise, divided by a standard deviation of 0.22 at least, and one rounding to the images' type.
    ("synthesize_anomalies", torch.float64): Tolerance(rtol=2.0**-23, atol=3e-6),
    ("synthesize_anomalies", torch.float32): Tolerance(rtol=2.0**-23, atol=3e-6),
    ("synthesize_anomalies", torch.float16): Tolerance(rtol=2.0**-11, atol=3e-6),
    ("synthesize_anomalies", torch.bfloat16): Tolerance(rtol=2.0**-8, atol=3e-6),
}
