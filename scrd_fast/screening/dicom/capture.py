# SPDX-License-Identifier: Apache-2.0
"""A colour secondary capture: the picture with its anomaly map, and below it in words what that is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

import scrd_fast
from scrd_fast.plots import overlay
from scrd_fast.screening.dicom.common import RESEARCH, Made, stored_map

__all__ = ["capture"]

_ROWS = 256  # that are coloured at once: a large picture in float64 takes much memory
_KEPT = (
    *("Laterality", "ImageLaterality", "BurnedInAnnotation", "RecognizableVisualFeatures"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)


def capture(made: Made) -> Any:
    """A Secondary Capture image, as large as the picture and a band of text."""
    from highdicom.sc import SCImage
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    image = SCImage.from_ref_dataset(
        made.source,
        _below(_coloured(made), _lines(made)),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),  # it must be told one; ours follows
        pixel_spacing=_spacing(made),
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        **made.placed("sc"),
    )
    image.copy_patient_and_study_information(made.source)
    image.PatientOrientation = made.orientation
    image.ConversionType = "WSD"
    for name in _KEPT:
        if name in made.source:
            image[name] = made.source[name]
    if "Laterality" not in image and "ImageLaterality" not in image:
        image.Laterality = ""  # not known: a pair of organs wants to hear it
    item = made.reference
    item.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)]
    image.SourceImageSequence = [item]
    image.DerivationDescription = f"{RESEARCH}. Anomaly map of {made.maker.name} over the picture as shown."
    return image


def _coloured(made: Made) -> npt.NDArray[np.uint8]:
    shown = made.pixels if made.pixels.ndim == 3 else made.pixels[:, :, None].repeat(3, axis=2)
    height, width = shown.shape[:2]
    heat = stored_map(made, height, width)
    low, high = made.maker.scale
    parts = [overlay(shown[i : i + _ROWS] / 255.0, heat[i : i + _ROWS], low, high) for i in range(0, height, _ROWS)]
    return np.concatenate(parts)


def _lines(made: Made) -> Iterator[str]:
    maker, result = made.maker, made.result
    assert result.scores is not None  # for the type checker: what has a map has scores
    yield RESEARCH
    yield f"scrd_fast {scrd_fast.__version__}, model {maker.sha256[:12]}, calibration {maker.calibration.id}"
    score, decision = maker.calibration.score, maker.calibration.decision
    yield f"score ({score}) {result.scores[score]:.4g}, as high as {result.percentile:.1%} of normals"
    side = "abnormal: above" if result.abnormal else "normal: not above"
    yield f"{side} {decision.threshold:.4g}, as {decision.expected_fpr:.1%} of normals are"
    if maker.foreign:
        yield "CALIBRATED WITH ANOTHER MODEL OR AT ANOTHER SITE"


def _below(picture: npt.NDArray[np.uint8], lines: Iterator[str]) -> npt.NDArray[np.uint8]:
    """The picture, its pixels where they were, and white lines on black below it."""
    texts = list(lines)
    height, width = picture.shape[:2]
    size = max(10, min(height, width) // 40)
    font = ImageFont.load_default(size)
    needed = max(int(font.getlength(text)) for text in texts) + size
    band = Image.new("RGB", (max(width, needed), len(texts) * size * 3 // 2 + size))
    draw = ImageDraw.Draw(band)
    for number, text in enumerate(texts):
        draw.text((size // 2, size // 2 + number * size * 3 // 2), text, "white", font)
    page = np.zeros((height + band.height, band.width, 3), np.uint8)
    page[:height, :width] = picture
    page[height:] = np.asarray(band)
    return page


def _spacing(made: Made) -> Any:
    """Of the pixels that are written, which of a large picture are fewer."""
    spacing = made.source.get("PixelSpacing")
    if spacing is None:
        return None
    sides = zip((made.about.height, made.about.width), made.pixels.shape, spacing, strict=False)
    down, across = (float(one) * stored / written for stored, written, one in sides)
    return down, across
