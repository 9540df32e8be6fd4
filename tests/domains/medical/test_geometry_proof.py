"""Geometry, end to end: an asymmetric phantom goes through read, segment, write, read, and stays where it was.

Five marked voxels with values of their own (a corner, the ends of three arms, a point off all axes) have world
positions that the test works out itself. Files are written and read back by other libraries than those that samgraft
writes with, wherever there is one. Positions must agree to 1e-4 mm, or the step is refused by name.
"""

import itertools
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from samgraft.domains import open_scene
from samgraft.domains.segmentation import Segmentation
from samgraft.errors import GeometryError, InputError
from tests.data import volumes

pytestmark = pytest.mark.medical
sitk: Any = SimpleITK
EXACT_MM = 1e-4
SIDES = (9, 7, 6)
"""Voxels along i, j, k."""
MARKS = ((0, 0, 0), (7, 0, 0), (0, 4, 0), (0, 0, 5), (5, 2, 3))
"""(i, j, k) of the marked voxels: an L with a third arm, and a point off all axes."""
SPACING = np.diag([0.7, 1.1, 3.3])
ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]
FRAMES = {
    "straight": np.eye(3),
    "oblique": volumes.rotation(11, -23, 37),
    "sheared": np.array([[1, 0.3, 0], [0, 1, 0.2], [0, 0, 1.0]]),
}


def _name(value: Any) -> str:
    order, signs = value
    return "".join(("+" if s > 0 else "-") + "xyz"[o] for o, s in zip(order, signs, strict=True))


def _phantom() -> NDArray[np.int16]:
    """(i, j, k) intensities: -1000, and 100 * (n + 1) at mark n."""
    image = np.full(SIDES, -1000, np.int16)
    for number, place in enumerate(MARKS, start=1):
        image[place] = 100 * number
    return image


def _affine(orientation: Any, frame: str) -> NDArray[np.float64]:
    """(i, j, k) -> RAS mm, made of float32 numbers as NIfTI stores them."""
    order, signs = orientation
    turned = np.zeros((3, 3))
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        turned[world, axis] = sign
    return volumes.with_origin(FRAMES[frame] @ turned @ SPACING)


def _truth(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """World positions of the marks."""
    return np.array(MARKS) @ affine[:3, :3].T + affine[:3, 3]


def _segmented(path: Path, **options: Any) -> Segmentation:
    """The oracle: mark n is where the value is 100 n."""
    scene = open_scene(path, **options)
    values = scene.read()[0]
    labels = np.where(values > 0, values // 100, 0).astype(np.uint8)
    names = {n: f"mark {n}" for n in range(1, len(MARKS) + 1)}
    return Segmentation(labels=labels, grid=scene.grid, kind="semantic", classes=names).about(source=scene)


def _marks(labels: NDArray[Any], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """World positions of labels 1 to 5 of an array, each of which occurs once."""
    places = [np.argwhere(labels == n) for n in range(1, len(MARKS) + 1)]
    assert [len(p) for p in places] == [1] * len(MARKS)
    return np.concatenate(places) @ affine[:3, :3].T + affine[:3, 3]


def _read_nifti(path: Path) -> NDArray[np.float64]:
    image = nib.load(path)
    return _marks(np.asarray(image.dataobj), image.affine)


def _read_itk(path: Path) -> NDArray[np.float64]:
    image = sitk.ReadImage(str(path))
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = direction * np.array(image.GetSpacing()), image.GetOrigin()
    return _marks(sitk.GetArrayFromImage(image).transpose(2, 1, 0), affine) * [-1, -1, 1]


def _read_back(path: Path) -> NDArray[np.float64]:
    """By samgraft, in RAS."""
    scene = open_scene(path)
    return _marks(scene.read_labels(), scene.grid.affine) * ([1, 1, 1] if scene.grid.world == "RAS" else [-1, -1, 1])


@pytest.mark.parametrize("frame", list(FRAMES))
@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=_name)
def test_nifti_in_nifti_mha_nrrd_out(tmp_path: Path, orientation: Any, frame: str) -> None:
    affine = _affine(orientation, frame)
    truth = _truth(affine)
    found = _segmented(volumes.nifti(tmp_path / "ct.nii", _phantom(), affine))
    assert np.abs(_read_nifti(found.save(tmp_path / "m.nii.gz")) - truth).max() <= EXACT_MM
    assert np.abs(_read_back(found.save(tmp_path / "m.nrrd")) - truth).max() <= EXACT_MM
    assert np.abs(_read_itk(found.save(tmp_path / "m.mha")) - truth).max() <= EXACT_MM
    if frame != "sheared":  # ITK straightens a sheared NRRD when it reads one; samgraft does not, see above
        assert np.abs(_read_itk(tmp_path / "m.nrrd") - truth).max() <= EXACT_MM


@pytest.mark.parametrize("frame", ["straight", "oblique"])
@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=_name)
def test_mha_in_mha_out(tmp_path: Path, orientation: Any, frame: str) -> None:
    affine = _affine(orientation, frame)
    columns = affine[:3, :3] * np.array([-1, -1, 1])[:, None]
    spacing = np.linalg.norm(columns, axis=0)
    image = sitk.GetImageFromArray(_phantom().transpose(2, 1, 0))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((columns / spacing).ravel().tolist())
    image.SetOrigin((affine[:3, 3] * [-1, -1, 1]).tolist())
    sitk.WriteImage(image, str(tmp_path / "ct.mha"))
    found = _segmented(tmp_path / "ct.mha")
    assert np.abs(_read_itk(found.save(tmp_path / "m.mha")) - _truth(affine)).max() <= EXACT_MM
    assert np.abs(_read_nifti(found.save(tmp_path / "m.nii")) - _truth(affine)).max() <= EXACT_MM


def _dicom(folder: Path, orientation: Any, frame: str) -> tuple[Path, NDArray[np.float64]]:
    """A series whose rows, columns and stack run along the signed axes; world positions of its marks in LPS."""
    order, signs = orientation
    axes = np.zeros((3, 3))
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        axes[world, axis] = sign
    axes = FRAMES[frame] @ axes
    volume = _phantom().transpose(2, 1, 0)
    path = volumes.dicom_series(folder, volume, step=3.3, spacing=(1.1, 0.7), axes=axes)
    return path, np.array([-20.5, 13.25, 100.0]) + np.array(MARKS) @ (axes @ SPACING).T


def _read_highdicom(path: Path) -> NDArray[np.float64]:
    import highdicom

    volume = highdicom.seg.segread(path).get_volume(combine_segments=True)
    return _marks(volume.array, volume.affine)


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=_name)
def test_dicom_in_dicom_seg_out(tmp_path: Path, orientation: Any) -> None:
    pytest.importorskip("highdicom")
    frame = "oblique" if sum(orientation[1]) > 0 else "straight"
    folder, truth = _dicom(tmp_path / "ct", orientation, frame)
    found = _segmented(folder)
    seg = found.save(tmp_path / "seg.dcm")
    assert np.abs(_read_highdicom(seg) - truth).max() <= EXACT_MM
    assert np.abs(_read_back(seg) * [-1, -1, 1] - truth).max() <= EXACT_MM
    assert np.abs(_read_nifti(found.save(tmp_path / "m.nii.gz")) * [-1, -1, 1] - truth).max() <= EXACT_MM


def test_sheared_dicom_is_refused_by_name(tmp_path: Path) -> None:
    def tweak(index: int, head: Any) -> bool:
        head.ImagePositionPatient = [0.3 * index, 0, 2.5 * index]
        return True

    folder = volumes.dicom_series(tmp_path / "a", _phantom().transpose(2, 1, 0), tweak=tweak)
    with pytest.raises(InputError, match=r"gantry tilt: slices are stacked 6\.84 degrees off their normal"):
        open_scene(folder)


def test_sheared_labels_have_no_dicom_seg(tmp_path: Path) -> None:
    sheared = _affine(ORIENTATIONS[0], "sheared")
    found = _segmented(volumes.nifti(tmp_path / "ct.nii", _phantom(), sheared))
    with pytest.raises(GeometryError, match="which has no study to refer to"):
        found.save(tmp_path / "seg.dcm")


def test_oracle_through_the_engine_keeps_its_place(tmp_path: Path) -> None:
    """The same chain with ``samgraft``'s own engine: a box of bright voxels in an oblique, left-handed volume."""
    from samgraft.recipes.engine.automatic import segment_automatic
    from samgraft.recipes.engine.recorded import Recorded
    from samgraft.recipes.header import InputRecipe
    from tests.recipes._oracle import OracleGraft

    image = np.full((64, 64, 6), -500, np.int16)
    image[8:40, 16:48, 2:4] = 1000
    affine = volumes.with_origin(FRAMES["oblique"] @ np.diag([-0.7, 1.1, 3.3]))
    scene = open_scene(volumes.nifti(tmp_path / "ct.nii", image, affine))
    recipe = Recorded(recipe=InputRecipe(size=64), classes={1: "bright"})
    found = segment_automatic(scene, OracleGraft(), recipe)  # type: ignore[arg-type]
    mask = nib.load(found.save(tmp_path / "m.nii.gz"))
    corners = np.argwhere(np.asarray(mask.dataobj))[[0, -1]] @ mask.affine[:3, :3].T + mask.affine[:3, 3]
    truth = np.array([(8, 16, 2), (39, 47, 3)]) @ affine[:3, :3].T + affine[:3, 3]
    assert np.abs(corners - truth).max() <= EXACT_MM and found.labels.sum() == 32 * 32 * 2
