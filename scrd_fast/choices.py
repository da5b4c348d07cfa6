# SPDX-License-Identifier: Apache-2.0
"""Values that a setting can take: one list for the stored config, the settings and the command line."""

from __future__ import annotations

from typing import Literal

__all__ = [
    "Backend",
    "Cache",
    "CachePlace",
    "Device",
    "FeatureCache",
    "Fit",
    "Intensity",
    "Noise",
    "Objective",
    "Precision",
    "Score",
    "Switch",
]

Objective = Literal["authors", "paper", "rd4ad", "scrd"]
Score = Literal["mean", "max", "top1", "top5"]
Precision = Literal["32", "bf16"]
Device = Literal["auto", "cpu", "cuda"]
Fit = Literal["stretch", "pad"]
Intensity = Literal["auto", "range", "percentile"]
Noise = Literal["opensimplex", "hashed"]
Switch = Literal["on", "off"]
CachePlace = Literal["memory", "disk"]
Cache = Literal["auto", "memory", "disk", "off"]
Backend = Literal["native-cpu", "native-cuda", "triton", "reference"]
FeatureCache = Literal["memory", "disk", "off"]
