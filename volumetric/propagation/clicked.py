"""A mask agrees with the clicks of the person who looks at it, whatever the network says."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from samgraft.volumetric.propagation.slices import Mask

Point = tuple[float, float, int]
"""(x, y, label): 1 on the object, 0 off it."""


def obey(mask: Mask, points: Sequence[Point]) -> Mask:
    """``mask`` without what clicks with label 0 lie on, and with the pixels of clicks with label 1.

    Of the piece (it joins over edges) that a click with label 0 lies on its lobe goes (:func:`lobe`); only the clicked
    pixel where the piece holds a click with label 1.

    Args:
        mask: (H, W).
        points: Pixels of the slice, rounded to the nearest one.
    """
    result = mask.copy()
    wanted = [pixel(point, mask.shape) for point in points if point[2] == 1]
    for point in points:
        row, col = pixel(point, mask.shape)
        if point[2] == 1 or not result[row, col]:
            continue
        parts, _ = ndimage.label(result)
        piece = parts == parts[row, col]
        if any(piece[place] for place in wanted):
            result[row, col] = False
        else:
            result &= ~lobe(piece, row, col)
    for place in wanted:
        result[place] = True
    return result


def lobe(piece: Mask, row: int, col: int) -> Mask:
    """What a click off the object takes of the connected piece that it lies on.

    Where the piece has a neck thinner than half the depth at the click, the side of the click goes. Without a neck the
    largest disc around the click goes, or all of the piece where that disc is at least a quarter of it.

    Args:
        piece: (H, W), connected.
        row: Of the click, on the piece.
        col: The same.
    """
    depth = ndimage.distance_transform_edt(np.pad(piece, 1))[1:-1, 1:-1]
    cores, count = ndimage.label(depth > 0.5 * depth[row, col], np.ones((3, 3)))
    if count > 1:
        own = cores == cores[row, col]
        away = ndimage.distance_transform_edt(~own)
        return np.asarray(piece & (away <= ndimage.distance_transform_edt(own | (cores == 0))))
    rows, cols = np.indices(piece.shape)
    disc = piece & (np.hypot(rows - row, cols - col) <= depth[row, col])
    return piece if 4 * int(disc.sum()) >= int(piece.sum()) else disc


def without_crumbs(before: Mask, after: Mask) -> Mask:
    """``after`` without the crumbs of what was taken away from ``before`` (both (H, W)).

    A crumb is a piece that what was taken away touched and that is smaller, beside a larger piece of the same object.
    """
    taken = before & ~after
    if not taken.any():
        return after
    whole, _ = ndimage.label(before)
    parts, count = ndimage.label(after)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    touched = np.unique(parts[ndimage.binary_dilation(taken)])
    kept = after.copy()
    for part in touched[touched > 0]:
        beside = np.unique(parts[(whole == whole[parts == part][0]) & after])
        if sizes[part] < min(int(taken.sum()), sizes[beside].max()):
            kept &= parts != part
    return kept


def pixel(point: Point, shape: tuple[int, ...]) -> tuple[int, int]:
    """(row, col) that a point falls on, the nearest one of a slice (H, W) = ``shape``."""
    row, col = (int(np.floor(v + 0.5)) for v in (point[1], point[0]))
    return min(max(row, 0), shape[0] - 1), min(max(col, 0), shape[1] - 1)
