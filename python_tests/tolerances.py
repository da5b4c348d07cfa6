# SPDX-License-Identifier: Apache-2.0
"""How far a result may be from the float64 reference: one table for all operators, with the reason of each row."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tolerance(NamedTuple):
    """As torch.testing.assert_close takes it: `assert_close(actual, expected, **tolerance._asdict())`."""

    rtol: float
    atol: float


TOLERANCES: dict[tuple[str, torch.dtype], Tolerance] = {
    # All arithmetic is float64 and only the result is rounded: half a unit in the last place of float32, 2^-24.
    # The float64 sums of about 50 terms below 10 differ by their order, 50 * 10 * 2^-53 = 6e-14, so 1e-12 is ample.
    ("simplex_noise", torch.float32): Tolerance(rtol=2.0**-24, atol=1e-12),
}
