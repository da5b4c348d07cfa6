# SPDX-License-Identifier: Apache-2.0
"""What may be screened: rules about DICOM headers, and gross facts of a picture. Never what a model makes of it."""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass

from scrd_fast.data.facts import InputFacts
from scrd_fast.data.frames import About
from scrd_fast.errors import ImageError

__all__ = ["Guard"]

_WORD = re.compile(r"[A-Z0-9_]{1,16}")  # as in all terms that DICOM defines for the three
_GROSS = {  # flags that refuse where the guard is strict
    "constant": "constant image",
    "all-zero": "all pixels are zero",
    "unusual-colour": "in colour where the calibration images are gray, or the reverse",
    "unusual-size": "height or width is far from those of the calibration images",
    "unusual-range": "pixel values are far from those of the calibration images",
}


@dataclass(frozen=True)
class Guard:
    """Allowed words for three fields of a DICOM header, and the facts of the calibration images.

    An empty rule allows everything; words are compared in capitals. `strict` refuses what would only be flagged
    otherwise: a constant or all-zero image, and what is unlike all of `facts`. Raises ValueError for a word that no
    header could hold.

    >>> about = About(height=9, width=9, colour=False, low=0.0, high=1.0, mean=0.5, modality="CT")
    >>> flags, error = Guard(modality={"DX", "CR"}).check(about)
    >>> str(error), Guard(view={"PA"}).check(about)
    ('the header has another modality than CR or DX', (['no-view'], None))
    """

    modality: Set[str] = frozenset()
    body_part: Set[str] = frozenset()
    view: Set[str] = frozenset()
    strict: bool = False
    facts: InputFacts | None = None

    def __post_init__(self) -> None:
        for name in ("modality", "body_part", "view"):
            words = frozenset(word.strip().upper() for word in getattr(self, name))
            for word in sorted(words):
                if not _WORD.fullmatch(word):
                    raise ValueError(f"{name} must be words of at most 16 letters, digits and _, got {word!r}")
            object.__setattr__(self, name, words)

    def check(self, about: About) -> tuple[list[str], ImageError | None]:
        """The picture's flags, its own first, and why it is refused, if it is.

        A header that contradicts a rule refuses. One that is silent, or a file that has none, as PNG, is flagged:
        no-modality, no-body-part, no-view.
        """
        flags = [*about.flags, *(self.facts.unusual(about) if self.facts else [])]
        refusal = None
        for name, allowed, value in (
            ("modality", self.modality, about.modality),
            ("body-part", self.body_part, about.body_part),
            ("view", self.view, about.view),
        ):
            if allowed and not value:
                flags.append(f"no-{name}")
            elif allowed and value not in allowed and refusal is None:
                # What it says instead is not repeated: a header may hold anything there, a name too.
                text = f"the header has another {name.replace('-', ' ')} than {' or '.join(sorted(allowed))}"
                refusal = ImageError(f"unexpected-{name}", text, refused=True)
        if self.strict and refusal is None:
            refusal = next((ImageError(f, _GROSS[f], refused=True) for f in flags if f in _GROSS), None)
        return flags, refusal
