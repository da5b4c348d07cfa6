# SPDX-License-Identifier: Apache-2.0
"""AUCp: an AUROC without labels, to choose among readings of a map, settings or checkpoints.

Hossain et al., IEEE Transactions on Medical Imaging, 2026. Held-out normal images are the negatives, and all
unlabelled images the positives, as if every one of them were abnormal.

It assumes that the unlabelled images hold a share s of abnormal ones, s > 0, and that the rest come from the same
distribution as the held-out normal images. A pair (normal, unlabelled) is then one of two normals with probability
1 - s, which any score orders right in half of the cases, so that in expectation

    AUCp = 0.5 + s (AUC - 0.5)

and the score of the largest AUCp is that of the largest AUC. Where the normal images of the two sets differ (another
scanner, another site), AUCp measures that difference too, and may choose the score that sees it best. With a small
share the differences between scores are small, and noise decides.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from scrd_fast.metrics import image_metrics

__all__ = ["aucp", "pick_reading"]


def aucp(normal_scores: npt.ArrayLike, unlabelled_scores: npt.ArrayLike) -> float:  # [M], [N]
    """AUROC of unlabelled images against held-out normal ones; a higher score is more abnormal.

    Raises ValueError where either is empty or not [N], or a score is not finite; MissingExtraError without
    scikit-learn.

    >>> aucp([0.1, 0.2], [0.15, 0.3])
    0.75
    """
    negatives, positives = (np.asarray(x, dtype=np.float64) for x in (normal_scores, unlabelled_scores))
    for name, values in (("normal_scores", negatives), ("unlabelled_scores", positives)):
        if values.ndim != 1 or not values.size:
            raise ValueError(f"{name} must be [N], at least one, got {list(values.shape)}")
    labels = np.repeat([0, 1], [negatives.size, positives.size])
    return image_metrics(labels, np.concatenate([negatives, positives]))["auroc"]


def pick_reading(
    normal: Mapping[str, npt.ArrayLike], unlabelled: Mapping[str, npt.ArrayLike], default: str
) -> tuple[str, dict[str, float]]:
    """The reading with the largest AUCp, and the AUCp of each; `default` where no other is larger.

    Both map a reading's name to its scores, of held-out normal images and of unlabelled ones. Raises ValueError where
    their names differ or `default` is not among them, and as `aucp` does.

    >>> pick_reading({"mean": [1, 2], "max": [1, 2]}, {"mean": [1, 3], "max": [3, 4]}, "mean")
    ('max', {'mean': 0.625, 'max': 1.0})
    """
    if normal.keys() != unlabelled.keys() or default not in normal:
        raise ValueError(
            f"normal and unlabelled must have the same readings and the default {default!r}, "
            f"got {sorted(normal)} and {sorted(unlabelled)}"
        )
    values = {name: aucp(normal[name], unlabelled[name]) for name in normal}
    best = max(values, key=lambda name: (values[name], name == default))
    return best, values
