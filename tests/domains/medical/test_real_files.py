"""Real images beside the repository: every file opens, and the DICOM of a patient equals the NIfTI."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from samgraft.domains import fit_intensity, open_scene, write_itk, write_nifti
from samgraft.domains.medical.dicom import DicomScene
from samgraft.domains.medical.dicom_seg_write import SegOptions
from samgraft.domains.medical.orientation import place_labels
from samgraft.domains.medical.rtstruct import rasterise, read_rtstruct
from samgraft.domains.segmentation import Segmentation

pytestmark = pytest.mark.medical
PICTURES = (".png", ".jpg", ".tif")


def test_every_medical_file_opens_with_the_right_header(shared_data: Path) -> None:
    files = sorted(p for p in (shared_data / "medical").rglob("*") if p.name.endswith((".nii.gz", *PICTURES)))
    assert len(files) > 800
    for file in files:
        scene = open_scene(file)
        if file.suffix in PICTURES:
            assert scene.kind == "picture" and scene.grid.ndim == 2 and scene.channels in (1, 3), file
            continue
        reference = nib.load(file)
        assert scene.grid.shape == reference.shape[2::-1], file
        assert np.array_equal(scene.grid.affine[:, [2, 1, 0, 3]], reference.affine), file


@pytest.mark.parametrize(("modality", "folder"), [("CT", "sarcoma_ct"), ("MR_T1", "sarcoma_mr")])
def test_dicom_and_nifti_of_one_patient_agree(shared_data: Path, modality: str, folder: str) -> None:
    dicom = open_scene(shared_data / "medical" / "sarcoma_dicom" / "STS_019" / modality)
    nifti = open_scene(shared_data / "medical" / folder / "imagesTr" / "STS_019_0000.nii.gz")
    assert dicom.modality == modality[:2] and dicom.notes == ("ignored 1 RTSTRUCT file",)
    one, other = dicom.read()[0], nifti.read()[0]
    rng = np.random.default_rng(0)
    index = np.stack([rng.integers(0, n, 2000) for n in dicom.grid.shape], axis=-1)
    world = dicom.grid.to_world(index.astype(np.float64)) * [-1, -1, 1]
    there = nifti.grid.to_index(world)
    assert np.abs(there - np.rint(there)).max() < 1e-3, "voxel centres coincide"
    there = np.rint(there).astype(int)
    assert np.array_equal(one[tuple(index.T)], other[tuple(there.T)])
    assert sorted(dicom.grid.shape) == sorted(nifti.grid.shape)


def test_real_masks_are_written_on_their_own_grid(shared_data: Path, tmp_path: Path) -> None:
    medical = shared_data / "medical"
    for name in ("sarcoma_ct/labelsTr/STS_019", "sarcoma_mr/labelsTr/STS_002", "spleen_ct/sub-spleen2_ct_seg-manual"):
        source = medical / f"{name}.nii.gz"
        scene = open_scene(source)
        labels = scene.read_labels()
        assert labels.max() >= 1
        write_nifti(tmp_path / "m.nii.gz", labels, scene.grid)
        assert np.array_equal(nib.load(tmp_path / "m.nii.gz").affine, nib.load(source).affine)
        assert open_scene(tmp_path / "m.nii.gz").grid == scene.grid
        write_itk(tmp_path / "m.mha", labels, scene.grid)
        assert np.array_equal(open_scene(tmp_path / "m.mha").read_labels(), labels)


def test_ct_is_found_from_the_values(shared_data: Path) -> None:
    ct = fit_intensity(open_scene(shared_data / "medical" / "sarcoma_ct" / "imagesTr" / "STS_019_0000.nii.gz"))
    assert (ct.kind, ct.lower, ct.upper) == ("ct_window", -160.0, 240.0)
    mr = fit_intensity(open_scene(shared_data / "medical" / "sarcoma_mr" / "imagesTr" / "STS_019_0000.nii.gz"))
    assert mr.kind == "percentile" and 0 < mr.lower < mr.upper


@pytest.mark.parametrize(("modality", "folder"), [("CT", "sarcoma_ct"), ("MR_T1", "sarcoma_mr")])
def test_rtstruct_of_a_patient_equals_the_nifti_mask(shared_data: Path, modality: str, folder: str) -> None:
    patient = shared_data / "medical" / "sarcoma_dicom" / "STS_019" / modality
    scene = open_scene(patient / "image")
    assert isinstance(scene, DicomScene)
    found, classes, notes = rasterise(read_rtstruct(patient / "mask" / "RS.dcm"), scene)
    truth = open_scene(shared_data / "medical" / folder / "labelsTr" / "STS_019.nii.gz")
    want = place_labels(truth.read_labels(), truth.grid, scene.grid, what="NIfTI mask", tolerance=0.01)
    a, b = found > 0, want > 0
    dice = 2 * (a & b).sum() / (a.sum() + b.sum())
    assert len(classes) == 1 and not notes
    assert dice >= 0.98, f"{modality}: Dice {dice:.4f}, {a.sum()} and {b.sum()} voxels"


def _itk_points(path: Path) -> Any:
    """LPS positions of labelled voxels as SimpleITK places them; it reads BINARY objects, and no label maps (GDCM)."""
    image = SimpleITK.ReadImage(str(path))
    direction = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    inside = np.argwhere(SimpleITK.GetArrayFromImage(image))[:, ::-1]
    return inside @ direction.T + np.array(image.GetOrigin())


@pytest.mark.parametrize(("modality", "folder"), [("CT", "sarcoma_ct"), ("MR_T1", "sarcoma_mr")])
def test_dicom_seg_of_a_patient_is_read_alike_by_three(
    shared_data: Path, tmp_path: Path, modality: str, folder: str
) -> None:
    hd = pytest.importorskip("highdicom")
    pydicom = pytest.importorskip("pydicom")
    scene = open_scene(shared_data / "medical" / "sarcoma_dicom" / "STS_019" / modality / "image")
    truth = open_scene(shared_data / "medical" / folder / "labelsTr" / "STS_019.nii.gz")
    labels = place_labels(truth.read_labels(), truth.grid, scene.grid, what="NIfTI mask", tolerance=0.01)
    found = Segmentation(labels=labels, grid=scene.grid, kind="semantic", classes={1: "gross_tumour_volume"})
    found = found.about(source=scene)
    seg = found.save(tmp_path / "seg.dcm")
    want = scene.grid.to_world(np.argwhere(labels).astype(np.float64))
    volume = hd.seg.segread(seg).get_volume(combine_segments=True)
    by_highdicom = np.argwhere(volume.array) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    head = pydicom.dcmread(seg)
    shared, frames = head.SharedFunctionalGroupsSequence[0], head.PerFrameFunctionalGroupsSequence
    row, column = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    down, across = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
    by_pydicom = np.concatenate([
        np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        + np.argwhere(pixels) @ np.array([column * down, row * across])
        for frame, pixels in zip(frames, head.pixel_array, strict=True)
    ])  # fmt: skip
    by_itk = _itk_points(found.save(tmp_path / "binary.dcm", dicom=SegOptions(kind="BINARY")))
    for other in (by_highdicom, by_pydicom, by_itk):
        assert other.shape == want.shape
        one, two = (np.array(sorted(map(tuple, np.round(p, 3)))) for p in (want, other))
        assert np.abs(one - two).max() < 2e-3
