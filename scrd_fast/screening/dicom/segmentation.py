# SPDX-License-Identifier: Apache-2.0
"""A segmentation on the source's grid: where the map is above `map_low`, which is where the overlay has colour."""

from __future__ import annotations

from typing import Any

import numpy as np

import scrd_fast
from scrd_fast.screening.dicom.common import RESEARCH, SCHEME, Made, stored_map

__all__ = ["segmentation"]


def segmentation(made: Made) -> Any:
    """A binary Segmentation of one segment, of one frame; where nothing is above, that frame is empty."""
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    low, _ = made.maker.scale
    mask = (stored_map(made, made.about.height, made.about.width) > low).astype(np.uint8)[None]
    algorithm = AlgorithmIdentificationSequence(
        name=made.maker.name,
        family=codes.cid7162.ArtificialIntelligence,
        version=scrd_fast.__version__,
        source="scrd_fast",
        parameters={
            "model_sha256": made.maker.sha256,
            "calibration": made.maker.calibration.id,
            "map_above": repr(low),
        },
    )
    segment = SegmentDescription(
        segment_number=1,
        segment_label="Unlike normal images",
        segmented_property_category=codes.SCT.SpatialAndRelationalConcept,
        segmented_property_type=Code("anomaly-region", SCHEME, "Region unlike normal images"),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        tracking_uid=made.uid("seg", "segment"),
        tracking_id=f"scrd_fast {made.maker.sha256[:12]}",
    )
    found = Segmentation(
        source_images=[made.source],
        pixel_array=mask,
        segmentation_type="BINARY",
        segment_descriptions=[segment],
        content_label="ANOMALY",
        content_description=RESEARCH,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        **made.placed("seg"),
    )
    _settle(made, found)
    return found


def _settle(made: Made, found: Any) -> None:
    """UIDs that do not change, the source's frame, and what highdicom leaves out."""
    uid = made.uid("seg", "dimensions")
    for item in (*found.DimensionOrganizationSequence, *found.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid
    if "PlaneOrientationSequence" not in found.SharedFunctionalGroupsSequence[0]:
        found.PatientOrientation = made.orientation
    if made.frame is None:
        return
    found.SourceImageSequence = [made.reference]
    for group in found.PerFrameFunctionalGroupsSequence:
        for derived in group.DerivationImageSequence:
            for image in derived.SourceImageSequence:
                image.ReferencedFrameNumber = made.frame
