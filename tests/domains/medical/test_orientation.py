"""Labels on another grid: voxel by voxel where the voxels coincide, refused or nearest where they do not."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from samgraft.domains.medical.orientation import place_labels, resample_labels, to_frame
from samgraft.errors import GeometryError
from samgraft.grid import Grid
from tests.data import volumes

pytestmark = pytest.mark.medical
SHAPE = (4, 5, 6)


def _grid(shape: tuple[int, ...] = SHAPE, matrix: NDArray[np.float64] | None = None, world: str = "LPS") -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = volumes.rotation(15, -25, 40) @ np.diag([3.0, 0.8, 0.6]) if matrix is None else matrix
    affine[:3, 3] = (-20.5, 13.25, 100)
    return Grid(shape=shape, affine=affine, world=world)


def _labels() -> NDArray[np.uint8]:
    return (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 251 + 1).astype(np.uint8)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (-1, -1, -1)])
def test_every_order_of_axes_is_undone(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    grid, labels = _grid(), _labels()
    turned = np.transpose(labels, order)[tuple(slice(None, None, s) for s in signs)]
    affine = np.eye(4)
    affine[:3, :3] = grid.affine[:3, :3][:, order] * signs
    corner = np.zeros(3)
    for axis, (source, sign) in enumerate(zip(order, signs, strict=True)):
        corner[source] = 0 if sign > 0 else turned.shape[axis] - 1
    affine[:3, 3] = grid.to_world(corner)
    other = Grid(shape=turned.shape, affine=affine, world="LPS")
    assert np.array_equal(place_labels(turned, other, grid, what="x"), labels)
    assert np.array_equal(place_labels(turned, to_frame(other, "RAS"), grid, what="x"), labels)


def test_parts_of_a_volume_are_laid_into_it() -> None:
    grid, labels = _grid(), _labels()
    window = (slice(1, 3), slice(2, 5), slice(0, 4))
    want = np.zeros(SHAPE, np.uint8)
    want[window] = labels[window]
    assert np.array_equal(place_labels(labels[window], grid.crop(window), grid, what="x"), want)
    assert np.array_equal(place_labels(want, grid, grid.crop(window), what="x"), labels[window])
    with pytest.raises(GeometryError, match="x: 96 labelled voxels lie outside the image"):
        place_labels(labels, grid, grid.crop(window), what="x")


def test_a_single_layer_has_no_step() -> None:
    grid, labels = _grid(), _labels()
    layer = grid.crop((slice(2, 3), slice(0, 5), slice(0, 6)))
    thick = layer.affine.copy()
    thick[:3, 0] *= 1.7
    found = place_labels(labels[2:3], Grid(shape=layer.shape, affine=thick, world="LPS"), grid, what="x")
    assert np.array_equal(found[2], labels[2]) and not found[[0, 1, 3]].any()


def test_shifted_and_scaled_grids_are_refused_with_the_distance() -> None:
    grid, labels = _grid(), _labels()
    moved = grid.affine.copy()
    moved[:3, 3] += (0.2, 0, 0)
    with pytest.raises(GeometryError, match=r"corners lie 0\.2 mm apart \(allowed 0\.01 mm\).*samgraft labels FILE"):
        place_labels(labels, Grid(shape=SHAPE, affine=moved, world="LPS"), grid, what="x")
    wide = grid.affine.copy()
    wide[:3, 1] *= 2
    with pytest.raises(GeometryError, match="axes or spacing differ"):
        place_labels(labels, Grid(shape=SHAPE, affine=wide, world="LPS"), grid, what="x")


def test_nearest_voxels_on_a_finer_grid() -> None:
    coarse = _grid((2, 3, 2), np.diag([4.0, 2.0, 1.0]))
    labels = np.arange(1, 13, dtype=np.uint16).reshape(2, 3, 2)
    affine = coarse.affine.copy()
    affine[:3, :3] = np.diag([2.0, 1.0, 1.0])
    affine[:3, 3] -= (1.0, 0.5, 0.0)  # two fine voxels in each coarse one, along the first and second axis
    fine = Grid(shape=(4, 6, 2), affine=affine, world="LPS")
    assert np.array_equal(resample_labels(labels, coarse, fine), labels.repeat(2, axis=0).repeat(2, axis=1))
    far = affine.copy()
    far[:3, 3] += 50
    assert not resample_labels(labels, coarse, Grid(shape=(4, 6, 2), affine=far, world="LPS")).any()
