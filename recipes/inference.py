"""Predict the slices of a case at its original in-plane geometry, with any network that maps squares to logits.

Shared by validation, the engine and benchmarks: resize, predict, resize the logits back, blend windows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samgraft.recipes.data.cases import CaseArrays
from samgraft.recipes.data.fit import Fit, blend_weight, windows
from samgraft.recipes.instances import instances_from_probabilities
from samgraft.recipes.losses import as_multiclass

Network = Callable[[Tensor], Tensor]
"""(B, 3, S, S) in [0, 1] -> logits (B, K, s, s)."""
Place = tuple[slice, slice]


def slice_probabilities(
    network: Network,
    case: CaseArrays,
    *,
    size: int,
    window: int | None = None,
    overlap: float = 0.25,
    batch_size: int = 8,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (slice index, class probabilities (K, h, w)) of every slice in order.

    Args:
        network: Maps squares to logits; called without gradients.
        case: Slices in native resolution.
        size: Side of the network input.
        window: Native side of windows, or None for whole slices.
        overlap: Overlap of windows as a share of their side.
        batch_size: Squares per call; a batch may hold windows of several slices.
    """
    places = windows(case.plane, window, overlap)
    batches = squares(map(case.picture, range(case.num_slices)), places, size=size, batch=batch_size)
    yield from enumerate(probabilities(map(without_gradients(network), batches), case.plane, places, size=size))


def without_gradients(step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same function under ``torch.no_grad``, in whatever thread it is called."""

    def call(item: Any) -> Any:
        with torch.no_grad():
            return step(item)

    return call


def squares(
    pictures: Iterable[NDArray[np.uint8]], places: Sequence[Place], *, size: int, batch: int
) -> Iterator[Tensor]:
    """Network inputs (B, 3, S, S), B at most ``batch``: all windows of one picture, then those of the next.

    Args:
        pictures: (3, h, w) each.
        places: Windows of every picture.
        size: Side S of the network input.
        batch: Most squares at once; they may come from several pictures.
    """
    waiting: list[Tensor] = []
    for picture in pictures:
        image = torch.from_numpy(picture).float() / 255
        for rows, cols in places:
            fit = Fit(source=(rows.stop - rows.start, cols.stop - cols.start), size=size)
            waiting.append(fit.image(image[:, rows, cols]))
            if len(waiting) == batch:
                yield torch.stack(waiting)
                waiting = []
    if waiting:
        yield torch.stack(waiting)


def probabilities(
    batches: Iterable[Tensor], shape: tuple[int, int], places: Sequence[Place], *, size: int
) -> Iterator[Tensor]:
    """Class probabilities (K, h, w) of every picture of ``shape``, from the logits of what :func:`squares` gave.

    Args:
        batches: Logits (B, K, s, s).
        shape: (h, w) of the pictures.
        places: Windows of every picture; logits are blended where they overlap.
        size: Side of the network input.
    """
    logits = (one for batch in batches for one in as_multiclass(batch.float().cpu()))
    for first in logits:
        yield _on_picture(first, logits, shape, places, size).softmax(dim=0)


def _on_picture(
    first: Tensor, others: Iterator[Tensor], shape: tuple[int, int], places: Sequence[Place], size: int
) -> Tensor:
    """Logits (K, h, w) of one picture from those of its windows (K, s, s): ``first``, and the next of ``others``."""
    if len(places) == 1:  # one slice at a time: a few classes at 512 x 512 are megabytes each
        return Fit(source=shape, size=size).back(first[None])[0]
    total, mass = torch.zeros(len(first), *shape), torch.zeros(shape)
    for number, (rows, cols) in enumerate(places):
        one = first if number == 0 else next(others)
        fit = Fit(source=(rows.stop - rows.start, cols.stop - cols.start), size=size)
        weight = blend_weight(*fit.source)
        total[:, rows, cols] += fit.back(one[None])[0] * weight
        mass[rows, cols] += weight
    return total / mass


def predict_semantic(network: Network, case: CaseArrays, **options: int | float | None) -> NDArray[np.uint8]:
    """Class of every pixel: (n, h, w) uint8; options as in :func:`slice_probabilities`."""
    labels = np.zeros(case.labels.shape, dtype=np.uint8)
    for index, found in slice_probabilities(network, case, **options):  # type: ignore[arg-type]
        labels[index] = found.argmax(dim=0).numpy()
    return labels


def predict_instances(
    network: Network, case: CaseArrays, *, size: int, min_area: int = 12, **options: int | float | None
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Objects of a picture: labels (h, w) 1..n and scores (n,).

    Args:
        network: Gives background, interior and border.
        case: One slice (a picture or raster).
        size: Side of the network input.
        min_area: Smallest object in network pixels; converted to native ones.
        options: As in :func:`slice_probabilities`.
    """
    _, found = next(iter(slice_probabilities(network, case, size=size, **options)))  # type: ignore[arg-type]
    window = options.get("window")
    scale = (min(float(window), *map(float, case.plane)) if window else float(max(case.plane))) / size
    return instances_from_probabilities(found.numpy(), min_area=max(1, round(min_area * scale**2)))
