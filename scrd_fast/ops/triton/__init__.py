# SPDX-License-Identifier: Apache-2.0
"""The operators in Triton. Only their first use imports this, since it imports Triton.

Under TRITON_INTERPRET=1, set before Triton is imported, the kernels run on the CPU in Triton's interpreter.
"""

from scrd_fast.ops.triton.anomaly_map import anomaly_map
from scrd_fast.ops.triton.contrastive_distance import contrastive_distance, contrastive_distance_backward
from scrd_fast.ops.triton.cosine_distances import cosine_distances
from scrd_fast.ops.triton.simplex_noise import INTERPRETED, simplex_noise
from scrd_fast.ops.triton.synthesize_anomalies import synthesize_anomalies, synthesize_anomalies_

__all__ = [
    "INTERPRETED",
    "anomaly_map",
    "contrastive_distance",
    "contrastive_distance_backward",
    "cosine_distances",
    "simplex_noise",
    "synthesize_anomalies",
    "synthesize_anomalies_",
]
