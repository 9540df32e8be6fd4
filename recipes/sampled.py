"""A few network inputs spread over a scene or a training case, made exactly as segmentation makes its own.

What has to be known of a whole scene before it is segmented (its features, how an adapter answers on it) is measured on
these. They depend on the scene and the adapter's input recipe only, not on how the scene is walked over afterwards.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samgraft.domains.scene import Scene
from samgraft.errors import InputError
from samgraft.recipes.data.cases import CaseArrays, to_bytes
from samgraft.recipes.data.fit import Fit, window_starts, windows
from samgraft.recipes.data.slabs import Slabs
from samgraft.recipes.engine.planes import Plane, plane_shape
from samgraft.recipes.engine.recorded import Recorded
from samgraft.recipes.engine.slices import pictures
from samgraft.recipes.ground import at_trained_gsd
from samgraft.recipes.header import InputRecipe
from samgraft.recipes.prompting import coarsest_axis

GOLDEN = (5**0.5 - 1) / 2
TRIES = 8
"""A raster is searched for windows with data in so many times as many places as are wanted."""
Place = tuple[slice, slice]


def spread(total: int, count: int | None = None) -> list[int]:
    """Indices below ``total`` in an order whose every beginning is spread evenly; the first ``count`` of them.

    Steps of the golden ratio: unlike equal steps they do not fall on one column of a lattice of windows.
    """
    wanted, found = total if count is None else min(count, total), dict[int, None]()
    for index in (int((k * GOLDEN + 0.5) % 1.0 * total) for k in range(2 * total)):
        if len(found) == wanted:
            break
        found[index] = None
    for index in range(total):  # what the steps did not meet
        if len(found) == wanted:
            break
        found[index] = None
    return list(found)


def scene_inputs(scene: Scene, recorded: Recorded, count: int, *, slabs: bool = True) -> Tensor:
    """Network inputs of a scene, in the order of the scene.

    Args:
        scene: What will be segmented; read at a few places.
        recorded: What the adapter's header says.
        count: Most inputs; slices of slabs count each.
        slabs: Give slabs where the adapter predicts slabs; False gives single slices.

    Returns:
        (n, 3, S, S) in [0, 1], or slabs (n, 3, D, S, S).

    Raises:
        InputError: no pixel of the scene has data, or it has not the channels that the adapter was trained on.
    """
    if scene.kind == "volume":
        return _of_volume(scene, recorded, count, slabs=slabs)
    view = at_trained_gsd(scene, recorded.recipe.gsd)
    plane = Plane(view, recorded.look(view))
    down, right = _starts(plane.shape[0], recorded), _starts(plane.shape[1], recorded)
    found: dict[int, Tensor] = {}
    for index in spread(len(down) * len(right), TRIES * count):
        rows, cols = down[index // len(right)], right[index % len(right)]
        if plane.valid(rows, cols).any():
            found[index] = _square(to_bytes(plane.read(rows, cols)), recorded.size)
        if len(found) == count:
            break
    if not found:
        raise InputError(f"{scene.path.name}: no data in {TRIES * count} places spread over it; check nodata")
    return torch.stack([found[index] for index in sorted(found)])


def case_inputs(case: CaseArrays, recipe: InputRecipe, count: int, *, slabs: bool = True) -> Tensor:
    """The same of a training case.

    Args:
        case: Native pixels.
        recipe: Size, windows and slabs.
        count: As for :func:`scene_inputs`.
        slabs: As for :func:`scene_inputs`.
    """
    places = windows(case.plane, recipe.window, recipe.overlap)
    chosen = _chosen(case.num_slices, places, recipe, count, slabs=slabs)
    shown = {index: case.picture(index) for indices, _ in chosen for index in indices}
    return _stacked(chosen, shown, recipe, slabs=slabs)


def _starts(length: int, recorded: Recorded) -> list[slice]:
    """Windows along one axis; those of both axes are the lattice of the engine, which may have millions of places."""
    if recorded.window is None:
        return [slice(0, length)]
    starts = window_starts(length, recorded.window, recorded.overlap)
    return [slice(start, min(start + recorded.window, length)) for start in starts]


def _of_volume(scene: Scene, recorded: Recorded, count: int, *, slabs: bool) -> Tensor:
    recipe = recorded.recipe
    axis = coarsest_axis(scene.grid) if recipe.slice_axis is None else recipe.slice_axis
    places = windows(plane_shape(scene.grid.shape, axis), recipe.window, recipe.overlap)
    chosen = _chosen(scene.grid.shape[axis], places, recipe, count, slabs=slabs)
    wanted = {index for indices, _ in chosen for index in indices}
    known: deque[NDArray[np.bool_]] = deque(maxlen=1)
    shown = {}
    for index, picture in enumerate(
        pictures(scene, recorded.look(scene), axis, neighbours=recipe.neighbours, known=known)
    ):
        if index in wanted:
            shown[index] = picture
        if len(shown) == len(wanted):
            break
    return _stacked(chosen, shown, recipe, slabs=slabs)


def _chosen(
    slices: int, places: Sequence[Place], recipe: InputRecipe, count: int, *, slabs: bool
) -> list[tuple[list[int], Place]]:
    """Slices and window of every input, in order."""
    if recipe.slab is None or not slabs:
        runs = [[index] for index in range(slices)]
    else:
        cut = Slabs(count=slices, slab=recipe.slab, overlap=recipe.slab_overlap)
        runs = [cut.slices(start) for start in cut.starts]
        count = max(1, count // recipe.slab)
    indices = spread(len(runs) * len(places), count)
    return [(runs[index // len(places)], places[index % len(places)]) for index in sorted(indices)]


def _stacked(
    chosen: Sequence[tuple[list[int], Place]], shown: dict[int, NDArray[np.uint8]], recipe: InputRecipe, *, slabs: bool
) -> Tensor:
    found = [
        torch.stack([_square(shown[index][:, rows, cols], recipe.size) for index in indices], dim=1)
        for indices, (rows, cols) in chosen
    ]
    together = torch.stack(found)  # (n, 3, D, S, S)
    return together if slabs and recipe.slab is not None else together[:, :, 0]


def _square(picture: NDArray[np.uint8], size: int) -> Tensor:
    image = torch.from_numpy(np.ascontiguousarray(picture)).float() / 255
    return Fit(source=(image.shape[1], image.shape[2]), size=size).image(image)
