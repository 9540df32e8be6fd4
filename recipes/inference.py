"""Predict the slices of a case at its original in-plane geometry, with any network that maps squares to logits.

Shared by validation, the engine and benchmarks: resize, predict, resize the logits back, blend windows.
"""

from collections.abc import Callable, Iterator

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
        batch_size: Squares per call.
    """
    places = windows(case.plane, window, overlap)
    if len(places) == 1:
        yield from _whole_slices(network, case, size, batch_size)
        return
    for index in range(case.num_slices):
        yield index, _windowed(network, case.batch([index])[0], places, size, batch_size)


def _whole_slices(network: Network, case: CaseArrays, size: int, batch_size: int) -> Iterator[tuple[int, Tensor]]:
    fit = Fit(source=case.plane, size=size)
    for start in range(0, case.num_slices, batch_size):
        indices = range(start, min(start + batch_size, case.num_slices))
        with torch.no_grad():
            logits = as_multiclass(network(fit.image(case.batch(indices))).float().cpu())
            # back to native size one slice at a time: a few classes at 512 x 512 are megabytes each
            for index, one in zip(indices, logits, strict=True):
                yield index, fit.back(one[None])[0].softmax(dim=0)


def _windowed(network: Network, image: Tensor, places: list[tuple[slice, slice]], size: int, batch_size: int) -> Tensor:
    """Blend logits of overlapping windows of (3, h, w); returns (K, h, w) probabilities."""
    total: Tensor | None = None
    mass = torch.zeros(image.shape[1:])
    for start in range(0, len(places), batch_size):
        chunk = places[start : start + batch_size]
        fits = [Fit(source=(rows.stop - rows.start, cols.stop - cols.start), size=size) for rows, cols in chunk]
        squares = torch.stack([fit.image(image[:, rows, cols]) for fit, (rows, cols) in zip(fits, chunk, strict=True)])
        with torch.no_grad():
            logits = as_multiclass(network(squares).float().cpu())
        if total is None:
            total = torch.zeros(logits.shape[1], *image.shape[1:])
        for fit, (rows, cols), one in zip(fits, chunk, logits, strict=True):
            weight = blend_weight(*fit.source)
            total[:, rows, cols] += fit.back(one[None])[0] * weight
            mass[rows, cols] += weight
    assert total is not None  # noqa: S101 - there is always a window
    return (total / mass).softmax(dim=0)


def predict_semantic(network: Network, case: CaseArrays, **options: int | float | None) -> NDArray[np.uint8]:
    """Class of every pixel: (n, h, w) uint8; options as in :func:`slice_probabilities`."""
    labels = np.zeros(case.labels.shape, dtype=np.uint8)
    for index, probabilities in slice_probabilities(network, case, **options):  # type: ignore[arg-type]
        labels[index] = probabilities.argmax(dim=0).numpy()
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
    _, probabilities = next(iter(slice_probabilities(network, case, size=size, **options)))  # type: ignore[arg-type]
    window = options.get("window")
    scale = (min(float(window), *map(float, case.plane)) if window else float(max(case.plane))) / size
    return instances_from_probabilities(probabilities.numpy(), min_area=max(1, round(min_area * scale**2)))
