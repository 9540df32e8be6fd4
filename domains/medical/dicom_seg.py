"""DICOM-SEG in: a segmentation object as a label volume with names; LABELMAP and BINARY, empty frames kept or not.

Frames are placed by their own position, never by their order; a frame that is absent is empty. Labels are segment
numbers, world "LPS", arrays (D, H, W). Overlapping segments have no label map and are refused, as are fractional ones.
Standard: DICOM PS3.3 A.51 (Segmentation IOD), C.8.20 (Segmentation Image), Supplement 243 (label maps).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.medical.dicom import SPACING_TOLERANCE_MM, differences
from samgraft.domains.medical.dicom_header import frame_pixels, frame_slices, read_dataset
from samgraft.domains.medical.dicom_order import Slice, stack_slices
from samgraft.domains.scene import Array, Scene, Window, label_dtype
from samgraft.errors import InputError, NoMatchError
from samgraft.grid import Grid

_SAME_PLACE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One structure of a segmentation object."""

    number: int
    """Its label, from 1."""
    name: str
    """SegmentLabel."""
    code: str = ""
    """SNOMED CT (or other) code of what it is."""
    meaning: str = ""
    """The code in words."""


class DicomSegScene(Scene):
    """A DICOM-SEG file as a label volume; frames are read slice by slice."""

    def __init__(self, path: Path) -> None:
        """Read header, segments and places of all frames.

        Raises:
            InputError: no segmentation object, a fractional one, frames without place or of other directions.
            GeometryError: directions that are not orthonormal.
        """
        head = read_dataset(path)
        if head is None or head.get("Modality") != "SEG" or "SegmentSequence" not in head:
            raise InputError(f"{path}: is no DICOM segmentation object ({_modality(head)}); expected modality SEG")
        kind = str(head.get("SegmentationType", ""))
        if kind not in ("LABELMAP", "BINARY"):
            raise InputError(f"{path}: segmentation type {kind or 'unknown'}; expected LABELMAP or BINARY")
        self.segments: Mapping[int, Segment] = _segments(head)
        """Label -> structure; background is left out."""
        self.segmentation_type = kind
        """LABELMAP or BINARY."""
        self.frame_of_reference = str(head.get("FrameOfReferenceUID") or "")
        """FrameOfReferenceUID; empty if absent."""
        self.source_series = _source_series(head)
        """SeriesInstanceUID of the images that were segmented; empty if absent."""
        frames = frame_slices(path, head)
        _check_frames(frames, path)
        numbers = _segment_numbers(head, len(frames), path) if kind == "BINARY" else (0,) * len(frames)
        self._planes, grid, notes = _arrange(frames, numbers, _claimed_step(head), path)
        super().__init__(
            path=path,
            kind="volume",
            grid=grid,
            channels=1,
            dtype=label_dtype(max(self.segments, default=0)),
            format=f"DICOM-SEG {kind}",
            modality="SEG",
            value_range=(0.0, float(max(self.segments, default=0))),
            notes=notes,
        )

    @property
    def classes(self) -> dict[int, str]:
        """Label -> name."""
        return {number: segment.name for number, segment in self.segments.items()}

    def mask(self, number: int) -> NDArray[np.bool_]:
        """Voxels (D, H, W) of one segment; the way to read segments that overlap.

        Raises:
            NoMatchError: no segment of that number.
            InputError: damaged pixels.
        """
        if number not in self.segments:
            raise NoMatchError(f"{self.path}: no segment {number}; it holds {self.classes}")
        out = np.zeros(self.grid.shape, dtype=np.bool_)
        for index, plane in enumerate(self._planes):
            for frame, shown in plane:
                if shown in (0, number):
                    pixels = _decode(self.path, frame)
                    out[index] |= pixels > 0 if shown else pixels == number
        return out

    def _read(self, window: Window, channels: tuple[int, ...]) -> Array:
        """Labels of the window's slices."""
        shape = tuple(s.stop - s.start for s in window)
        out = np.zeros(shape, dtype=self.dtype)
        for k, index in enumerate(range(window[0].start, window[0].stop)):
            for frame, number in self._planes[index]:
                pixels = _decode(self.path, frame)[window[1], window[2]]
                self._lay(out[k], pixels, number, index)
        return np.stack([out] * len(channels))

    def _lay(self, plane: Array, pixels: Array, number: int, index: int) -> None:
        """Add one frame to a slice; two segments on one voxel are refused."""
        if not number:
            unknown = sorted(set(np.unique(pixels).tolist()) - set(self.segments) - {0})
            if unknown:
                raise InputError(f"{self.path}: slice {index} holds labels {unknown[:5]} that no segment describes")
            plane[:] = pixels
            return
        inside = pixels > 0
        both = int((plane[inside] > 0).sum())
        if both:
            other = int(plane[inside].max())
            raise InputError(
                f"{self.path}: segments {other} ({self.classes.get(other)}) and {number} ({self.classes.get(number)}) "
                f"overlap on {both} voxels of slice {index}; a label map holds one of them; name those wanted, or "
                "read them one by one with mask(number)"
            )
        plane[inside] = number


def is_dicom_seg(path: Path) -> bool:
    """True if a DICOM file is a segmentation object."""
    head = read_dataset(path, ["Modality"])
    return head is not None and head.get("Modality") == "SEG"


def _modality(head: Any) -> str:
    return "no DICOM" if head is None else f"modality {head.get('Modality')}"


def _segments(head: Any) -> dict[int, Segment]:
    """Segments by number, without the background of label maps."""
    found = {}
    for item in head.SegmentSequence:
        number = int(item.SegmentNumber)
        if number == 0:
            continue
        kinds = item.get("SegmentedPropertyTypeCodeSequence") or []
        code = str(kinds[0].get("CodeValue", "")) if kinds else ""
        meaning = str(kinds[0].get("CodeMeaning", "")) if kinds else ""
        name = str(item.get("SegmentLabel", "")) or f"segment {number}"
        found[number] = Segment(number=number, name=name, code=code, meaning=meaning)
    return found


def _source_series(head: Any) -> str:
    """The series that was segmented, where the file says so."""
    for item in head.get("ReferencedSeriesSequence") or []:
        return str(item.get("SeriesInstanceUID", ""))
    return ""


def _check_frames(frames: list[Slice], path: Path) -> None:
    """All frames must share direction and spacing."""
    for one in frames[1:]:
        for what, mine, other in differences(one, frames[0]):
            raise InputError(f"{path}: frames differ in {what}: {one.name} has {mine}, {frames[0].name} has {other}")


def _segment_numbers(head: Any, frames: int, path: Path) -> tuple[int, ...]:
    """Segment of every frame of a BINARY object."""
    shared = _referenced(head.SharedFunctionalGroupsSequence[0])
    numbers = tuple(_referenced(group) or shared for group in head.PerFrameFunctionalGroupsSequence)
    if len(numbers) != frames or not all(numbers):
        raise InputError(f"{path}: frame {numbers.index(0) + 1} does not say which segment it shows; write it again")
    return numbers


def _referenced(group: Any) -> int:
    """ReferencedSegmentNumber of a functional group; 0 if absent."""
    for item in group.get("SegmentIdentificationSequence") or []:
        return int(item.ReferencedSegmentNumber)
    return 0


def _arrange(
    frames: list[Slice], numbers: tuple[int, ...], claimed: float | None, path: Path
) -> tuple[list[list[tuple[int, int]]], Grid, tuple[str, ...]]:
    """Per slice its frames with their segments, the grid, and remarks; absent frames are empty slices."""
    normal = np.cross(frames[0].orientation[:3], frames[0].orientation[3:])
    along = np.array([float(one.position @ normal) for one in frames])
    order = np.argsort(along, kind="stable")
    fresh = np.concatenate([[True], np.diff(along[order]) > _SAME_PLACE])
    group = np.cumsum(fresh) - 1
    places = [frames[i] for i in order[fresh]]
    step = _known_step(claimed, along[order][fresh])
    stack = stack_slices(places, path, allow_gaps=True, tolerance=SPACING_TOLERANCE_MM, step=step)
    rows = {id(one): row for row, one in enumerate(stack.slices) if one is not None}
    planes: list[list[tuple[int, int]]] = [[] for _ in stack.slices]
    for at, index in zip(group, order, strict=True):
        planes[rows[id(places[int(at)])]].append((int(index), numbers[int(index)]))
    absent = sum(not plane for plane in planes)
    return planes, stack.grid, (f"{absent} slices without a frame are empty",) if absent else ()


def _claimed_step(head: Any) -> float | None:
    """SpacingBetweenSlices in mm; the thickness of slices says nothing about their distance."""
    for item in head.SharedFunctionalGroupsSequence[0].get("PixelMeasuresSequence") or []:
        value = item.get("SpacingBetweenSlices")
        return abs(float(value)) if value else None
    return None


def _known_step(claimed: float | None, along: NDArray[np.float64]) -> float | None:
    """The distance of slices that the header claims, if every step is a multiple of it."""
    steps = np.diff(along)
    if claimed is None or not len(steps):
        return None
    parts = steps / claimed
    return claimed if (np.rint(parts) >= 1).all() and np.abs(parts - np.rint(parts)).max() < 0.02 else None


def _decode(path: Path, frame: int) -> Array:
    """Stored pixels of one frame."""
    try:
        return frame_pixels(path, frame)
    except Exception as error:
        raise InputError(f"{path}: frame {frame + 1} cannot be decoded ({error}); copy the file again") from error
