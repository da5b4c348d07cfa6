# SPDX-License-Identifier: Apache-2.0
"""What an installation brings may be used by anybody: no package of the core or of an extra has a copyleft licence."""

from __future__ import annotations

import importlib.metadata
import re

from packaging.requirements import Requirement

PERMISSIVE = re.compile(
    r"MIT|BSD|Apache|PSF|Python Software Foundation|ISC|MPL-2\.0|Kiwi|HPND|CC0|Unlicense|Zlib|NumPy|Enthought", re.I
)
COPYLEFT = re.compile(r"\b[AL]?GPL|General Public License|EUPL|CeCILL|SSPL", re.I)
# Whose metadata says nothing, or no more than that it is NVIDIA's: these come with torch.
KNOWN = re.compile(r"nvidia-.*|cuda-.*")
OWN = frozenset({"model", "dicom", "baselines", "ray", "export", "serve", "dicomweb"})


def closure(name: str, extras: frozenset[str]) -> dict[str, frozenset[str]]:
    """All that is installed for it, with the extras that are asked for."""
    seen: dict[str, frozenset[str]] = {}
    waiting = [(name, extras)]
    while waiting:
        name, extras = waiting.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in seen and extras <= seen[key]:
            continue
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        seen[key] = seen.get(key, frozenset()) | extras
        for text in requires:
            one = Requirement(text)
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in seen[key] | {""}):
                waiting.append((one.name, frozenset(one.extras)))
    return seen


def licence(name: str) -> str:
    about = importlib.metadata.metadata(name)
    classifiers = [c for c in about.get_all("Classifier") or [] if c.startswith("License")]
    # The field `License` may be a whole text, which quotes others' licences: its beginning names it.
    return " | ".join([about.get("License-Expression") or "", (about.get("License") or "")[:120], *classifiers])


def test_no_package_that_comes_along_is_copyleft() -> None:
    found = {name: licence(name) for name in closure("scrd_fast", OWN)}
    assert {"torch", "pydicom", "python-gdcm", "fastapi", "onnxruntime", "ray", "dicomweb-client"} <= found.keys()
    assert {name: text for name, text in found.items() if COPYLEFT.search(text)} == {}
    unknown = {name: text for name, text in found.items() if not PERMISSIVE.search(text) and not KNOWN.fullmatch(name)}
    assert unknown == {}


def test_all_extras_are_looked_at() -> None:
    extras = importlib.metadata.metadata("scrd_fast").get_all("Provides-Extra") or []
    assert set(extras) - {"all", "demo", "dev", "docs"} == OWN
