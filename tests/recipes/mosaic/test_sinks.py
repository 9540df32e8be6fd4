"""Sinks: objects in pieces to polygons, planning of outputs, style, provenance, samgraft info."""

import json
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from pyogrio import raw
from rasterio.crs import CRS

from samgraft.domains.remote_sensing.georeference import grid_of, point_map
from samgraft.domains.remote_sensing.palette import class_color
from samgraft.domains.remote_sensing.provenance import read_provenance
from samgraft.domains.remote_sensing.raster import RasterScene
from samgraft.domains.remote_sensing.vector import rasterise, read_vectors
from samgraft.errors import ConfigError, GeometryError, OutputError
from samgraft.grid import Grid
from samgraft.recipes.commands import info
from samgraft.recipes.mosaic.drawing import MARK, draw_outlines
from samgraft.recipes.mosaic.objects import MosaicObject, Piece, hull
from samgraft.recipes.mosaic.outputs import plan_sinks
from samgraft.recipes.mosaic.plan import plan_tiles
from samgraft.recipes.mosaic.provenance import Provenance
from samgraft.recipes.mosaic.sink import Sink
from samgraft.recipes.mosaic.style import style_document
from samgraft.recipes.mosaic.vector_sink import TILE_COLUMNS, VectorSink
from tests.data import rasters

pytestmark = pytest.mark.remote_sensing
CLASSES = {1: "roof", 3: "yard"}
SHAPE = (60, 80)


def utm(name: str = "north_up", shape: tuple[int, int] = SHAPE) -> Grid:
    return grid_of(rasters.TRANSFORMS[name], CRS.from_user_input(rasters.UTM), shape)


def label_map() -> NDArray[np.int32]:
    """Five objects: with a hole, in two parts, across the whole width, one pixel, in a hole."""
    labels = np.zeros(SHAPE, dtype=np.int32)
    labels[2:20, 3:30] = 1
    labels[5:10, 8:20] = 0
    labels[7, 9] = 2
    labels[25:28, :] = 3
    labels[40:44, 10:14] = labels[44:50, 14:20] = 4
    labels[59, 79] = 5
    return labels


def objects(labels: NDArray[np.int32], cut: int) -> list[MosaicObject]:
    """The objects of a label map, cut into pieces at multiples of ``cut``."""
    found = []
    for value in np.unique(labels[labels > 0]).tolist():
        pieces = []
        for top in range(0, SHAPE[0], cut):
            for left in range(0, SHAPE[1], cut):
                mask = labels[top : top + cut, left : left + cut] == value
                if mask.any():
                    part = (slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1]))
                    pieces.append(Piece.of(part, mask))
        box = hull([piece.part for piece in pieces])
        facts: dict[str, Any] = {"id": value, "class_id": 1 if value % 2 else 3, "score": np.float32(value) / 10}
        area = int((labels == value).sum())
        found.append(MosaicObject(**facts, tiles=len(pieces), box=box, area_px=area, parts=tuple(pieces)))
    return found


def filled(sink: Sink, grid: Grid, labels: NDArray[np.int32], cut: int = 16) -> Path:
    """Give a sink all that there is."""
    sink.start(grid, CLASSES, {"model": "x", "failed": 0}, count=5)
    try:
        if sink.takes == "objects":
            for one in objects(labels, cut):
                sink.add(one)
        elif sink.takes == "rows":
            for top in range(0, SHAPE[0], cut):
                part = labels[top : top + cut]
                sink.rows(slice(top, top + len(part)), part, (part * 40).astype(np.uint8))
        assert not sink.path.exists()
        return sink.commit({"failed": 2})
    finally:
        sink.abort()


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".geojson"])
@pytest.mark.parametrize("name", ["north_up", "rotated", "south_up"])
def test_polygons_are_the_pixels(tmp_path: Path, suffix: str, name: str) -> None:
    grid, labels = utm(name), label_map()
    path = filled(VectorSink(tmp_path / f"out{suffix}"), grid, labels)
    found = read_vectors(path, grid, class_field="class_name")
    meta, _, geometry, fields = raw.read(path)
    assert list(meta["fields"]) == list(TILE_COLUMNS)
    column = dict(zip(TILE_COLUMNS, fields, strict=True))
    drawn = np.array([0, *column["id"]])[rasterise(found, SHAPE)]
    np.testing.assert_array_equal(drawn, labels)
    order = np.argsort(column["id"])
    assert column["class_name"][order].tolist() == ["roof", "yard", "roof", "yard", "roof"]
    assert column["score"][order].tolist() == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert column["area_px"][order].tolist() == [18 * 27 - 60, 1, 240, 16 + 36, 1]
    step = abs(np.linalg.det(grid.affine[:2, :2]))
    np.testing.assert_allclose(column["area"], column["area_px"] * step, rtol=1e-9)
    assert column["tiles"][order].tolist() == [4, 1, 5, 4, 1]
    shapes = shapely.from_wkb(geometry)[order]
    assert shapely.is_valid(shapes).all()
    corner = point_map(rasters.TRANSFORMS[name])(np.array([[79.0, 59.0], [80.0, 60.0]]))
    last = shapely.get_coordinates(shapes[4])
    for wanted in corner:
        assert np.abs(last - wanted).max(axis=1).min() < 1e-9
    assert read_provenance(path) == {"model": "x", "failed": 2}


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".geojson", ".parquet"])
def test_tiling_changes_nothing_but_the_tile_count(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, labels = utm(), label_map()
    first = filled(VectorSink(tmp_path / f"a{suffix}"), grid, labels, cut=100)
    monkeypatch.setattr("samgraft.recipes.mosaic.vector_sink.BATCH", 2)
    second = filled(VectorSink(tmp_path / f"b{suffix}"), grid, labels, cut=100)
    third = filled(VectorSink(tmp_path / f"c{suffix}"), grid, labels, cut=7)
    if suffix != ".parquet":  # whose batches are row groups
        assert first.read_bytes() == second.read_bytes()
        assert sorted(raw.read(third)[2].tolist()) == sorted(raw.read(first)[2].tolist())
        return
    geopandas = pytest.importorskip("geopandas")
    one, two, three = (geopandas.read_parquet(path) for path in (first, second, third))
    assert one.equals(two)
    assert one.geometry.to_wkb().tolist() == three.geometry.to_wkb().tolist()


def test_simplification_is_asked_for_in_map_units(tmp_path: Path) -> None:
    labels = np.tril(np.ones(SHAPE, dtype=np.int32))
    exact, coarse = (
        shapely.from_wkb(raw.read(filled(VectorSink(tmp_path / f"{s}.gpkg", simplify=s), utm(), labels))[2])[0]
        for s in (0.0, 0.5)
    )
    assert shapely.get_num_coordinates(exact) > 100 > 20 > shapely.get_num_coordinates(coarse)
    assert shapely.hausdorff_distance(exact, coarse) <= 0.5


def test_rasters_of_ids_and_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid, labels = utm(), label_map()
    outputs = [tmp_path / "ids.tif", tmp_path / "out.gpkg"]
    for sink in plan_sinks(outputs, grid, CLASSES, kind="instance", scores=tmp_path / "score.tif"):
        filled(sink, grid, labels)
    ids = RasterScene(tmp_path / "ids.tif")
    assert (ids.dtype, ids.grid.nodata) == (np.uint8, 0)
    np.testing.assert_array_equal(ids.read()[0], labels)
    np.testing.assert_allclose(RasterScene(tmp_path / "score.tif").read()[0], labels * 40 / 255, rtol=1e-6)
    assert read_provenance(tmp_path / "score.tif") == {"model": "x", "failed": 2}
    info.run([str(tmp_path / "ids.tif")])
    line, text = capsys.readouterr().out.split("\n", 1)
    assert line.startswith("<raster 'ids.tif': GeoTIFF, H=60, W=80, 1 channel uint8")
    assert json.loads(text) == {"model": "x", "failed": 2}
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["ids.qml", "ids.tif", "out.gpkg", "out.qml", "score.qml", "score.tif"]


def test_one_style_serves_files_that_share_a_name(tmp_path: Path) -> None:
    grid = utm()
    outputs = [tmp_path / "out.tif", tmp_path / "out.gpkg", tmp_path / "out.geojson"]
    sinks = plan_sinks(outputs, grid, CLASSES, kind="semantic")
    assert [sink.path.name for sink in sinks] == ["out.tif", "out.gpkg", "out.geojson", "out.qml"]
    labels = np.array([0, 1, 3, 1, 3, 1])[label_map()].astype(np.int32)
    for sink in sinks:
        filled(sink, grid, labels)
    root = ET.fromstring((tmp_path / "out.qml").read_text().split("\n", 1)[1])
    renderer = root.find("renderer-v2")
    assert renderer is not None and renderer.get("type") == "categorizedSymbol"
    meta, _, _, fields = raw.read(tmp_path / "out.gpkg")
    values = fields[list(meta["fields"]).index(str(renderer.get("attr")))]
    categories = {int(c.get("value", "")): c.get("label") for c in renderer.iter("category")}
    assert categories == CLASSES and set(values.tolist()) <= set(categories)
    symbols = {s.get("name"): s for s in renderer.iter("symbol")}
    for place, label in enumerate(CLASSES):
        options = {o.get("name"): o.get("value") for o in symbols[str(place)].iter("Option") if o.get("name")}
        assert options["outline_color"] == ",".join(str(v) for v in class_color(label))
    entries = {int(e.get("value", "")): (e.get("label"), e.get("alpha")) for e in root.iter("paletteEntry")}
    assert entries == {0: ("background", "0"), 1: ("roof", "255"), 3: ("yard", "255")}
    assert RasterScene(tmp_path / "out.tif").grid.nodata == 255


READ = {
    "renderer-v2": {"type", "attr", "forceraster", "symbollevels", "enableorderby"},
    "category": {"value", "type", "symbol", "label", "render"},
    "symbol": {"type", "name", "alpha", "clip_to_extent", "force_rhr"},
    "layer": {"class", "pass", "locked", "enabled"},
    "rasterrenderer": {"type", "band", "opacity", "alphaBand", "nodataColor", "grayBand", "gradient"}
    | {"classificationMin", "classificationMax"},
    "paletteEntry": {"value", "color", "alpha", "label"},
    "colorrampshader": {"colorRampType", "classificationMode", "clip", "minimumValue", "maximumValue"},
    "item": {"value", "color", "alpha", "label"},
}
"""Element -> attributes that QGIS reads (see ``Source`` of style.py)."""


@pytest.mark.parametrize("content", ["classes", "ids", "scores"])
def test_a_style_uses_only_what_qgis_reads(content: Any) -> None:
    root = ET.fromstring(style_document(CLASSES, vector=True, raster=content, count=9).split("\n", 1)[1])
    for name, attributes in READ.items():
        for element in root.iter(name):
            assert set(element.attrib) <= attributes, name
    for category in root.iter("category"):
        assert category.get("type") == "long" and int(category.get("value", "")) in CLASSES  # an int32 column
        assert category.get("render") == "true"
    names = [symbol.get("name") for symbol in root.iter("symbol")]
    assert names == [category.get("symbol") for category in root.iter("category")] and len(names) == len(CLASSES)
    assert {layer.get("class") for layer in root.iter("layer")} == {"SimpleFill"}
    assert root.findtext("layerGeometryType") == "2"  # polygons
    kinds = {"classes": "paletted", "ids": "singlebandpseudocolor", "scores": "singlebandgray"}
    assert [one.get("type") for one in root.iter("rasterrenderer")] == [kinds[content]]


def test_styles_of_ids_and_of_odd_names() -> None:
    text = style_document({1: 'a "b" <c> & ä'}, vector=True, raster="ids", count=4000)
    root = ET.fromstring(text.split("\n", 1)[1])
    assert [c.get("label") for c in root.iter("category")] == ['a "b" <c> & ä']
    stops = [float(item.get("value", "nan")) for item in root.iter("item")]
    assert (stops[0], stops[-1]) == (1, 4000) and stops == sorted(stops)
    with pytest.raises(ConfigError, match="a style for nothing"):
        style_document({1: "a"}, vector=False)


@pytest.mark.parametrize(
    ("outputs", "options", "error", "message"),
    [
        ([], {}, ConfigError, "no output; name at least one file"),
        (["a.shp"], {}, ConfigError, r"a.shp: unknown suffix '.shp'; a mosaic is written as .fgb, .geojson"),
        (["a.gpkg", "b.gpkg", "a.gpkg"], {}, ConfigError, "a.gpkg: named twice as output"),
        (["a.tif"], {"scores": "a.tif"}, ConfigError, "a.tif: named twice as output"),
        (["no/a.gpkg"], {}, OutputError, "folder .* does not exist; create it first"),
        (["a.gpkg"], {"simplify": -1.0}, ConfigError, "simplification by -1.0 map units"),
        (["a.tif"], {"scores": "b.png"}, ConfigError, "b.png: label rasters go to .tif"),
    ],
)
def test_bad_outputs_are_named_before_the_run(
    tmp_path: Path, outputs: list[str], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    if "scores" in options:
        options = options | {"scores": tmp_path / options["scores"]}
    with pytest.raises(error, match=message):
        plan_sinks([tmp_path / name for name in outputs], utm(), CLASSES, kind="semantic", **options)
    assert list(tmp_path.iterdir()) == []


def test_grids_and_folders_that_cannot_take_a_result(tmp_path: Path) -> None:
    odd = grid_of(rasters.NORTH_UP, CRS.from_user_input("+proj=tmerc +lon_0=11.1 +x_0=5 +ellps=GRS80"), SHAPE)
    with pytest.raises(GeometryError, match="GeoJSON names a CRS by its registered code"):
        plan_sinks([tmp_path / "a.geojson"], odd, CLASSES, kind="instance")
    with pytest.raises(ConfigError, match="class label 70000 cannot be stored"):
        plan_sinks([tmp_path / "a.tif"], utm(), {70_000: "x"}, kind="semantic")
    (tmp_path / "a.gpkg").mkdir()
    with pytest.raises(OutputError, match="a.gpkg is a folder"):
        plan_sinks([tmp_path / "a.gpkg"], utm(), CLASSES, kind="instance")
    closed = Path("/proc/self/a.gpkg")
    if not closed.parent.is_dir():
        pytest.skip("no /proc to try an unwritable folder on")
    with pytest.raises(OutputError, match="cannot write /proc/self/a.gpkg: .*choose a folder that is writable"):
        plan_sinks([closed], utm(), CLASSES, kind="instance")


def test_sinks_refuse_what_they_do_not_take(tmp_path: Path) -> None:
    vector, raster, style = plan_sinks([tmp_path / "a.gpkg", tmp_path / "a.tif"], utm(), CLASSES, kind="instance")
    assert (vector.takes, raster.takes, style.takes) == ("objects", "rows", "nothing")
    with pytest.raises(ConfigError, match="a.gpkg: takes objects, no pixels"):
        vector.rows(slice(0, 1), None)
    for sink in (raster, style):
        with pytest.raises(ConfigError, match="takes .*, no objects"):
            sink.add(objects(label_map(), 50)[0])
        with pytest.raises(OutputError, match="was not started"):
            sink.commit()


def test_provenance_has_no_folder_and_no_hour(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plan = plan_tiles(SHAPE, 32, 8)
    told = Provenance(
        source="/home/x/mosaic.tif",
        grid=utm(),
        model="graft-tiny",
        bands=("red", "nir"),
        plan=plan,
        failed_tiles=({"tile": 3, "reason": "truncated"},),
        further={"kind": "instance"},
    ).to_dict()
    assert told["source"] == "mosaic.tif" and told["bands"] == ["red", "nir"] and "adapter" not in told
    assert told["grid"] == {
        "shape": [60, 80],
        "transform": [0.5, 0.0, 399000.25, 0.0, -0.5, 4500000.75],
        "crs": "EPSG:32618",
        "nodata": None,
    }
    sink = VectorSink(tmp_path / "out.gpkg")
    sink.start(utm(), CLASSES, told)
    info.run([str(sink.commit())])
    line, text = capsys.readouterr().out.split("\n", 1)
    assert line.startswith("<polygons 'out.gpkg': GPKG, 0 features, MultiPolygon, EPSG:32618, fields id, class,")
    back = json.loads(text)
    assert back == json.loads(json.dumps(told))
    assert back["tiles"]["digest"] == plan.digest() and back["failed_tiles"][0]["tile"] == 3


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet"])
def test_outlines_are_drawn_where_they_lie(tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    gray = np.full((3, *SHAPE), 100, dtype=np.uint8)
    scene = RasterScene(rasters.write_raster(tmp_path / "a.tif", gray, transform=rasters.TRANSFORMS["rotated"]))
    path = filled(VectorSink(tmp_path / f"out{suffix}"), scene.grid, label_map())
    drawn = draw_outlines(scene, path, side=800)
    assert drawn.picture.shape == (600, 800, 3) and drawn.shown == 5
    changed = (drawn.picture != 100).any(axis=2)
    edges = np.zeros(SHAPE, dtype=bool)
    labels = label_map()
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    # left edge of object 1: column 3, rows 2 to 20, that is x = 30 in the picture
    assert changed[25:195, 30].all() and not changed[25:195, 20].any() and not changed[110:190, 60].any()
    assert tuple(drawn.picture[100, 30]) == class_color(1)[:3]
    part = draw_outlines(scene, path, window=(slice(56, 60), slice(76, 80)), side=400, marked=[(slice(0, 58), slice(0, 78))])  # noqa: E501  # fmt: skip
    assert part.shown == 1 and part.picture.shape == (400, 400, 3)
    assert tuple(part.picture[100, 200]) == MARK
    saved = part.save(tmp_path / "out.png")
    assert saved.read_bytes()[:4] == b"\x89PNG" and os.path.getsize(saved) > 100
