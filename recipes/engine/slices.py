"""The slices of a volume as the pictures that training saw, read no further ahead than they are wanted."""

from collections import deque
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.scene import Array, Scene
from samgraft.recipes.data.cases import to_bytes
from samgraft.recipes.look import Look


def pictures(
    scene: Scene, look: Look, axis: int, *, neighbours: bool, known: deque[NDArray[np.bool_]]
) -> Iterator[NDArray[np.uint8]]:
    """(3, h, w) uint8 of every slice: copies of one channel, or its neighbours (edge slices repeat).

    Slices along the first axis are read one by one where the file allows it; along others, which would touch the whole
    file each time, the volume is read at once.

    Args:
        scene: A volume.
        look: Channels and scale.
        axis: Array axis that is cut.
        neighbours: The slices before, at and after become the channels.
        known: Takes, per slice and before its picture is given, (h, w) where it has data.
    """
    slices = _slices(scene, look, axis, known)
    if len(look.channels) == 3:
        yield from slices
    elif not neighbours:
        for one in slices:
            yield np.repeat(one, 3, axis=0)
    else:
        before = here = next(slices)
        for after in slices:
            yield np.concatenate([before, here, after])
            before, here = here, after
        yield np.concatenate([before, here, here])


def _slices(scene: Scene, look: Look, axis: int, known: deque[NDArray[np.bool_]]) -> Iterator[NDArray[np.uint8]]:
    """(c, h, w) uint8, c the channels of ``look``."""
    for raw, valid in _stored(scene, look, axis):
        known.append(valid)
        yield to_bytes(look.apply(raw)[: len(look.channels)])


def _stored(scene: Scene, look: Look, axis: int) -> Iterator[tuple[Array, NDArray[np.bool_]]]:
    """Values (c, h, w) as they are in the file, and (h, w) where there are any."""
    if axis != 0 or not scene.cheap_slabs:
        whole, known = scene.read_valid(channels=look.channels)
        yield from zip(np.moveaxis(whole, axis + 1, 0), np.moveaxis(known, axis, 0), strict=True)
        return
    for index in range(scene.grid.shape[0]):
        raw, valid = scene.read_valid((slice(index, index + 1), slice(None), slice(None)), look.channels)
        yield raw[:, 0], valid[0]
