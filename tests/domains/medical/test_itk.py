"""MetaImage and NRRD: exact grids, NaN seen, shear kept."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from samgraft.domains import open_scene, write_itk
from samgraft.errors import GeometryError, InputError
from samgraft.grid import Grid
from tests.data import volumes

pytestmark = pytest.mark.medical


def _image(array: np.ndarray, path: Path, *, packed: bool = False, vector: bool = False) -> Path:
    image = sitk.GetImageFromArray(array, isVector=vector)
    if image.GetDimension() == 3:
        image.SetDirection(volumes.rotation(5, 6, 7).ravel().tolist())
        image.SetSpacing((0.7, 0.9, 2.5))
        image.SetOrigin((-10.5, 1 / 3, 7))
    sitk.WriteImage(image, str(path), useCompression=packed)
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".mhd"])
def test_reads_values_and_place_by_window(tmp_path: Path, suffix: str, packed: bool) -> None:
    scene = open_scene(_image(volumes.ramp(), tmp_path / f"a{suffix}", packed=packed))
    assert scene.grid.world == "LPS" and scene.grid.shape == volumes.SHAPE and scene.dtype == np.int16
    expected = volumes.rotation(5, 6, 7) @ np.array([0.7 * 3, 0.9 * 2, 2.5 * 4]) + [-10.5, 1 / 3, 7]
    assert np.allclose(scene.grid.to_world(np.array([4.0, 2, 3])), expected, atol=1e-12)
    window = (slice(1, 3), slice(2, 3), slice(0, 4))
    assert not scene.is_loaded
    assert np.array_equal(scene.read(window)[0], volumes.ramp()[window])
    assert scene.is_loaded is packed
    assert np.array_equal(scene.read()[0], volumes.ramp())


@pytest.mark.parametrize("name", list(volumes.affines()))
def test_writers_keep_grid_and_labels(tmp_path: Path, name: str) -> None:
    ras = Grid(shape=volumes.SHAPE, affine=volumes.affines()[name][:, [2, 1, 0, 3]], world="RAS")
    labels = volumes.ramp(dtype="uint16") * 3
    for suffix in (".nrrd", ".mha"):
        write_itk(tmp_path / f"a{suffix}", labels, ras)
        scene = open_scene(tmp_path / f"a{suffix}")
        assert np.array_equal(scene.read_labels(), labels)
        assert np.allclose(scene.grid.affine[:2], -ras.affine[:2], rtol=0, atol=1e-13)
        assert np.allclose(scene.grid.affine[2:], ras.affine[2:], rtol=0, atol=1e-13)
        if suffix == ".nrrd":
            write_itk(tmp_path / "b.nrrd", labels, scene.grid)
            assert open_scene(tmp_path / "b.nrrd").grid == scene.grid
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mha", "a.nrrd", "b.nrrd"]


def test_nrrd_written_by_hand_is_read_by_itk(tmp_path: Path) -> None:
    grid = Grid(shape=volumes.SHAPE, affine=volumes.affines()["oblique"][:, [2, 1, 0, 3]], world="LPS")
    write_itk(tmp_path / "a.nrrd", volumes.ramp(dtype="uint16"), grid)
    image = sitk.ReadImage(str(tmp_path / "a.nrrd"))
    assert np.array_equal(sitk.GetArrayFromImage(image), volumes.ramp(dtype="uint16"))
    assert np.allclose(image.TransformIndexToPhysicalPoint((3, 2, 1)), grid.to_world(np.array([1.0, 2, 3])), atol=1e-9)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_nan_and_inf_are_seen(tmp_path: Path, suffix: str, packed: bool) -> None:
    array = volumes.ramp(dtype="float32")
    array[1, 2, 3], array[2, 2, 2] = np.nan, -np.inf
    path = _image(array, tmp_path / f"a{suffix}", packed=packed)
    with pytest.raises(InputError, match=r"1 NaN and 1 Inf of 210 values read, the first at index \(1, 2, 3\)"):
        open_scene(path).read()
    scene = open_scene(path, nan="fill")
    assert scene.read()[0, 1, 2, 3] == 0
    assert np.argwhere(~scene.valid()).tolist() == [[1, 2, 3], [2, 2, 2]]


def test_frames_channels_and_flat_files(tmp_path: Path) -> None:
    four = np.stack([volumes.ramp(), volumes.ramp() + 1])
    path = _image(four, tmp_path / "a.mha")
    with pytest.raises(InputError, match=r"4D \(7, 6, 5, 2\) with 2 frames"):
        open_scene(path)
    assert np.array_equal(open_scene(path, frame=1).read()[0], volumes.ramp() + 1)
    rgb = np.stack([volumes.ramp(), -volumes.ramp()], axis=-1)
    vector = open_scene(_image(rgb, tmp_path / "v.nrrd", vector=True))
    assert vector.channels == 2 and np.array_equal(vector.read(channels=[1])[0], -volumes.ramp())
    with pytest.raises(InputError, match="has 2 channels; a label file has one"):
        vector.read_labels()
    flat = open_scene(_image(volumes.ramp()[0], tmp_path / "f.mha"))
    assert flat.grid.shape == (1, 6, 7) and np.array_equal(flat.read()[0, 0], volumes.ramp()[0])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_truncated_files_are_named(tmp_path: Path, suffix: str, packed: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 30000, (20, 30, 30)).astype(np.int16)
    path = _image(noise, tmp_path / f"a{suffix}", packed=packed)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(InputError, match=r"truncated or damaged \(9000 bytes on disk\)"):
        open_scene(path).read()
    path.write_text("nothing")
    with pytest.raises(InputError, match="no readable"):
        open_scene(path)


def test_nrrd_without_space_is_flagged_and_ras_is_flipped(tmp_path: Path) -> None:
    lines = ["NRRD0005", "type: uint8", "dimension: 3", "sizes: 2 3 4", "encoding: raw", "", ""]
    (tmp_path / "a.nrrd").write_bytes("\n".join(lines).encode() + bytes(24))
    assert not open_scene(tmp_path / "a.nrrd").frame_known
    lines[4:4] = [
        "space: right-anterior-superior",
        "space directions: (2,0.5,0) (0,3,0) (0,0,4)",
        "space origin: (5,6,7)",
    ]
    (tmp_path / "b.nrrd").write_bytes("\n".join(lines).encode() + bytes(24))
    scene = open_scene(tmp_path / "b.nrrd")
    assert scene.frame_known
    assert scene.grid.to_world(np.array([0.0, 0, 1])).tolist() == [-7.0, -6.5, 7.0], (
        "shear is kept, x and y are flipped"
    )


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    grid = Grid(shape=volumes.SHAPE, affine=np.eye(4), world="LPS")
    with pytest.raises(GeometryError, match=r"ends in \.mha or \.nrrd"):
        write_itk(tmp_path / "a.mhd", np.ones(volumes.SHAPE, np.uint8), grid)
    with pytest.raises(GeometryError, match="world 'pixel'"):
        write_itk(tmp_path / "a.mha", np.ones((2, 3), np.uint8), Grid(shape=(2, 3), affine=np.eye(3)))
    assert list(tmp_path.iterdir()) == []
