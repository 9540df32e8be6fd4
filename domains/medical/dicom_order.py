"""From loose DICOM slices to a regular stack: order, spacing, gaps, duplicates, tilt.

Takes slice headers, gives the slices in order of position along the normal and the LPS grid. Positions decide, nothing
else: instance numbers, file names and SliceThickness are never used for order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.errors import GeometryError, InputError
from samgraft.grid import Grid

MAX_TILT_DEGREES = 0.1
"""Angle between slice normal and stacking direction above which the stack counts as tilted."""

_DUPLICATE_MM = 1e-3
_SHOWN = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Slice:
    """What the header of one slice says."""

    path: Path
    """The file."""
    uid: str
    """SOPInstanceUID."""
    series: str
    """SeriesInstanceUID."""
    description: str
    """SeriesDescription."""
    modality: str | None
    """"CT", "MR", ..."""
    shape: tuple[int, int]
    """Rows, columns."""
    dtype: np.dtype[Any]
    """Stored sample type."""
    spacing: NDArray[np.float64]
    """PixelSpacing in mm: between rows, between columns."""
    orientation: NDArray[np.float64]
    """Direction of a row (towards larger column), then of a column (towards larger row); LPS."""
    position: NDArray[np.float64]
    """Centre of the first pixel, LPS mm."""
    thickness: float | None
    """SpacingBetweenSlices or SliceThickness in mm."""
    slope: float
    """RescaleSlope."""
    intercept: float
    """RescaleIntercept."""
    padding: float | None
    """PixelPaddingValue (stored, unscaled), or None."""
    frame: int | None = None
    """Frame of a multi-frame file, from 0; None for a file that is one slice."""
    stack: str = ""
    """StackID of a multi-frame file."""
    frame_of_reference: str = ""
    """FrameOfReferenceUID; empty if the header has none."""

    @property
    def name(self) -> str:
        """File name, and the frame as DICOM counts it (from 1)."""
        return self.path.name if self.frame is None else f"{self.path.name} frame {self.frame + 1}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """Ordered slices and their grid."""

    slices: tuple[Slice | None, ...]
    """One entry per index along D; None where a slice is missing."""
    grid: Grid
    """LPS grid (D, H, W)."""
    notes: tuple[str, ...]
    """Remarks for the scene."""


def stack_slices(
    slices: Sequence[Slice], path: Path, *, allow_gaps: bool, tolerance: float, step: float | None = None
) -> Stack:
    """Order slices of equal size and direction, and check that they form a regular stack.

    Args:
        slices: at least one.
        path: folder, for messages.
        allow_gaps: leave None for missing slices instead of refusing.
        tolerance: largest distance in mm of a slice from its regular position.
        step: distance of neighbouring slices in mm, where it is known (a segmentation whose empty frames were left
            out); None takes the lower median of the distances that occur.

    Raises:
        InputError: duplicates, gaps, tilt or irregular spacing; the message lists positions in mm.
        GeometryError: direction cosines that are not orthonormal.
    """
    normal = slice_normal(slices[0], path)
    along = np.array([float(s.position @ normal) for s in slices])
    order = np.argsort(along, kind="stable")
    ordered, along = [slices[i] for i in order], along[order]
    lead = ordered[0]
    _refuse_duplicates(ordered, along, path)
    numbers, notes = _numbers(along, path, allow_gaps=allow_gaps, tolerance=tolerance, base=step)
    stride, more = _step(ordered, numbers, normal, path)
    in_place: list[Slice | None] = [None] * (int(numbers[-1]) + 1)
    for number, one in zip(numbers, ordered, strict=True):
        in_place[int(number)] = one
    affine = np.eye(4)
    affine[:3, 0] = stride
    affine[:3, 1] = lead.orientation[3:] * lead.spacing[0]
    affine[:3, 2] = lead.orientation[:3] * lead.spacing[1]
    affine[:3, 3] = lead.position
    try:
        grid = Grid(shape=(len(in_place), *lead.shape), affine=affine + 0.0, world="LPS")
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}; the DICOM headers are damaged") from error
    return Stack(slices=tuple(in_place), grid=grid, notes=(*notes, *more))


def slice_normal(first: Slice, path: Path) -> NDArray[np.float64]:
    """Unit normal of the slices.

    Raises:
        GeometryError: the two in-plane directions are not orthonormal.
    """
    row, column = first.orientation[:3], first.orientation[3:]
    gram = np.array([row @ row, column @ column, row @ column])
    if not np.allclose(gram, [1.0, 1.0, 0.0], atol=1e-3):
        raise GeometryError(f"{path}: ImageOrientationPatient {first.orientation.tolist()} is no orthonormal pair")
    normal: NDArray[np.float64] = np.cross(row, column)
    return normal / float(np.linalg.norm(normal))


def _refuse_duplicates(ordered: Sequence[Slice], along: NDArray[np.float64], path: Path) -> None:
    """Two slices at one position: a second phase, echo or copy, which must not be mixed."""
    twice = duplicates(along)
    if not twice.size:
        return
    lines = [
        f"  {along[i]:.3f} mm: {ordered[i].name} ({ordered[i].uid}) and {ordered[i + 1].name} ({ordered[i + 1].uid})"
        for i in twice[:_SHOWN]
    ]
    more = f"\n  and {twice.size - _SHOWN} more" if twice.size > _SHOWN else ""
    raise InputError(
        f"{path}: {twice.size} duplicate slice positions; keep one of each (phases, echoes: separate folders):\n"
        + "\n".join(lines)
        + more
    )


def _numbers(
    along: NDArray[np.float64], path: Path, *, allow_gaps: bool, tolerance: float, base: float | None = None
) -> tuple[NDArray[np.int64], list[str]]:
    """Index of each slice along D, from positions alone."""
    count = len(along)
    if count == 1:
        return np.zeros(1, dtype=np.int64), []
    steps = np.diff(along)
    numbers = slice_numbers(along, base)
    spacing, off = regularity(along, numbers)
    if off.max() > tolerance:
        worst = int(off.argmax())
        raise InputError(
            f"{path}: slices are not regular: steps from {steps.min():.3f} to {steps.max():.3f} mm, and the slice at "
            f"{along[worst]:.3f} mm lies {off[worst]:.3f} mm from its place (tolerance {tolerance:g} mm); "
            "remove foreign slices or raise spacing_tolerance"
        )
    notes = [f"slices lie up to {off.max():.3f} mm off"] if off.max() > _DUPLICATE_MM else []
    gaps = find_gaps(along, numbers)
    if gaps:
        text = ", ".join(f"{a:.2f} to {b:.2f} mm ({n} missing)" for a, b, n in gaps)
        if not allow_gaps:
            raise InputError(
                f"{path}: {sum(g[2] for g in gaps)} slices are missing at spacing {spacing:.3f} mm: {text}; "
                "find them, or open with allow_gaps=True to leave them empty"
            )
        notes.append(f"missing slices left empty: {text}")
    return numbers, notes


def slice_numbers(along: NDArray[np.float64], base: float | None = None) -> NDArray[np.int64]:
    """Index of every slice in a regular stack, from 0, from its place in mm along the normal.

    Args:
        along: ascending, at least two places.
        base: distance of neighbours in mm; None takes the lower median of the steps, which gaps do not move.
    """
    steps = np.diff(along)
    unit = float(np.sort(steps)[(len(along) - 2) // 2]) if base is None else base
    return np.concatenate([[0], np.cumsum(np.maximum(np.rint(steps / unit), 1))]).astype(np.int64)


def duplicates(along: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices i of ascending places where slices i and i + 1 lie at the same one."""
    return np.flatnonzero(np.diff(along) < _DUPLICATE_MM)


def regularity(along: NDArray[np.float64], numbers: NDArray[np.int64]) -> tuple[float, NDArray[np.float64]]:
    """Mean distance of neighbours in mm, and how far each slice lies from its regular place in mm."""
    spacing = float((along[-1] - along[0]) / numbers[-1])
    return spacing, np.abs(along - along[0] - numbers * spacing)


def find_gaps(along: NDArray[np.float64], numbers: NDArray[np.int64]) -> list[tuple[float, float, int]]:
    """Places in mm before and behind each gap, and how many slices are missing there."""
    return [(float(along[i]), float(along[i + 1]), int(n) - 1) for i, n in enumerate(np.diff(numbers)) if n > 1]


def tilt(step: NDArray[np.float64], normal: NDArray[np.float64]) -> tuple[float, float, float]:
    """Part of a step along the normal and beside it in mm, and the angle between the two in degrees."""
    length = float(step @ normal)
    sideways = float(np.linalg.norm(step - length * normal))
    return length, sideways, float(np.degrees(np.arctan2(sideways, length)))


def _step(
    ordered: Sequence[Slice], numbers: NDArray[np.int64], normal: NDArray[np.float64], path: Path
) -> tuple[NDArray[np.float64], list[str]]:
    """World vector from one slice to the next; a tilted stack is refused."""
    claimed = ordered[0].thickness
    if len(ordered) == 1:
        note = [] if claimed else ["single slice without thickness: 1 mm assumed"]
        return normal * (claimed or 1.0), note
    step: NDArray[np.float64] = (ordered[-1].position - ordered[0].position) / float(numbers[-1])
    length, sideways, angle = tilt(step, normal)
    if angle > MAX_TILT_DEGREES:
        raise InputError(
            f"{path}: gantry tilt: slices are stacked {angle:.2f} degrees off their normal ({sideways:.3f} mm sideways "
            f"per slice; allowed {MAX_TILT_DEGREES:g} degrees); resample to an upright volume first"
        )
    if claimed and claimed > 1.5 * length:
        return step, [f"overlapping slices: {length:.3f} mm apart, header says {claimed:g} mm"]
    return step, []
