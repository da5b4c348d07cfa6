# SPDX-License-Identifier: Apache-2.0
"""What a method says about the test images of a data set, joined with the truth: what `evaluate` measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from scrd_fast.config import Preprocessing
from scrd_fast.data.datasets import DataSet, Item
from scrd_fast.data.images import ImageStore
from scrd_fast.data.reading import read_mask
from scrd_fast.errors import DataError, ImageError
from scrd_fast.evaluation import Prediction
from scrd_fast.model.prediction import Prediction as Batch

__all__ = ["Seen", "labelled", "see"]


class Seen(NamedTuple):
    """One image and what is said of it."""

    image: Tensor  # [3, S, S] in [0, 1], on the CPU
    map: Tensor  # float32 [S, S], on the CPU
    scores: dict[str, float]


def see(
    items: Sequence[Item], preprocessing: Preprocessing, predict: Callable[[Tensor], Batch], batch_size: int
) -> Iterator[Seen | ImageError]:
    """What `predict` says of each image, in order; it gets images [N, 3, S, S] in [0, 1], N <= `batch_size`."""
    store = ImageStore(items, preprocessing, cache="off")
    for start in range(0, len(items), batch_size):
        part = range(start, min(start + batch_size, len(items)))
        try:
            images = store.batch(part)
        except ImageError as error:
            if len(part) == 1:
                yield error
            else:  # one by one, to know which
                yield from see(items[part.start : part.stop], preprocessing, predict, 1)
            continue
        found = predict(images)
        maps, scores = found.map.cpu(), {name: values.tolist() for name, values in found.scores.items()}
        for i in range(len(part)):
            yield Seen(images[i], maps[i, 0], {name: values[i] for name, values in scores.items()})


def labelled(
    dataset: DataSet,
    preprocessing: Preprocessing,
    seen: Iterable[Seen | ImageError],
    advance: Callable[[int], None] = lambda done: None,
) -> Iterator[Prediction]:
    """`seen` holds a result for each item of `dataset.test`, in order; `advance` gets how many are done.

    Every test image must be readable: a number measured on a part of them would be another number. Raises `DataError`
    after the last one, with all that are not.
    """
    problems: list[str] = []
    items: list[Item] = dataset.test
    # Where lesions have masks, the pixels of normal images count too: all of them are background.
    background = np.zeros((preprocessing.canvas, preprocessing.canvas), bool) if any(i.mask for i in items) else None
    for done, (item, result) in enumerate(zip(items, seen, strict=True), start=1):
        advance(done)
        if isinstance(result, ImageError):
            named = str(result).startswith(str(item.path))
            problems.append(str(result) if named else f"{item.path}: {result}")
            continue
        mask = read_mask(item.mask, preprocessing, item.frame) if item.mask else background if item.label == 0 else None
        image = result.image.permute(1, 2, 0).numpy()
        path = str(item.path.relative_to(dataset.root)) if item.path.is_relative_to(dataset.root) else str(item.path)
        path += "" if item.frame is None else f"#{item.frame}"
        yield Prediction(path, item.label, result.scores, result.map.numpy(), image, mask)
    if problems:
        raise DataError(dataset.root, problems)
