"""Predict the slices of a case at its original in-plane geometry, with any network that maps squares to logits.

Shared by validation, the engine and benchmarks: resize, predict, resize the logits back, blend windows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samgraft.adapters.prompts.objects import FoundObjects
from samgraft.recipes.data.cases import CaseArrays
from samgraft.recipes.data.fit import Fit, blend_weight, windows
from samgraft.recipes.data.slabs import Slabs, slab_maps, slab_squares
from samgraft.recipes.joining import Joining
from samgraft.recipes.representations import BorderMaps, ObjectMaps
from samgraft.recipes.representations.classes import class_probabilities

Network = Callable[[Tensor], Tensor]
"""(B, 3, S, S) in [0, 1] -> logits (B, K, s, s); slabs (B, 3, D, S, S) -> (B * D, K, s, s)."""
Maps = Callable[[Tensor], Tensor]
"""Blended logits (K, h, w) -> maps in [0, 1] of the same shape."""
Place = tuple[slice, slice]
BORDERS = BorderMaps()


def slice_probabilities(
    network: Network,
    case: CaseArrays,
    *,
    size: int,
    window: int | None = None,
    overlap: float = 0.25,
    batch_size: int = 8,
    maps: Maps = class_probabilities,
    slab: int | None = None,
    slab_overlap: float = 0.5,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (slice index, class probabilities or other maps (K, h, w)) of every slice in order.

    Args:
        network: Maps squares to logits; called without gradients.
        case: Slices in native resolution.
        size: Side of the network input.
        window: Native side of windows, or None for whole slices.
        overlap: Overlap of windows as a share of their side.
        batch_size: Squares per call; a batch may hold windows of several slices.
        maps: What blended logits become.
        slab: Slices that the network sees together, as (1, 3, D, S, S), one slab per call; None: one by one.
        slab_overlap: Overlap of slabs as a share of their length.
    """
    places, shown = windows(case.plane, window, overlap), map(case.picture, range(case.num_slices))
    if slab is not None:
        cut = Slabs(count=case.num_slices, slab=slab, overlap=slab_overlap)
        answers = map(without_gradients(network), slab_squares(shown, cut, places, size=size))
        yield from enumerate(slab_maps(answers, case.plane, cut, places, size=size, maps=maps))
        return
    batches = squares(shown, places, size=size, batch=batch_size)
    logits = map(without_gradients(network), batches)
    yield from enumerate(probabilities(logits, case.plane, places, size=size, maps=maps))


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
        image = torch.from_numpy(picture).float().div_(255)
        for rows, cols in places:
            fit = Fit(source=(rows.stop - rows.start, cols.stop - cols.start), size=size)
            waiting.append(fit.image(image[:, rows, cols]))
            if len(waiting) == batch:
                yield torch.stack(waiting)
                waiting = []
    if waiting:
        yield torch.stack(waiting)


def probabilities(
    batches: Iterable[Tensor],
    shape: tuple[int, int],
    places: Sequence[Place],
    *,
    size: int,
    maps: Maps = class_probabilities,
) -> Iterator[Tensor]:
    """Maps (K, h, w) of every picture of ``shape``, from the logits of what :func:`squares` gave.

    Args:
        batches: Logits (B, K, s, s).
        shape: (h, w) of the pictures.
        places: Windows of every picture; logits are blended where they overlap.
        size: Side of the network input.
        maps: What blended logits become.
    """
    logits = (one for batch in batches for one in batch.float().cpu())
    for first in logits:
        yield maps(_on_picture(first, logits, shape, places, size))


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


def find_instances(
    find: Callable[[Tensor], FoundObjects],
    case: CaseArrays,
    *,
    size: int,
    window: int | None = None,
    overlap: float = 0.25,
    batch_size: int = 8,
    min_area: int = 12,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Objects of a picture, found window by window and joined: labels (h, w) 1..n and scores (n,).

    Args:
        find: Objects of squares (B, 3, S, S) in [0, 1]; called without gradients.
        case: One slice (a picture or raster).
        size: Side of the network input.
        window: Native side of windows, or None for the whole.
        overlap: Overlap of windows as a share of their side.
        batch_size: Squares per call.
        min_area: Smallest object in network pixels; converted to native ones.
    """
    places = windows(case.plane, window, overlap)
    waiting, joining = iter(places), Joining(case.plane, size)
    for batch in squares([case.picture(0)], places, size=size, batch=batch_size):
        found = without_gradients(find)(batch)
        for number in range(len(batch)):
            own = found.select(found.image_index == number)
            joining.add(next(waiting), own)
    return joining.finish(min_area=native_area(min_area, case.plane, size, window))


def native_area(min_area: int, plane: tuple[int, int], size: int, window: int | None) -> int:
    """An area of network pixels in pixels of a plane (h, w); at least 1."""
    scale = (min(float(window), *map(float, plane)) if window else float(max(plane))) / size
    return max(1, round(min_area * scale**2))


def predict_instances(
    network: Network,
    case: CaseArrays,
    *,
    size: int,
    min_area: int = 12,
    representation: ObjectMaps = BORDERS,
    **options: int | float | None,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Objects of a picture: labels (h, w) 1..n and scores (n,).

    Args:
        network: Gives the logits of the representation.
        case: One slice (a picture or raster).
        size: Side of the network input.
        min_area: Smallest object in network pixels; converted to native ones.
        representation: How objects are made of the maps; by default of background, interior and border.
        options: As in :func:`slice_probabilities`.
    """
    slices = slice_probabilities(network, case, size=size, maps=representation.maps, **options)  # type: ignore[arg-type]
    _, found = next(iter(slices))
    window = options.get("window")
    area = native_area(min_area, case.plane, size, None if window is None else int(window))
    return representation.objects(found.numpy(), min_area=area)
