"""Vector files in batches: the same features in four formats, equal bytes, provenance, nothing left behind."""

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import shapely
from pyogrio import raw
from rasterio.crs import CRS

from samgraft.domains.remote_sensing.georeference import grid_of
from samgraft.domains.remote_sensing.provenance import describe_vectors, read_provenance
from samgraft.domains.remote_sensing.stream_vector import Batch, VectorFile
from samgraft.errors import ConfigError, GeometryError, InputError, MissingDependencyError, OutputError
from samgraft.grid import Grid
from tests.data import rasters

pytestmark = pytest.mark.remote_sensing
SUFFIXES = (".gpkg", ".fgb", ".geojson", ".parquet")
COLUMNS: dict[str, Any] = {"id": np.int64, "class": np.int32, "class_name": object, "score": np.float64}
NOTE = {"model": "graft-tiny", "tiles": {"side": 512}, "Name": "Straße"}


def utm(crs: str | None = rasters.UTM) -> Grid:
    return grid_of(rasters.NORTH_UP, CRS.from_user_input(crs) if crs else None, (50, 60))


def batch(first: int, count: int) -> Batch:
    """Squares with a hole and a score; every third one in two parts and without a score."""
    ids = np.arange(first, first + count)
    shapes = []
    for k in ids.tolist():
        x, y = 399000.1 + 10 * k, 4500000.3 - 7 * (k % 13)
        square = shapely.Polygon([(x, y), (x + 3, y), (x + 3, y + 3), (x, y + 3)], [[(x + 1, y + 1), (x + 1, y + 2), (x + 2, y + 2)]])  # noqa: E501  # fmt: skip
        shapes.append(shapely.MultiPolygon([square, shapely.box(x + 5, y, x + 6, y + 1)]) if k % 3 == 0 else square)
    names = np.array(["Häuser", 'a "b" \\'], dtype=object)[ids % 2]
    scores = np.where(ids % 3 == 0, np.nan, ids / 7)
    columns = {"id": ids, "class": (ids % 2 + 1).astype(np.int32), "class_name": names, "score": scores}
    return Batch(geometry=np.array(shapes, dtype=object), columns=columns)


def write(path: Path, batches: Sequence[Batch], grid: Grid | None = None) -> Path:
    file = VectorFile(path, grid or utm(), COLUMNS)
    file.start()
    for one in batches:
        file.write(one)
        assert not path.exists()
    return file.commit(NOTE)


def features(path: Path) -> tuple[dict[int, shapely.Geometry], dict[int, tuple[Any, ...]], str | None]:
    """Geometries and attributes by id, and the CRS."""
    if path.suffix == ".parquet":
        frame = pytest.importorskip("geopandas").read_parquet(path)
        rows = {
            int(r.id): (r["class"], r.class_name, None if np.isnan(r.score) else r.score) for _, r in frame.iterrows()
        }
        code = None if frame.crs is None else f"EPSG:{frame.crs.to_epsg()}"
        return dict(zip(frame["id"].tolist(), frame.geometry.tolist(), strict=True)), rows, code
    meta, _, geometry, fields = raw.read(path)
    if not len(geometry):  # a GeoJSON without features has no fields
        return {}, {}, meta["crs"]
    values = {name: fields[list(meta["fields"]).index(name)].tolist() for name in COLUMNS}
    triples = zip(values["class"], values["class_name"], values["score"], strict=True)
    rows = {k: (c, n, None if s != s else s) for k, (c, n, s) in zip(values["id"], triples, strict=True)}
    return dict(zip(values["id"], shapely.from_wkb(geometry).tolist(), strict=True)), rows, meta["crs"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_keeps_every_bit(tmp_path: Path, suffix: str) -> None:
    batches = [batch(1, 5), batch(6, 1), batch(7, 20)]
    path = write(tmp_path / f"out{suffix}", batches)
    shapes, rows, crs = features(path)
    assert crs == "EPSG:32618"
    for one in batches:
        for i, k in enumerate(one.columns["id"].tolist()):
            given = shapely.multipolygons([one.geometry[i]] if one.geometry[i].geom_type == "Polygon" else list(one.geometry[i].geoms))  # noqa: E501  # fmt: skip
            got = shapes[k] if shapes[k].geom_type == "MultiPolygon" else shapely.multipolygons([shapes[k]])
            np.testing.assert_array_equal(shapely.get_coordinates(got), shapely.get_coordinates(given))
            score = one.columns["score"][i]
            assert rows[k] == (one.columns["class"][i], one.columns["class_name"][i], None if score != score else score)
    assert len(rows) == 26
    assert read_provenance(path) == NOTE
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


_AGAIN = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[3])
from tests.domains.remote_sensing.test_stream_vector import batch, write
write(Path(sys.argv[1]) / sys.argv[2], [batch(1, 50), batch(51, 150)])
"""


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_equal_features_are_equal_bytes(tmp_path: Path, suffix: str, repo_root: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    here = write(tmp_path / "a" / f"out{suffix}", [batch(1, 50), batch(51, 150)])
    subprocess.run(
        [sys.executable, "-c", _AGAIN, str(tmp_path / "b"), f"out{suffix}", str(repo_root)], check=True, cwd=repo_root
    )
    assert (tmp_path / "b" / f"out{suffix}").read_bytes() == here.read_bytes()


def test_geopackage_has_an_index_and_no_time_of_day(tmp_path: Path) -> None:
    path = write(tmp_path / "out.gpkg", [batch(1, 30)])
    with sqlite3.connect(path) as base:
        assert base.execute("select last_change from gpkg_contents").fetchall() == [("1970-01-01T00:00:00.000Z",)]
        assert base.execute("select count(*) from rtree_segmentation_geom").fetchone() == (30,)
        names = {row[0] for row in base.execute("select name from sqlite_master where type = 'table'")}
    assert {"gpkg_metadata", "gpkg_metadata_reference"} <= names
    near = pyogrio.raw.read(path, bbox=(399010.0, 4499990.0, 399014.0, 4500004.0))[2]
    assert len(near) == 1


def test_geoparquet_says_what_it_is(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = write(tmp_path / "out.parquet", [batch(1, 4), batch(5, 2)])
    footer = parquet.read_metadata(path)
    assert (footer.num_row_groups, footer.num_rows) == (2, 6)
    geo = json.loads(footer.metadata[b"geo"])
    column = geo["columns"]["geometry"]
    assert (geo["version"], geo["primary_column"], column["encoding"]) == ("1.1.0", "geometry", "WKB")
    assert column["crs"]["id"] == {"authority": "EPSG", "code": 32618}
    assert column["geometry_types"] == ["MultiPolygon", "Polygon"]
    np.testing.assert_allclose(column["bbox"], [399010.1, 4500000.3 - 42, 399066.1, 4500003.3 - 7])
    assert column["covering"]["bbox"]["ymax"] == ["bbox", "ymax"]
    assert column["orientation"] == "counterclockwise"
    boxed = Batch(geometry=np.array([shapely.box(0, 0, 1, 1, ccw=False)], dtype=object), columns=batch(1, 1).columns)
    other = json.loads(parquet.read_metadata(write(tmp_path / "b.parquet", [boxed])).metadata[b"geo"])
    assert "orientation" not in other["columns"]["geometry"]
    boxes = parquet.read_table(path, columns=["bbox"])["bbox"].to_pylist()
    assert boxes[0] == {"xmin": 399010.1, "ymin": 4499993.3, "xmax": 399013.1, "ymax": 4499996.3}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_feature_and_no_crs(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"out{suffix}", [batch(1, 0)], utm(None))
    shapes, _, crs = features(path)
    assert shapes == {}
    assert crs is None or suffix == ".geojson"  # readers take a GeoJSON without a crs member for WGS84
    assert read_provenance(path) == NOTE
    assert " 0 features" in describe_vectors(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_given_up_files_vanish(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    path.write_text("old")
    file = VectorFile(path, utm(), COLUMNS)
    file.start()
    file.write(batch(1, 9))
    assert len(list(tmp_path.iterdir())) > 1
    file.abort()
    file.abort()
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_text() == "old"
    with pytest.raises(OutputError, match="was not started, or is finished"):
        file.write(batch(1, 1))
    with pytest.raises(ConfigError, match=r"columns are \['id'\]; the file was begun with"):
        file.write(Batch(geometry=batch(1, 1).geometry, columns={"id": np.array([1])}))


def test_what_cannot_be_written_is_said_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"out.shp: polygons go to .fgb, .geojson, .gpkg, .json, .parquet"):
        VectorFile(tmp_path / "out.shp", utm(), COLUMNS)
    odd = utm("+proj=tmerc +lon_0=11.1 +x_0=5 +ellps=GRS80 +units=m")
    with pytest.raises(GeometryError, match="GeoJSON names a CRS by its registered code"):
        VectorFile(tmp_path / "out.geojson", odd, COLUMNS)
    with pytest.raises(OutputError, match="folder .* does not exist"):
        VectorFile(tmp_path / "no" / "out.gpkg", utm(), COLUMNS).start()
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingDependencyError, match=r"GeoParquet needs pyarrow; pip install 'samgraft\[geo\]'"):
        VectorFile(tmp_path / "out.parquet", utm(), COLUMNS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".parquet"])
def test_crs_without_a_code_is_kept_whole(tmp_path: Path, suffix: str) -> None:
    text = "+proj=tmerc +lon_0=11.1 +x_0=5 +ellps=GRS80 +units=m"
    path = write(tmp_path / f"out{suffix}", [batch(1, 2)], utm(text))
    if suffix == ".parquet":
        crs = CRS.from_wkt(pytest.importorskip("geopandas").read_parquet(path).crs.to_wkt())
    else:
        crs = CRS.from_user_input(raw.read(path)[0]["crs"])
    assert crs == CRS.from_user_input(text)


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".geojson"])
def test_gdal_reads_the_files(tmp_path: Path, suffix: str) -> None:
    if shutil.which("ogrinfo") is None:
        pytest.skip("no ogrinfo on this machine (apt install gdal-bin)")
    path = write(tmp_path / f"out{suffix}", [batch(1, 30)])
    done = subprocess.run(["ogrinfo", "-al", "-so", str(path)], capture_output=True, text=True, check=True)
    assert "Feature Count: 30" in done.stdout and "WGS 84 / UTM zone 18N" in done.stdout
    told = [line for line in done.stderr.splitlines() if "may only be partially supported" not in line]
    assert told == []  # GDAL before 3.7 remarks on any GeoPackage 1.4


def test_provenance_of_other_files(tmp_path: Path) -> None:
    plain = rasters.write_geojson(tmp_path / "a.geojson", [None])
    assert read_provenance(plain) is None
    (tmp_path / "a.txt").write_text("x")
    assert read_provenance(tmp_path / "a.txt") is None
    with pytest.raises(InputError, match="does not exist"):
        read_provenance(tmp_path / "b.gpkg")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cut.parquet cannot be read as Parquet"):
        read_provenance(tmp_path / "cut.parquet")
    path = write(tmp_path / "out.gpkg", [batch(1, 3)])
    assert describe_vectors(path) == (
        "<polygons 'out.gpkg': GPKG, 3 features, MultiPolygon, EPSG:32618, fields id, class, class_name, score>"
    )


def test_a_long_note_is_found_at_the_end_of_a_geojson(tmp_path: Path) -> None:
    file = VectorFile(tmp_path / "out.geojson", utm(), COLUMNS)
    file.start()
    file.write(batch(1, 3))
    note = {"failed_tiles": ["x" * 100] * 3000, "text": '\n],\n"samgraft":{}'}
    assert read_provenance(file.commit(note)) == note
