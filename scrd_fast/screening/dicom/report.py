# SPDX-License-Identifier: Apache-2.0
"""A structured report of one picture by TID 1500: its scores, what was decided and by what, and where the map peaks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import scrd_fast
from scrd_fast.screening.dicom.common import RESEARCH, SCHEME, Made, uid_of

__all__ = ["report"]


def report(made: Made) -> Any:
    """A Comprehensive SR document: complete, preliminary, unverified."""
    from highdicom import sr
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from pydicom.sr.codedict import codes

    maker = made.maker
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=uid_of("device", maker.sha256),
        name="scrd_fast",
        manufacturer_name="scrd_fast",
        model_name=maker.name,
        serial_number=maker.sha256,
    )
    context = sr.ObservationContext(
        observer_device_context=sr.ObserverContext(codes.DCM.Device, observer_identifying_attributes=device)
    )
    content = sr.MeasurementReport(
        observation_context=context,
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=[_group(made)],
        title=codes.DCM.ImagingMeasurementReport,
    )
    return sr.ComprehensiveSR(
        evidence=[made.source],
        content=content,
        is_complete=True,
        is_final=False,
        is_verified=False,
        coding_schemes=[
            CodingSchemeIdentificationItem(
                SCHEME, name="Codes of scrd_fast", responsible_organization="scrd_fast", version=scrd_fast.__version__
            )
        ],
        **made.placed("sr"),
    )


def _group(made: Made) -> Any:
    from highdicom import sr
    from pydicom.sr.codedict import codes

    source, maker = made.source, made.maker
    frames = None if made.frame is None else [made.frame]
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=made.uid("sr", "group"), identifier=f"scrd_fast {maker.sha256[:12]}"
        ),
        algorithm_id=sr.AlgorithmIdentification(
            maker.name,
            scrd_fast.__version__,
            parameters=[
                f"model sha256 {maker.sha256}",
                f"calibration {maker.calibration.id}",
                f"precision {maker.precision}",
            ],
            manufacturer="scrd_fast",
        ),
        measurements=list(_measurements(made, frames)),
        qualitative_evaluations=[
            sr.QualitativeEvaluation(
                _own("decision", "Score against the threshold"),
                codes.SCT.Abnormal if made.result.abnormal else codes.SCT.Normal,
            )
        ],
        source_images=[
            sr.SourceImageForMeasurementGroup(made.sop_class, source.SOPInstanceUID, referenced_frame_numbers=frames)
        ],
    )
    for text in _comments(made):
        item = sr.TextContentItem(codes.DCM.Comment, text, sr.RelationshipTypeValues.CONTAINS)
        group[0].ContentSequence.append(item)
    return group


def _comments(made: Made) -> Iterator[str]:
    yield RESEARCH
    yield "Abnormal and normal say on which side of the threshold the score lies, and nothing else."
    flags = [flag for flag in made.result.flags if not flag.startswith("no-")]  # those are a command's, not a picture's
    if made.maker.foreign:
        flags.append("foreign-calibration")
    if flags:
        yield f"Flags: {', '.join(flags)}"


def _measurements(made: Made, frames: list[int] | None) -> Iterator[Any]:
    from highdicom import sr
    from pydicom.sr.codedict import codes

    result, calibration, source = made.result, made.maker.calibration, made.source
    assert result.scores is not None  # for the type checker: what has a map has scores
    assert result.peak is not None
    assert result.percentile is not None
    none, percent = codes.UCUM.NoUnits, codes.UCUM.Percent
    decision = calibration.decision
    row, column = result.peak
    peak = sr.CoordinatesForMeasurement(
        graphic_type="POINT",
        graphic_data=np.array([[column + 0.5, row + 0.5]]),  # the middle of the pixel
        source_image=sr.SourceImageForRegion(made.sop_class, source.SOPInstanceUID, referenced_frame_numbers=frames),
    )
    yield sr.Measurement(_own("score", "Anomaly score"), _rounded(result.scores[calibration.score]), none)
    yield sr.Measurement(codes.DCM.PercentileRankingOfMeasurement, _rounded(100 * result.percentile), percent)
    yield sr.Measurement(codes.DCM.ThresholdValue, _rounded(decision.threshold), none)
    if decision.expected_fpr is not None:
        name = _own("expected-fpr", "Expected share of normal images above the threshold")
        yield sr.Measurement(name, _rounded(100 * decision.expected_fpr), percent)
    maximum = _own("map-maximum", "Largest value of the anomaly map")
    yield sr.Measurement(maximum, _rounded(result.scores["max"]), none, referenced_coordinates=[peak])
    for number, value in enumerate(result.scales, start=1):
        name = _own(f"scale-{number}", f"Mean distance at scale {number}, 1 being the finest")
        yield sr.Measurement(name, _rounded(value), none)


def _own(value: str, meaning: str) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(value, SCHEME, meaning)


def _rounded(value: float) -> float:
    """To six digits: what lies beyond differs between machines."""
    return float(f"{value:.6g}")
