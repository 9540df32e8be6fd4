"""Weak labels of a case in one form, whatever file they came from: objects, or pixels that were drawn on.

An object has a box, points or a coarse outline. Pixels are those of the case's slices in native resolution: points are
(x, y), a box names its first and last pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from monai.data.box_utils import box_iou
from numpy.typing import NDArray
from scipy import ndimage

from samgraft.errors import ShapeError
from samgraft.recipes.losses import IGNORE
from samgraft.recipes.prompting import MaskPrompt
from samgraft.recipes.weak_config import Supervision

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class WeakObject:
    """One object that someone pointed at, on one slice."""

    label: int
    """Class, from 1; 1 where all objects are of one kind."""
    slice: int = 0
    """Slice of the case; 0 for pictures and rasters."""
    box: Box | None = None
    """x0, y0, x1, y1: first and last pixel inside."""
    points: tuple[tuple[float, float, int], ...] = ()
    """x, y, 1 on the object or 0 off it."""
    region: MaskPrompt | None = None
    """A coarse outline, filled."""

    @property
    def around(self) -> Box:
        """The box, that of the region, or that of the points on the object."""
        if self.box is not None:
            return self.box
        if self.region is not None:
            return self.region.box
        xs, ys = zip(*((x, y) for x, y, on in self.points if on), strict=True)
        return min(xs), min(ys), max(xs), max(ys)


@dataclass(frozen=True, kw_only=True, eq=False)
class WeakLabels:
    """What is known of a case without a mask."""

    kind: Supervision
    """Which sort it is; never "masks"."""
    objects: tuple[WeakObject, ...] = ()
    """boxes, points, coarse: every object of the annotated classes. Object i has the number i + 1."""
    drawn: NDArray[np.int32] | None = None
    """scribbles: (n, h, w); -1 not drawn, 0 background, else the class, or the object's number."""
    nodata: NDArray[np.bool_] | None = None
    """(n, h, w): where the image has no data; None if there is data everywhere."""
    unsure: NDArray[np.bool_] | None = None
    """(n, h, w): pixels whose pseudo-label is a guess, which shapes objects and teaches nothing itself."""
    asked: bool = False
    """The frozen backbone was asked for masks, and the case's labels are what became of them."""

    def on_slice(self, index: int) -> list[tuple[int, WeakObject]]:
        """Number and object of everything on one slice."""
        return [(number, one) for number, one in enumerate(self.objects, start=1) if one.slice == index]

    def seeds(self, shape: tuple[int, int, int], *, instance: bool = False, radius: int = 0) -> NDArray[np.int32]:
        """(n, h, w): the pixels that are certain by the label itself, ``IGNORE`` elsewhere.

        Args:
            shape: (n, h, w) of the case.
            instance: Numbers of objects instead of classes.
            radius: Of the disc around a point, in pixels.

        Raises:
            ShapeError: drawn pixels of another shape.
        """
        if self.drawn is not None:
            if self.drawn.shape != shape:
                raise ShapeError(f"scribbles are {self.drawn.shape}; the case is {shape}; draw them on the image")
            return self.drawn
        seeds = np.full(shape, IGNORE, dtype=np.int32)
        for number, one in enumerate(self.objects, start=1):
            for x, y, on in one.points:
                value = 0 if not on else number if instance else one.label
                _disc(seeds[one.slice], x, y, radius, value)
        return seeds


def _disc(plane: NDArray[np.int32], x: float, y: float, radius: int, value: int) -> None:
    """Write ``value`` on the pixels within ``radius`` of (x, y); the pixel that holds the point always counts."""
    height, width = plane.shape
    row, col = min(max(round(y), 0), height - 1), min(max(round(x), 0), width - 1)
    rows = slice(max(0, row - radius), min(height, row + radius + 1))
    cols = slice(max(0, col - radius), min(width, col + radius + 1))
    down, across = np.ogrid[rows, cols]
    plane[rows, cols][(down - row) ** 2 + (across - col) ** 2 <= radius**2] = value


def pixel_box(box: Box, shape: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the pixels whose centres lie in a box, at least one of each."""
    sides = []
    for low, high, length in ((box[1], box[3], shape[0]), (box[0], box[2], shape[1])):
        first = min(max(int(np.ceil(low - 1e-6)), 0), length - 1)
        last = min(max(int(np.floor(high + 1e-6)), first), length - 1)
        sides.append(slice(first, last + 1))
    return sides[0], sides[1]


def box_of(mask: NDArray[np.bool_], place: tuple[slice, slice]) -> Box | None:
    """The tight box of a mask whose first pixel lies at the start of ``place``; None if it is empty."""
    if not mask.any():
        return None
    rows, cols = np.flatnonzero(mask.any(axis=1)) + place[0].start, np.flatnonzero(mask.any(axis=0)) + place[1].start
    return float(cols[0]), float(rows[0]), float(cols[-1]), float(rows[-1])


def box_ious(some: Sequence[Box | None], others: Sequence[Box]) -> NDArray[np.floating]:
    """(n, m): IoU of boxes that name their first and last pixels; 0 for one that is missing."""
    found = np.zeros((len(some), len(others)))
    present = [index for index, box in enumerate(some) if box is not None]
    if present and others:
        edges = [np.array([some[i] for i in present], dtype=float), np.array(others, dtype=float)]
        for boxes in edges:
            boxes[:, 2:] += 1  # outer edges
        found[present] = box_iou(*edges)
    return found


def nearest_cells(points: Sequence[Sequence[tuple[int, int]]], shape: tuple[int, int]) -> NDArray[np.int32]:
    """(h, w): which object has the nearest point; -1 everywhere if there is none.

    Args:
        points: Row and column of every point, object by object.
        shape: (h, w).
    """
    owners = np.full(shape, -1, dtype=np.int32)
    for number, places in enumerate(points):
        for row, col in places:
            owners[min(max(row, 0), shape[0] - 1), min(max(col, 0), shape[1] - 1)] = number
    if (owners < 0).all():
        return owners
    rows, cols = ndimage.distance_transform_edt(owners < 0, return_distances=False, return_indices=True)
    nearest: NDArray[np.int32] = owners[rows, cols]
    return nearest
