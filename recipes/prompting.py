"""What is asked for: boxes, points and earlier masks in pixels of the input, on a slice if the input is a volume.

``samgraft.segment`` takes a :class:`UserPrompts` (what one person clicks) or an :class:`ObjectPrompts` (many objects,
as ``samgraft.recipes.prompt_files`` makes them of a file); the engine turns it into network coordinates per object.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samgraft.errors import PromptError
from samgraft.grid import Grid

AXES = "DHW"
OBJECT = "object"
"""Class of prompts that name none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskPrompt:
    """An earlier mask of one object, on the pixels of its own box only."""

    top: int
    left: int
    inside: NDArray[np.bool_]
    """(h, w)."""

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 in the picture, first and last pixel inside."""
        height, width = self.inside.shape
        return float(self.left), float(self.top), float(self.left + width - 1), float(self.top + height - 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectPrompt:
    """One object that is asked for."""

    box: tuple[float, float, float, float] | None = None
    """(x0, y0, x1, y1), first and last pixel inside."""
    points: tuple[tuple[float, float, int], ...] = ()
    """(x, y, label): 1 on the object, 0 off it."""
    mask: MaskPrompt | None = None
    """An earlier mask of the object."""
    tight: bool = True
    """The box ends where the object ends (a detection); False for a box that is only near it."""
    class_name: str = OBJECT
    """What it is."""
    slice: int | None = None
    """Volumes: index along the axis of all prompts; None takes the middle slice."""
    source: str = ""
    """Where it comes from, for messages."""

    def __post_init__(self) -> None:
        """Freeze; check numbers, and that something says where the object is."""
        object.__setattr__(self, "box", None if self.box is None else _four(self.box))
        object.__setattr__(self, "points", tuple(_point(point) for point in self.points))
        if self.box is None and self.mask is None and not any(label for _, _, label in self.points):
            raise PromptError(
                f"{self.source or 'prompt'} has neither a box, nor a mask, nor a point with label 1; give one of them"
            )

    @property
    def around(self) -> tuple[float, float, float, float]:
        """What a view has to hold: the box or the mask's, and all points."""
        box = self.box or (None if self.mask is None else self.mask.box)
        corners = [] if box is None else [box[:2], box[2:]]
        places = [*corners, *((x, y) for x, y, _ in self.points)]
        xs, ys = [x for x, _ in places], [y for _, y in places]
        return min(xs), min(ys), max(xs), max(ys)


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectPrompts:
    """Many objects, each with its own prompt, class and slice."""

    objects: tuple[ObjectPrompt, ...]
    """In the order of their labels in the result."""
    axis: int | None = None
    """Volumes: array axis that is cut (0, 1 or 2 of D, H, W); None takes the coarsest spacing."""
    from_ground_truth: bool = False
    """True when these come from a label. The result says so, and is never averaged with automatic ones."""

    def __post_init__(self) -> None:
        """Refuse an empty list."""
        object.__setattr__(self, "objects", tuple(self.objects))
        if not self.objects:
            raise PromptError("no object is asked for; give at least one prompt, or prompts=None")

    def __len__(self) -> int:
        """Number of objects asked for."""
        return len(self.objects)

    def plane_axis(self, grid: Grid) -> int | None:
        """Array axis that is cut into slices; None for pictures and rasters.

        Raises:
            PromptError: an axis that does not exist.
        """
        return _plane_axis(grid, self.axis)

    def plane_index(self, grid: Grid, one: ObjectPrompt) -> int:
        """Index of the slice that an object lies in; 0 for pictures, the middle one if none was named."""
        axis = self.plane_axis(grid)
        return 0 if axis is None else grid.shape[axis] // 2 if one.slice is None else one.slice

    def check(self, grid: Grid) -> None:
        """Refuse what lies outside ``grid``.

        Raises:
            PromptError: a coordinate or a slice lies outside; the message names the extent.
        """
        axis = self.plane_axis(grid)
        height, width = (n for i, n in enumerate(grid.shape) if i != axis)
        for one in self.objects:
            if axis is None and (one.slice is not None or self.axis is not None):
                raise PromptError(
                    f"a slice ({one.slice}) was named, but the input is a picture of {grid.shape}; leave it out"
                )
            if axis is not None and not 0 <= self.plane_index(grid, one) < grid.shape[axis]:
                raise PromptError(
                    f"slice {one.slice} lies outside the volume: axis {AXES[axis]} has slices 0..{grid.shape[axis] - 1}"
                )
            for x, y, _ in one.points:
                _inside("point", (x, y), height, width)
            for box in (one.box, None if one.mask is None else one.mask.box):
                if box is not None:
                    _inside("corner of a box", box[:2], height, width)
                    _inside("corner of a box", box[2:], height, width)

    def class_names(self) -> tuple[str, ...]:
        """Names that occur, in order of first use; class i + 1 is the i-th."""
        return tuple(dict.fromkeys(one.class_name for one in self.objects))


@dataclass(frozen=True, kw_only=True)
class UserPrompts:
    """Boxes and points in (x, y) pixels of the input, x along the last array axis.

    Every box is one object. Points with one box belong to the object of that box. Points without a box are one object
    together. Several boxes with points are refused, since nothing says which point belongs to which box.
    """

    boxes: tuple[tuple[float, float, float, float], ...] = ()
    """(x0, y0, x1, y1), first and last pixel inside."""
    points: tuple[tuple[float, float, int], ...] = ()
    """(x, y, label): 1 on the object, 0 off it."""
    slice: int | None = None
    """Volumes: index along ``axis``; None takes the middle slice."""
    axis: int | None = None
    """Volumes: array axis that is cut (0, 1 or 2 of D, H, W); None takes the coarsest spacing."""
    from_ground_truth: bool = False
    """True when these come from a label. The result says so, and is never averaged with automatic ones."""

    def __post_init__(self) -> None:
        """Freeze lists into tuples; check labels, numbers, order of corners and what belongs together."""
        object.__setattr__(self, "boxes", tuple(_four(box) for box in self.boxes))
        object.__setattr__(self, "points", tuple(_point(point) for point in self.points))
        if not self.boxes and not self.points:
            raise PromptError("prompts hold neither a box nor a point; give at least one, or prompts=None")
        if len(self.boxes) > 1 and self.points:
            raise PromptError(
                f"{len(self.boxes)} boxes together with {len(self.points)} points: nothing says which point belongs "
                "to which box; give one box with points, or boxes only"
            )
        if not self.boxes and all(label == 0 for _, _, label in self.points):
            raise PromptError("all points have label 0 (off the object); give at least one with label 1, or a box")

    def __len__(self) -> int:
        """Number of objects asked for."""
        return max(1, len(self.boxes))

    def check(self, grid: Grid) -> None:
        """Refuse what lies outside ``grid``.

        Raises:
            PromptError: a coordinate or the slice lies outside; the message names the extent.
        """
        self.as_objects().check(grid)

    def plane_axis(self, grid: Grid) -> int | None:
        """Array axis that is cut into slices; None for pictures and rasters.

        Raises:
            PromptError: an axis that does not exist.
        """
        return _plane_axis(grid, self.axis)

    def plane_index(self, grid: Grid) -> int:
        """Index of the prompted slice of a volume; the middle one if none was named."""
        asked = self.as_objects()
        return asked.plane_index(grid, asked.objects[0])

    def as_objects(self, *, tight: bool = True) -> ObjectPrompts:
        """The same, object by object.

        Args:
            tight: The boxes end where their objects end.
        """
        boxes: Sequence[tuple[float, float, float, float] | None] = self.boxes or (None,)
        return ObjectPrompts(
            objects=tuple(ObjectPrompt(box=b, points=self.points, tight=tight, slice=self.slice) for b in boxes),
            axis=self.axis,
            from_ground_truth=self.from_ground_truth,
        )


def _plane_axis(grid: Grid, axis: int | None) -> int | None:
    if grid.ndim == 2:
        return None
    if axis is None:
        return coarsest_axis(grid)
    if axis not in (0, 1, 2):
        raise PromptError(f"axis {axis} of a volume; expected 0, 1 or 2 (D, H, W)")
    return axis


def coarsest_axis(grid: Grid) -> int:
    """Array axis with the largest spacing, the first one within a thousandth: the axis along which slices are taken."""
    top = max(grid.spacing)
    return next(i for i, spacing in enumerate(grid.spacing) if spacing >= top * (1 - 1e-3))


def _four(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    if len(box) != 4 or not all(math.isfinite(v) for v in box):
        raise PromptError(f"box {tuple(box)}: expected four finite numbers x0, y0, x1, y1")
    x0, y0, x1, y1 = (float(v) for v in box)
    if x1 < x0 or y1 < y0:
        raise PromptError(f"box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) ends before it starts; give x0 <= x1 and y0 <= y1")
    return x0, y0, x1, y1


def _point(point: tuple[float, float, int]) -> tuple[float, float, int]:
    if len(point) != 3 or not all(math.isfinite(v) for v in point):
        raise PromptError(f"point {tuple(point)}: expected x, y and a label, all finite")
    x, y, label = point
    if label not in (0, 1):
        raise PromptError(f"point label {label}; expected 1 (on the object) or 0 (off it)")
    return float(x), float(y), int(label)


def _inside(what: str, place: tuple[float, float], height: int, width: int) -> None:
    x, y = place
    if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
        raise PromptError(
            f"{what} ({x:g}, {y:g}) lies outside the image: x 0..{width - 1}, y 0..{height - 1}; "
            "coordinates are (x, y) pixels"
        )
