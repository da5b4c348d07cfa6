# SPDX-License-Identifier: Apache-2.0
"""The data sets that results are reported on: how many images each split has, where they are from, what they may do."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass
from pathlib import Path

from scrd_fast.errors import ScrdFastError
from scrd_fast.files import read_record

__all__ = ["KNOWN", "RECORD", "Counts", "Known", "known", "render", "split_name"]

RECORD = "dataset.json"


@dataclass(frozen=True)
class Counts:
    """Images of each part: normal ones for training, normal and abnormal ones for the others."""

    train: int
    test_normal: int
    test_abnormal: int
    valid_normal: int = 0  # kept in the list, read by nothing here
    valid_abnormal: int = 0

    def __str__(self) -> str:
        """
        >>> print(Counts(10, 2, 3))
        10 train, 2 test normal, 3 test abnormal
        """
        present = {name: count for name, count in asdict(self).items() if count or not name.startswith("valid")}
        return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in present.items())


@dataclass(frozen=True)
class Known:
    """One split of one data set. Where an official list or table defines it, `split` says which."""

    title: str
    split: str
    counts: Counts
    source: str
    licence: str
    citation: str
    listed: bool = False  # the split is a list of names: a data.json
    patient: str | None = None  # what of a file's stem names its patient, as a regular expression


_ZENODO = "Zenodo record 12677223 (MedIAnomaly)"
_MEDIANOMALY = "Cai et al. MedIAnomaly. Medical Image Analysis 2025, arXiv 2404.04518"
_RSNA = (
    "Shih et al. Augmenting the National Institutes of Health Chest Radiograph Dataset with Expert Annotations of "
    "Possible Pneumonia. Radiology: Artificial Intelligence 2019"
)
_ISIC = (
    "Tschandl et al. The HAM10000 dataset. Scientific Data 2018; Codella et al. Skin Lesion Analysis Toward Melanoma "
    "Detection 2018, arXiv 1902.03368"
)
_ISIC_SOURCE = "ISIC Challenge 2018, task 3"
_ISIC_LICENCE = "CC-BY-NC-4.0"

KNOWN = {
    "rsna": Known(
        "RSNA Pneumonia Detection Challenge, chest X-rays, Normal against Lung Opacity",
        "MedIAnomaly",
        Counts(3851, 1000, 1000),
        f"{_ZENODO}; RSNA Pneumonia Detection Challenge 2018",
        "CC-BY-4.0 on Zenodo; original: terms of use of the challenge (attribution)",
        f"{_RSNA}; {_MEDIANOMALY}",
        listed=True,
        patient=r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    ),
    "brain_tumor": Known(
        "Brain Tumor MRI, no tumour against glioma and meningioma",
        "MedIAnomaly",
        Counts(1000, 600, 600),
        f"{_ZENODO}; Brain Tumor MRI Dataset on Kaggle",
        "CC-BY-4.0 on Zenodo; original: as its Kaggle page says",
        f"Nickparvar. Brain Tumor MRI Dataset. Kaggle 2021, doi 10.34740/kaggle/dsv/2645886; {_MEDIANOMALY}",
        listed=True,
    ),
    "isic2018": Known(
        "ISIC 2018 task 3, dermoscopy, naevi (NV) against the six other classes",
        "official training set (NV alone), official test set; as MedIAnomaly",
        Counts(6705, 909, 603),
        _ISIC_SOURCE,
        _ISIC_LICENCE,
        f"{_ISIC}; {_MEDIANOMALY}",
    ),
    "isic2018_val": Known(
        "ISIC 2018 task 3, tested on the validation set",
        "official training set (NV alone), official validation set as test; not comparable with isic2018",
        Counts(6705, 123, 70),
        _ISIC_SOURCE,
        _ISIC_LICENCE,
        _ISIC,
    ),
    "brats2021": Known(
        "BraTS 2021, FLAIR slices of brain MRI, with masks",
        "MedIAnomaly",
        Counts(4211, 828, 1948),
        _ZENODO,
        "CC-BY-4.0 on Zenodo; original: terms of use of BraTS 2021",
        f"Baid et al. The RSNA-ASNR-MICCAI BraTS 2021 Benchmark, arXiv 2107.02314; {_MEDIANOMALY}",
        patient=r"BraTS2021_\d+",
    ),
    "rsna_bmad": Known(
        "RSNA Pneumonia Detection Challenge as BMAD has it, Normal against both other classes",
        "BMAD; not comparable with rsna",
        Counts(8000, 781, 16413, 70, 1420),
        "BMAD (github.com/DorisBao/BMAD)",
        "terms of use of the challenge (attribution); BMAD states no licence of its own",
        f"{_RSNA}; Bao et al. BMAD: Benchmarks for Medical Anomaly Detection. CVPR Workshops 2024, arXiv 2306.11876",
    ),
}


def known(name: str) -> Known:
    """Raises `ScrdFastError` for a name that is none of `KNOWN`."""
    if name not in KNOWN:
        near = difflib.get_close_matches(name, KNOWN, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(KNOWN)}"
        raise ScrdFastError(f"no data set named {name!r}; {hint}")
    return KNOWN[name]


def render() -> str:
    """The table in words, a paragraph for each name."""
    paragraphs = []
    for name, about in KNOWN.items():
        told = {"counts": about.counts, "split": about.split, "source": about.source, "licence": about.licence}
        paragraphs.append("\n".join([f"{name}: {about.title}", *(f"  {key}: {value}" for key, value in told.items())]))
    return "\n".join(paragraphs)


def split_name(root: str | Path) -> str | None:
    """Name and split of a data set that `scrd-fast data prepare` made, for tables; None for any other folder.

    >>> split_name("/no/such/folder") is None
    True
    """
    record = read_record(Path(root) / RECORD)
    return f"{record['name']} ({record['split']})" if {"name", "split"} <= record.keys() else None
