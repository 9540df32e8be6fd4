"""Maps that tell objects apart: made from true objects for training, and read back into objects.

Three channels per pixel. "foreground" is 1 inside objects. "centre" is the distance to the object's centre over that
of its furthest pixel: 0 at the centre, 1 at the far end and outside. "boundary" is 1 minus the depth inside the object
over its greatest depth: 0 where the object is deepest, near 1 at its rim, 1 outside. Both distances are shares of the
object's own size, so that small and large objects look alike.

To read them, pixels that are near a centre and deep inside start an object each, and these grow along rising "boundary"
until they meet: a watershed.

Source:
    Segment Anything for Microscopy, bioRxiv 2023.08.21.554208 (Nature Methods 2025), section on automatic instance
    segmentation: the three channels, seeds where both distances are below 0.5, watershed of the boundary channel within
    foreground above 0.5.
Deviations:
    The centre is the deepest pixel, which lies inside an object of any shape. The picture's edge, and pixels of which
    nothing is known, are no boundary, so half an object at the edge looks like half of one. A component of the
    foreground without a seed is an object of its own and not lost. Objects have a score: their mean foreground
    probability times their agreement with the boundary channel that their own shape would have.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from samgraft.errors import ShapeError

CHANNELS = ("foreground", "centre", "boundary")
"""Order of the channels."""
_CROSS = ndimage.generate_binary_structure(2, 1)
_LEVELS = 128
"""Heights that flooding tells apart."""
Place = tuple[slice, slice]


def distance_targets(instances: NDArray[np.integer], *, ignore: int = -1) -> NDArray[np.float32]:
    """The three channels of an instance map.

    Args:
        instances: (H, W): 0 background, ``ignore`` unknown, every other value one object.
        ignore: Value of unknown pixels.

    Returns:
        (3, H, W) float32 in the order of :data:`CHANNELS`, in [0, 1]; "foreground" is ``ignore`` where nothing is
        known. An object of one pixel has 0 in both distances.

    Raises:
        ShapeError: not (H, W).
    """
    if instances.ndim != 2:
        raise ShapeError(f"an instance map has shape {instances.shape}; expected (H, W)")
    unknown = instances == ignore
    inside = (instances != 0) & ~unknown
    compact = np.zeros(instances.shape, dtype=np.int32)
    compact[inside] = np.unique(instances[inside], return_inverse=True)[1].ravel() + 1
    maps = np.ones((len(CHANNELS), *instances.shape), dtype=np.float32)
    maps[0] = np.where(unknown, ignore, inside)
    for index, box in enumerate(ndimage.find_objects(compact), start=1):
        place = _grown(box, instances.shape)
        own = compact[place] == index
        depth = _depth(own | unknown[place])
        maps[1][place][own] = _from_centre(own, depth)
        maps[2][place][own] = 1 - depth[own] / depth[own].max()
    return maps


def _grown(box: Place, shape: tuple[int, ...]) -> Place:
    """One pixel more on every side, within the picture."""
    rows, cols = (slice(max(0, s.start - 1), min(n, s.stop + 1)) for s, n in zip(box, shape, strict=True))
    return rows, cols


def _depth(filled: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Distance of every pixel to the nearest empty one; 1 everywhere if there is none."""
    if filled.all():
        return np.ones(filled.shape)
    depth: NDArray[np.float64] = ndimage.distance_transform_edt(filled)
    return depth


def _from_centre(own: NDArray[np.bool_], depth: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) distance of an object's pixels to its deepest (of several, the nearest to their mean), over the largest."""
    pixels = np.argwhere(own).astype(np.float64)
    deep = depth[own]
    middle = ((pixels - pixels.mean(axis=0)) ** 2).sum(axis=1)
    centre = pixels[np.argmin(np.where(deep >= deep.max() - 1e-9, middle, np.inf))]
    distance = np.sqrt(((pixels - centre) ** 2).sum(axis=1))
    share: NDArray[np.float64] = distance / max(float(distance.max()), 1.0)
    return share


def seeds(
    maps: NDArray[np.floating], *, foreground: float = 0.5, centre: float = 0.5, boundary: float = 0.5
) -> NDArray[np.int32]:
    """Where an object starts: components of the pixels that are near a centre and deep inside.

    Args:
        maps: (3, H, W) in [0, 1], in the order of :data:`CHANNELS`.
        foreground: Least foreground probability.
        centre: Largest distance to a centre.
        boundary: Largest value of the boundary channel.

    Returns:
        (H, W) int32: 0, or the number of the seed from 1. A component of the foreground that would have none is one
        itself.
    """
    mask = maps[0] > foreground
    found, count = ndimage.label(mask & (maps[1] < centre) & (maps[2] < boundary), structure=_CROSS)
    blobs, number = ndimage.label(mask, structure=_CROSS)
    lonely = np.ones(number + 1, dtype=bool)
    lonely[0] = False
    lonely[np.unique(blobs[found > 0])] = False
    fresh = np.zeros(number + 1, dtype=np.int32)
    fresh[lonely] = count + 1 + np.arange(int(lonely.sum()))
    markers: NDArray[np.int32] = np.where(found > 0, found, fresh[blobs]).astype(np.int32)
    return markers


def flood(height: NDArray[np.floating], markers: NDArray[np.integer], mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Watershed: markers grow into their 4-neighbours, the lowest pixel first, until the mask is full.

    Args:
        height: (H, W) in [0, 1]; 128 heights are told apart.
        markers: (H, W), 0 or a label.
        mask: (H, W); no label spreads beyond it.

    Returns:
        (H, W) int32. Parts of the mask that no marker reaches are 0. Among equally high pixels those come first that
        are reached first, so that two markers on a plain meet half-way.
    """
    wide = height.shape[1] + 2
    labels = np.pad(markers.astype(np.int32), 1).ravel()
    free = np.pad(mask & (markers == 0), 1).ravel()
    level = np.pad(np.clip(height * _LEVELS, 0, _LEVELS - 1).astype(np.int16), 1).ravel()
    steps = np.array([-wide, -1, 1, wide])
    waiting: list[list[NDArray[np.intp]]] = [[] for _ in range(_LEVELS)]
    waiting[0].append(np.flatnonzero(labels))
    for now in range(_LEVELS):
        front = np.concatenate([*waiting[now], np.zeros(0, dtype=np.intp)])
        waiting[now] = []
        while len(front):
            near = (front[:, None] + steps).ravel()
            origin = np.repeat(front, len(steps))[free[near]]
            near, first = np.unique(near[free[near]], return_index=True)
            labels[near] = labels[origin[first]]
            free[near] = False
            due = np.maximum(level[near], now)
            front = near[due == now]
            for later in np.unique(due[due > now]):
                waiting[later].append(near[due == later])
    shape = (height.shape[0] + 2, wide)
    return np.ascontiguousarray(labels.reshape(shape)[1:-1, 1:-1])


def objects_from_distances(
    maps: NDArray[np.floating],
    *,
    foreground: float = 0.5,
    centre: float = 0.5,
    boundary: float = 0.5,
    min_area: int = 12,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Find objects.

    Args:
        maps: (3, H, W) in [0, 1], in the order of :data:`CHANNELS`.
        foreground: Least foreground probability of an object's pixel.
        centre: As in :func:`seeds`.
        boundary: As in :func:`seeds`.
        min_area: Objects with fewer pixels are dropped.

    Returns:
        labels (H, W) int32, objects 1..n; scores (n,) in [0, 1].

    Raises:
        ShapeError: not (3, H, W).
    """
    if maps.ndim != 3 or len(maps) != len(CHANNELS):
        raise ShapeError(f"maps are {maps.shape}; expected (3, H, W): {', '.join(CHANNELS)}")
    markers = seeds(maps, foreground=foreground, centre=centre, boundary=boundary)
    labels = flood(maps[2], markers, maps[0] > foreground)
    area = np.bincount(labels.ravel())
    keep = np.flatnonzero(area >= max(min_area, 1))
    keep = keep[keep > 0]
    table = np.zeros(len(area), dtype=np.int32)
    table[keep] = np.arange(1, len(keep) + 1)
    labels = table[labels]
    return labels, agreement(maps, labels)


def agreement(maps: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float32]:
    """(n,) score of every object 1..n: mean foreground, times 1 minus the mean error of the boundary channel.

    The error is against the boundary channel of the objects found. One that is cut in the wrong place, or is two,
    disagrees with what the network said of its pixels.
    """
    inside = labels > 0
    own, count = labels[inside], int(labels.max(initial=0))
    error = np.abs(distance_targets(labels)[2] - maps[2])[inside]
    area, sure, wrong = (
        np.bincount(own, weights=weights, minlength=count + 1)[1:]
        for weights in (None, maps[0][inside].astype(np.float64), error.astype(np.float64))
    )
    area = np.maximum(area, 1)
    return (sure / area * (1 - wrong / area)).astype(np.float32)
