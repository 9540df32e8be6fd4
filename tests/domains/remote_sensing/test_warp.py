"""Reprojection, ground control points and RPCs."""

from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.warp import transform as warp_points

from samgraft.domains.opening import open_scene
from samgraft.domains.remote_sensing.georeference import crs_of, ground_step, transform_of
from samgraft.domains.remote_sensing.header import RasterChoice
from samgraft.domains.remote_sensing.raster import RasterScene
from samgraft.domains.remote_sensing.warp import Warp, WarpedScene
from samgraft.errors import ConfigError, GeometryError, InputError
from samgraft.grid import Grid
from tests.data import rasters

pytestmark = pytest.mark.remote_sensing


def coordinates(grid: Grid, crs: str) -> np.ndarray:
    """(2, H, W): x and y of all pixel centres in another CRS."""
    index = np.stack(np.meshgrid(*(np.arange(n) + 0.5 for n in grid.shape), indexing="ij"), axis=-1)
    world = grid.to_world(index).reshape(-1, 2)
    x, y = warp_points(crs_of(grid), CRS.from_string(crs), world[:, 0].tolist(), world[:, 1].tolist())
    return np.stack([np.array(x), np.array(y)]).reshape(2, *grid.shape)


@pytest.mark.parametrize("name", rasters.TRANSFORMS)
def test_pixels_say_where_they_came_from(tmp_path: Path, name: str) -> None:
    # every pixel holds its own easting and northing; after the warp they must still say where it lies
    transform = rasters.TRANSFORMS[name]
    plain = RasterScene(rasters.write_raster(tmp_path / "a.tif", np.zeros((1, 40, 60), np.uint8), transform=transform))
    ramp = (coordinates(plain.grid, rasters.UTM) - np.array([399000.0, 4500000.0])[:, None, None]).astype(np.float32)
    path = rasters.write_raster(tmp_path / "ramp.tif", ramp, transform=transform)
    scene = open_scene(path, crs="EPSG:4326")
    assert isinstance(scene, WarpedScene) and "WGS 84" in repr(scene)
    array, valid = scene.read_valid()
    expected = coordinates(scene.grid, rasters.UTM) - np.array([399000.0, 4500000.0])[:, None, None]
    inner = valid.copy()
    inner[[0, -1]] = inner[:, [0, -1]] = False
    for axis in (0, 1):  # away from the edge, where there is nothing to interpolate with
        inner &= np.roll(valid, 1, axis) & np.roll(valid, -1, axis)
    assert inner.sum() > 1000
    assert np.abs(array - expected)[:, inner].max() < 0.01


@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "cubic", "average"])
@pytest.mark.parametrize("gsd", [None, 2.7])
def test_a_pixel_has_one_value_whatever_the_window(tmp_path: Path, resampling: str, gsd: float | None) -> None:
    noise = np.random.default_rng(5).normal(size=(2, 300, 410)).astype(np.float32)
    noise[:, 100:120, 50:90] = -9999.0
    path = rasters.write_raster(
        tmp_path / "a.tif", noise, transform=rasters.TRANSFORMS["rotated"], nodata=-9999.0, tiled=True, blockxsize=64,
        blockysize=64,
    )  # fmt: skip
    scene = open_scene(path, crs="EPSG:3857", resampling=resampling, gsd=gsd)  # type: ignore[arg-type]
    whole, valid = scene.read_valid()
    assert 0.3 < valid.mean() < 1.0 and whole[:, valid].min() > -100

    @settings(max_examples=15, deadline=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        part = []
        for side in scene.grid.shape:
            start = data.draw(st.integers(0, side - 1))
            part.append(slice(start, min(side, start + data.draw(st.integers(1, 150)))))
        pixels, seen = scene.read_valid(tuple(part))
        np.testing.assert_array_equal(seen, valid[tuple(part)])
        np.testing.assert_array_equal(pixels[:, seen], whole[(slice(None), *part)][:, seen])

    check()


def test_own_crs_changes_nothing(tmp_path: Path) -> None:
    path = rasters.write_raster(tmp_path / "a.tif", rasters.pixels())
    scene = open_scene(path, crs=rasters.UTM)
    assert type(scene) is RasterScene and transform_of(scene.grid) == rasters.NORTH_UP


@pytest.mark.parametrize("kind", ["nodata", "nan", "mask", "alpha", "alpha16"])
def test_missing_pixels_never_mix_with_others(tmp_path: Path, kind: str) -> None:
    dtype = {"nan": "float32", "alpha16": "uint16"}.get(kind, "uint8")
    array = np.full((3, 30, 40), 200, dtype=dtype)
    hole = (slice(10, 20), slice(15, 25))
    options: dict[str, object] = {}
    if kind in ("nodata", "mask"):
        array[(slice(None), *hole)] = 7
    if kind == "nodata":
        options["nodata"] = 7
    if kind == "nan":
        array[(slice(None), *hole)] = np.nan
        options["nodata"] = float("nan")
    if kind == "mask":
        options["mask"] = np.where(np.pad(np.zeros((10, 10)), ((10, 10), (15, 15)), constant_values=1) > 0, 255, 0)
        options["mask"] = options["mask"].astype(np.uint8)  # type: ignore[attr-defined]
    if kind.startswith("alpha"):
        top = np.iinfo(dtype).max
        array = np.concatenate([array, np.full((1, 30, 40), top, dtype=dtype)])
        array[(slice(0, 3), *hole)] = 7
        array[(3, *hole)] = 0
        options["colors"] = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    path = rasters.write_raster(tmp_path / "a.tif", array, **options)  # type: ignore[arg-type]
    scene = open_scene(path, crs="EPSG:3857")
    pixels, valid = scene.read_valid()
    assert scene.channels == 3
    assert set(np.unique(pixels[:, valid]).tolist()) == {200}
    x = coordinates(scene.grid, rasters.UTM)
    col, row = ~rasters.NORTH_UP @ (x[0], x[1])
    inside = (row > 10) & (row < 20) & (col > 15) & (col < 25)
    outside = (row < 0) | (row > 30) | (col < 0) | (col > 40)
    known = (row > 1) & (row < 29) & (col > 1) & (col < 39)
    deep = (row > 11) & (row < 19) & (col > 16) & (col < 24)
    assert not valid[deep].any() and not valid[outside].any()
    assert valid[known & ~inside].mean() > 0.97


def test_scale_names_and_bands_survive(tmp_path: Path) -> None:
    array = rasters.pixels((3, 20, 30), "uint16")
    path = rasters.write_raster(tmp_path / "a.tif", array, names=["B02", "B03", "B04"], scale=(0.5, -10.0))
    scene = open_scene(path, crs="EPSG:3857", bands=("red",), resampling="nearest")
    assert scene.channel_names == ("B04",) and scene.dtype == np.float32
    pixels, valid = scene.read_valid()
    assert np.isin(pixels[0][valid], array[2] * 0.5 - 10).all()


def test_gsd_and_crs_together_interpolate_once(tmp_path: Path) -> None:
    path = rasters.write_raster(tmp_path / "a.tif", rasters.pixels((1, 80, 120)))
    scene = open_scene(path, crs="EPSG:4326", gsd=2.0)
    assert type(scene) is WarpedScene
    assert ground_step(scene.grid) == pytest.approx((2.0, 2.0), rel=1e-3)


def test_across_the_antimeridian_degrees_run_on(tmp_path: Path) -> None:
    # UTM zone 60 at 16 degrees south: the date changes at x = 821 km
    ramp = np.broadcast_to(np.arange(200, dtype=np.float32), (1, 50, 200)).copy()
    transform = Affine(100.0, 0, 808_000, 0, -100.0, 8_230_000)
    path = rasters.write_raster(tmp_path / "a.tif", ramp, crs="EPSG:32760", transform=transform)
    scene = open_scene(path, crs="EPSG:4326")
    bounds = scene.grid.corners()[:, 0]
    assert 179.5 < bounds.min() < 180.0 < bounds.max() < 180.5
    pixels, valid = scene.read_valid()
    assert valid.mean() > 0.9
    middle = pixels[0, scene.grid.shape[0] // 2][valid[scene.grid.shape[0] // 2]]
    assert (np.diff(middle) > 0).all() and middle.max() - middle.min() > 190
    back = open_scene(rasters.write_raster(
        tmp_path / "deg.tif", pixels, crs="EPSG:4326", transform=transform_of(scene.grid), nodata=float("nan")
    ), crs="EPSG:32760")  # fmt: skip
    assert back.grid.shape[1] < 250 and back.valid().mean() > 0.8


def test_gcps_that_fit_an_affine_are_that_affine(tmp_path: Path) -> None:
    transform = Affine(0.25, 0.125, 10.125, -0.0625, -0.5, 50.25)
    array = rasters.pixels((2, 10, 12))
    path = rasters.write_gcp_raster(tmp_path / "g.tif", transform, (10, 12), array=array)
    scene = open_scene(path)
    assert type(scene) is RasterScene and transform_of(scene.grid) == transform
    assert crs_of(scene.grid) == CRS.from_epsg(4326)
    np.testing.assert_array_equal(scene.read(), array)
    assert "placed by 9 ground control points (affine within" in repr(scene)
    warped = open_scene(path, crs="EPSG:32632", resampling="nearest")
    assert np.isin(warped.read()[0][warped.valid()], array[0]).all()


def test_gcps_that_bend_are_warped(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(60, dtype=np.float32)[:, None], (1, 60, 80)).copy()
    path = rasters.write_gcp_raster(
        tmp_path / "g.tif", Affine(1e-4, 0, 10, 0, -1e-4, 50), (60, 80), bend=4.0, array=ramp
    )
    scene = open_scene(path)
    assert isinstance(scene, WarpedScene) and "gcps on a new grid" in repr(scene)
    assert crs_of(scene.grid) == CRS.from_epsg(4326)
    pixels, valid = scene.read_valid()
    assert valid.mean() > 0.8
    index = np.stack(np.meshgrid(*(np.arange(n) + 0.5 for n in scene.grid.shape), indexing="ij"), axis=-1)
    row = (50 - scene.grid.to_world(index)[..., 1]) / 1e-4 - 0.5  # rows are not bent, columns are
    inner = valid & (row > 2) & (row < 57)
    assert np.abs(pixels[0] - row)[inner].max() < 0.1
    with pytest.raises(InputError, match="placed by 9 ground control points and has no transform.*samgraft.open"):
        RasterScene(path)


def test_rpcs_need_a_height(tmp_path: Path) -> None:
    path = rasters.write_rpc_raster(tmp_path / "rpc.tif")
    with pytest.raises(InputError, match=r"placed by RPCs.*give rpc_height=.*RPC_DEM=dem.tif"):
        open_scene(path)
    scene = open_scene(path, rpc_height=0.0)
    assert isinstance(scene, WarpedScene) and crs_of(scene.grid) == CRS.from_epsg(4326)
    # the model places the centre of pixel 5 at 10 E, and five pixels are one degree: 5.5 pixels to the left edge
    corners = scene.grid.corners()[:, 0]
    assert (corners.min(), corners.max()) == pytest.approx((10 - 5.5 / 5, 10 + 4.5 / 5), abs=1e-6)
    assert scene.valid().any()


def test_wrong_use_is_named(tmp_path: Path) -> None:
    path = rasters.write_raster(tmp_path / "a.tif", rasters.pixels())
    with pytest.raises(ConfigError, match="crs='EPSG:nonsense' is not a coordinate reference system"):
        open_scene(path, crs="EPSG:nonsense")
    with pytest.raises(ConfigError, match="resampling is 'lanczos'; expected one of nearest"):
        open_scene(path, resampling="lanczos")  # type: ignore[arg-type]
    no_crs = rasters.write_raster(tmp_path / "b.tif", rasters.pixels(), crs=None)
    with pytest.raises(GeometryError, match="has no CRS, so it cannot be reprojected"):
        open_scene(no_crs, crs="EPSG:4326")
    world = rasters.write_raster(
        tmp_path / "w.tif", rasters.pixels((1, 18, 36)), crs="EPSG:4326", transform=Affine(10, 0, -180, 0, -10, 100)
    )
    with pytest.raises(
        GeometryError, match="coordinates of EPSG:4326 cannot be transformed to EPSG:3857: .*Invalid latitude"
    ):
        open_scene(world, crs="EPSG:3857")


def test_damage_is_named_through_the_warp(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (1, 256, 256), dtype=np.uint8)
    path = rasters.write_raster(tmp_path / "a.tif", noise, tiled=True, blockxsize=64, blockysize=64)
    scene = WarpedScene(path, warp=Warp(crs="EPSG:3857"), choice=RasterChoice())
    rasters.truncate(path, 0.5)
    with pytest.raises(InputError, match=r"a\.tif(: rows 0 to .* cannot be read| cannot be opened)"):
        scene.read()
