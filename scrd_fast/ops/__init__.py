# SPDX-License-Identifier: Apache-2.0
"""The operators. Importing this module defines them in torch and loads the compiled kernels, where there are any."""

from scrd_fast.ops.anomaly_map import AnomalyMap, anomaly_map
from scrd_fast.ops.contrastive_distance import contrastive_distance
from scrd_fast.ops.cosine_distances import cosine_distances
from scrd_fast.ops.simplex_noise import simplex_noise
from scrd_fast.ops.synthesize_anomalies import synthesize_anomalies

__all__ = [
    "AnomalyMap",
    "anomaly_map",
    "contrastive_distance",
    "cosine_distances",
    "simplex_noise",
    "synthesize_anomalies",
]
