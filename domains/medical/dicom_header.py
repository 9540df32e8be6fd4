"""What the header of one DICOM file says: a slice, the frames of an enhanced (multi-frame) file, or no image at all.

Takes a file, gives :class:`Slice` records; pixels are read by ``frame_pixels`` only. Whatever leaves a slice without a
place is refused here, by name. Standard: DICOM PS3.3 C.7.6.2 (Image Plane), C.7.6.16 (Multi-frame Functional Groups).
"""

import warnings
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.medical.dicom_order import Slice
from samgraft.errors import InputError, MissingDependencyError

NO_IMAGE = ("SEG", "RTDOSE")
"""Modalities with pixels that are not those of an image."""

_TAGS = (
    "SOPInstanceUID SOPClassUID Modality SeriesInstanceUID SeriesDescription SeriesNumber Rows Columns PixelSpacing "
    "ImageOrientationPatient ImagePositionPatient SliceThickness SpacingBetweenSlices RescaleSlope RescaleIntercept "
    "BitsAllocated BitsStored PixelRepresentation SamplesPerPixel NumberOfFrames PhotometricInterpretation "
    "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence PixelPaddingValue FrameOfReferenceUID"
).split()
_PLACES = (
    ("ImagePositionPatient", "PlanePositionSequence", 3),
    ("ImageOrientationPatient", "PlaneOrientationSequence", 6),
    ("PixelSpacing", "PixelMeasuresSequence", 2),
)


def import_pydicom() -> Any:
    """Import pydicom when it is needed.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import pydicom
    except ImportError as error:
        raise MissingDependencyError("reading DICOM needs pydicom: pip install 'samgraft[dicom]'") from error
    return pydicom


def read_dataset(file: Path, tags: list[str] | None = None) -> Any:
    """Header of a DICOM file as a pydicom dataset, pixels left out; None if it is no DICOM file.

    Args:
        file: any file.
        tags: top-level elements to read; None reads all.

    Raises:
        InputError: the file is DICOM, but damaged.
    """
    pydicom = import_pydicom()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags)
    except pydicom.errors.InvalidDicomError:
        return None
    except Exception as error:
        raise InputError(f"{file}: damaged DICOM header ({error}); copy the file again or remove it") from error


def frame_pixels(file: Path, frame: int | None = None) -> NDArray[Any]:
    """Stored pixels (H, W) of a slice, or of one frame (from 0) of a multi-frame file.

    A multi-frame file is kept, packed as it is, until another one is asked for; its frames are decoded one by one.
    Errors are those of pydicom.
    """
    pydicom = import_pydicom()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if frame is None:
            return np.asarray(pydicom.dcmread(file).pixel_array)
        state = file.stat()
        whole = _whole_file(file, state.st_mtime_ns, state.st_size)
        if int(whole.BitsAllocated) == 1 and not whole.file_meta.TransferSyntaxUID.is_compressed:
            return _bits(whole, frame)
        several = int(whole.get("NumberOfFrames") or 1) > 1
        return np.asarray(pydicom.pixels.pixel_array(whole, index=frame if several else None))


def _bits(whole: Any, frame: int) -> NDArray[np.uint8]:
    """One frame of bit-packed pixels; frames need not begin at a byte, which pydicom's decoder cuts short."""
    count = int(whole.Rows) * int(whole.Columns)
    first, last = frame * count, (frame + 1) * count
    packed = np.frombuffer(whole.PixelData, dtype=np.uint8)[first // 8 : -(-last // 8)]
    bits = np.unpackbits(packed, bitorder="little")[first % 8 :][:count]
    if len(bits) < count:
        raise ValueError(f"pixels end in frame {frame + 1}")
    return bits.reshape(int(whole.Rows), int(whole.Columns))


@lru_cache(maxsize=1)
def _whole_file(file: Path, changed: int, size: int) -> Any:
    """A dataset with its pixels; another time or size of the file means another file."""
    return import_pydicom().dcmread(file)


def read_slices(file: Path) -> list[Slice] | str:
    """The slices of one file (several if it is multi-frame), or in a word why it holds none.

    Raises:
        InputError: a damaged header, colour, no place, truncated pixels; the message names the file.
    """
    head = read_dataset(file, _TAGS)
    if head is None:
        return "non-DICOM"
    if "Rows" not in head or "Columns" not in head:
        return str(head.get("Modality") or "non-image DICOM")
    if head.get("Modality") in NO_IMAGE:
        return str(head.Modality)
    try:
        _check_pixels(file, head)
        enhanced = "SharedFunctionalGroupsSequence" in head or int(head.get("NumberOfFrames") or 1) > 1
        return frame_slices(file, head) if enhanced else [_slice(file, head, head, None)]
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: unreadable DICOM header value ({error}); repair or remove the file") from error


def frame_slices(file: Path, head: Any) -> list[Slice]:
    """One slice per frame of an enhanced file, from its functional groups.

    Raises:
        InputError: the file has no functional groups, or fewer than frames.
    """
    frames = int(head.get("NumberOfFrames") or 1)
    groups = head.get("PerFrameFunctionalGroupsSequence") or []
    if len(groups) != frames:
        raise InputError(
            f"{file}: multi-frame DICOM ({head.get('Modality')}, {frames} frames) with {len(groups)} functional "
            "groups; its frames have no place (a film, or an old kind of file); convert it to single slices or NIfTI"
        )
    shared = (head.get("SharedFunctionalGroupsSequence") or [None])[0]
    return [_slice(file, head, _Groups(own, shared, head), number) for number, own in enumerate(groups)]


class _Groups:
    """Looks an element up where enhanced files keep it: the frame's groups, the shared ones, the file's top level."""

    _HOME = {tag: sequence for tag, sequence, _ in _PLACES} | {
        "SliceThickness": "PixelMeasuresSequence",
        "SpacingBetweenSlices": "PixelMeasuresSequence",
        "RescaleSlope": "PixelValueTransformationSequence",
        "RescaleIntercept": "PixelValueTransformationSequence",
        "StackID": "FrameContentSequence",
    }

    def __init__(self, own: Any, shared: Any, head: Any) -> None:
        self._layers = [layer for layer in (own, shared) if layer is not None]
        self._head = head

    def get(self, tag: str, default: Any = None) -> Any:
        for layer in self._layers:
            for item in layer.get(self._HOME.get(tag, ""), []) or []:
                if tag in item:
                    return item.get(tag)
        return self._head.get(tag, default)


def _check_pixels(file: Path, head: Any) -> None:
    """Refuse colour, and files that are shorter than their pixels."""
    if int(head.get("SamplesPerPixel") or 1) != 1:
        raise InputError(f"{file}: colour DICOM ({head.get('PhotometricInterpretation')}); expected one gray channel")
    syntax = getattr(getattr(head, "file_meta", None), "TransferSyntaxUID", None)
    bits, frames = int(head.get("BitsAllocated") or 16), int(head.get("NumberOfFrames") or 1)
    need, have = int(head.Rows) * int(head.Columns) * bits * frames // 8, file.stat().st_size
    if syntax is not None and not syntax.is_compressed and have < need:
        raise InputError(f"{file}: truncated: {have} bytes, its pixels alone take {need}; copy the file again")


def _slice(file: Path, head: Any, place: Any, frame: int | None) -> Slice:
    """Collect what the stack needs; absent geometry is refused here."""
    where = f"{file}" if frame is None else f"{file} frame {frame + 1}"
    for tag, _, count in _PLACES:
        value = place.get(tag)
        if value is None or len(value) != count:
            raise InputError(
                f"{where}: {tag} is missing or incomplete ({value}); the slice cannot be placed; remove it"
            )
    bits, signed = int(head.get("BitsAllocated") or 16), int(head.get("PixelRepresentation") or 0)
    kind = "f" if bits in (32, 64) and "PixelRepresentation" not in head else "i" if signed else "u"
    slope, intercept = place.get("RescaleSlope"), place.get("RescaleIntercept")
    return Slice(
        path=file,
        uid=str(head.get("SOPInstanceUID", "")),
        series=str(head.get("SeriesInstanceUID", "")),
        description=str(head.get("SeriesDescription", "")),
        modality=str(head.get("Modality", "")) or None,
        shape=(int(head.Rows), int(head.Columns)),
        dtype=np.dtype(f"{kind}{-(-bits // 8)}"),
        spacing=_floats(place.get("PixelSpacing")),
        orientation=_floats(place.get("ImageOrientationPatient")),
        position=_floats(place.get("ImagePositionPatient")),
        thickness=_thickness(place),
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        padding=None if head.get("PixelPaddingValue") is None else float(head.PixelPaddingValue),
        frame=frame,
        stack="" if frame is None else str(place.get("StackID") or ""),
        frame_of_reference=str(head.get("FrameOfReferenceUID") or ""),
    )


def _floats(values: Iterable[Any]) -> NDArray[np.float64]:
    """DICOM decimal strings as float64, which must be finite."""
    array = np.array([float(v) for v in values], dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"not finite: {array.tolist()}")
    return array


def _thickness(place: Any) -> float | None:
    """Distance of slices as the header claims it; used for a single slice and for a remark only."""
    for tag in ("SpacingBetweenSlices", "SliceThickness"):
        value = place.get(tag)
        if value is not None and abs(float(value)) > 0:
            return abs(float(value))
    return None
