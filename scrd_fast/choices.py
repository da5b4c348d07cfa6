# SPDX-License-Identifier: Apache-2.0
"""Values that a setting can take: one list for the stored config, the settings and the command line."""

from __future__ import annotations

from typing import Literal

__all__ = [
    "Backend",
    "Cache",
    "CachePlace",
    "Device",
    "DicomKind",
    "Engine",
    "ExportFormat",
    "ExportPrecision",
    "FeatureCache",
    "Fit",
    "Intensity",
    "MapFormat",
    "Noise",
    "Objective",
    "Precision",
    "Score",
    "SliceAxis",
    "Switch",
]

Objective = Literal["authors", "paper", "rd4ad", "scrd"]
Score = Literal["mean", "max", "top1", "top5", "combined"]
Precision = Literal["32", "bf16"]
ExportFormat = Literal["torch", "onnx", "aoti"]
ExportPrecision = Literal["32", "bf16", "int8"]
Device = Literal["auto", "cpu", "cuda"]
Engine = Literal["local", "ray"]
Fit = Literal["stretch", "pad"]
Intensity = Literal["auto", "range", "percentile"]
SliceAxis = Literal[0, 1, 2]
Noise = Literal["opensimplex", "hashed", "perlin", "gaussian", "cutpaste", "blobs"]
Switch = Literal["on", "off"]
CachePlace = Literal["memory", "disk"]
Cache = Literal["auto", "memory", "disk", "off"]
MapFormat = Literal["png", "npz"]
DicomKind = Literal["sc", "sr", "seg"]
Backend = Literal["native-cpu", "native-cuda", "triton", "reference"]
FeatureCache = Literal["memory", "disk", "off"]
