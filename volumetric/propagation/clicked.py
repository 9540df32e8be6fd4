"""A mask agrees with the clicks of the person who looks at it, whatever the network says."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from samgraft.volumetric.propagation.slices import Mask

Point = tuple[float, float, int]
"""(x, y, label): 1 on the object, 0 off it."""


def obey(mask: Mask, points: Sequence[Point]) -> Mask:
    """``mask`` without the pieces that a click with label 0 lies on, and with the pixels of clicks with label 1.

    A piece is taken away whole (it joins over edges) only if it holds no click with label 1; otherwise only the clicked
    pixel goes.

    Args:
        mask: (H, W).
        points: Pixels of the slice, rounded to the nearest one.
    """
    result = mask.copy()
    wanted = [_pixel(point, mask.shape) for point in points if point[2] == 1]
    for point in points:
        row, col = _pixel(point, mask.shape)
        if point[2] == 1 or not result[row, col]:
            continue
        parts, _ = ndimage.label(result)
        piece = parts == parts[row, col]
        if any(piece[place] for place in wanted):
            result[row, col] = False
        else:
            result &= ~piece
    for place in wanted:
        result[place] = True
    return result


def _pixel(point: Point, shape: tuple[int, ...]) -> tuple[int, int]:
    row, col = (int(np.floor(v + 0.5)) for v in (point[1], point[0]))
    return min(max(row, 0), shape[0] - 1), min(max(col, 0), shape[1] - 1)
