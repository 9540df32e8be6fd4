"""Ground distances, and transforms from ground control points."""

import math
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS

from samgraft.domains.remote_sensing.georeference import affine_of_gcps, grid_of, ground_step, point_map, transform_of
from samgraft.domains.remote_sensing.polygon import polygonise
from samgraft.domains.remote_sensing.raster import RasterScene
from samgraft.errors import GeometryError
from samgraft.grid import Grid
from tests.data import rasters

pytestmark = pytest.mark.remote_sensing

UTM33 = CRS.from_epsg(32633)


def test_ground_step_of_metres_is_theirs_within_the_projections_scale() -> None:
    # on the central meridian the scale of UTM is 0.9996: one metre on the map is 1.0004 m on the ground
    grid = grid_of(Affine(0.5, 0, 500_000, 0, -0.25, 5_000_000), UTM33, (40, 20))
    row, col = ground_step(grid) or (0, 0)
    assert row == pytest.approx(0.25 / 0.9996, rel=1e-4) and col == pytest.approx(0.5 / 0.9996, rel=1e-4)


@pytest.mark.parametrize("latitude", [0.0, 47.0, -60.0])
def test_ground_step_of_degrees(latitude: float) -> None:
    size = 1e-5
    grid = grid_of(Affine(size, 0, 11.0, 0, -size, latitude + 5 * size), CRS.from_epsg(4326), (10, 10))
    row, col = ground_step(grid) or (0, 0)
    # lengths of one degree on WGS84 from the usual series (Snyder's tables agree to a metre)
    phi = math.radians(latitude)
    along = 111132.92 - 559.82 * math.cos(2 * phi) + 1.175 * math.cos(4 * phi)
    across = 111412.84 * math.cos(phi) - 93.5 * math.cos(3 * phi) + 0.118 * math.cos(5 * phi)
    assert row == pytest.approx(along * size, rel=1e-5) and col == pytest.approx(across * size, rel=1e-5)


def test_ground_step_of_web_mercator_is_that_of_the_ground() -> None:
    y = 6378137.0 * math.log(math.tan(math.pi / 4 + math.radians(60.0) / 2))
    grid = grid_of(Affine(1.0, 0, 0, 0, -1.0, y), CRS.from_epsg(3857), (2, 2))
    row, col = ground_step(grid) or (0, 0)
    assert row == pytest.approx(0.5, rel=0.01) and col == pytest.approx(0.5, rel=0.01)


def test_ground_step_across_the_antimeridian_and_without_a_world() -> None:
    there = grid_of(Affine(0.01, 0, 179.95, 0, -0.01, 0.05), CRS.from_epsg(4326), (10, 10))
    assert ground_step(there) == pytest.approx((1105.74, 1113.19), rel=1e-5)
    assert ground_step(grid_of(Affine(0.5, 0, 9, 0, -0.5, 9), None, (4, 4))) is None
    assert ground_step(Grid(shape=(4, 4), affine=np.diag([1.0, 1.0, 1.0]))) is None


def test_rotated_pixels_have_their_own_size() -> None:
    turned = Affine.translation(500_000, 5_000_000) @ Affine.rotation(30) @ Affine.scale(0.7, -0.3)
    row, col = ground_step(grid_of(turned, UTM33, (30, 30))) or (0, 0)
    assert (row, col) == pytest.approx((0.3 / 0.9996, 0.7 / 0.9996), rel=1e-4)


@pytest.mark.parametrize("name", rasters.TRANSFORMS)
def test_gcps_of_a_transform_give_it_back(name: str) -> None:
    transform = rasters.TRANSFORMS[name]
    spots = [(0, 0), (0, 900), (700, 0), (700, 900), (350, 450), (13, 77)]
    points = [GroundControlPoint(row=r, col=c, x=(transform @ (c, r))[0], y=(transform @ (c, r))[1]) for r, c in spots]
    found, error = affine_of_gcps(points)
    assert error < 1e-6
    corners = np.array([[0.0, 0.0], [900.0, 0.0], [0.0, 700.0], [900.0, 700.0], [123.0, 456.0]])
    expected = point_map(transform)(corners)
    # coordinates of 4.5 million metres have a last digit of 9.3e-10
    np.testing.assert_allclose(point_map(found)(corners), expected, rtol=0, atol=2e-9)


def test_gcps_that_bend_say_by_how_much() -> None:
    spots = [(0, 0), (0, 10), (10, 0), (10, 10)]
    points = [GroundControlPoint(row=r, col=c, x=c + (2.0 if (r, c) == (10, 10) else 0.0), y=-r) for r, c in spots]
    found, error = affine_of_gcps(points)
    assert error == pytest.approx(0.5, abs=0.15)  # a misfit of 2 at one of four corners is shared by all
    with pytest.raises(GeometryError, match="2 ground control points; an affine transform needs at least 3"):
        affine_of_gcps(points[:2])
    line = [GroundControlPoint(row=i, col=i, x=i, y=i) for i in range(4)]
    with pytest.raises(GeometryError, match="4 ground control points lie on one line"):
        affine_of_gcps(line)


PLACES = {
    **{name: (transform, rasters.UTM) for name, transform in rasters.TRANSFORMS.items()},
    "no_crs": (rasters.TRANSFORMS["rotated"], None),
    "degrees": (Affine(1e-5, 0, 84.5, 0, -0.9e-5, 27.6), "EPSG:4326"),
    "beyond_180": (Affine(0.01, 0, 179.9, 0, -0.01, 0.2), "EPSG:4326"),
}


@pytest.mark.parametrize("name", [*PLACES, "gcp"])
def test_polygons_lie_where_the_analytic_affine_puts_them(tmp_path: Path, name: str) -> None:
    labels = np.zeros((20, 30), dtype=np.uint8)
    labels[3:17, 5:21] = 1
    labels[8:11, 9:14] = 0
    if name == "gcp":
        transform = Affine(0.25, 0.0, 10.125, 0.0, -0.5, 50.25)
        path = rasters.write_gcp_raster(tmp_path / "g.tif", transform, (20, 30))
    else:
        transform, crs = PLACES[name]
        path = rasters.write_raster(tmp_path / "a.tif", rasters.pixels(), transform=transform, crs=crs)
    grid = RasterScene(path).grid
    assert transform_of(grid) == transform
    (found,) = polygonise(labels, grid)
    a, b, c, d, e, f = transform[:6]
    for ring, corners in (
        (found.geometry.exterior, [(5, 3), (21, 3), (21, 17), (5, 17)]),
        (found.geometry.interiors[0], [(9, 8), (14, 8), (14, 11), (9, 11)]),
    ):
        expected = {(a * x + b * y + c, d * x + e * y + f) for x, y in corners}
        assert len(ring.coords) == 5
        for x, y in ring.coords:
            assert min(max(abs(x - u), abs(y - v)) for u, v in expected) <= 1e-9
