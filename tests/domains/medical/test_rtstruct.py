"""RTSTRUCT: contours in mm to voxels; even-odd, half-open borders, frames of reference, off-slice contours."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from samgraft.domains import open_scene
from samgraft.domains.medical.dicom import DicomScene
from samgraft.domains.medical.rtstruct import fill_contours, rasterise, read_rtstruct
from samgraft.errors import GeometryError, InputError, NoMatchError
from tests.data import volumes

pytestmark = pytest.mark.medical
SHAPE = (5, 9, 11)


def series(folder: Path, **options: Any) -> DicomScene:
    scene = open_scene(volumes.dicom_series(folder, volumes.ramp(SHAPE), **options))
    assert isinstance(scene, DicomScene)
    return scene


def contour(scene: DicomScene, depth: float, *corners: tuple[float, float]) -> NDArray[np.float64]:
    """A contour through (row, col) indices of a slice, in mm."""
    return scene.grid.to_world(np.array([(depth, row, col) for row, col in corners]))


def box(row: float, col: float, last_row: float, last_col: float) -> tuple[tuple[float, float], ...]:
    return (row, col), (row, last_col), (last_row, last_col), (last_row, col)


@pytest.mark.parametrize("turned", [False, True])
def test_a_rectangle_between_centres_fills_the_voxels_inside(tmp_path: Path, turned: bool) -> None:
    scene = series(tmp_path / "a", axes=volumes.rotation(15, -25, 40) if turned else None)
    mask = fill_contours([contour(scene, 2, *box(1.5, 2.5, 4.5, 7.5))], scene)
    want = np.zeros(SHAPE, bool)
    want[2, 2:5, 3:8] = True
    assert np.array_equal(mask, want)
    assert np.array_equal(mask, fill_contours([contour(scene, 2, *box(1.5, 2.5, 4.5, 7.5)[::-1])], scene))


def test_centres_on_a_contour_belong_to_one_side_only(tmp_path: Path) -> None:
    scene = series(tmp_path / "a")
    left = fill_contours([contour(scene, 1, *box(1, 2, 5, 4))], scene)
    right = fill_contours([contour(scene, 1, *box(1, 4, 5, 8))], scene)
    assert not (left & right).any()
    want = np.zeros(SHAPE, bool)
    want[1, 1:5, 2:8] = True
    assert np.array_equal(left | right, want)


def test_inner_contour_and_keyhole_are_the_same_hole(tmp_path: Path) -> None:
    scene = series(tmp_path / "a")
    outer, inner = box(0.5, 0.5, 7.5, 9.5), box(2.5, 3.5, 5.5, 6.5)
    ring = fill_contours([contour(scene, 3, *outer), contour(scene, 3, *inner)], scene)
    want = np.zeros(SHAPE, bool)
    want[3, 1:8, 1:10] = True
    want[3, 3:6, 4:7] = False
    assert np.array_equal(ring, want)
    keyhole = (*outer, outer[0], *inner[::-1], inner[-1], outer[0])
    assert np.array_equal(fill_contours([contour(scene, 3, *keyhole)], scene), want)


def test_slanted_edges_follow_the_centres(tmp_path: Path) -> None:
    scene = series(tmp_path / "a")
    mask = fill_contours([contour(scene, 0, (-0.5, 0.25), (8.5, 0.25), (-0.5, 9.25))], scene)
    rows, cols = np.mgrid[:9, :11]
    assert np.array_equal(mask[0], (cols >= 0.25) & (cols < 0.25 + 9.0 - (rows + 0.5)))
    assert mask[0, 0].sum() == 8 and mask[0, 8].sum() == 0 and not mask[1:].any()


def test_parts_beyond_the_image_are_cut_off(tmp_path: Path) -> None:
    scene = series(tmp_path / "a")
    mask = fill_contours([contour(scene, 4, *box(-5.5, -3.5, 1.5, 40.5))], scene)
    assert mask[4, :2].all() and not mask[4, 2:].any() and not mask[:4].any()


def test_structures_become_labels_with_names(tmp_path: Path) -> None:
    scene = series(tmp_path / "a")
    drawn = {
        "GTV": [contour(scene, d, *box(1.5, 1.5, 4.5, 4.5)) for d in (1, 3)],
        "marker": [contour(scene, 1, (2, 2))],
        "node": [contour(scene, 2, *box(5.5, 5.5, 7.5, 8.5))],
    }
    structures = read_rtstruct(volumes.rtstruct(tmp_path / "rs.dcm", drawn))
    assert [s.name for s in structures.structures] == ["GTV", "marker", "node"]
    labels, classes, notes = rasterise(structures, scene)
    assert classes == {1: "GTV", 2: "node"}
    assert notes == ("GTV: 1 slices between its contours have none and stay empty",)
    assert [(labels[d] == 1).sum() for d in range(5)] == [0, 9, 0, 9, 0] and (labels == 2).sum() == 6
    only, names, _ = rasterise(structures, scene, names=["node"])
    assert names == {1: "node"} and np.array_equal(only == 1, labels == 2)
    with pytest.raises(NoMatchError, match=r"0 structures named 'liver'; it holds \['GTV', 'marker', 'node'\]"):
        rasterise(structures, scene, names=["liver"])
    with pytest.raises(InputError, match=r"\['marker'\] have no closed contour"):
        rasterise(structures, scene, names=["marker"])


def test_overlap_is_refused_or_the_later_wins(tmp_path: Path) -> None:
    scene = series(tmp_path / "a")
    drawn = {"PTV": [contour(scene, 1, *box(0.5, 0.5, 6.5, 6.5))], "GTV": [contour(scene, 1, *box(2.5, 2.5, 4.5, 4.5))]}
    structures = read_rtstruct(volumes.rtstruct(tmp_path / "rs.dcm", drawn))
    with pytest.raises(InputError, match="GTV and PTV share 4 voxels"):
        rasterise(structures, scene)
    labels, _, _ = rasterise(structures, scene, overlap="later")
    assert (labels == 1).sum() == 32 and (labels == 2).sum() == 4


def test_other_frames_and_slices_are_refused_with_distances(tmp_path: Path) -> None:
    scene = series(tmp_path / "a")
    good = [contour(scene, 1, *box(1.5, 1.5, 4.5, 4.5))]
    foreign = read_rtstruct(volumes.rtstruct(tmp_path / "f.dcm", {"GTV": good}, frame="1.2.3.100", series="9.9"))
    with pytest.raises(GeometryError, match=r"belongs to the frame of reference 1\.2\.3\.100.*drawn on series 9\.9"):
        rasterise(foreign, scene)
    same = read_rtstruct(volumes.rtstruct(tmp_path / "s.dcm", {"GTV": good}, series="9.9"))
    assert "drawn on series 9.9" in rasterise(same, scene)[2][0], "same frame of reference: a remark"
    with pytest.raises(GeometryError, match=r"1 mm from the nearest of 5 slices, 2\.5 mm apart \(allowed 0\.625 mm\)"):
        fill_contours([contour(scene, 1.4, *box(1.5, 1.5, 4.5, 4.5))], scene)
    near = fill_contours([contour(scene, 1.2, *box(1.5, 1.5, 4.5, 4.5))], scene)
    assert near[1].sum() == 9
    with pytest.raises(GeometryError, match=r"lies 5 mm from the nearest"):
        fill_contours([contour(scene, 6, *box(1.5, 1.5, 4.5, 4.5))], scene)
    tilted = scene.grid.to_world(np.array([(1.0, 1, 1), (1, 1, 5), (3, 5, 5), (3, 5, 1)]))
    with pytest.raises(GeometryError, match=r"not parallel to the slices \(it spans 5 mm across them\)"):
        fill_contours([tilted], scene)


def test_other_files_are_no_structures(tmp_path: Path) -> None:
    scene = series(tmp_path / "a")
    with pytest.raises(InputError, match=r"is no RTSTRUCT \(modality CT\)"):
        read_rtstruct(next(f for f in scene.files if f is not None))
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(InputError, match=r"is no RTSTRUCT \(no DICOM\)"):
        read_rtstruct(tmp_path / "x.txt")
