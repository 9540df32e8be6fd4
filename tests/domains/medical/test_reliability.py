"""Bad inputs: one test for every row of the reliability table, here or where the table below says.

Rows that other files test are only listed; a name that no longer exists there fails.
"""

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samgraft.domains import fit_intensity, open_scene, write_nifti
from samgraft.domains.datasets.index import Case
from samgraft.errors import ConfigError, GeometryError, InputError
from samgraft.grid import Grid
from tests.data import volumes

pytestmark = pytest.mark.medical
MEDICAL = "domains/medical"
HERE = f"{MEDICAL}/test_reliability.py"
ROWS = {
    "NaN / Inf voxels": (f"{MEDICAL}/test_nifti.py", "test_nan_and_inf_voxels_are_counted_and_placed_or_filled"),
    "sheared / non-orthogonal affine": (f"{MEDICAL}/test_geometry_proof.py", "test_nifti_in_nifti_mha_nrrd_out"),
    "singular affine": (f"{MEDICAL}/test_nifti.py", "test_singular_affine_and_pixdim_0_are_refused_at_load"),
    "no sform/qform": (f"{MEDICAL}/test_nifti.py", "test_no_sform_and_no_qform_warns_and_flags"),
    "pixdim 0": (f"{MEDICAL}/test_nifti.py", "test_singular_affine_and_pixdim_0_are_refused_at_load"),
    "left-handed / negative spacing": (HERE, "test_left_handed_and_negative_spacing"),
    "oblique, 60 random": (HERE, "test_oblique_60_random"),
    "4D NIfTI": (f"{MEDICAL}/test_nifti.py", "test_frames_of_4d_must_be_chosen_and_5d_is_refused"),
    "5D": (f"{MEDICAL}/test_nifti.py", "test_frames_of_4d_must_be_chosen_and_5d_is_refused"),
    "2D": (HERE, "test_2d_nifti_is_a_volume_of_one_slice"),
    "RGB NIfTI": (f"{MEDICAL}/test_nifti.py", "test_rgb_nifti_and_complex_are_named"),
    "constant / all-zero": (HERE, "test_constant_and_all_zero_images_scale_to_zero"),
    "label != image origin": (HERE, "test_label_of_another_origin_shape_or_spacing"),
    "label shape / spacing differ": (HERE, "test_label_of_another_origin_shape_or_spacing"),
    "label id > 255": (f"{MEDICAL}/test_nifti.py", "test_labels_above_255_keep_their_value_and_others_are_refused"),
    "DICOM: 2 slices missing of 12": (HERE, "test_2_slices_missing_of_12"),
    "duplicate position": (f"{MEDICAL}/test_dicom.py", "test_duplicate_positions_are_refused_with_their_uids"),
    "InstanceNumber shuffled": (f"{MEDICAL}/test_dicom.py", "test_instance_numbers_are_shuffled_and_positions_decide"),
    "two SeriesUIDs in folder": (f"{MEDICAL}/test_dicom.py", "test_two_series_in_a_folder_must_be_chosen"),
    "one slice other size": (f"{MEDICAL}/test_dicom.py", "test_one_slice_of_other_size_or_direction_is_refused"),
    "no ImagePositionPatient": (f"{MEDICAL}/test_dicom.py", "test_slices_without_image_position_are_refused"),
    "jitter of 0.03 mm": (f"{MEDICAL}/test_dicom.py", "test_jitter_within_the_tolerance_is_accepted_and_told"),
    "gantry tilt 15 degrees": (f"{MEDICAL}/test_dicom.py", "test_gantry_tilt_is_named"),
    "volume > RAM": ("recipes/test_volume_memory.py", "test_volume_larger_than_memory_is_refused_before_it_is_read"),
    "prompt outside image": ("recipes/test_engine.py", "test_prompts_outside_the_image_name_the_extent"),
    "wrong / truncated adapter": ("adapters/test_bundle.py", "test_wrong_and_truncated_adapters_are_refused"),
    "NaN adapter": ("adapters/test_bundle.py", "test_adapters_with_nan_or_other_tensors_are_refused"),
}
"""Row of the table -> test file and function."""


@pytest.mark.parametrize("row", list(ROWS))
def test_every_row_has_its_test(row: str, repo_root: Path) -> None:
    file, name = ROWS[row]
    tree = ast.parse((repo_root / "tests" / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file} lost {name}"


@pytest.mark.parametrize("signs", [(-1, 1, 1), (1, -1, 1), (1, 1, -1), (-1, -1, -1)])
def test_left_handed_and_negative_spacing(tmp_path: Path, signs: tuple[int, int, int]) -> None:
    affine = volumes.with_origin(np.diag(np.array([0.7, 0.9, 3.3]) * signs))
    scene = open_scene(volumes.nifti(tmp_path / "a.nii", volumes.ramp().transpose(2, 1, 0), affine))
    assert np.array_equal(scene.read()[0], volumes.ramp()) and np.allclose(scene.grid.spacing, (3.3, 0.9, 0.7))
    assert np.allclose(scene.grid.to_world(np.array([4.0, 5, 6])), affine[:3, :3] @ (6, 5, 4) + affine[:3, 3])
    write_nifti(tmp_path / "m.nii", np.ones(volumes.SHAPE, np.uint8), scene.grid)
    assert open_scene(tmp_path / "m.nii").grid == scene.grid


def test_oblique_60_random(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(60):
        spacing = np.diag(rng.uniform(0.4, 5.0, 3))
        affine = volumes.with_origin(volumes.rotation(*rng.uniform(-180, 180, 3)) @ spacing)
        scene = open_scene(volumes.nifti(tmp_path / f"{number}.nii", volumes.ramp().transpose(2, 1, 0), affine))
        write_nifti(tmp_path / "m.nii", (volumes.ramp() > 0).astype(np.uint8), scene.grid)
        back = open_scene(tmp_path / "m.nii")
        assert back.grid == scene.grid and np.array_equal(back.grid.affine[:, [2, 1, 0, 3]], affine)
        assert np.array_equal(back.read_labels(), volumes.ramp() > 0)


def test_2d_nifti_is_a_volume_of_one_slice(tmp_path: Path) -> None:
    image = volumes.ramp()[0].T
    scene = open_scene(volumes.nifti(tmp_path / "a.nii", image, volumes.with_origin(np.diag([0.7, 0.9, 3.3]))))
    assert scene.kind == "volume" and scene.grid.shape == (1, 6, 7)
    assert np.array_equal(scene.read()[0, 0], volumes.ramp()[0]) and np.allclose(scene.grid.spacing, (3.3, 0.9, 0.7))


@pytest.mark.parametrize("value", [0.0, 37.0, -1000.0])
def test_constant_and_all_zero_images_scale_to_zero(tmp_path: Path, value: float) -> None:
    array = np.full((4, 3, 2), value, np.float32)
    scene = open_scene(volumes.nifti(tmp_path / "a.nii", array, np.eye(4)))
    scaled = fit_intensity(scene, "MR").apply(scene.read())
    assert np.isfinite(scaled).all() and (scaled == 0).all()


def test_label_of_another_origin_shape_or_spacing(tmp_path: Path) -> None:
    array = volumes.ramp().transpose(2, 1, 0)
    image = volumes.nifti(tmp_path / "image.nii", array, np.eye(4))

    def case(name: str, labels: Any, affine: Any) -> Case:
        label = volumes.nifti(tmp_path / f"{name}.nii", labels.astype(np.uint8), affine)
        return Case(id=name, image=(image,), label=label, classes={1: "a"})

    labels, moved, wide = array > 0, np.eye(4), np.diag([1.0, 1, 1.5, 1])
    moved[:3, 3] = (3, 0, 4)
    with pytest.raises(GeometryError, match=r"label origin\.nii of origin: grids differ.*largest corner distance 5 mm"):
        case("origin", labels, moved).load_label()
    with pytest.raises(GeometryError, match=r"spacing.*largest corner distance 2 mm; resample the label"):
        case("spacing", labels, wide).load_label()
    with pytest.raises(GeometryError, match=r"shape \(5, 6, 6\), expected \(5, 6, 7\)"):
        case("shape", labels[:-1], np.eye(4)).load_label()
    assert case("right", labels, np.eye(4)).load_label().sum() == (array > 0).sum()


def test_2_slices_missing_of_12(tmp_path: Path) -> None:
    volume = volumes.ramp((12, 4, 6))
    folder = volumes.dicom_series(tmp_path / "a", volume, tweak=lambda index, _: index not in (3, 7))
    with pytest.raises(InputError, match=r"2 slices are missing at spacing 2\.500 mm: 105\.00 to 110\.00 mm"):
        open_scene(folder)
    scene = open_scene(folder, allow_gaps=True)
    assert scene.grid.shape == (12, 4, 6) and np.isclose(scene.grid.spacing[0], 2.5)
    assert np.array_equal(np.delete(scene.read()[0], [3, 7], axis=0), np.delete(volume, [3, 7], axis=0))
    with pytest.raises(ConfigError, match="no option allow_gaps"):
        open_scene(volumes.nifti(tmp_path / "a.nii", volume, np.eye(4)), allow_gaps=True)


def test_grids_that_differ_in_their_world_never_agree() -> None:
    one = Grid(shape=(2, 3, 4), affine=np.eye(4), world="RAS")
    with pytest.raises(GeometryError, match="largest corner distance inf"):
        one.require_equal(Grid(shape=(2, 3, 4), affine=np.eye(4), world="LPS"), "label")
