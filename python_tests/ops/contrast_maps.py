# SPDX-License-Identifier: Apache-2.0
"""Feature maps for the tests of `contrastive_distance`: how they lie in memory, and the distances by torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scrd_fast.ops import _library

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
BACKENDS = ["auto", "reference", "native"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
Shape = tuple[int, ...]
Layout = Callable[..., Tensor]


def need(backend: str, device: str = "cpu") -> None:
    if reason := _library.why_not("contrastive_distance", backend, torch.device(device)):
        pytest.skip(reason)


# Made in their dtype on their device: a conversion would lay them out anew.


def contiguous(shape: Shape, **options: Any) -> Tensor:
    return torch.randn(shape, **options)


def channels_last(shape: Shape, **options: Any) -> Tensor:
    return torch.randn(shape, **options).contiguous(memory_format=torch.channels_last)


def slice_of_larger(shape: Shape, **options: Any) -> Tensor:
    n, c, h, w = shape
    return torch.randn(n, c + 3, h + 2, w + 1, **options)[:, 1 : c + 1, 2:, :w]


def start_of_batch(shape: Shape, **options: Any) -> Tensor:
    """As a teacher gives features of clean and of noisy images, in one batch."""
    return channels_last((2 * shape[0] + 1, *shape[1:]), **options)[: shape[0]]


def end_of_batch(shape: Shape, **options: Any) -> Tensor:
    return channels_last((2 * shape[0] + 1, *shape[1:]), **options)[shape[0] + 1 :]


def every_second(shape: Shape, **options: Any) -> Tensor:
    return torch.randn(2 * shape[0], *shape[1:], **options)[::2]


def transposed(shape: Shape, **options: Any) -> Tensor:
    n, c, h, w = shape
    return torch.randn(c, w, n, h, **options).permute(2, 0, 3, 1)


AS_THEY_LIE = ["contiguous", "channels_last", "parts of a batch", "every second"]  # read without a copy
# Of the clean, the noisy and the student's maps.
LAYOUTS: dict[str, tuple[Layout, Layout, Layout]] = {
    "contiguous": (contiguous,) * 3,
    "channels_last": (channels_last,) * 3,
    "parts of a batch": (start_of_batch, end_of_batch, channels_last),
    "every second": (contiguous, every_second, every_second),
    "slices": (slice_of_larger,) * 3,
    "transposed": (transposed,) * 3,
    "student contiguous": (channels_last, slice_of_larger, contiguous),
    "student channels_last": (contiguous, transposed, channels_last),
}


def three(shapes: Sequence[Shape], layout: str, dtype: torch.dtype, device: str = "cpu") -> list[list[Tensor]]:
    """Clean, noisy and student maps."""
    return [[lay(shape, dtype=dtype, device=device) for shape in shapes] for lay in LAYOUTS[layout]]


def independent(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    pairs = zip(teacher, student, strict=True)
    columns = [1 - F.cosine_similarity(t.double().flatten(1), s.double().flatten(1), dim=1) for t, s in pairs]
    return torch.stack(columns, dim=1)
