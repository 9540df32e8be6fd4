"""RasterScene: headers, windows, validity, bad files; the label GeoTIFF writer."""

import multiprocessing
import os
import resource
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp

from samgraft.domains.remote_sensing.georeference import UNKNOWN_CRS, crs_of, transform_of
from samgraft.domains.remote_sensing.label_raster import write_label_geotiff
from samgraft.domains.remote_sensing.palette import class_colors
from samgraft.domains.remote_sensing.raster import RasterScene, gdal_window
from samgraft.domains.remote_sensing.vrt import resamples
from samgraft.errors import GeometryError, InputError, OutputError, ShapeError
from samgraft.grid import Grid
from tests.data import rasters

pytestmark = pytest.mark.remote_sensing


@pytest.mark.parametrize("name", rasters.TRANSFORMS)
def test_pixel_corners_map_as_in_gdal(tmp_path: Path, name: str) -> None:
    transform = rasters.TRANSFORMS[name]
    scene = RasterScene(rasters.write_raster(tmp_path / "a.tif", rasters.pixels(), transform=transform))
    stored = rasterio.open(scene.path).transform
    assert transform_of(scene.grid) == stored
    for row, col in ((0, 0), (3, 7), (20, 30)):
        x, y = stored @ (col, row)
        np.testing.assert_allclose(scene.grid.to_world(np.array([row, col], dtype=float)), [x, y], rtol=0, atol=1e-9)
    assert scene.grid.anchor == "corner"
    assert crs_of(scene.grid) == CRS.from_epsg(32618)


@pytest.mark.parametrize("name", rasters.TRANSFORMS)
def test_window_equals_part_of_whole(tmp_path: Path, name: str) -> None:
    array = rasters.pixels((4, 40, 33), "uint16")
    path = rasters.write_raster(
        tmp_path / "a.tif", array, transform=rasters.TRANSFORMS[name], tiled=True, blockxsize=16, blockysize=16
    )
    scene = RasterScene(path)
    np.testing.assert_array_equal(scene.read(), array)
    window = (slice(5, 29), slice(11, 33))
    np.testing.assert_array_equal(scene.read(window, [2, 0]), array[[2, 0], 5:29, 11:33])
    with pytest.raises(ShapeError, match="expected 0 <= start < stop <= 40"):
        scene.read((slice(30, 41), slice(0, 3)))


def test_header_is_known_without_pixels(tmp_path: Path) -> None:
    colors = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    array = rasters.pixels((4, 20, 30))
    array[3] = 255
    array[3, :4] = 0
    scene = RasterScene(rasters.write_raster(tmp_path / "a.tif", array, colors=colors))
    assert (scene.kind, scene.channels, scene.dtype, scene.format) == ("raster", 3, np.dtype("uint8"), "GeoTIFF")
    assert scene.channel_names == ("red", "green", "blue")
    assert scene.value_range == (0.0, 255.0)
    assert not scene.is_loaded
    assert "UTM zone 18N" in repr(scene)
    assert not scene.valid()[:4].any() and scene.valid()[4:].all()


def test_bands_are_chosen_by_gdal_number(tmp_path: Path) -> None:
    array = rasters.pixels((8, 6, 7), "uint16")
    path = rasters.write_raster(tmp_path / "a.tif", array, names=[f"B{n}" for n in range(1, 9)])
    scene = RasterScene(path, bands=(5, 3, 2))
    assert scene.channel_names == ("B5", "B3", "B2")
    np.testing.assert_array_equal(scene.read(), array[[4, 2, 1]])
    with pytest.raises(InputError, match="band 0 asked; the file has bands 1 to 8"):
        RasterScene(path, bands=(0, 9))


def test_nodata_counts_only_where_all_channels_have_it(tmp_path: Path) -> None:
    array = rasters.pixels((3, 6, 7))
    array[:, 0, 0] = 0
    array[0, 1, 1] = 0
    path = rasters.write_raster(tmp_path / "a.tif", array)
    assert RasterScene(path).valid().all()
    marked = RasterScene(path, nodata=0)
    assert marked.grid.nodata == 0
    assert not marked.valid()[0, 0] and marked.valid().sum() == 41
    assert marked.valid((slice(0, 2), slice(0, 3))).tolist() == [[False, True, True], [True, True, True]]


@pytest.mark.parametrize("nodata", [float("nan"), -9999.0, None])
def test_nan_is_never_valid(tmp_path: Path, nodata: float | None) -> None:
    array = rasters.pixels((1, 6, 7), "float32")
    array[0, 2, 3] = np.nan
    array[0, 4, 4] = -9999.0
    scene = RasterScene(rasters.write_raster(tmp_path / "a.tif", array, nodata=nodata))
    assert not scene.valid()[2, 3]
    assert scene.valid()[4, 4] == (nodata != -9999.0)
    assert scene.valid().sum() == 42 - 1 - (nodata == -9999.0)


def test_mask_band_is_seen(tmp_path: Path) -> None:
    mask = np.full((20, 30), 255, dtype=np.uint8)
    mask[5:9, 3:6] = 0
    scene = RasterScene(rasters.write_raster(tmp_path / "a.tif", rasters.pixels(), mask=mask))
    np.testing.assert_array_equal(scene.valid(), mask > 0)


def test_all_nodata_opens_and_is_nowhere_valid(tmp_path: Path) -> None:
    path = rasters.write_raster(tmp_path / "a.tif", np.zeros((2, 9, 9), dtype=np.uint16), nodata=0)
    assert not RasterScene(path).valid().any()


def test_scale_and_offset_of_the_header_are_applied(tmp_path: Path) -> None:
    array = rasters.pixels((2, 5, 6), "uint16")
    scene = RasterScene(rasters.write_raster(tmp_path / "a.tif", array, scale=(0.5, -10.0)))
    assert scene.dtype == np.float32
    np.testing.assert_array_equal(scene.read(), (array * 0.5 - 10).astype(np.float32))


def test_no_crs_keeps_the_transform(tmp_path: Path) -> None:
    path = rasters.write_raster(tmp_path / "a.tif", rasters.pixels(), crs=None, transform=rasters.TRANSFORMS["rotated"])
    scene = RasterScene(path)
    assert scene.grid.world == UNKNOWN_CRS
    assert transform_of(scene.grid) == rasters.TRANSFORMS["rotated"]
    assert not scene.frame_known


def test_vrt_and_cog(tmp_path: Path) -> None:
    array = rasters.pixels((3, 600, 530), "uint16")
    path = rasters.write_raster(tmp_path / "a.tif", array)
    rasterio.shutil.copy(path, tmp_path / "a_cog.tif", driver="COG", compress="deflate", blocksize=256)
    rasterio.shutil.copy(path, tmp_path / "a.vrt", driver="VRT")
    plain = RasterScene(path)
    for other in (RasterScene(tmp_path / "a_cog.tif"), RasterScene(tmp_path / "a.vrt")):
        assert other.grid == plain.grid
        np.testing.assert_array_equal(other.read((slice(500, 600), slice(0, 77))), array[:, 500:, :77])
    thumbnail, valid = RasterScene(tmp_path / "a_cog.tif").overview(10_000)
    assert thumbnail.shape[1] * thumbnail.shape[2] <= 10_000 and valid.all()


Place = tuple[float, float, float, float]
"""Column, row, width and height of a source in a VRT."""


def placed(path: Path, *places: Place, mask: bool = False) -> str:
    """A VRT of 700 columns and 600 rows that shows the 640 x 640 pixels of a file at one or more places."""
    source = ""
    for x, y, width, height in places:
        source += f"""<ComplexSource resampling="bilinear"><SourceFilename>{path}</SourceFilename>
          <SourceBand>1</SourceBand><SrcRect xOff="0" yOff="0" xSize="640" ySize="640"/>
          <DstRect xOff="{x}" yOff="{y}" xSize="{width}" ySize="{height}"/></ComplexSource>"""
    covered = f"<MaskBand><VRTRasterBand dataType='Byte'>{source}</VRTRasterBand></MaskBand>" if mask else ""
    return f"""<VRTDataset rasterXSize="700" rasterYSize="600"><SRS>EPSG:32633</SRS>
      <GeoTransform>500000,1,0,5000000,0,-1</GeoTransform>{covered}
      <VRTRasterBand dataType="Byte" band="1">{source}</VRTRasterBand></VRTDataset>"""


@pytest.mark.parametrize("mask", [False, True])
def test_a_vrt_between_pixels_has_one_value_per_pixel(tmp_path: Path, mask: bool) -> None:
    values = np.random.default_rng(0).integers(1, 255, (1, 640, 640), dtype=np.uint8)
    path = rasters.write_raster(tmp_path / "a.tif", values)
    places = ((0.0, -340.0, 640.0, 640.0028), (0.0, 300.0028, 640.0, 640.0056))
    (tmp_path / "a.vrt").write_text(placed(path, *places, mask=mask))
    scene = RasterScene(tmp_path / "a.vrt")
    whole, valid = scene.read_valid()
    differ = 0
    for row, col in product(range(180, 320, 20), (0, 250)):
        window = (slice(row, row + 150), slice(col, col + 450))
        part, known = scene.read_valid(window)
        assert np.array_equal(part, whole[(..., *window)]) and np.array_equal(known, valid[window])
        assert np.array_equal(scene.read(window), part) and np.array_equal(scene.valid(window), known)
        with rasterio.open(tmp_path / "a.vrt") as source:
            differ += int((source.read(1, window=gdal_window(window)) != whole[0][window]).sum())
    assert differ > 0  # what GDAL gives by itself


def test_vrts_that_copy_pixels_are_read_as_they_are(tmp_path: Path) -> None:
    path = rasters.write_raster(tmp_path / "a.tif", np.zeros((1, 640, 640), np.uint8))
    cases = {"same": (20, 30, 640, 640), "scaled": (20, 30, 641, 640), "moved": (20.5, 30, 640, 640)}
    found = {}
    for name, place in cases.items():
        (tmp_path / f"{name}.vrt").write_text(placed(path, place))
        found[name] = resamples(tmp_path / f"{name}.vrt")
    assert found == {"same": False, "scaled": True, "moved": True}
    for name in ("same", "moved"):
        outer = placed(tmp_path / f"{name}.vrt", (0, 0, 640, 640))
        (tmp_path / f"outer_{name}.vrt").write_text(outer)
        assert resamples(tmp_path / f"outer_{name}.vrt") == found[name]
    rasterio.shutil.copy(path, tmp_path / "copy.vrt", driver="VRT")
    assert not resamples(tmp_path / "copy.vrt") and not resamples(path)


def test_source_that_a_vrt_misses_is_named(tmp_path: Path) -> None:
    path = rasters.write_raster(tmp_path / "gone.tif", rasters.pixels())
    rasterio.shutil.copy(path, tmp_path / "a.vrt", driver="VRT")
    scene = RasterScene(tmp_path / "a.vrt")
    path.unlink()
    with pytest.raises(InputError, match=r"a\.vrt: rows 0 to 20, columns 0 to 30 cannot be read .*gone\.tif"):
        scene.read()


def test_boundless_reads_are_never_asked_for(repo_root: Path) -> None:
    # on a rotated transform rasterio fills them with wrong pixels
    for folder in ("domains", "recipes"):
        for file in (repo_root / folder).rglob("*.py"):
            assert "boundless=" not in file.read_text(), file


def test_bands_of_different_dtype_are_widened(tmp_path: Path) -> None:
    low = rasters.write_raster(tmp_path / "low.tif", rasters.pixels((1, 8, 9)))
    high = rasters.write_raster(tmp_path / "high.tif", rasters.pixels((1, 8, 9), "int16"))
    vrt = f"""<VRTDataset rasterXSize="9" rasterYSize="8"><GeoTransform>0,1,0,8,0,-1</GeoTransform>
      <VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename>{low}</SourceFilename></SimpleSource>
      </VRTRasterBand><VRTRasterBand dataType="Int16" band="2"><SimpleSource><SourceFilename>{high}</SourceFilename>
      </SimpleSource></VRTRasterBand></VRTDataset>"""
    (tmp_path / "both.vrt").write_text(vrt)
    scene = RasterScene(tmp_path / "both.vrt")
    assert scene.dtype == np.int16
    np.testing.assert_array_equal(scene.read()[0], rasters.pixels((1, 8, 9))[0])


def test_threads_and_processes_may_share_a_scene(tmp_path: Path) -> None:
    array = rasters.pixels((3, 128, 128), "uint16")
    scene = RasterScene(rasters.write_raster(tmp_path / "a.tif", array, tiled=True, blockxsize=32, blockysize=32))
    windows = [(slice(r, r + 20), slice(c, c + 20)) for r in range(0, 100, 10) for c in range(0, 100, 10)]
    workers = (
        ThreadPoolExecutor(4),
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")),
    )
    for pool in workers:
        with pool:
            for (rows, cols), part in zip(windows, pool.map(scene.read, windows), strict=True):
                np.testing.assert_array_equal(part, array[:, rows, cols])


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        RasterScene(tmp_path / "missing.tif")
    (tmp_path / "text.tif").write_text("no raster")
    with pytest.raises(InputError, match=r"text.tif cannot be opened as a raster"):
        RasterScene(tmp_path / "text.tif")
    with pytest.raises(InputError, match="9 ground control points and has no transform.*gdalwarp"):
        RasterScene(rasters.write_gcp_raster(tmp_path / "gcp.tif", bend=1.0))
    with pytest.raises(InputError, match="placed by RPCs.*orthorectify"):
        RasterScene(rasters.write_rpc_raster(tmp_path / "rpc.tif"))
    with pytest.raises(InputError, match=r"bands \[1\] hold complex numbers"):
        RasterScene(rasters.write_raster(tmp_path / "sar.tif", np.ones((1, 4, 4), dtype=np.complex64)))


@pytest.mark.parametrize("compress", ["none", "deflate", "jpeg"])
def test_truncated_file_names_the_window(tmp_path: Path, compress: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (3, 256, 256), dtype=np.uint8)
    path = rasters.write_raster(
        tmp_path / "a.tif", noise, compress=compress, tiled=True, blockxsize=64, blockysize=64, interleave="pixel"
    )
    rasters.truncate(path, 0.5)
    with pytest.raises(
        InputError, match=r"a\.tif(: rows 192 to 256, columns 192 to 256 cannot be read| cannot be opened)"
    ):
        RasterScene(path).read((slice(192, 256), slice(192, 256)))


def test_truncated_jpeg_under_a_tif_name_is_an_error(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (3, 64, 64), dtype=np.uint8)
    path = rasters.write_raster(tmp_path / "a.tif", noise)
    jpeg = tmp_path / "chip.tif"
    rasterio.shutil.copy(path, jpeg, driver="JPEG")
    assert RasterScene(jpeg).format == "JPEG"
    rasters.truncate(jpeg, 0.6)
    with pytest.raises(InputError, match="rows 0 to 64, columns 0 to 64 cannot be read"):
        RasterScene(jpeg).read()


def test_file_that_changes_its_size_is_an_error(tmp_path: Path) -> None:
    scene = RasterScene(rasters.write_raster(tmp_path / "a.tif", rasters.pixels((1, 9, 9))))
    rasters.write_raster(tmp_path / "a.tif", rasters.pixels((1, 5, 9)))
    with pytest.raises(InputError, match="changed on disk"):
        scene.read()


@pytest.mark.parametrize("name", rasters.TRANSFORMS)
@pytest.mark.parametrize(
    ("crs", "top"),
    [
        (rasters.UTM, 1),
        (rasters.UTM, 256),
        (None, 255),
        ("+proj=tmerc +lon_0=11.1 +x_0=5 +ellps=GRS80 +units=m", 70_000),
    ],
)
def test_label_geotiff_keeps_grid_and_labels(tmp_path: Path, name: str, crs: str | None, top: int) -> None:
    source = rasters.write_raster(tmp_path / "a.tif", rasters.pixels(), transform=rasters.TRANSFORMS[name], crs=crs)
    grid = RasterScene(source).grid
    labels = np.zeros((20, 30), dtype=np.int64)
    labels[3:5, 4:9] = top
    write_label_geotiff(tmp_path / "out.tif", labels, grid, tags={"adapter": "x"})
    written = RasterScene(tmp_path / "out.tif")
    assert written.grid == grid
    assert written.dtype == {1: np.uint8, 255: np.uint8, 256: np.uint16, 70_000: np.uint32}[top]
    np.testing.assert_array_equal(written.read_labels(), labels)
    with rasterio.open(written.path) as stored:
        assert stored.nodata is None
        assert stored.tags()["SAMGRAFT_ADAPTER"] == "x"
    assert [p.name for p in tmp_path.iterdir() if "part" in p.name] == []


def test_label_geotiff_of_a_semantic_map_has_colours(tmp_path: Path) -> None:
    grid = RasterScene(rasters.write_raster(tmp_path / "a.tif", rasters.pixels((1, 300, 300)))).grid
    labels = np.arange(300 * 300).reshape(300, 300) % 3
    write_label_geotiff(tmp_path / "out.tif", labels, grid, {1: "roof", 2: "road"})
    with rasterio.open(tmp_path / "out.tif") as stored:
        colors = stored.colormap(1)
        assert stored.tags()["SAMGRAFT_CLASSES"] == '{"1": "roof", "2": "road"}'
        assert (stored.profile["tiled"], stored.profile["compress"]) == (True, "deflate")
    assert [colors[i] for i in range(3)] == [(0, 0, 0, 255), class_colors(2)[1], class_colors(2)[2]]
    assert len(set(class_colors(254).values())) > 200


def test_label_geotiff_refuses_what_it_cannot_keep(tmp_path: Path) -> None:
    grid = Grid(shape=(4, 5), affine=np.diag([1.0, 1.0, 1.0]), world="not a CRS", anchor="corner")
    with pytest.raises(GeometryError, match="'not a CRS' is not a coordinate reference system"):
        write_label_geotiff(tmp_path / "out.tif", np.zeros((4, 5), dtype=np.uint8), grid)
    volume = Grid(shape=(2, 4, 5), affine=np.eye(4), world="RAS")
    with pytest.raises(GeometryError, match="3D grid in 'RAS' has no map transform"):
        write_label_geotiff(tmp_path / "out.tif", np.zeros((2, 4, 5), dtype=np.uint8), volume)
    with pytest.raises(ShapeError, match=r"labels are \(4, 4\)"):
        write_label_geotiff(tmp_path / "out.tif", np.zeros((4, 4), dtype=np.uint8), grid)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_output_leaves_nothing(tmp_path: Path) -> None:
    grid = RasterScene(rasters.write_raster(tmp_path / "a.tif", rasters.pixels())).grid
    with pytest.raises(OutputError, match="folder .* does not exist"):
        write_label_geotiff(tmp_path / "no" / "out.tif", np.zeros((20, 30), dtype=np.uint8), grid)


_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from samgraft.domains.remote_sensing.raster import RasterScene, gdal_window
from samgraft.domains.remote_sensing.vrt import resamples
from samgraft.domains.segmentation import InstanceRecord, Segmentation
from samgraft.errors import OutputError
folder = Path(sys.argv[1])
grid = RasterScene(folder / "a.tif").grid
labels = np.arange(1, 30 * 30 + 1).reshape(30, 30)
records = tuple(InstanceRecord(id=int(v), class_id=1, score=1.0, box=(0, 0, 1, 1)) for v in labels[labels > 0])
result = Segmentation(labels=labels, grid=grid, kind="instance", classes={1: "a"}, instances=records)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
try:
    result.save(folder / sys.argv[2])
except OutputError as error:
    print("OutputError", str(error)[:80])
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on file size")
@pytest.mark.parametrize("name", ["out.tif", "out.gpkg", "out.geojson", "out.fgb", "out.parquet"])
def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, name: str) -> None:
    rasters.write_raster(tmp_path / "a.tif", rasters.pixels((1, 30, 30)))
    (tmp_path / name).write_text("old")
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(tmp_path), name], capture_output=True, text=True, check=False, env=env
    )
    assert done.stdout.startswith("OutputError cannot write"), done.stderr[-500:]
    assert (tmp_path / name).read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a.tif", name])


REAL = [
    ("geo/buildings_banepa/train/oam/OAM-386690-220241-19.tif", 3, "uint8"),
    ("geo/buildings_rio_8band/8band/8band_013022223130_Public_img1.tif", 8, "uint16"),
    ("geo/buildings_rio_8band/3band/3band_013022223130_Public_img1.tif", 3, "uint8"),
    ("geo/geotiff_cases/rotated.tif", 1, "uint8"),
    ("geo/geotiff_cases/all-nodata.tif", 4, "uint16"),
    ("geo/geotiff_cases/alpha.tif", 3, "uint8"),
    ("geo/geotiff_cases/RGBA.uint16.tif", 3, "uint16"),
    ("geo/geotiff_cases/RGB.byte.tif", 3, "uint8"),
    ("geo/geotiff_cases/float_nan.tif", 1, "float32"),
    ("geo/geotiff_cases/float_raster_with_nodata.tif", 1, "float32"),
    ("geo/geotiff_cases/sentinel2_8band_uint16.tif", 8, "uint16"),
    ("geo/geotiff_cases/world.rgb.tif", 3, "uint8"),
    ("geo/buildings_atlanta_pan/sample_geotiff.tif", 1, "uint16"),
]


@pytest.mark.parametrize(("name", "channels", "dtype"), REAL)
def test_real_files_open_and_keep_their_grid(
    shared_data: Path, tmp_path: Path, name: str, channels: int, dtype: str
) -> None:
    scene = RasterScene(shared_data / name)
    assert (scene.channels, scene.dtype) == (channels, np.dtype(dtype))
    window = (slice(0, min(200, scene.grid.shape[0])), slice(0, min(200, scene.grid.shape[1])))
    assert scene.read(window).shape[1:] == scene.valid(window).shape
    labels = np.ones(scene.grid.shape, dtype=np.uint8)
    write_label_geotiff(tmp_path / "out.tif", labels, scene.grid)
    written = RasterScene(tmp_path / "out.tif").grid
    assert (written.world, written.shape) == (scene.grid.world, scene.grid.shape)
    np.testing.assert_array_equal(written.affine, scene.grid.affine)


def test_real_files_hide_what_is_missing(shared_data: Path) -> None:
    folder = shared_data / "geo" / "geotiff_cases"
    assert not RasterScene(folder / "all-nodata.tif").valid().any()
    assert 0.4 < RasterScene(folder / "RGBA.uint16.tif").valid().mean() < 0.6
    assert RasterScene(folder / "float_nan.tif").valid().sum() == 5
    rio = shared_data / "geo" / "buildings_rio_8band" / "8band" / "8band_013022223130_Public_img5.tif"
    assert RasterScene(rio).valid().all()
    assert 0.0 < RasterScene(rio, nodata=0).valid().mean() < 0.5


def test_sidecar_gives_place_to_a_jpeg(shared_data: Path) -> None:
    scene = RasterScene(shared_data / "geo/buildings_banepa/train/oam/OAM-386690-220241-19.tif")
    assert scene.format == "JPEG"
    assert scene.grid.world == CRS.from_epsg(4326).to_wkt()
    assert transform_of(scene.grid) != Affine.identity()
    rows, cols = scene.grid.spacing
    assert abs(rows / cols - 0.886) < 0.001
