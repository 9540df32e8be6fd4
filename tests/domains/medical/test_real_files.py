"""Real images beside the repository: every file opens, and the DICOM of a patient equals the NIfTI."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from samgraft.domains import fit_intensity, open_scene, write_itk, write_nifti

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
