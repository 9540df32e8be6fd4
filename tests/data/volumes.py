"""Tiny volumes with awkward headers: NIfTI with any affine, DICOM series with any defect.

Everything is made from numbers here; no patient data.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

SHAPE = (5, 6, 7)
"""Default (D, H, W)."""

Tweak = Callable[[int, Any], bool]

FRAME = "1.2.3.99"
"""FrameOfReferenceUID of every DICOM file here."""


def ramp(shape: tuple[int, int, int] = SHAPE, dtype: str = "int16") -> NDArray[Any]:
    """Volume (D, H, W) in which every voxel has its own value, -100 upwards."""
    return (np.arange(int(np.prod(shape))).reshape(shape) - (0 if dtype.startswith("u") else 100)).astype(dtype)


def rotation(x: float, y: float, z: float) -> NDArray[np.float64]:
    """Rotation by angles in degrees about x, then y, then z."""
    turned = np.eye(3)
    for axis, angle in enumerate((x, y, z)):
        c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        one = np.eye(3)
        a, b = [(1, 2), (2, 0), (0, 1)][axis]
        one[a, a], one[a, b], one[b, a], one[b, b] = c, -s, s, c
        turned = one @ turned
    return turned


def affines() -> dict[str, NDArray[np.float64]]:
    """Named affines (i, j, k) -> mm; made of float32 numbers, as a NIfTI sform holds them."""
    spacing = np.diag([0.7, 0.9, 3.3])
    found = {
        "plain": np.eye(3),
        "anisotropic": spacing,
        "left_handed": spacing @ np.diag([-1.0, 1, 1]),
        "all_negative": -spacing,
        "permuted": spacing[:, [2, 0, 1]],
        "oblique": rotation(11, -23, 37) @ spacing,
        "oblique_left_handed": rotation(-31, 12, 101) @ spacing @ np.diag([1.0, -1, 1]),
        "sheared": np.array([[1, 0.3, 0], [0, 1, 0.2], [0, 0, 1.0]]) @ spacing,
        "tiny": np.eye(3) * 1e-3,
    }
    return {name: with_origin(matrix) for name, matrix in found.items()}


def with_origin(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """4x4 affine with an odd origin, rounded to float32."""
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = (-123.456, 77.7, 1 / 3)
    return affine.astype(np.float32).astype(np.float64)


def nifti(
    path: Path,
    array: NDArray[Any],
    affine: NDArray[np.float64] | None = None,
    *,
    sform: bool = True,
    qform: bool = False,
    patch: Callable[[Any], None] | None = None,
) -> Path:
    """Write an (i, j, k, ...) array; ``patch`` may spoil the header afterwards, byte by byte."""
    image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine)
    image.set_sform(affine if sform else None, code=int(sform and affine is not None))
    image.set_qform(affine if qform else None, code=int(qform and affine is not None))
    nib.save(image, path)
    if patch is not None:
        import gzip

        packed = path.suffix == ".gz"
        data = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
        header = nib.Nifti1Header(data[:348], check=False)
        patch(header)
        data = header.binaryblock + data[348:]
        path.write_bytes(gzip.compress(data) if packed else data)
    return path


def dicom_series(
    folder: Path,
    volume: NDArray[Any],
    *,
    step: float = 2.5,
    spacing: tuple[float, float] = (0.8, 0.6),
    axes: NDArray[np.float64] | None = None,
    series: str = "1.2.3.1",
    tweak: Tweak | None = None,
) -> Path:
    """Write (D, H, W) as one file per slice, numbered and named in shuffled order.

    Args:
        folder: made if missing.
        volume: 16-bit.
        step: distance of slices in mm.
        spacing: between rows, between columns, mm.
        axes: columns are the directions of w, h and d in LPS; None means upright.
        series: SeriesInstanceUID; the description is "series " plus its last number.
        tweak: called with index and dataset before writing; False leaves the slice out.
    """
    from pydicom.uid import ExplicitVRLittleEndian

    folder.mkdir(parents=True, exist_ok=True)
    axes = np.eye(3) if axes is None else axes
    order = np.random.default_rng(1).permutation(len(volume))
    for index, number in enumerate(order):
        head = _dataset(volume[index], series, index)
        head.InstanceNumber = int(number) + 1
        head.PixelSpacing = [spacing[0], spacing[1]]
        head.ImageOrientationPatient = [f"{v:.10f}" for v in (*axes[:, 0], *axes[:, 1])]
        head.ImagePositionPatient = [f"{v:.8f}" for v in np.array([-20.5, 13.25, 100.0]) + index * step * axes[:, 2]]
        if tweak is not None and not tweak(index, head):
            continue
        name = f"{series.rsplit('.', 1)[-1]}_{int(number):03d}.dcm"
        head.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        head.save_as(folder / name, enforce_file_format=True)
    return folder


def _dataset(pixels: NDArray[Any], series: str, index: int) -> Any:
    """A CT slice without a place."""
    from pydicom.dataset import Dataset, FileMetaDataset

    head = Dataset()
    head.file_meta = FileMetaDataset()
    head.SOPClassUID = head.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    head.SOPInstanceUID = head.file_meta.MediaStorageSOPInstanceUID = f"{series}.{index + 1}"
    head.SeriesInstanceUID, head.StudyInstanceUID = series, "1.2.3"
    head.SeriesDescription = f"series {series.rsplit('.', 1)[-1]}"
    head.Modality, head.FrameOfReferenceUID = "CT", FRAME
    head.PatientID = head.PatientName = "phantom"
    head.Rows, head.Columns = pixels.shape
    head.SamplesPerPixel, head.PhotometricInterpretation = 1, "MONOCHROME2"
    head.BitsAllocated, head.BitsStored, head.HighBit = 16, 16, 15
    head.PixelRepresentation = int(pixels.dtype.kind == "i")
    head.SliceThickness = 2.5
    head.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    return head


def enhanced(
    path: Path,
    volume: NDArray[Any],
    *,
    step: float = 2.5,
    spacing: tuple[float, float] = (0.8, 0.6),
    tweak: Callable[[Any], None] | None = None,
    packed: bool = False,
) -> Path:
    """Write (D, H, W) as one enhanced CT; frames are stored in shuffled order, so only their positions tell it.

    Args:
        path: file to write.
        volume: 16-bit.
        step: distance of slices in mm.
        spacing: between rows, between columns, mm.
        tweak: called with the dataset before writing.
        packed: run-length packed pixels.
    """
    from pydicom.dataset import Dataset
    from pydicom.uid import ExplicitVRLittleEndian, RLELossless

    order = np.random.default_rng(2).permutation(len(volume))
    head = _dataset(volume[0], "1.2.3.8", 0)
    head.SOPClassUID = head.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    head.NumberOfFrames = len(volume)
    head.PixelData = volume[order].astype(volume.dtype.newbyteorder("<")).tobytes()
    del head.SliceThickness
    shared, measures, direction, values = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [spacing[0], spacing[1]], 2.5
    direction.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 2, -10, "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [direction]
    shared.PixelValueTransformationSequence = [values]
    head.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for number in order:
        own, place, content = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [-20.5, 13.25, 100.0 + step * float(number)]
        content.StackID, content.InStackPositionNumber = "1", int(number) + 1
        own.PlanePositionSequence, own.FrameContentSequence = [place], [content]
        groups.append(own)
    head.PerFrameFunctionalGroupsSequence = groups
    head.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if tweak is not None:
        tweak(head)
    if packed:
        head.compress(RLELossless)
    head.save_as(path, enforce_file_format=True)
    return path


def rtstruct(
    path: Path, structures: dict[str, list[NDArray[np.float64]]], *, frame: str = FRAME, series: str = "1.2.3.1"
) -> Path:
    """Write closed contours, each (n, 3) in LPS mm, by name of the structure."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    head = Dataset()
    head.file_meta = FileMetaDataset()
    head.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    head.SOPClassUID = head.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    head.SOPInstanceUID = head.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.5"
    head.SeriesInstanceUID, head.StudyInstanceUID, head.Modality = "1.2.3.77", "1.2.3", "RTSTRUCT"
    referred, study, one = Dataset(), Dataset(), Dataset()
    one.SeriesInstanceUID = series
    study.RTReferencedSeriesSequence = [one]
    referred.FrameOfReferenceUID, referred.RTReferencedStudySequence = frame, [study]
    head.ReferencedFrameOfReferenceSequence = [referred]
    named, drawn = [], []
    for number, (name, contours) in enumerate(structures.items(), start=1):
        roi, lines = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, frame
        lines.ReferencedROINumber, lines.ContourSequence = number, [_contour(c) for c in contours]
        named.append(roi)
        drawn.append(lines)
    head.StructureSetROISequence, head.ROIContourSequence = named, drawn
    head.save_as(path, enforce_file_format=True)
    return path


def _contour(points: NDArray[np.float64]) -> Any:
    """One contour item; fewer than three points make a point or a line."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ContourGeometricType = "CLOSED_PLANAR" if len(points) > 2 else "POINT"
    item.NumberOfContourPoints = len(points)
    item.ContourData = [f"{v:.6f}" for v in np.asarray(points).ravel()]
    return item
