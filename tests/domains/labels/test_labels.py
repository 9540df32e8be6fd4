"""Labels by window: cut objects, points in metres, every file format, COCO of many files, label rasters."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS

from samgraft.domains.labels.files import LabelChoice, read_labels
from samgraft.domains.labels.source import UNKNOWN, ObjectLabels, windows_of
from samgraft.domains.remote_sensing.opener import open_raster
from samgraft.errors import GeometryError, InputError
from tests.data import rasters

pytestmark = pytest.mark.remote_sensing
PLACE = Affine(0.5, 0.0, 400_000.0, 0.0, -0.25, 5_000_000.0)
WINDOW = (slice(0, 10), slice(0, 10))


def objects(*shapes: Any, **options: Any) -> ObjectLabels:
    return ObjectLabels(np.array(shapes, dtype=object), np.ones(len(shapes), dtype=np.int32), {1: "a"}, **options)


def scene(tmp_path: Path, shape: tuple[int, int] = (40, 60), transform: Affine = PLACE, name: str = "r.tif") -> Any:
    return open_raster(rasters.write_raster(tmp_path / name, np.ones((1, *shape), np.uint8), transform=transform))


def polygon(transform: Affine, x0: float, y0: float, x1: float, y1: float) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [rasters.ring(transform, [(x0, y0), (x1, y0), (x1, y1), (x0, y1)])]}


def test_object_at_the_edge_of_a_window_is_cut() -> None:
    drawn = objects(shapely.box(8, 2, 14, 6)).draw(WINDOW, "instance")  # a third of it is seen
    expected = np.zeros((10, 10))
    expected[2:6, 8:10] = 1
    assert (drawn == expected).all()


@pytest.mark.parametrize(("least", "value"), [(0.33, 1), (0.34, UNKNOWN)])
def test_a_sliver_is_unknown(least: float, value: int) -> None:
    labels = objects(shapely.box(8, 2, 14, 6), shapely.box(0, 0, 3, 3), least_visible=least)
    drawn = labels.draw(WINDOW, "instance")
    assert (drawn == UNKNOWN).sum() == (8 if value == UNKNOWN else 0) and (drawn[:3, :3] > 0).all()
    assert (labels.draw(WINDOW, "semantic") == 1).sum() == 17


def test_pieces_of_one_object_that_a_window_cuts_apart_are_two() -> None:
    u = shapely.union_all([shapely.box(2, 0, 3, 20), shapely.box(6, 0, 7, 20), shapely.box(2, 18, 7, 20)])
    drawn = objects(u).draw(WINDOW, "instance")
    assert drawn[0, 2] > 0 and drawn[0, 6] > 0 and drawn[0, 2] != drawn[0, 6]
    assert len(np.unique(drawn)) == 3
    whole = objects(u).draw((slice(0, 20), slice(0, 10)), "instance")
    assert np.unique(whole).tolist() == [0, 1]


def test_hidden_objects_and_crowds_are_unknown_and_small_ones_lie_on_top() -> None:
    labels = objects(shapely.box(4, 4, 6, 6), shapely.box(0, 0, 9, 9), unknown=np.array([shapely.box(0, 0, 10, 1)]))
    hidden = labels.touching(windows_of((slice(5, 6), slice(5, 6)))) & (shapely.area(labels.geometries) < 5)
    drawn = labels.draw(WINDOW, "instance", hidden=hidden)
    assert (drawn[4:6, 4:6] == UNKNOWN).all() and (drawn[0] == UNKNOWN).all()
    assert (drawn[1:9, 1:4] == 1).all() and (drawn[9] == 0).all()


def test_presence_and_area_of_windows() -> None:
    labels = ObjectLabels(
        np.array([shapely.box(0, 0, 4, 2), shapely.box(10, 10, 12, 12)], dtype=object),
        np.array([2, 1], dtype=np.int32),
        {1: "a", 2: "b"},
    )
    windows = windows_of((slice(0, 10), slice(0, 2)), (slice(2, 10), slice(0, 10)), (slice(0, 20), slice(0, 20)))
    assert labels.presence(windows).tolist() == [[False, True], [False, False], [True, True]]
    np.testing.assert_allclose(labels.area(windows), [[0, 4], [0, 0], [4, 8]], atol=0.02)
    assert labels.count(windows[:1]) == 1


def gpkg(path: Path, frame: Any) -> Path:
    frame.to_file(path, driver="GPKG")
    return path


def fgb(path: Path, frame: Any) -> Path:
    frame.to_file(path, driver="FlatGeobuf")
    return path


def parquet(path: Path, frame: Any) -> Path:
    frame.to_parquet(path)
    return path


@pytest.mark.parametrize("crs", ["EPSG:32618", "EPSG:4326", "EPSG:3857"])
@pytest.mark.parametrize(("suffix", "write"), [(".gpkg", gpkg), (".fgb", fgb), (".parquet", parquet)])
def test_every_format_in_every_crs_gives_the_same_pixels(
    tmp_path: Path, suffix: str, write: Callable[[Path, Any], Path], crs: str
) -> None:
    places = [(3, 5, 11, 12), (20, 8, 45, 30)]
    shapes = [shapely.geometry.shape(polygon(PLACE, *place)) for place in places]
    frame = geopandas.GeoDataFrame({"what": ["roof", "pool"]}, geometry=shapes, crs=rasters.UTM).to_crs(crs)
    path = write(tmp_path / f"labels{suffix}", frame)
    labels = read_labels(path, scene(tmp_path), LabelChoice(kind="semantic", class_field="what"))
    assert labels.names == {1: "pool", 2: "roof"}
    expected = np.zeros((40, 60))
    expected[5:12, 3:11], expected[8:30, 20:45] = 2, 1
    assert (labels.draw((slice(0, 40), slice(0, 60)), "semantic") == expected).all()


def test_parquet_without_crs_is_longitude_and_latitude(tmp_path: Path) -> None:
    from samgraft.domains.remote_sensing.geoparquet import read_crs
    from samgraft.domains.remote_sensing.vector import read_layer

    frame = geopandas.GeoDataFrame({"n": [1]}, geometry=[shapely.box(0, 0, 1, 1)], crs="OGC:CRS84")
    path = parquet(tmp_path / "a.parquet", frame)
    assert read_crs(path) == CRS.from_user_input("OGC:CRS84")
    assert read_layer(path, class_field="n").class_names == ("1",)
    with pytest.raises(InputError, match="has no field 'kind'; it has n"):
        read_layer(path, class_field="kind")


def test_points_are_discs_of_metres(tmp_path: Path) -> None:
    x, y = PLACE @ (20, 10)
    path = rasters.write_geojson(tmp_path / "stems.geojson", [{"type": "Point", "coordinates": [x, y]}])
    drawn = read_labels(path, scene(tmp_path), LabelChoice(point_m=1.0)).draw((slice(0, 40), slice(0, 60)), "instance")
    assert np.flatnonzero(drawn[9]).tolist() == [18, 19, 20, 21]  # half a metre a column
    assert np.flatnonzero(drawn[:, 20]).tolist() == list(range(6, 14))  # a quarter of a metre a row
    assert drawn[6, 18] == 0
    with pytest.raises(InputError, match=r"1 of 1 features have no area, such as a Point; .*data\.point_m"):
        read_labels(path, scene(tmp_path), LabelChoice())
    bare = open_raster(rasters.write_raster(tmp_path / "n.tif", np.ones((1, 40, 60), np.uint8), crs=None))
    plain = rasters.write_geojson(tmp_path / "p.geojson", [{"type": "Point", "coordinates": [x, y]}], crs=None)
    with pytest.raises((GeometryError, InputError)):
        read_labels(plain, bare, LabelChoice(point_m=1.0))


def test_a_box_as_ellipse_has_its_area(tmp_path: Path) -> None:
    path = rasters.write_geojson(tmp_path / "b.geojson", [polygon(PLACE, 10, 4, 50, 34)])
    drawn = read_labels(path, scene(tmp_path), LabelChoice(boxes_as="ellipse")).draw(
        (slice(0, 40), slice(0, 60)), "instance"
    )
    assert abs(drawn.sum() / (np.pi / 4 * 40 * 30) - 1) < 0.02
    assert drawn[5, 11] == 0 and drawn[19, 11] == 1 and drawn[5, 30] == 1


def test_only_wanted_classes_are_kept(tmp_path: Path) -> None:
    shapes = [polygon(PLACE, 3, 5, 11, 12), polygon(PLACE, 20, 8, 45, 30)]
    path = rasters.write_geojson(tmp_path / "l.geojson", shapes, [{"k": "ship"}, {"k": "pier"}])
    labels = read_labels(path, scene(tmp_path), LabelChoice(class_field="k", classes=("ship",)))
    assert labels.draw((slice(0, 40), slice(0, 60)), "instance").sum() == 8 * 7
    with pytest.raises(InputError, match="none of its objects of boat touches r.tif; it has pier, ship"):
        read_labels(path, scene(tmp_path), LabelChoice(class_field="k", classes=("boat",)))


def test_a_folder_of_label_files_is_one(tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    for number, place in enumerate([(3, 5, 11, 12), (20, 8, 45, 30)]):
        rasters.write_geojson(folder / f"{number}.geojson", [polygon(PLACE, *place)])
    drawn = read_labels(folder, scene(tmp_path), LabelChoice()).draw((slice(0, 40), slice(0, 60)), "semantic")
    assert drawn.sum() == 8 * 7 + 25 * 22
    with pytest.raises(InputError, match="holds no label file"):
        read_labels(tmp_path, scene(tmp_path), LabelChoice())


def test_coco_of_two_chips_becomes_one_mosaic(tmp_path: Path) -> None:
    east = PLACE @ Affine.translation(60, 0)
    files = [scene(tmp_path, name="west.tif").path, scene(tmp_path, transform=east, name="east.tif").path]
    both = open_raster(files)
    outline = [2.0, 20.0, 8.0, 20.0, 8.0, 24.0, 2.0, 24.0]
    content = {
        "images": [
            {"id": 7, "file_name": "chips/west.png", "width": 60, "height": 40},
            {"id": 9, "file_name": "east.tif", "width": 60, "height": 40},
            {"id": 11, "file_name": "elsewhere.tif", "width": 60, "height": 40},
        ],
        "categories": [{"id": 3, "name": "ship"}, {"id": 4, "name": "car"}],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 3, "bbox": [5, 6, 10, 4]},
            {"id": 2, "image_id": 7, "category_id": 4, "bbox": [0, 0, 1, 1], "segmentation": [outline]},
            {"id": 3, "image_id": 7, "category_id": 4, "bbox": [50, 30, 10, 10], "iscrowd": 1},
            {"id": 4, "image_id": 11, "category_id": 4, "bbox": [0, 0, 9, 9]},
        ],
    }
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(content))
    labels = read_labels(path, both, LabelChoice(kind="semantic"))
    assert labels.names == {1: "car", 2: "ship"}
    drawn = labels.draw((slice(0, 40), slice(0, 120)), "semantic")
    expected = np.zeros((40, 120))
    expected[6:10, 65:75], expected[20:24, 2:8], expected[30:40, 50:60] = 2, 1, UNKNOWN
    assert (drawn == expected).all()
    content["images"][1]["height"] = 41
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="knows east.tif as 60 x 41 pixels; the file has 60 x 40"):
        read_labels(path, both, LabelChoice())
    with pytest.raises(InputError, match="none is a file of the raster"):
        read_labels(path, scene(tmp_path, name="other.tif"), LabelChoice())


def test_a_raster_of_labels_on_another_grid(tmp_path: Path) -> None:
    classes = np.zeros((1, 40, 60), dtype=np.uint8)
    classes[0, :20, 30:], classes[0, 30:, :10], classes[0, 35:, 50:] = 4, 9, 255
    half = classes[:, ::2, ::2]
    coarse = PLACE @ Affine.scale(2, 2)
    path = rasters.write_raster(tmp_path / "classes.tif", half, transform=coarse, nodata=255)
    labels = read_labels(path, scene(tmp_path), LabelChoice(kind="semantic"))
    assert labels.names == {1: "class 4", 2: "class 9"}
    drawn = labels.draw((slice(0, 40), slice(0, 60)), "semantic")
    assert (drawn[:20, 30:] == 1).all() and (drawn[30:, :10] == 2).all() and (drawn[20:30] == 0).all()
    assert (drawn[36:, 50:] == UNKNOWN).all()
    windows = windows_of((slice(0, 20), slice(0, 60)), (slice(20, 30), slice(0, 60)))
    assert labels.area(windows).tolist() == [[600, 0], [0, 0]]
    named = read_labels(path, scene(tmp_path), LabelChoice(kind="semantic", classes=("a", "b", "c", "water")))
    assert (named.draw((slice(0, 20), slice(30, 60)), "semantic") == 4).all()
    parts = read_labels(path, scene(tmp_path), LabelChoice(kind="instance"))
    assert np.unique(parts.draw((slice(0, 30), slice(0, 60)), "instance")).tolist() == [0, 1]
