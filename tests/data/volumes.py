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
    head.Modality = "CT"
    head.PatientID = head.PatientName = "phantom"
    head.Rows, head.Columns = pixels.shape
    head.SamplesPerPixel, head.PhotometricInterpretation = 1, "MONOCHROME2"
    head.BitsAllocated, head.BitsStored, head.HighBit = 16, 16, 15
    head.PixelRepresentation = int(pixels.dtype.kind == "i")
    head.SliceThickness = 2.5
    head.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    return head
