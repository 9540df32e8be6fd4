"""DICOM series: order by position, and every defect of a folder by name."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samgraft.domains import open_scene, write_nifti
from samgraft.domains.medical.dicom import DicomScene
from samgraft.errors import ConfigError, GeometryError, InputError
from tests.data import volumes

pytestmark = pytest.mark.medical
SHAPE = (8, 4, 6)


def _series(folder: Path, **options: Any) -> Path:
    return volumes.dicom_series(folder, volumes.ramp(SHAPE), **options)


@pytest.mark.parametrize("angles", [(0, 0, 0), (15, -25, 40), (90, 0, 90)])
def test_instance_numbers_are_shuffled_and_positions_decide(tmp_path: Path, angles: tuple[float, float, float]) -> None:
    axes = volumes.rotation(*angles)
    scene = open_scene(_series(tmp_path / "a", axes=axes))
    assert isinstance(scene, DicomScene)
    assert (scene.format, scene.modality, scene.grid.world, scene.dtype) == ("DICOM series", "CT", "LPS", np.int16)
    assert not scene.is_loaded
    assert np.array_equal(scene.read()[0], volumes.ramp(SHAPE))
    assert np.allclose(scene.grid.spacing, (2.5, 0.8, 0.6), atol=1e-7)
    expected = np.array([-20.5, 13.25, 100.0]) + axes @ np.array([3 * 0.6, 2 * 0.8, 5 * 2.5])
    assert np.allclose(scene.grid.to_world(np.array([5.0, 2, 3])), expected, atol=1e-6)
    window = (slice(2, 4), slice(1, 3), slice(0, 6))
    assert np.array_equal(scene.read(window)[0], volumes.ramp(SHAPE)[window])


def test_slices_stacked_against_the_normal_keep_their_world_place(tmp_path: Path) -> None:
    folder = volumes.dicom_series(tmp_path / "a", volumes.ramp(SHAPE), step=-2.5)
    scene = open_scene(folder)
    assert np.array_equal(scene.read()[0], volumes.ramp(SHAPE)[::-1])
    assert np.allclose(scene.grid.to_world(np.zeros(3)), (-20.5, 13.25, 100 - 7 * 2.5))


def test_rescale_is_applied_slice_by_slice(tmp_path: Path) -> None:
    def tweak(index: int, head: Any) -> bool:
        head.RescaleSlope, head.RescaleIntercept = 1 + index, -1024
        return True

    scene = open_scene(_series(tmp_path / "a", tweak=tweak))
    slopes = np.arange(1, 9)[:, None, None]
    assert scene.dtype == np.float32
    assert np.array_equal(scene.read()[0], volumes.ramp(SHAPE) * slopes - 1024)


def test_missing_slices_are_listed_or_left_empty_on_request(tmp_path: Path) -> None:
    folder = _series(tmp_path / "a", tweak=lambda index, _: index not in (2, 5, 6))
    with pytest.raises(
        InputError, match=r"3 slices are missing at spacing 2\.500 mm: 102\.50 to 107\.50 mm \(1 missing\), 110\.00 to"
    ):
        open_scene(folder)
    scene = open_scene(folder, allow_gaps=True)
    assert scene.grid.shape == SHAPE and np.isclose(scene.grid.spacing[0], 2.5)
    assert scene.valid().all(axis=(1, 2)).tolist() == [True, True, False, True, True, False, False, True]
    values = scene.read()[0]
    assert np.array_equal(values[7], volumes.ramp(SHAPE)[7]) and (values[5] == -1024).all()
    assert "missing slices left empty" in repr(scene)


def test_duplicate_positions_are_refused_with_their_uids(tmp_path: Path) -> None:
    folder = _series(tmp_path / "a")

    def again(index: int, head: Any) -> bool:
        head.SeriesInstanceUID, head.SOPInstanceUID = "1.2.3.1", "9.9.9"
        head.file_meta.MediaStorageSOPInstanceUID = "9.9.9"
        return index == 3

    _series(folder, series="1.2.3.7", tweak=again)
    with pytest.raises(InputError, match=r"1 duplicate slice positions(.|\n)*107\.500 mm: .*1\.2\.3\.1\.4.*9\.9\.9"):
        open_scene(folder)


def test_two_series_in_a_folder_must_be_chosen(tmp_path: Path) -> None:
    _series(tmp_path / "a", series="1.2.3.1")
    _series(tmp_path / "a", series="1.2.3.2", step=3.0)
    with pytest.raises(InputError, match=r"holds 2 series(.|\n)*series='1.2.3.1': 8 slices, CT, 'series 1'"):
        open_scene(tmp_path / "a")
    assert np.isclose(open_scene(tmp_path / "a", series="1.2.3.2").grid.spacing[0], 3.0)
    assert np.isclose(open_scene(tmp_path / "a", series="series 1").grid.spacing[0], 2.5)
    with pytest.raises(InputError, match="series='none' fits 0 of 2"):
        open_scene(tmp_path / "a", series="none")


def test_jitter_within_the_tolerance_is_accepted_and_told(tmp_path: Path) -> None:
    shifts = np.array([0, 0.03, -0.03, 0.02, -0.02, 0.03, -0.03, 0])

    def tweak(index: int, head: Any) -> bool:
        head.ImagePositionPatient = [-20.5, 13.25, 100 + 2.5 * index + float(shifts[index])]
        return True

    scene = open_scene(_series(tmp_path / "a", tweak=tweak))
    assert np.isclose(scene.grid.spacing[0], 2.5) and "up to 0.030 mm off" in repr(scene)
    with pytest.raises(InputError, match=r"not regular: steps from 2\.440 to 2\.550 mm.*tolerance 0\.01 mm"):
        DicomScene(tmp_path / "a", spacing_tolerance=0.01)


def test_gantry_tilt_is_named(tmp_path: Path) -> None:
    def tweak(index: int, head: Any) -> bool:
        head.ImagePositionPatient = [0, float(np.tan(np.radians(15)) * 2.5 * index), 2.5 * index]
        return True

    with pytest.raises(InputError, match=r"gantry tilt: .* 15\.00 degrees"):
        open_scene(_series(tmp_path / "a", tweak=tweak))


@pytest.mark.parametrize("tag", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_slices_without_image_position_are_refused(tmp_path: Path, tag: str) -> None:
    def tweak(index: int, head: Any) -> bool:
        if index == 4:
            delattr(head, tag)
        return True

    with pytest.raises(InputError, match=f"{tag} is missing"):
        open_scene(_series(tmp_path / "a", tweak=tweak))


def test_one_slice_of_other_size_or_direction_is_refused(tmp_path: Path) -> None:
    def size(index: int, head: Any) -> bool:
        if index == 4:
            head.Rows, head.PixelData = 3, head.PixelData[: 3 * 6 * 2]
        return True

    def direction(index: int, head: Any) -> bool:
        if index == 4:
            head.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        return True

    with pytest.raises(InputError, match=r"differ in size: 1_\d+.dcm has \((3|4), 6\)"):
        open_scene(_series(tmp_path / "a", tweak=size))
    with pytest.raises(InputError, match="differ in direction"):
        open_scene(_series(tmp_path / "b", tweak=direction))


def test_skewed_direction_cosines_are_refused(tmp_path: Path) -> None:
    def tweak(index: int, head: Any) -> bool:
        head.ImageOrientationPatient = [1, 0, 0, 0.5, 1, 0]
        return True

    with pytest.raises(GeometryError, match="no orthonormal pair"):
        open_scene(_series(tmp_path / "a", tweak=tweak))


def test_films_and_colour_are_named(tmp_path: Path) -> None:
    def frames(index: int, head: Any) -> bool:
        head.NumberOfFrames, head.Rows, head.PixelData = 2, 2, head.PixelData[: 2 * 2 * 6 * 2]
        return True

    def colour(index: int, head: Any) -> bool:
        head.SamplesPerPixel, head.PhotometricInterpretation = 3, "RGB"
        return True

    with pytest.raises(InputError, match=r"multi-frame DICOM \(CT, 2 frames\) with 0 functional groups"):
        open_scene(_series(tmp_path / "a", tweak=frames))
    with pytest.raises(InputError, match=r"colour DICOM \(RGB\)"):
        open_scene(_series(tmp_path / "b", tweak=colour))


def test_other_files_are_ignored_and_mentioned(tmp_path: Path) -> None:
    folder = _series(tmp_path / "a")
    (folder / "readme.txt").write_text("hello")
    (folder / "empty").write_bytes(b"")

    def plan(index: int, head: Any) -> bool:
        for tag in ("Rows", "Columns", "PixelData"):
            delattr(head, tag)
        head.Modality = "RTSTRUCT"
        return index == 0

    _series(folder / "sub", series="1.2.3.9", tweak=plan)
    scene = open_scene(folder)
    assert scene.notes == ("ignored 1 RTSTRUCT file", "ignored 2 non-DICOM files")
    assert np.array_equal(scene.read()[0], volumes.ramp(SHAPE))


def test_empty_and_foreign_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="the folder is empty"):
        open_scene(tmp_path / "empty")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("x")
    with pytest.raises(InputError, match=r"no DICOM image slices among 1 files \(1 x non-DICOM\)"):
        open_scene(tmp_path / "text")


def test_truncated_slice_is_named_before_reading(tmp_path: Path) -> None:
    volume = np.zeros((3, 64, 64), np.int16)
    folder = volumes.dicom_series(tmp_path / "a", volume)
    victim = sorted(folder.iterdir())[1]
    victim.write_bytes(victim.read_bytes()[:4000])
    with pytest.raises(InputError, match=f"{victim.name}: truncated: 4000 bytes, its pixels alone take 8192"):
        open_scene(folder)
    volumes.dicom_series(tmp_path / "b", volume)
    victim = sorted((tmp_path / "b").iterdir())[1]
    victim.write_bytes(victim.read_bytes()[:-50])
    with pytest.raises(InputError, match=f"{victim.name}: pixels cannot be decoded"):
        open_scene(tmp_path / "b").read()


def test_padding_value_is_not_valid(tmp_path: Path) -> None:
    def tweak(index: int, head: Any) -> bool:
        head.add_new("PixelPaddingValue", "SS", -100)
        return True

    scene = open_scene(_series(tmp_path / "a", tweak=tweak))
    assert np.argwhere(~scene.valid()).tolist() == [[0, 0, 0]]


def test_single_slice_file(tmp_path: Path) -> None:
    folder = _series(tmp_path / "a", tweak=lambda index, _: index == 2)
    (file,) = folder.iterdir()
    scene = open_scene(file)
    assert scene.format == "DICOM file" and scene.grid.shape == (1, 4, 6) and scene.grid.spacing == (2.5, 0.8, 0.6)
    assert np.array_equal(scene.read()[0], volumes.ramp(SHAPE)[2:3])
    with pytest.raises(ConfigError, match="no option frame"):
        open_scene(file, frame=0)


def test_header_and_mask_keep_the_place(tmp_path: Path) -> None:
    axes = volumes.rotation(15, -25, 40)
    scene = open_scene(_series(tmp_path / "a", axes=axes))
    write_nifti(tmp_path / "m.nii.gz", np.ones(SHAPE, np.uint8), scene.grid)
    mask = open_scene(tmp_path / "m.nii.gz")
    points = np.array([[0.0, 0, 0], [7, 3, 5], [3, 1, 4]])
    assert np.allclose(mask.grid.to_world(points) * [-1, -1, 1], scene.grid.to_world(points), atol=1e-4)


def test_slice_that_vanished_is_named(tmp_path: Path) -> None:
    folder = _series(tmp_path / "a")
    scene = open_scene(folder)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="cannot be decoded"):
        scene.read((slice(0, 1), slice(0, 4), slice(0, 6)))
