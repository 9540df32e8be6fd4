"""Vectors to pixels and back: exact places, holes, fragments, CRS."""

from pathlib import Path

import numpy as np
import pyogrio.raw
import pytest
import shapely
from rasterio.crs import CRS
from rasterio.features import sieve
from rasterio.warp import transform as warp_points

from samgraft.domains.remote_sensing.georeference import equal_area, grid_of
from samgraft.domains.remote_sensing.polygon import polygonise, write_vectors
from samgraft.domains.remote_sensing.raster import RasterScene
from samgraft.domains.remote_sensing.vector import rasterise, rasterise_classes, read_layer, read_vectors
from samgraft.domains.segmentation import InstanceRecord
from samgraft.errors import ConfigError, GeometryError, InputError
from samgraft.grid import Grid
from tests.data import rasters

pytestmark = pytest.mark.remote_sensing
SHAPE = (20, 30)


def record(label: int, class_id: int = 1) -> InstanceRecord:
    return InstanceRecord(id=label, class_id=class_id, score=0.25, box=(0, 0, 1, 1))


def utm_grid(name: str = "north_up", crs: str | None = rasters.UTM) -> Grid:
    return grid_of(rasters.TRANSFORMS[name], CRS.from_user_input(crs) if crs else None, SHAPE)


@pytest.mark.parametrize("name", rasters.TRANSFORMS)
@pytest.mark.parametrize("suffix", [".geojson", ".gpkg"])
def test_instances_survive_the_way_through_a_file(tmp_path: Path, name: str, suffix: str) -> None:
    labels = np.zeros(SHAPE, dtype=np.int32)
    labels[2:9, 3:12] = 7
    labels[4:6, 5:8] = 0  # a hole
    labels[5, 6] = 9  # with something in it
    labels[12:14, 0:3] = labels[12:14, 5:7] = 4  # two fragments
    grid = utm_grid(name)
    found = polygonise(labels, grid, [record(4), record(7, 2), record(9)], {1: "roof", 2: "yard"})
    assert [(f.id, f.class_name, f.area_px) for f in found] == [(4, "roof", 10), (7, "yard", 57), (9, "roof", 1)]
    assert found[0].geometry.geom_type == "MultiPolygon" and len(found[1].geometry.interiors) == 1
    pixel_area = abs(np.linalg.det(grid.affine[:2, :2]))
    np.testing.assert_allclose([f.area for f in found], [f.area_px * pixel_area for f in found], rtol=1e-9)
    write_vectors(tmp_path / f"out{suffix}", found, grid)
    back = read_vectors(tmp_path / f"out{suffix}", grid, class_field="class_name")
    drawn = rasterise(back, SHAPE)
    np.testing.assert_array_equal(np.array([0, 4, 7, 9])[drawn], labels)
    for feature, again in zip(found, back, strict=True):
        corners = shapely.get_coordinates(again.geometry)
        np.testing.assert_allclose(corners, np.round(corners), atol=1e-6)
        assert again.class_name == feature.class_name
    meta = pyogrio.raw.read(tmp_path / f"out{suffix}")[0]
    assert meta["crs"] == "EPSG:32618"
    assert list(meta["fields"]) == ["id", "class", "class_name", "score", "area", "area_px"]


def test_first_vertex_is_the_pixel_corner() -> None:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[5, 7] = 1
    (found,) = polygonise(labels, utm_grid(), classes={1: "a"})
    x, y = 399000.25 + 7 * 0.5, 4500000.75 - 5 * 0.5
    assert found.geometry.bounds == (x, y - 0.5, x + 0.5, y)


def test_semantic_components_join_over_edges_only() -> None:
    labels = np.array([[1, 0, 2], [0, 1, 2], [1, 1, 0]], dtype=np.uint8)
    grid = Grid(shape=(3, 3), affine=np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]]))
    found = polygonise(labels, grid, classes={1: "a", 2: "b"})
    assert [(f.id, f.class_id, f.area_px) for f in found] == [(1, 1, 1), (2, 2, 2), (3, 1, 3)]
    assert found[0].geometry.bounds == (0.0, 0.0, 1.0, 1.0)
    assert all(np.isnan(f.area) and np.isnan(f.score) for f in found)


@pytest.mark.parametrize("seed", range(5))
def test_any_map_gives_valid_polygons_of_the_right_size(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, SHAPE).astype(np.uint8)
    labels = sieve(labels, 3) if seed % 2 else labels
    found = polygonise(labels, utm_grid("rotated"), classes={1: "a", 2: "b"})
    assert all(f.geometry.is_valid for f in found)
    for value in (1, 2):
        assert sum(f.area_px for f in found if f.class_id == value) == (labels == value).sum()
    records = [record(int(v)) for v in np.unique(labels) if v]
    assert all(f.geometry.is_valid for f in polygonise(labels, utm_grid("rotated"), records))


def test_labels_beyond_int32_keep_their_id() -> None:
    labels = np.zeros(SHAPE, dtype=np.uint32)
    labels[0, 0] = 4_000_000_000
    assert polygonise(labels, utm_grid(), [record(4_000_000_000)])[0].id == 4_000_000_000


def test_area_of_geographic_cells() -> None:
    box = np.array([[10.0, 47.0], [11.0, 47.0], [11.0, 48.0], [10.0, 48.0]])
    flat = equal_area(box, CRS.from_epsg(4326))
    assert flat is not None
    # reference: WGS84 zone integral by Simpson's rule over the meridian
    lat = np.radians(np.linspace(47, 48, 2001))
    e2 = 0.0066943799901413165
    density = 6378137.0**2 * (1 - e2) * np.cos(lat) / (1 - e2 * np.sin(lat) ** 2) ** 2 * np.radians(1)
    weights = np.ones(2001)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    expected = float((density * weights).sum() * (lat[1] - lat[0]) / 3)
    assert shapely.Polygon(flat).area == pytest.approx(expected, rel=1e-9)
    assert equal_area(box, None) is None
    feet = equal_area(box, CRS.from_epsg(2263))
    assert feet is not None and feet[0, 0] == pytest.approx(10 * 0.3048006096)


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".fgb"])
def test_empty_result_is_a_valid_file(tmp_path: Path, suffix: str) -> None:
    write_vectors(tmp_path / f"out{suffix}", (), utm_grid())
    assert read_vectors(tmp_path / f"out{suffix}", utm_grid(), class_field="class_name") == ()
    assert pyogrio.raw.read(tmp_path / f"out{suffix}")[0]["crs"] == "EPSG:32618"


def test_crs_without_a_code_goes_to_geopackage_only(tmp_path: Path) -> None:
    grid = utm_grid(crs="+proj=tmerc +lon_0=11.1 +x_0=5 +ellps=GRS80 +units=m")
    labels = np.ones(SHAPE, dtype=np.uint8)
    found = polygonise(labels, grid, classes={1: "a"})
    with pytest.raises(GeometryError, match="GeoJSON names a CRS by its registered code"):
        write_vectors(tmp_path / "out.geojson", found, grid)
    write_vectors(tmp_path / "out.gpkg", found, grid)
    assert rasterise(read_vectors(tmp_path / "out.gpkg", grid), SHAPE).all()
    with pytest.raises(ConfigError, match=r"polygons go to .fgb, .geojson, .gpkg"):
        write_vectors(tmp_path / "out.shp", found, grid)


def test_other_crs_is_reprojected(tmp_path: Path) -> None:
    grid = utm_grid()
    corners = rasters.ring(rasters.NORTH_UP, [(3, 2), (12, 2), (12, 9), (3, 9)])
    x, y = warp_points(CRS.from_epsg(32618), CRS.from_epsg(4326), [c[0] for c in corners], [c[1] for c in corners])
    ring = [list(point) for point in zip(x, y, strict=True)]
    path = rasters.write_geojson(tmp_path / "a.geojson", [{"type": "Polygon", "coordinates": [ring]}], crs=None)
    (found,) = read_vectors(path, grid)
    np.testing.assert_allclose(found.geometry.bounds, (3, 2, 12, 9), atol=1e-3)
    drawn = rasterise([found], SHAPE)
    assert drawn[2:9, 3:12].all() and drawn.sum() == 63


def test_small_objects_stay_on_top_and_windows_agree(tmp_path: Path) -> None:
    t = rasters.NORTH_UP
    shapes = [
        {"type": "Polygon", "coordinates": [rasters.ring(t, [(5, 5), (7, 5), (7, 7), (5, 7)])]},
        {"type": "Polygon", "coordinates": [rasters.ring(t, [(2, 2), (20, 2), (20, 18), (2, 18)])]},
        {"type": "Point", "coordinates": list(t @ (25.5, 10.5))},
        {"type": "Polygon", "coordinates": [rasters.ring(t, [(900, 2), (920, 2), (920, 18)])]},
        None,
    ]
    kinds = [{"kind": k} for k in ("hut", "yard", "tree", "far", "none")]
    path = rasters.write_geojson(tmp_path / "a.geojson", shapes, kinds)
    objects = read_vectors(path, utm_grid(), class_field="kind")
    assert [o.class_name for o in objects] == ["hut", "yard", "tree"]
    drawn = rasterise(objects, SHAPE)
    assert (drawn[5:7, 5:7] == 1).all() and (drawn == 2).sum() == 18 * 16 - 4 and (drawn == 3).sum() == 1
    assert drawn[10, 25] == 3
    assert (rasterise(objects, SHAPE, point_radius=2.5) == 3).sum() > 12
    part = (slice(4, 15), slice(6, 28))
    np.testing.assert_array_equal(rasterise(objects, SHAPE, window=part), drawn[part])
    classes = rasterise_classes(objects, SHAPE, {"yard": 1, "hut": 2, "tree": 3})
    np.testing.assert_array_equal(classes, np.array([0, 2, 1, 3])[drawn])
    with pytest.raises(InputError, match=r"classes \['hut'\]; known: \['tree', 'yard'\]"):
        rasterise_classes(objects, SHAPE, {"yard": 1, "tree": 3})


def test_bow_tie_is_repaired(tmp_path: Path) -> None:
    ring = rasters.ring(rasters.NORTH_UP, [(2, 2), (12, 12), (12, 2), (2, 12)])
    path = rasters.write_geojson(tmp_path / "a.geojson", [{"type": "Polygon", "coordinates": [ring]}])
    (found,) = read_vectors(path, utm_grid())
    assert found.geometry.is_valid and found.geometry.area == pytest.approx(50)


def test_bad_vector_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_layer(tmp_path / "missing.geojson")
    (tmp_path / "cut.geojson").write_text('{"type": "FeatureCollection", "features": [{"type"')
    with pytest.raises(InputError, match="cut.geojson cannot be read as a vector file"):
        read_layer(tmp_path / "cut.geojson")
    point = {"type": "Point", "coordinates": [399001.0, 4500000.0]}
    path = rasters.write_geojson(tmp_path / "a.geojson", [point], [{"kind": "x"}])
    with pytest.raises(InputError, match="has no field 'class'; it has kind"):
        read_layer(path, class_field="class")
    with pytest.raises(GeometryError, match="the image has no CRS"):
        read_vectors(path, utm_grid(crs=None))
    no_crs = utm_grid(crs=None)
    write_vectors(tmp_path / "b.gpkg", polygonise(np.ones(SHAPE, dtype=np.uint8), no_crs, classes={1: "a"}), no_crs)
    assert rasterise(read_vectors(tmp_path / "b.gpkg", no_crs), SHAPE).all()
    with pytest.raises(GeometryError, match="b.gpkg has no CRS"):
        read_vectors(tmp_path / "b.gpkg", utm_grid())
    with pytest.raises(ConfigError, match=r"instances \[1\] without a record"):
        polygonise(np.ones(SHAPE, dtype=np.uint8), utm_grid(), [])


def test_real_polygons_lie_on_their_roofs(shared_data: Path) -> None:
    folder = shared_data / "geo" / "buildings_banepa" / "train"
    scene = RasterScene(folder / "oam" / "OAM-386690-220241-19.tif")
    layer = read_layer(next((folder / "osm").glob("*.geojson")))
    assert len(layer.geometries) == 1466
    objects = layer.on(scene.grid)
    assert len(objects) == 44
    # the blue roof of this chip: its polygon must be bluer inside than in a ring of two pixels around it
    (blue,) = [o.geometry for o in objects if o.geometry.contains(shapely.Point(130, 150))]
    image = scene.read().astype(float)
    excess = image[2] - image[0]
    inside = rasterise([o for o in objects if o.geometry is blue], scene.grid.shape) > 0
    assert excess[inside].mean() > excess[~inside].mean() + 40
    shifts = {}
    for rows in (-6, -3, 0, 3, 6):
        for cols in (-6, -3, 0, 3, 6):
            shifts[rows, cols] = excess[np.roll(inside, (rows, cols), axis=(0, 1))].mean()
    best = max(shifts, key=lambda k: shifts[k])
    assert max(abs(best[0]), abs(best[1])) <= 3
