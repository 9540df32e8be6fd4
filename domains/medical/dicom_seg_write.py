"""DICOM-SEG out: labels of a DICOM series as a segmentation object beside it, written by highdicom and read back.

A LABELMAP with RLE by default (one frame per slice), or BINARY for old viewers (one frame per slice and segment).
Frames take the positions of the source slices as their headers say them, refer to those slices, and are all kept, so
that the object has the shape of the series. After writing, the file is read again and compared; one that differs is
removed.
Standard: DICOM PS3.3 A.51, Supplement 243. Codes: ``samgraft.domains.medical.snomed``.
"""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from samgraft.domains.atomic import atomic_path
from samgraft.domains.medical.dicom import DicomScene
from samgraft.domains.medical.dicom_header import import_pydicom, read_dataset
from samgraft.domains.medical.dicom_order import Slice
from samgraft.domains.medical.dicom_seg import DicomSegScene
from samgraft.domains.medical.orientation import place_labels
from samgraft.domains.medical.snomed import Code, concept
from samgraft.domains.scene import Array
from samgraft.errors import ConfigError, GeometryError, InputError, MissingDependencyError, OutputError

if TYPE_CHECKING:
    from samgraft.domains.segmentation import Segmentation

SegKind = Literal["LABELMAP", "BINARY"]
MAX_SEGMENTS = 65535
"""Segment numbers are 16-bit."""

_EXACT = 1e-4
_LABEL_LENGTH = 64
_ASKED_FOR = (
    "PatientID PatientName PatientBirthDate PatientSex AccessionNumber StudyID StudyDate StudyTime "
    "ReferringPhysicianName"
).split()


@dataclass(frozen=True, kw_only=True)
class SegOptions:
    """How a segmentation object is written."""

    kind: SegKind = "LABELMAP"
    """LABELMAP: one frame per slice, run-length packed. BINARY: one bit per voxel and segment, for viewers that know
    nothing else; its segments are numbered 1 to n."""
    keep_empty: bool = True
    """Keep frames without a label, so that the object has as many slices as the series."""
    description: str = "samgraft"
    """SeriesDescription."""
    series_number: int = 1000
    """SeriesNumber."""

    def __post_init__(self) -> None:
        """Check the kind."""
        if self.kind not in ("LABELMAP", "BINARY"):
            raise ConfigError(f"DICOM-SEG kind is {self.kind!r}; expected 'LABELMAP' or 'BINARY'")


def write_dicom_seg(
    path: Path | str, segmentation: "Segmentation", scene: DicomScene, options: SegOptions | None = None
) -> None:
    """Write labels as a DICOM segmentation object of the series that they were made from.

    Args:
        path: .dcm, written atomically.
        segmentation: labels on the grid of ``scene``; every class (or instance) becomes a segment.
        scene: the series; its headers give patient, study and frame of reference.
        options: kind, empty frames; None takes the defaults.

    Raises:
        GeometryError: the labels lie on another grid, or on slices that are missing in the series.
        ConfigError: no class to describe, or more segments than DICOM numbers.
        InputError: the series lacks what a segmentation object must refer to; the message names it.
        MissingDependencyError: highdicom is not installed.
        OutputError: the file cannot be written, or reads back differently; nothing is left behind.
    """
    options = options or SegOptions()
    path = Path(path)
    scene.grid.require_equal(segmentation.grid, f"{path.name}: labels of another image")
    names = _names(segmentation, path)
    numbers = _numbers(names, options.kind)
    labels = _renumber(segmentation.labels, numbers)
    kept = _slices_with_a_file(scene, labels, path)
    described = {numbers[value]: name for value, name in names.items()}
    slices = [one for one in scene.slices if one is not None]
    dataset = _build(labels[kept], slices, scene, _descriptions(described, segmentation), options)
    with atomic_path(path) as temp:
        dataset.save_as(temp)
        _compare(temp, path, labels, described, scene)


def _names(segmentation: "Segmentation", path: Path) -> dict[int, str]:
    """Label -> name of its segment, ascending."""
    if segmentation.kind == "instance":
        records = segmentation.instances
        names = {r.id: f"{segmentation.classes[r.class_id]} {r.id}" for r in records}
    else:
        names = dict(segmentation.classes)
    if not names:
        raise ConfigError(f"{path.name}: no class or object to describe; a segmentation object needs at least one")
    if max(names) > MAX_SEGMENTS:
        raise ConfigError(f"{path.name}: label {max(names)}; DICOM numbers segments up to {MAX_SEGMENTS}; relabel")
    return dict(sorted(names.items()))


def _numbers(names: Mapping[int, str], kind: SegKind) -> dict[int, int]:
    """Label -> segment number; BINARY objects count from 1 without gaps, and it is said where that changes a label."""
    if kind == "LABELMAP":
        return {value: value for value in names}
    numbers = {value: number for number, value in enumerate(names, start=1)}
    changed = {value: number for value, number in numbers.items() if value != number}
    if changed:
        told = ", ".join(f"{names[value]}: {value} -> {number}" for value, number in list(changed.items())[:5])
        warnings.warn(f"BINARY objects number segments 1 to {len(names)}: {told}", UserWarning, stacklevel=4)
    return numbers


def _renumber(labels: Array, numbers: Mapping[int, int]) -> Array:
    """Labels as segment numbers, in the smallest dtype of one or two bytes."""
    dtype = np.uint8 if max(numbers.values()) <= 255 else np.uint16
    if all(value == number for value, number in numbers.items()):
        return labels.astype(dtype)
    out = np.zeros(labels.shape, dtype=dtype)
    for value, number in numbers.items():
        out[labels == value] = number
    return out


def _slices_with_a_file(scene: DicomScene, labels: Array, path: Path) -> list[int]:
    """Indices of slices that exist; labels on missing ones have nothing to refer to."""
    kept = [index for index, one in enumerate(scene.slices) if one is not None]
    missing = sorted(set(range(len(scene.slices))) - set(kept))
    lost = [index for index in missing if labels[index].any()]
    if lost:
        raise GeometryError(
            f"{path.name}: slices {lost[:5]} hold labels but are missing in the series; clear them, or write .nii.gz"
        )
    return kept


def _build(labels: Array, slices: list[Slice], scene: DicomScene, described: list[Any], options: SegOptions) -> Any:
    """The object, made by highdicom."""
    hd = require_highdicom()
    uids = import_pydicom().uid
    rle = options.kind == "LABELMAP"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return hd.seg.Segmentation(
                source_images=_sources(slices, scene),
                pixel_array=labels,
                segmentation_type=options.kind,
                segment_descriptions=described,
                series_instance_uid=hd.UID(),
                series_number=options.series_number,
                sop_instance_uid=hd.UID(),
                instance_number=1,
                manufacturer="samgraft",
                manufacturer_model_name="samgraft",
                software_versions=_version(),
                device_serial_number="0",
                transfer_syntax_uid=uids.RLELossless if rle else uids.ExplicitVRLittleEndian,
                plane_positions=[hd.PlanePositionSequence("PATIENT", one.position.tolist()) for one in slices],
                omit_empty_frames=not options.keep_empty,
                series_description=options.description,
                specific_character_set="ISO_IR 192",
            )
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{scene.path}: no segmentation object can be made of this series ({error}); repair its headers, "
            "or write .nii.gz"
        ) from error


def _descriptions(names: Mapping[int, str], segmentation: "Segmentation") -> list[Any]:
    """One segment description per segment number."""
    hd = require_highdicom()
    return [_describe(hd, number, name, segmentation) for number, name in names.items()]


def _describe(hd: Any, number: int, name: str, segmentation: "Segmentation") -> Any:
    """Segment description: name, codes, and the algorithm with its adapter."""
    meta = segmentation.meta
    known = ("adapter", "adapter_sha256", "backbone", "mode", "method", "labels")
    algorithm = hd.AlgorithmIdentificationSequence(
        name="samgraft",
        family=_concept(hd, Code(value="123110", scheme="DCM", meaning="Artificial Intelligence")),
        version=_version(),
        source="samgraft",
        parameters={key: meta[key] for key in known if key in meta} or None,
    )
    class_name = name if segmentation.kind == "semantic" else name.rsplit(" ", 1)[0]
    what = concept(class_name)
    automatic = meta.get("mode", "automatic") == "automatic"
    described = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:_LABEL_LENGTH],
        segmented_property_category=_concept(hd, what.category),
        segmented_property_type=_concept(hd, what.type),
        algorithm_type="AUTOMATIC" if automatic else "SEMIAUTOMATIC",
        algorithm_identification=algorithm,
    )
    if what.laterality is not None:
        kinds = described.SegmentedPropertyTypeCodeSequence
        kinds[0].SegmentedPropertyTypeModifierCodeSequence = [_concept(hd, what.laterality)]
    if not what.known:
        described.SegmentDescription = f"{name}: not in samgraft's map of codes, so coded as tissue"
    return described


def _concept(hd: Any, code: Code) -> Any:
    return hd.sr.CodedConcept(code.value, code.scheme, code.meaning)


def _sources(slices: list[Slice], scene: DicomScene) -> list[Any]:
    """Headers of the source files, made uniform within the reader's tolerance and filled where they may be empty."""
    if not scene.frame_of_reference:
        raise InputError(
            f"{scene.path}: the series has no FrameOfReferenceUID, which a segmentation object must share; "
            "write .nii.gz"
        )
    files = list(dict.fromkeys(one.path for one in slices))
    if slices[0].frame is not None and len(files) > 1:
        raise InputError(
            f"{scene.path}: the series has {len(files)} multi-frame files; a segmentation object refers to one; "
            "open one of them, or write .nii.gz"
        )
    heads = [copy.copy(read_dataset(file)) for file in files]
    for head in heads:
        for tag in _ASKED_FOR:
            if tag not in head:
                setattr(head, tag, "")
        _even(head, slices[0], scene)
    return heads


def _even(head: Any, first: Slice, scene: DicomScene) -> None:
    """Give a header the direction and spacing of the volume; in multi-frame files as shared groups."""
    step = _decimal(scene.grid.spacing[0])
    measures, direction = head, head
    if first.frame is not None:
        shared, own = head.SharedFunctionalGroupsSequence[0], head.PerFrameFunctionalGroupsSequence[0]
        for name in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
            if name not in shared and name in own:
                setattr(shared, name, own.get(name))
        measures, direction = shared.PixelMeasuresSequence[0], shared.PlaneOrientationSequence[0]
    direction.ImageOrientationPatient = [_decimal(v) for v in first.orientation]
    measures.PixelSpacing = [_decimal(v) for v in first.spacing]
    measures.SpacingBetweenSlices = step
    if measures.get("SliceThickness") is None:
        measures.SliceThickness = step


def _decimal(value: float) -> str:
    """A DICOM decimal string: at most 16 characters."""
    return f"{value:.12f}"[:16]


def _compare(temp: Path, path: Path, labels: Array, names: Mapping[int, str], scene: DicomScene) -> None:
    """Read the file back; labels, places and names must be those that were written."""
    back = DicomSegScene(temp)
    along = [one.position - scene.grid.to_world(np.array([k, 0.0, 0.0])) for k, one in enumerate(scene.slices) if one]
    allowed = _EXACT + 2 * float(np.linalg.norm(along, axis=1).max())
    try:
        placed = place_labels(back.read_labels(), back.grid, scene.grid, what="written file", tolerance=allowed)
    except GeometryError as error:
        raise OutputError(f"{path}: reads back in another place, so it was removed: {error}") from error
    wrong = int((placed != labels).sum())
    if wrong:
        raise OutputError(f"{path}: reads back with {wrong} other voxels, so it was removed; write .nii.gz")
    cut = {number: name[:_LABEL_LENGTH] for number, name in names.items()}
    if back.classes != cut:
        raise OutputError(f"{path}: reads back with the names {back.classes}, expected {cut}, so it was removed")


def _version() -> str:
    try:
        return metadata.version("samgraft")
    except metadata.PackageNotFoundError:
        return "unknown"


def require_highdicom() -> Any:
    """Import highdicom when it is needed."""
    try:
        import highdicom
    except ImportError as error:
        raise MissingDependencyError("writing DICOM-SEG needs highdicom: pip install 'samgraft[dicom]'") from error
    return highdicom
