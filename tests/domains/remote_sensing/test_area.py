"""Areas of interest as validity."""

import copy
from pathlib import Path

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.warp import transform_geom

from samgraft.domains.opening import open_scene
from samgraft.domains.remote_sensing.area import AreaScene
from samgraft.domains.remote_sensing.raster import RasterScene
from samgraft.errors import GeometryError, InputError
from tests.data import rasters

pytestmark = pytest.mark.remote_sensing

CORNERS = [(5.0, 3.0), (21.0, 3.0), (21.0, 17.0), (5.0, 17.0)]


def polygon(transform: Affine, corners: list[tuple[float, float]] = CORNERS) -> dict[str, object]:
    return {"type": "Polygon", "coordinates": [rasters.ring(transform, corners)]}


def expected() -> np.ndarray:
    inside = np.zeros((20, 30), dtype=bool)
    inside[3:17, 5:21] = True
    return inside


@pytest.mark.parametrize("name", rasters.TRANSFORMS)
@pytest.mark.parametrize("crs", [rasters.UTM, "EPSG:4326", "EPSG:3857"])
def test_pixels_count_where_their_centre_lies_inside(tmp_path: Path, name: str, crs: str) -> None:
    transform = rasters.TRANSFORMS[name]
    path = rasters.write_raster(tmp_path / "a.tif", rasters.pixels(), transform=transform)
    shape = transform_geom(rasters.UTM, crs, polygon(transform)) if crs != rasters.UTM else polygon(transform)
    aoi = rasters.write_geojson(tmp_path / "aoi.geojson", [shape], crs=crs)
    scene = open_scene(path, aoi=aoi)
    assert isinstance(scene, AreaScene) and scene.grid == RasterScene(path).grid
    np.testing.assert_array_equal(scene.valid(), expected())
    array, valid = scene.read_valid((slice(2, 9), slice(0, 8)), [1])
    np.testing.assert_array_equal(valid, expected()[2:9, 0:8])
    np.testing.assert_array_equal(array[0], rasters.pixels()[1, 2:9, 0:8])
    assert aoi in scene.files and "only inside aoi.geojson" in repr(scene)


def test_validity_of_the_file_counts_too_and_the_rest_is_not_read(tmp_path: Path) -> None:
    array = rasters.pixels((1, 20, 30))
    array[0, 5] = 0
    path = rasters.write_raster(tmp_path / "a.tif", array, nodata=0)
    scene = open_scene(path, aoi=rasters.write_geojson(tmp_path / "a.json", [polygon(rasters.NORTH_UP)]))
    assert isinstance(scene, AreaScene)
    wanted = expected()
    wanted[5] = False
    np.testing.assert_array_equal(scene.valid(), wanted)
    assert scene.area.bounds() == (slice(3, 17), slice(5, 21))
    assert scene.area.touches((slice(0, 4), slice(0, 6))) and not scene.area.touches((slice(0, 2), slice(0, 30)))
    assert not scene.touches((slice(18, 20), slice(0, 30))) and scene.touches((slice(16, 20), slice(0, 30)))
    path.unlink()  # outside the area the file is not even opened
    assert not scene.valid((slice(18, 20), slice(0, 30))).any()
    with pytest.raises(InputError):
        scene.valid((slice(0, 5), slice(0, 30)))


def test_mask_does_not_depend_on_the_window(tmp_path: Path) -> None:
    star = [(3.3, 1.2), (25.1, 18.7), (0.5, 9.9), (29.7, 8.2), (6.4, 19.6)]
    path = rasters.write_raster(tmp_path / "a.tif", rasters.pixels((1, 20, 30)))
    aoi = rasters.write_geojson(tmp_path / "a.geojson", [polygon(rasters.NORTH_UP, star)])
    scene = copy.deepcopy(open_scene(path, aoi=aoi))
    whole = scene.valid()
    assert 20 < whole.sum() < 400

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 19), st.integers(0, 29), st.integers(1, 20), st.integers(1, 30))
    def check(top: int, left: int, height: int, width: int) -> None:
        part = (slice(top, min(20, top + height)), slice(left, min(30, left + width)))
        np.testing.assert_array_equal(scene.valid(part), whole[part])

    check()


@pytest.mark.parametrize("turn", [-360.0, 0.0, 360.0])
def test_longitudes_beyond_180_meet_those_below(tmp_path: Path, turn: float) -> None:
    transform = Affine(0.01, 0, 179.9, 0, -0.01, 0.2)
    path = rasters.write_raster(tmp_path / "a.tif", rasters.pixels(), crs="EPSG:4326", transform=transform)
    there = Affine.translation(turn, 0) @ transform
    aoi = rasters.write_geojson(tmp_path / "a.geojson", [polygon(there)], crs="EPSG:4326")
    np.testing.assert_array_equal(open_scene(path, aoi=aoi).valid(), expected())


def test_projected_raster_across_the_antimeridian(tmp_path: Path) -> None:
    transform = Affine(1000.0, 0, 805_000, 0, -1000.0, 8_240_000)  # UTM 60 south, 180 degrees at about x = 821 km
    path = rasters.write_raster(tmp_path / "a.tif", rasters.pixels(), crs="EPSG:32760", transform=transform)
    parts = [
        shapely.geometry.mapping(shapely.box(*bounds))
        for bounds in ((179.95, -15.99, 180.0, -15.95), (-180.0, -15.99, -179.95, -15.95), (10.0, 40.0, 11.0, 41.0))
    ]
    aoi = rasters.write_geojson(tmp_path / "a.geojson", parts, crs="EPSG:4326")
    valid = open_scene(path, aoi=aoi).valid()
    columns = np.flatnonzero(valid.any(axis=0))
    assert 9 <= len(columns) <= 12 and (np.diff(columns) == 1).all()  # a tenth of a degree is 10.7 km
    assert CRS.from_epsg(32760).is_projected


def test_an_area_far_larger_than_the_raster_is_cut(tmp_path: Path) -> None:
    path = rasters.write_raster(tmp_path / "a.tif", rasters.pixels())
    world = shapely.geometry.mapping(shapely.box(-180, -90, 180, 90))
    assert open_scene(path, aoi=rasters.write_geojson(tmp_path / "w.geojson", [world], crs="EPSG:4326")).valid().all()


def test_wrong_areas_are_named(tmp_path: Path) -> None:
    path = rasters.write_raster(tmp_path / "a.tif", rasters.pixels())
    away = rasters.write_geojson(tmp_path / "away.geojson", [polygon(Affine.translation(9e3, 0) @ rasters.NORTH_UP)])
    with pytest.raises(InputError, match="away.geojson: none of its 1 polygons touches the raster"):
        open_scene(path, aoi=away)
    with pytest.raises(InputError, match="none.geojson does not exist"):
        open_scene(path, aoi=tmp_path / "none.geojson")
    no_crs = rasters.write_raster(tmp_path / "n.tif", rasters.pixels(), crs=None)
    with pytest.raises(GeometryError, match="the image has no CRS"):
        open_scene(no_crs, aoi=away)


def test_a_polygon_of_many_corners_is_drawn_in_pieces(tmp_path: Path) -> None:
    angles = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)
    radius = 130 + 20 * np.sin(7 * angles) + 0.3 * np.sin(900 * angles)
    corners = [(170 + r * np.cos(a), 160 + r * np.sin(a)) for r, a in zip(radius, angles, strict=True)]
    path = rasters.write_raster(
        tmp_path / "a.tif", np.ones((1, 320, 340), np.uint8), transform=Affine(2, 0, 8, 0, -2, 8)
    )
    shape = polygon(Affine(2, 0, 8, 0, -2, 8), corners)
    scene = open_scene(path, aoi=rasters.write_geojson(tmp_path / "a.geojson", [shape]))
    assert isinstance(scene, AreaScene)
    x, y = np.meshgrid(np.arange(340) + 0.5, np.arange(320) + 0.5)
    inside = shapely.contains_xy(shapely.Polygon(corners), x, y)
    np.testing.assert_array_equal(scene.valid(), inside)
    assert len(scene.area._polygons) > 40
    assert max(shapely.get_num_coordinates(scene.area._polygons)) <= 512


def test_the_stretch_is_that_of_the_whole_raster(tmp_path: Path) -> None:
    path = rasters.write_raster(tmp_path / "a.tif", rasters.pixels((1, 20, 30), "uint16"))
    scene = open_scene(path, aoi=rasters.write_geojson(tmp_path / "a.geojson", [polygon(rasters.NORTH_UP)]))
    assert isinstance(scene, AreaScene)
    np.testing.assert_array_equal(scene.sample().values, RasterScene(path).sample().values)
    small, valid = scene.overview(150)
    assert valid.shape == (10, 15) and valid[3:7, 4:9].all() and not valid[:1].any()
