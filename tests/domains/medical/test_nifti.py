"""NIfTI: exact round trips, lazy windows, and every bad header by name."""

import gzip
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from samgraft.domains import open_scene, write_nifti, write_nifti_image
from samgraft.domains.medical import nifti as nifti_module
from samgraft.domains.medical.orientation import to_frame
from samgraft.errors import GeometryError, InputError, OutputError
from samgraft.grid import Grid
from tests.data import volumes

pytestmark = pytest.mark.medical


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("name", "form"),
    [(n, f) for n in volumes.affines() for f in ("sform", "qform", "both") if n != "sheared" or f == "sform"],
)
def test_affine_and_values_survive_the_round_trip(tmp_path: Path, name: str, form: str, suffix: str) -> None:
    affine = volumes.affines()[name]
    array = volumes.ramp().transpose(2, 1, 0)
    source = volumes.nifti(tmp_path / f"a{suffix}", array, affine, sform=form != "qform", qform=form != "sform")
    scene = open_scene(source)
    reference = nib.load(source)
    assert np.array_equal(scene.grid.affine[:, [2, 1, 0, 3]], reference.affine)
    assert scene.grid.world == "RAS" and scene.grid.shape == volumes.SHAPE and scene.frame_known
    assert np.array_equal(scene.read()[0], volumes.ramp())
    write_nifti(tmp_path / "out.nii.gz", volumes.ramp(dtype="uint16"), scene.grid)
    assert np.array_equal(nib.load(tmp_path / "out.nii.gz").affine, reference.affine)
    again = open_scene(tmp_path / "out.nii.gz")
    assert again.grid == scene.grid
    assert np.array_equal(again.read_labels(), volumes.ramp(dtype="uint16"))


def test_header_only_until_read_then_by_window(tmp_path: Path) -> None:
    path = volumes.nifti(tmp_path / "a.nii", volumes.ramp().transpose(2, 1, 0), np.diag([2, 3, 4, 1.0]))
    scene = open_scene(path)
    assert not scene.is_loaded and scene.dtype == np.int16 and scene.value_range == (-32768.0, 32767.0)
    assert scene.nbytes == 2 * 5 * 6 * 7
    window = (slice(1, 3), slice(None), slice(2, 5))
    assert np.array_equal(scene.read(window)[0], volumes.ramp()[1:3, :, 2:5])
    assert not scene.is_loaded, "a plain file is read by window"
    assert repr(scene) == (
        "<volume 'a.nii': NIfTI, D=5, H=6, W=7, 1 channel int16, spacing 4 x 3 x 2 mm, world RAS, lazy>"
    )


def test_packed_file_is_unpacked_once_or_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = volumes.nifti(tmp_path / "a.nii.gz", volumes.ramp().transpose(2, 1, 0), np.eye(4))
    window = (slice(2, 3), slice(0, 6), slice(1, 7))
    kept = open_scene(path)
    assert np.array_equal(kept.read(window)[0], volumes.ramp()[window]) and kept.is_loaded
    monkeypatch.setattr(nifti_module, "CACHE_LIMIT", 10)
    streamed = open_scene(path)
    assert np.array_equal(streamed.read(window)[0], volumes.ramp()[window]) and not streamed.is_loaded


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "packed.mha"])
def test_what_is_read_may_be_changed_and_the_scene_stays_as_it_is(tmp_path: Path, name: str) -> None:
    import SimpleITK as sitk

    path, array = tmp_path / name, volumes.ramp(dtype="int16")
    if name.endswith(".mha"):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path), useCompression=name.startswith("packed"))
    else:
        volumes.nifti(path, array.transpose(2, 1, 0), np.eye(4))
    scene = open_scene(path)
    for window in (None, (slice(0, 2), slice(None), slice(None))):
        for channels in (None, (0, 0)):
            before = scene.read(window, channels).copy()
            scene.read(window, channels)[:] = 31000
            assert np.array_equal(scene.read(window, channels), before) and not (before == 31000).any()


def test_slope_and_intercept_give_real_world_values(tmp_path: Path) -> None:
    def scale(header: nib.Nifti1Header) -> None:
        header["scl_slope"], header["scl_inter"] = 0.5, -7.0

    path = volumes.nifti(tmp_path / "a.nii", volumes.ramp().transpose(2, 1, 0), np.eye(4), patch=scale)
    scene = open_scene(path)
    assert scene.dtype == np.float32
    assert np.array_equal(scene.read()[0], volumes.ramp() * np.float32(0.5) - 7)


def test_big_endian_and_two_dimensional_files(tmp_path: Path) -> None:
    array = volumes.ramp().transpose(2, 1, 0)
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nib.save(nib.Nifti1Image(array.astype(">i2"), np.eye(4), header), tmp_path / "big.nii")
    assert (tmp_path / "big.nii").read_bytes()[:4] == b"\x00\x00\x01\x5c"
    big = open_scene(tmp_path / "big.nii")
    assert big.dtype == np.dtype("=i2") and np.array_equal(big.read()[0], volumes.ramp())
    flat = open_scene(volumes.nifti(tmp_path / "flat.nii", array[:, :, 0], np.diag([2.0, 3, 1, 1])))
    assert flat.grid.shape == (1, 6, 7)
    assert np.array_equal(flat.read()[0, 0], volumes.ramp()[0])


def test_nan_and_inf_voxels_are_counted_and_placed_or_filled(tmp_path: Path) -> None:
    array = volumes.ramp(dtype="float32").transpose(2, 1, 0).copy()
    array[3, 2, 1], array[4, 4, 4] = np.nan, np.inf
    for name in ("a.nii", "a.nii.gz"):
        path = volumes.nifti(tmp_path / name, array, np.diag([2.0, 3, 4, 1]))
        with pytest.raises(InputError, match=r"1 NaN and 1 Inf of 210 values.*index \(1, 2, 3\).*\(6\.0, 6\.0, 4\.0\)"):
            open_scene(path).read()
        scene = open_scene(path, nan="fill")
        filled = scene.read()[0]
        assert filled[1, 2, 3] == 0 and filled[4, 4, 4] == 0 and np.isfinite(filled).all()
        assert np.argwhere(~scene.valid()).tolist() == [[1, 2, 3], [4, 4, 4]]


def test_frames_of_4d_must_be_chosen_and_5d_is_refused(tmp_path: Path) -> None:
    array = np.stack([volumes.ramp().transpose(2, 1, 0), volumes.ramp().transpose(2, 1, 0) + 5], axis=-1)
    path = volumes.nifti(tmp_path / "a.nii.gz", array, np.eye(4))
    with pytest.raises(InputError, match=r"4D \(7, 6, 5, 2\) with 2 frames.*frame=0 to 1"):
        open_scene(path)
    assert np.array_equal(open_scene(path, frame=1).read()[0], volumes.ramp() + 5)
    with pytest.raises(InputError, match=r"frame=2 asked; the file has 2"):
        open_scene(path, frame=2)
    single = volumes.nifti(tmp_path / "b.nii", array[..., :1], np.eye(4))
    assert np.array_equal(open_scene(single).read()[0], volumes.ramp())
    five = volumes.nifti(tmp_path / "c.nii", array[:, :, :, None], np.eye(4))
    with pytest.raises(InputError, match="5D"):
        open_scene(five)


def test_rgb_nifti_and_complex_are_named(tmp_path: Path) -> None:
    rgb = np.zeros((4, 3, 2), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(rgb, np.eye(4)), tmp_path / "rgb.nii")
    with pytest.raises(InputError, match="voxels are RGB"):
        open_scene(tmp_path / "rgb.nii")
    nib.save(nib.Nifti1Image(np.zeros((4, 3, 2), np.complex64), np.eye(4)), tmp_path / "c.nii")
    with pytest.raises(InputError, match="voxels are complex"):
        open_scene(tmp_path / "c.nii")


def test_singular_affine_and_pixdim_0_are_refused_at_load(tmp_path: Path) -> None:
    array = volumes.ramp().transpose(2, 1, 0)

    def singular(header: nib.Nifti1Header) -> None:
        header["srow_y"] = header["srow_x"]

    def not_finite(header: nib.Nifti1Header) -> None:
        header["srow_x"] = np.nan

    def zero(header: nib.Nifti1Header) -> None:
        header["pixdim"][2] = 0

    with pytest.raises(GeometryError, match="singular"):
        open_scene(volumes.nifti(tmp_path / "s.nii", array, np.eye(4), patch=singular))
    with pytest.raises(GeometryError, match="non-finite"):
        open_scene(volumes.nifti(tmp_path / "n.nii", array, np.eye(4), patch=not_finite))
    with pytest.raises(InputError, match=r"pixdim is \[1.0, 0.0, 1.0\]"):
        open_scene(volumes.nifti(tmp_path / "z.nii", array, np.eye(4), patch=zero))


def test_no_sform_and_no_qform_warns_and_flags(tmp_path: Path) -> None:
    path = volumes.nifti(tmp_path / "a.nii", volumes.ramp().transpose(2, 1, 0), None)
    with pytest.warns(UserWarning, match="neither sform nor qform"):
        scene = open_scene(path)
    assert not scene.frame_known and "frame unknown" in repr(scene)
    assert np.array_equal(scene.grid.affine[:, [2, 1, 0, 3]], nib.load(path).affine)


def test_truncated_files_name_the_bytes(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 30000, (40, 40, 40)).astype(np.int16)
    plain = volumes.nifti(tmp_path / "a.nii", array, np.eye(4))
    plain.write_bytes(plain.read_bytes()[:70000])
    with pytest.raises(InputError, match="truncated: 70000 bytes, the header promises 128352"):
        open_scene(plain)
    packed = volumes.nifti(tmp_path / "a.nii.gz", array, np.eye(4))
    packed.write_bytes(packed.read_bytes()[:70000])
    with pytest.raises(InputError, match=r"truncated or damaged: about \d+ of 128352 bytes"):
        open_scene(packed).read()
    (tmp_path / "short.nii").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="holds 100 bytes"):
        open_scene(tmp_path / "short.nii")
    (tmp_path / "text.nii.gz").write_text("no gzip")
    with pytest.raises(InputError, match="cannot be read as NIfTI"):
        open_scene(tmp_path / "text.nii.gz")
    (tmp_path / "noise.nii").write_bytes(bytes(1000))
    with pytest.raises(InputError, match="no single-file NIfTI"):
        open_scene(tmp_path / "noise.nii")


def test_labels_above_255_keep_their_value_and_others_are_refused(tmp_path: Path) -> None:
    grid = Grid(shape=volumes.SHAPE, affine=np.diag([3.0, 2, 1, 1])[:, [2, 1, 0, 3]], world="RAS")
    labels = np.zeros(volumes.SHAPE, dtype=np.int64)
    for largest, dtype in ((1, np.uint8), (255, np.uint8), (300, np.uint16), (70000, np.uint32)):
        labels[1, 2, 3] = largest
        write_nifti(tmp_path / "l.nii.gz", labels, grid)
        scene = open_scene(tmp_path / "l.nii.gz")
        assert scene.dtype == dtype and int(scene.read_labels()[1, 2, 3]) == largest
    with pytest.raises(InputError, match="smallest label is -1"):
        write_nifti(tmp_path / "l.nii.gz", labels - 1, grid)
    write_nifti_image(tmp_path / "f.nii", np.full(volumes.SHAPE, 0.5, np.float32), grid)
    with pytest.raises(InputError, match="210 of 210 values are no whole numbers, such as 0.5"):
        open_scene(tmp_path / "f.nii").read_labels()
    write_nifti_image(tmp_path / "g.nii", labels.astype(np.float32), grid)
    assert open_scene(tmp_path / "g.nii").read_labels().dtype == np.uint32


def test_label_of_another_origin_reports_the_distance(tmp_path: Path) -> None:
    array = volumes.ramp().transpose(2, 1, 0)
    moved = np.eye(4)
    moved[:3, 3] = (3, 0, 4)
    image = open_scene(volumes.nifti(tmp_path / "a.nii", array, np.eye(4)))
    label = open_scene(volumes.nifti(tmp_path / "b.nii", array, moved))
    with pytest.raises(GeometryError, match="largest corner distance 5 mm"):
        image.grid.require_equal(label.grid, "label")


def test_lps_grid_is_written_by_sign_flips(tmp_path: Path) -> None:
    ras = Grid(shape=volumes.SHAPE, affine=volumes.affines()["oblique"][:, [2, 1, 0, 3]], world="RAS")
    lps = to_frame(ras, "LPS")
    point = np.array([1.0, 2.0, 3.0])
    assert np.array_equal(lps.to_world(point), ras.to_world(point) * [-1, -1, 1])
    write_nifti(tmp_path / "a.nii", np.ones(volumes.SHAPE, np.uint8), lps)
    assert open_scene(tmp_path / "a.nii").grid == ras


def test_affine_that_float32_would_move_is_refused(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[0, 3] = 54321.987654321
    grid = Grid(shape=volumes.SHAPE, affine=affine, world="RAS")
    with pytest.raises(GeometryError, match="float32, which would move a corner"):
        write_nifti(tmp_path / "a.nii", np.ones(volumes.SHAPE, np.uint8), grid)
    assert list(tmp_path.iterdir()) == []


def test_foreign_grids_and_shapes_are_refused(tmp_path: Path) -> None:
    picture = Grid(shape=(4, 5), affine=np.eye(3))
    with pytest.raises(GeometryError, match="2D grid in world 'pixel'"):
        write_nifti(tmp_path / "a.nii", np.ones((4, 5), np.uint8), picture)
    volume = Grid(shape=volumes.SHAPE, affine=np.eye(4), world="RAS")
    with pytest.raises(GeometryError, match=r"array is \(4, 5\), its grid \(5, 6, 7\)"):
        write_nifti(tmp_path / "a.nii", np.ones((4, 5), np.uint8), volume)
    with pytest.raises(OutputError, match="does not exist"):
        write_nifti(tmp_path / "none" / "a.nii", np.ones(volumes.SHAPE, np.uint8), volume)


def test_constant_and_one_voxel_volumes(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scene = open_scene(volumes.nifti(tmp_path / "a.nii.gz", np.zeros((1, 1, 1), np.uint8), np.eye(4)))
        assert scene.read().tolist() == [[[[0]]]]


def test_writing_is_deterministic_and_leaves_one_file(tmp_path: Path) -> None:
    grid = Grid(shape=volumes.SHAPE, affine=np.eye(4), world="RAS")
    labels = volumes.ramp(dtype="uint16")
    write_nifti(tmp_path / "a.nii.gz", labels, grid)
    first = (tmp_path / "a.nii.gz").read_bytes()
    write_nifti(tmp_path / "a.nii.gz", labels, grid)
    assert (tmp_path / "a.nii.gz").read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]
    assert gzip.decompress(first)[344:347] == b"n+1"
