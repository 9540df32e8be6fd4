"""Outlines from runs: exact, valid, and the same however an object is cut into pieces."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from rasterio.crs import CRS

from samgraft.domains.remote_sensing.georeference import grid_of, point_map
from samgraft.domains.remote_sensing.outline import outlines
from samgraft.domains.remote_sensing.pixel_runs import Runs, components, joined, runs_of_labels, runs_of_masks
from samgraft.domains.remote_sensing.polygon import simplified, square_metres, world_map
from samgraft.domains.remote_sensing.vector import VectorObject, rasterise
from samgraft.errors import ConfigError, ShapeError
from tests.data import rasters

pytestmark = pytest.mark.remote_sensing
MASKS = arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 11)))


def outline(mask: NDArray[np.bool_], top: int = 0, left: int = 0) -> shapely.Geometry:
    """The one geometry of a mask."""
    _, (found,) = outlines(runs_of_masks([(1, top, left, mask)]))
    return found


def pixels_of(mask: NDArray[np.bool_]) -> shapely.Geometry:
    """The same area as a union of squares, by GEOS."""
    return shapely.union_all([shapely.box(x, y, x + 1, y + 1) for y, x in np.argwhere(mask)])


@settings(max_examples=150, deadline=None)
@given(MASKS)
def test_any_mask_has_a_valid_outline_of_its_own_area(mask: NDArray[np.bool_]) -> None:
    if not mask.any():
        owners, found = outlines(runs_of_masks([(1, 0, 0, mask)]))
        assert len(owners) == len(found) == 0
        return
    found = outline(mask)
    assert shapely.is_valid(found)
    assert found.area == mask.sum()
    assert shapely.equals(found, pixels_of(mask))
    drawn = rasterise([VectorObject(geometry=found, class_name="a", source_id=1)], (9, 11))
    np.testing.assert_array_equal(drawn[: mask.shape[0], : mask.shape[1]] > 0, mask)


@settings(max_examples=60, deadline=None)
@given(MASKS, st.integers(0, 9), st.integers(0, 11), st.randoms(use_true_random=False))
def test_pieces_in_any_order_give_the_same_bytes(
    mask: NDArray[np.bool_], row: int, col: int, shuffle: "np.random.Generator"
) -> None:
    cuts = [np.s_[:row, :col], np.s_[:row, col:], np.s_[row:, :col], np.s_[row:, col:]]
    corners = [(0, 0), (0, col), (row, 0), (row, col)]
    pieces = [(7, 100 + r, 5000 + c, mask[cut]) for cut, (r, c) in zip(cuts, corners, strict=True)]
    shuffle.shuffle(pieces)
    whole = outlines(runs_of_masks([(7, 100, 5000, mask)]))
    parts = outlines(runs_of_masks(pieces))
    np.testing.assert_array_equal(parts[0], whole[0])
    assert shapely.to_wkb(parts[1]).tolist() == shapely.to_wkb(whole[1]).tolist()


def test_a_ring_that_would_touch_itself_becomes_a_hole() -> None:
    mask = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], dtype=bool)
    found = outline(mask)
    # the empty pixel (1, 1) meets the outside in the corner (2, 2) only
    assert list(found.exterior.coords) == [
        (0, 0), (0, 3), (2, 3), (2, 2), (3, 2), (3, 0), (0, 0),
    ]  # fmt: skip
    (hole,) = found.interiors
    assert set(hole.coords) == {(1, 1), (2, 1), (2, 2), (1, 2)}
    assert shapely.is_valid(found)


def test_parts_that_share_a_corner_stay_apart() -> None:
    found = outline(np.array([[1, 0], [0, 1]], dtype=bool), top=10, left=20)
    assert found.geom_type == "MultiPolygon" and shapely.is_valid(found)
    assert [part.bounds for part in found.geoms] == [(20, 10, 21, 11), (21, 11, 22, 12)]


def test_rings_in_rings_and_touching_holes() -> None:
    mask = np.ones((9, 9), dtype=bool)
    mask[1:8, 1:8] = False
    mask[2:7, 2:7] = True
    mask[3, 3] = mask[4, 4] = False  # two holes that share a corner
    found = outline(mask)
    assert found.geom_type == "MultiPolygon"
    assert [(len(p.interiors), p.area) for p in found.geoms] == [(1, 81 - 49), (2, 23)]
    assert shapely.is_valid(found)


def test_owners_touch_without_mixing() -> None:
    labels = np.array([[5, 5, 2], [5, 2, 2], [0, 2, 5]])
    owners, found = outlines(runs_of_labels(labels))
    assert owners.tolist() == [2, 5]
    assert [g.area for g in found] == [4, 4]
    assert found[0].geom_type == "Polygon" and found[1].geom_type == "MultiPolygon"
    assert shapely.intersection(*found).area == 0
    assert shapely.union_all(found).area == 8


def test_runs_join_whether_they_touch_or_overlap() -> None:
    runs = Runs(*(np.array(v) for v in ([1, 1, 1, 2, 1], [3, 3, 3, 3, 4], [5, 0, 9, 6, 0], [9, 6, 12, 7, 2])))
    found = joined([runs])
    np.testing.assert_array_equal(
        np.stack([found.owner, found.row, found.start, found.stop]), [[1, 1, 2], [3, 4, 3], [0, 0, 6], [12, 2, 7]]
    )


def test_components_are_numbered_by_owner_and_place() -> None:
    labels = np.array([[0, 2, 0, 1], [1, 2, 0, 1], [1, 0, 2, 1], [1, 1, 1, 1]])
    runs = joined([runs_of_labels(labels)])
    part = components(runs)
    assert part.max() == 2  # one of label 1 (a U), two of label 2
    by_run = dict(zip(zip(runs.row.tolist(), runs.start.tolist(), strict=True), part.tolist(), strict=True))
    assert by_run[0, 3] == by_run[1, 0] == by_run[3, 0] == 0
    assert (by_run[0, 1], by_run[1, 1], by_run[2, 2]) == (1, 1, 2)


def test_a_road_across_a_country_needs_no_array_of_its_box() -> None:
    side, tile = 60_000, 1000  # 3.6 gigapixels of box
    step = np.eye(tile, dtype=bool) | np.eye(tile, k=1, dtype=bool)
    pieces = [(1, k * tile, k * tile, step) for k in range(side // tile)]
    pieces += [(1, k * tile - 1, k * tile, np.ones((1, 1), dtype=bool)) for k in range(1, side // tile)]
    found = outline_of(pieces)
    assert found.geom_type == "Polygon"
    assert found.area == sum(int(p[3].sum()) for p in pieces)
    assert found.bounds == (0, 0, side, side)


def outline_of(pieces: list[tuple[int, int, int, NDArray[np.bool_]]]) -> shapely.Geometry:
    return outlines(runs_of_masks(pieces))[1][0]


@pytest.mark.parametrize("name", rasters.TRANSFORMS)
def test_corners_are_those_of_the_transform_and_outer_rings_anticlockwise(name: str) -> None:
    grid = grid_of(rasters.TRANSFORMS[name], CRS.from_epsg(32618), (9, 9))
    mask = np.ones((3, 4), dtype=bool)
    mask[1, 1] = False
    move, turn = world_map(grid)
    _, (found,) = outlines(runs_of_masks([(1, 2, 3, mask)]), move=move, turn=turn)
    assert found.exterior.is_ccw and not found.interiors[0].is_ccw
    expected = point_map(rasters.TRANSFORMS[name])(np.array([[3.0, 2], [7, 2], [7, 5], [3, 5]]))
    got = np.array(found.exterior.coords)[:-1]
    assert {tuple(p) for p in got.tolist()} == {tuple(p) for p in expected.tolist()}


def test_square_metres_of_many_and_of_none() -> None:
    boxes = np.array([shapely.box(4e5, 4e6, 4e5 + 3, 4e6 + 2), shapely.box(0, 0, 1, 1)], dtype=object)
    np.testing.assert_allclose(square_metres(boxes, CRS.from_epsg(32618)), [6, 1], rtol=1e-12)
    assert np.isnan(square_metres(boxes, None)).all()
    assert square_metres(boxes[:0], CRS.from_epsg(32618)).shape == (0,)
    # a square degree at the equator is 12,308.78 square kilometres between geodesics, 0.3 less between parallels
    assert square_metres(boxes[1:], CRS.from_epsg(4326))[0] == pytest.approx(12_308.48e6, rel=1e-5)


def test_simplified_polygons_stay_valid() -> None:
    stairs = np.tril(np.ones((40, 40), dtype=bool))
    ring = np.ones((5, 40), dtype=bool)
    ring[2, 1:-1] = False
    exact = np.array([outline(stairs), outline(ring)], dtype=object)
    same = simplified(exact, 0.0)
    assert same is exact
    coarse = simplified(exact, 1.0)
    assert shapely.get_num_coordinates(coarse)[0] < 10 < shapely.get_num_coordinates(exact)[0]
    assert shapely.is_valid(coarse).all()
    assert shapely.hausdorff_distance(coarse[0], exact[0]) <= 1.0
    with pytest.raises(ConfigError, match="simplification by -1 map units"):
        simplified(exact, -1)


def test_masks_have_two_axes() -> None:
    with pytest.raises(ShapeError, match=r"mask of object 3 is \(4,\)"):
        runs_of_masks([(3, 0, 0, np.ones(4, dtype=bool))])
