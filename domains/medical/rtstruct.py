"""RTSTRUCT in: contours in patient mm become labels on the grid of the series that they were drawn on.

All contours of a structure on one slice are filled together by the even-odd rule, so an inner contour is a hole and a
keyhole (one contour that runs in and out again) works too. A voxel belongs to a structure if its centre does; a centre
that lies on a contour counts on the left and upper side only, so that neighbours which share a contour share no voxel.
Standard: DICOM PS3.3 A.19, C.8.8.6 (ROI Contour).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.medical.dicom import DicomScene
from samgraft.domains.medical.dicom_header import read_dataset
from samgraft.domains.scene import Array, label_dtype
from samgraft.errors import GeometryError, InputError, NoMatchError

OFF_SLICE = 0.25
"""Default for how far a contour may lie from its slice, as a share of the distance of slices."""

_FILLED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_DIGITS = 6  # a corner that was set on a voxel centre comes back to it


@dataclass(frozen=True, kw_only=True, eq=False)
class Structure:
    """One structure and its contours."""

    number: int
    """ROINumber."""
    name: str
    """ROIName."""
    frame_of_reference: str
    """UID of the frame in which it was drawn."""
    contours: tuple[NDArray[np.float64], ...]
    """Closed contours, each (n, 3) in LPS mm."""
    skipped: int = 0
    """Points and open lines, which have no inside."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StructureSet:
    """What an RTSTRUCT file holds."""

    path: Path
    """The file."""
    structures: tuple[Structure, ...]
    """In the order of the file."""
    series: tuple[str, ...]
    """SeriesInstanceUIDs that the structures refer to."""

    def choose(self, names: Sequence[str] | None) -> tuple[Structure, ...]:
        """Structures by name, in the order asked; None takes all that have a contour.

        Raises:
            NoMatchError: no structure of that name, or several.
            InputError: no contour at all.
        """
        known = [s.name for s in self.structures]
        for name in names or ():
            if known.count(name) != 1:
                raise NoMatchError(f"{self.path}: {known.count(name)} structures named {name!r}; it holds {known}")
        chosen = (
            tuple(s for s in self.structures if s.contours)
            if names is None
            else tuple(next(s for s in self.structures if s.name == name) for name in names)
        )
        if not any(s.contours for s in chosen):
            raise InputError(f"{self.path}: {[s.name for s in chosen] or known} have no closed contour")
        return chosen


def read_rtstruct(path: Path | str) -> StructureSet:
    """Read names and contours of an RTSTRUCT file.

    Raises:
        InputError: no RTSTRUCT, or damaged contours.
    """
    path = Path(path)
    head = read_dataset(path)
    if head is None or head.get("Modality") != "RTSTRUCT":
        found = "no DICOM" if head is None else f"modality {head.get('Modality')}"
        raise InputError(f"{path}: is no RTSTRUCT ({found}); give the structure file, or labels as NIfTI")
    drawn = {int(item.ReferencedROINumber): item for item in head.get("ROIContourSequence") or []}
    try:
        structures = tuple(_structure(item, drawn) for item in head.get("StructureSetROISequence") or [])
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: unreadable contours ({error}); export the structures again") from error
    return StructureSet(path=path, structures=structures, series=tuple(dict.fromkeys(_series(head))))


def rasterise(
    structures: StructureSet,
    scene: DicomScene,
    *,
    names: Sequence[str] | None = None,
    overlap: Literal["raise", "later"] = "raise",
    off_slice: float = OFF_SLICE,
) -> tuple[Array, dict[int, str], tuple[str, ...]]:
    """Labels of structures on the grid of a series.

    Args:
        structures: what ``read_rtstruct`` gave.
        scene: the series that they were drawn on.
        names: which structures, in the order of their labels; None takes all with contours.
        overlap: "raise" when two structures share voxels, or let the "later" one win.
        off_slice: how far a contour may lie from a slice, as a share of the distance of slices.

    Returns:
        Labels (D, H, W) from 1 in the order of the structures, label -> name, and remarks.

    Raises:
        GeometryError: another frame of reference, contours between or beyond slices, or not parallel to them.
        InputError: no contours, or overlapping structures.
        NoMatchError: a name that the file does not hold.
    """
    chosen = structures.choose(names)
    notes = [f"{s.name}: {s.skipped} points or open lines left out" for s in chosen if s.skipped]
    if structures.series and scene.series_uid not in structures.series:
        notes.append(f"drawn on series {structures.series[0]}, filled on {scene.series_uid}: same frame of reference")
    labels = np.zeros(scene.grid.shape, dtype=label_dtype(len(chosen)))
    classes = {}
    for value, structure in enumerate(chosen, start=1):
        _check_frame(structure, structures, scene)
        classes[value] = structure.name
        where = f"{structures.path} {structure.name}"
        mask = fill_contours(structure.contours, scene, off_slice=off_slice, where=where)
        shared = np.unique(labels[mask])
        shared = shared[shared > 0]
        if len(shared) and overlap == "raise":
            other = int(shared[0])
            raise InputError(
                f"{structures.path}: {structure.name} and {classes[other]} share {int((labels[mask] == other).sum())} "
                "voxels, and a label map holds one of them; choose structures by name, or let the later one win "
                '(overlap="later")'
            )
        labels[mask] = value
        notes += _gaps(mask, structure.name)
    return labels, classes, tuple(notes)


def fill_contours(
    contours: Iterable[NDArray[np.float64]], scene: DicomScene, *, off_slice: float = OFF_SLICE, where: str = "contours"
) -> NDArray[np.bool_]:
    """Fill closed contours, each (n, 3) in LPS mm; bool (D, H, W).

    Raises:
        GeometryError: a contour between or beyond slices, or not parallel to them.
    """
    depth, rows, columns = scene.grid.shape
    crossings = np.zeros((depth, rows, columns + 1), dtype=np.uint8)
    for points in contours:
        index = np.round(scene.grid.to_index(points), _DIGITS)
        number = _slice_of(index[:, 0], points, scene, off_slice, where)
        _toggle(crossings[number], index[:, 1:])
    inside: NDArray[np.bool_] = np.bitwise_xor.accumulate(crossings, axis=2)[:, :, :-1].astype(np.bool_)
    return inside


def _slice_of(
    along: NDArray[np.float64], points: NDArray[np.float64], scene: DicomScene, off_slice: float, where: str
) -> int:
    """The slice that a contour lies on."""
    middle = float(np.median(along))
    number = round(middle)
    step = scene.grid.spacing[0]
    place = f"contour at {tuple(round(float(v), 2) for v in points[0])} mm"
    tilt = float(np.ptp(along)) * step
    if tilt > 2 * off_slice * step:
        raise GeometryError(
            f"{where}: {place} is not parallel to the slices (it spans {tilt:.3g} mm across them); it was drawn on "
            "another orientation; open the series that it refers to"
        )
    if abs(middle - number) > off_slice or not 0 <= number < scene.grid.shape[0]:
        off = abs(middle - min(max(number, 0), scene.grid.shape[0] - 1)) * step
        raise GeometryError(
            f"{where}: {place} lies {off:.3g} mm from the nearest of {scene.grid.shape[0]} slices, {step:.4g} mm apart "
            f"(allowed {off_slice * step:.3g} mm); it was drawn on another series; open that one"
        )
    return number


def _toggle(crossings: NDArray[np.uint8], points: NDArray[np.float64]) -> None:
    """Flip, in every row of pixel centres, the first column right of each crossing with the closed polygon.

    Args:
        crossings: (H, W + 1) of 0 and 1, changed in place; its running xor along a row is the inside.
        points: (n, 2) corners as (row, col).
    """
    height, width = crossings.shape
    start, end = points, np.roll(points, -1, axis=0)
    top = np.ceil(np.minimum(start[:, 0], end[:, 0])).astype(int).clip(0, height)
    bottom = np.ceil(np.maximum(start[:, 0], end[:, 0])).astype(int).clip(0, height)
    counts = bottom - top
    edge = np.repeat(np.arange(len(points)), counts)
    row = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + top[edge]
    share = (row - start[edge, 0]) / (end[edge, 0] - start[edge, 0])
    column = start[edge, 1] + share * (end[edge, 1] - start[edge, 1])
    first = np.ceil(column).astype(int).clip(0, width - 1)
    np.bitwise_xor.at(crossings, (row, first), np.uint8(1))


def _check_frame(structure: Structure, structures: StructureSet, scene: DicomScene) -> None:
    """Contours of another frame of reference would land in another place."""
    theirs, ours = structure.frame_of_reference, scene.frame_of_reference
    if theirs != ours:
        drawn = f"; it was drawn on series {structures.series[0]}" if structures.series else ""
        raise GeometryError(
            f"{structures.path}: {structure.name} belongs to the frame of reference {theirs or 'unknown'}, the series "
            f"{scene.path} to {ours or 'unknown'}{drawn}; open that series, or register the two first"
        )


def _gaps(mask: NDArray[np.bool_], name: str) -> list[str]:
    """A remark on empty slices between filled ones; nothing is interpolated."""
    filled = np.flatnonzero(mask.any(axis=(1, 2)))
    if not len(filled):
        return [f"{name}: no voxel centre lies inside its contours"]
    missing = int(filled[-1] - filled[0] + 1 - len(filled))
    return [f"{name}: {missing} slices between its contours have none and stay empty"] if missing else []


def _structure(item: Any, drawn: dict[int, Any]) -> Structure:
    """Name and contours of one structure."""
    number = int(item.ROINumber)
    contours, skipped = [], 0
    for contour in (drawn[number].get("ContourSequence") or []) if number in drawn else []:
        points = np.array([float(v) for v in contour.ContourData], dtype=np.float64).reshape(-1, 3)
        if not np.isfinite(points).all():
            raise ValueError(f"contour of {item.get('ROIName')} is not finite")
        if contour.ContourGeometricType in _FILLED and len(points) >= 3:
            contours.append(points)
        else:
            skipped += 1
    return Structure(
        number=number,
        name=str(item.get("ROIName", "")) or f"structure {number}",
        frame_of_reference=str(item.get("ReferencedFrameOfReferenceUID", "")),
        contours=tuple(contours),
        skipped=skipped,
    )


def _series(head: Any) -> Iterable[str]:
    """SeriesInstanceUIDs that the file refers to."""
    for frame in head.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            for series in study.get("RTReferencedSeriesSequence") or []:
                yield str(series.SeriesInstanceUID)
