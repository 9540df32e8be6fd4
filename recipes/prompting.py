"""What a person asks for: boxes and points in pixels of the input, on a slice if the input is a volume.

``samgraft.segment`` takes a :class:`UserPrompts`; the engine turns it into network coordinates per object.
"""

import math
from dataclasses import dataclass

from samgraft.errors import PromptError
from samgraft.grid import Grid

AXES = "DHW"


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
        if grid.ndim == 2 and (self.slice is not None or self.axis is not None):
            raise PromptError(
                f"a slice ({self.slice}) was named, but the input is a picture of {grid.shape}; leave it out"
            )
        axis = self.plane_axis(grid)
        if axis is not None and not 0 <= self.plane_index(grid) < grid.shape[axis]:
            raise PromptError(
                f"slice {self.slice} lies outside the volume: axis {AXES[axis]} has slices 0..{grid.shape[axis] - 1}"
            )
        height, width = (n for i, n in enumerate(grid.shape) if i != axis)
        for x, y, _ in self.points:
            _inside("point", (x, y), height, width)
        for x0, y0, x1, y1 in self.boxes:
            _inside("corner of a box", (x0, y0), height, width)
            _inside("corner of a box", (x1, y1), height, width)

    def plane_axis(self, grid: Grid) -> int | None:
        """Array axis that is cut into slices; None for pictures and rasters.

        Raises:
            PromptError: an axis that does not exist.
        """
        if grid.ndim == 2:
            return None
        if self.axis is None:
            return coarsest_axis(grid)
        if self.axis not in (0, 1, 2):
            raise PromptError(f"axis {self.axis} of a volume; expected 0, 1 or 2 (D, H, W)")
        return self.axis

    def plane_index(self, grid: Grid) -> int:
        """Index of the prompted slice of a volume; the middle one if none was named."""
        axis = self.plane_axis(grid)
        if axis is None:
            return 0
        return grid.shape[axis] // 2 if self.slice is None else self.slice


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
