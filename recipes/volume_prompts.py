"""Prompts in three dimensions: what is asked of a whole volume, object by object.

An object is annotated on one or more slices (box, line, mask or points there), or by a 3D box (a box and its first and
last slice), and may carry further points (x, y, slice, label) anywhere. Positions are array indices: x and y in the
plane of a slice, the slice along the cut axis; :func:`from_world` turns mm into them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from samgraft.errors import PromptError
from samgraft.grid import Grid
from samgraft.recipes.prompting import AXES, OBJECT, ObjectPrompt, ObjectPrompts, UserPrompts, coarsest_axis

Point = tuple[float, float, int, int]
"""(x, y, slice, label): 1 on the object, 0 off it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class VolumePrompt:
    """One object of a volume."""

    slices: tuple[ObjectPrompt, ...] = ()
    """Annotated slices, each with its own ``slice``."""
    box: tuple[float, float, float, float] | None = None
    """In-plane part of a 3D box, (x0, y0, x1, y1), first and last pixel inside; needs ``extent``."""
    extent: tuple[int, int] | None = None
    """First and last slice that the object may lie in."""
    points: tuple[Point, ...] = ()
    """(x, y, slice, label), anywhere in the volume."""
    class_name: str = OBJECT
    source: str = ""
    """Where it comes from, for messages."""

    def __post_init__(self) -> None:
        """Check what belongs together.

        Raises:
            PromptError: nothing says where the object is, or a slice without a number, or an extent that ends early.
        """
        object.__setattr__(self, "slices", tuple(self.slices))
        object.__setattr__(self, "points", tuple(_point(point) for point in self.points))
        where = self.source or "prompt"
        if self.extent is not None:
            object.__setattr__(self, "extent", (int(self.extent[0]), int(self.extent[1])))
            if self.extent[1] < self.extent[0]:
                raise PromptError(f"{where}: slices {self.extent[0]} to {self.extent[1]}; give the smaller one first")
        if self.box is not None and self.extent is None:
            raise PromptError(
                f"{where}: a 3D box needs its first and last slice; give extent=(first, last), or a box on one slice"
            )
        if any(one.slice is None for one in self.slices):
            raise PromptError(f"{where}: an annotated slice without a number; give slice=")
        if not self.slices and self.box is None and not any(label for *_, label in self.points):
            raise PromptError(
                f"{where} has neither an annotated slice, nor a 3D box, nor a point with label 1; give one of them"
            )

    @property
    def middle(self) -> int | None:
        """The middle slice of a 3D box."""
        return None if self.box is None or self.extent is None else (self.extent[0] + self.extent[1]) // 2

    def on_slices(self) -> dict[int, ObjectPrompt]:
        """Slice -> what is said there that can be asked on its own: annotated slices, the middle of a 3D box, points.

        Points join what else is said on their slice; slices with points of label 0 only are not in it.
        """
        found = {int(one.slice): one for one in self.slices if one.slice is not None}
        points = self.points_by_slice()
        middle = self.middle
        if middle is not None and not found and not any(_on(some) for some in points.values()):
            found[middle] = ObjectPrompt(box=self.box, tight=False, slice=middle, class_name=self.class_name)
        for index, some in points.items():
            if index in found:
                found[index] = replace(found[index], points=(*found[index].points, *some))
            elif _on(some):
                inside = self.extent is None or self.extent[0] <= index <= self.extent[1]
                box = self.box if inside else None
                found[index] = ObjectPrompt(
                    box=box, points=some, tight=False, slice=index, class_name=self.class_name, source=self.source
                )
        return dict(sorted(found.items()))

    def points_by_slice(self) -> dict[int, tuple[tuple[float, float, int], ...]]:
        """Slice -> its points (x, y, label)."""
        found: dict[int, list[tuple[float, float, int]]] = {}
        for x, y, index, label in self.points:
            found.setdefault(index, []).append((x, y, label))
        return {index: tuple(some) for index, some in sorted(found.items())}


@dataclass(frozen=True, kw_only=True, eq=False)
class VolumePrompts:
    """Objects of a volume."""

    objects: tuple[VolumePrompt, ...]
    """In the order of their labels in the result."""
    axis: int | None = None
    """Array axis that is cut (0, 1 or 2 of D, H, W); None takes the coarsest spacing."""
    from_ground_truth: bool = False
    """True when these come from a label. The result says so, and is never averaged with automatic ones."""

    def __post_init__(self) -> None:
        """Refuse an empty list."""
        object.__setattr__(self, "objects", tuple(self.objects))
        if not self.objects:
            raise PromptError("no object is asked for; give at least one prompt")

    def __len__(self) -> int:
        """Number of objects asked for."""
        return len(self.objects)

    def cut_axis(self, grid: Grid) -> int:
        """The axis that is cut.

        Raises:
            PromptError: not a volume, or an axis that does not exist.
        """
        if grid.ndim != 3:
            raise PromptError(f"prompts in 3D for a picture of {grid.shape}; give a volume, or boxes and points in 2D")
        if self.axis is not None and self.axis not in (0, 1, 2):
            raise PromptError(f"axis {self.axis} of a volume; expected 0, 1 or 2 (D, H, W)")
        return coarsest_axis(grid) if self.axis is None else self.axis

    def check(self, grid: Grid) -> None:
        """Refuse what lies outside ``grid``.

        Raises:
            PromptError: a coordinate or a slice lies outside; the message names the extent.
        """
        axis = self.cut_axis(grid)
        height, width = (n for i, n in enumerate(grid.shape) if i != axis)
        for one in self.objects:
            several = tuple(one.on_slices().values())
            if several:
                ObjectPrompts(objects=several, axis=axis).check(grid)
            for index in one.extent or ():
                if not 0 <= index < grid.shape[axis]:
                    raise PromptError(
                        f"slice {index} lies outside the volume: axis {AXES[axis]} has slices 0..{grid.shape[axis] - 1}"
                    )
            for x, y, index, _ in one.points:
                low, high = (-0.5, -0.5, 0), (width - 0.5, height - 0.5, grid.shape[axis] - 1)
                if not all(a <= v <= b for a, v, b in zip(low, (x, y, index), high, strict=True)):
                    raise PromptError(
                        f"point ({x:g}, {y:g}) on slice {index} lies outside the volume: x 0..{width - 1}, "
                        f"y 0..{height - 1}, slices 0..{grid.shape[axis] - 1}"
                    )

    def class_names(self) -> tuple[str, ...]:
        """Names that occur, in order of first use; class i + 1 is the i-th."""
        return tuple(dict.fromkeys(one.class_name for one in self.objects))


def as_volume_prompts(prompts: UserPrompts | ObjectPrompts | VolumePrompts, grid: Grid) -> VolumePrompts:
    """Prompts on slices as prompts for the volume: one object each, annotated on its slice."""
    if isinstance(prompts, VolumePrompts):
        return prompts
    asked = prompts.as_objects() if isinstance(prompts, UserPrompts) else prompts
    if grid.ndim != 3:
        raise PromptError(f"propagation through slices needs a volume; the input is a picture of {grid.shape}")
    objects = []
    for one in asked.objects:
        placed = replace(one, slice=asked.plane_index(grid, one))
        objects.append(VolumePrompt(slices=(placed,), class_name=one.class_name, source=one.source))
    return VolumePrompts(objects=tuple(objects), axis=asked.axis, from_ground_truth=asked.from_ground_truth)


def from_world(points: Sequence[Sequence[float]], grid: Grid, axis: int) -> tuple[Point, ...]:
    """Points in mm as points of slices.

    Args:
        points: (x, y, z, label) in the world of ``grid`` (RAS or LPS, mm).
        grid: Of the volume.
        axis: Array axis that is cut.

    Returns:
        (x, y, slice, label); x and y keep their fractions, the slice is the nearest one.
    """
    found = []
    for x, y, z, label in points:
        index = grid.to_index(np.array([x, y, z], dtype=np.float64))
        row, col = (float(v) for i, v in enumerate(index) if i != axis)
        found.append((col, row, int(np.floor(index[axis] + 0.5)), int(label)))
    return tuple(found)


def box_from_world(
    low: Sequence[float], high: Sequence[float], grid: Grid, axis: int
) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
    """In-plane box and extent of a 3D box given by two opposite corners in mm.

    The box that results holds the voxels whose centres lie within the ends of the eight corners along each array axis;
    in an oblique grid it is larger than the one in mm.
    """
    ends = np.array([low, high], dtype=np.float64)
    corners = np.array([[ends[i, 0], ends[j, 1], ends[k, 2]] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    index = grid.to_index(corners)
    first, last = np.ceil(index.min(axis=0) - 1e-6), np.floor(index.max(axis=0) + 1e-6)
    limit = np.array(grid.shape) - 1
    first, last = np.clip(first, 0, limit), np.clip(last, 0, limit)
    if (last < first).any():
        raise PromptError(f"the box from {tuple(low)} to {tuple(high)} mm holds no voxel centre; make it larger")
    rows, cols = (i for i in range(3) if i != axis)
    box = (float(first[cols]), float(first[rows]), float(last[cols]), float(last[rows]))
    return box, (int(first[axis]), int(last[axis]))


def box_to_world(box: Sequence[float], extent: tuple[int, int], grid: Grid, axis: int) -> dict[str, list[float]]:
    """Centres of the first and the last voxel of a 3D box, in mm: ``{"from": [x, y, z], "to": [x, y, z]}``."""
    rows, cols = (i for i in range(3) if i != axis)
    ends = np.zeros((2, 3))
    ends[:, axis] = extent
    ends[:, cols], ends[:, rows] = (box[0], box[2]), (box[1], box[3])
    first, last = grid.to_world(ends)
    return {"from": [float(v) for v in first], "to": [float(v) for v in last]}


def _on(points: Sequence[tuple[float, float, int]]) -> bool:
    return any(label for _, _, label in points)


def _point(point: Sequence[float]) -> Point:
    if len(point) != 4 or not np.isfinite(point).all() or point[3] not in (0, 1):
        raise PromptError(f"point {tuple(point)}: expected x, y, slice and label 1 (on the object) or 0 (off it)")
    return float(point[0]), float(point[1]), int(point[2]), int(point[3])


def slices_of(objects: Mapping[int, ObjectPrompt]) -> str:
    """Slice numbers for a message."""
    return ", ".join(map(str, objects))
