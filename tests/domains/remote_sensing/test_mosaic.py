"""Several files as one raster."""

import copy
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.enums import ColorInterp

from samgraft.domains.opening import open_scene
from samgraft.domains.remote_sensing.georeference import transform_of
from samgraft.domains.remote_sensing.mosaic import MosaicScene
from samgraft.domains.remote_sensing.raster import RasterScene
from samgraft.domains.remote_sensing.resample import ResampledScene
from samgraft.errors import ConfigError, GeometryError, InputError
from tests.data import rasters

pytestmark = pytest.mark.remote_sensing


def chip(folder: Path, name: str, array: NDArray[np.generic], row: float, col: float, **options: object) -> Path:
    """A file whose first pixel is pixel (row, col) of the common grid."""
    base = options.pop("base", rasters.NORTH_UP)
    transform = base @ Affine.translation(col, row)  # type: ignore[operator]
    return rasters.write_raster(folder / name, array, transform=transform, **options)  # type: ignore[arg-type]


def cut(folder: Path, whole: NDArray[np.generic], base: Affine = rasters.NORTH_UP) -> list[Path]:
    """Four chips of unequal size that cover ``whole``."""
    height, width = whole.shape[1:]
    parts = [(slice(0, 9), slice(0, 17)), (slice(0, 9), slice(17, width))]
    parts += [(slice(9, height), slice(0, 5)), (slice(9, height), slice(5, width))]
    return [chip(folder, f"{n}.tif", whole[:, r, c], r.start, c.start, base=base) for n, (r, c) in enumerate(parts)]


@pytest.mark.parametrize("name", rasters.TRANSFORMS)
def test_chips_of_a_raster_are_the_raster(tmp_path: Path, name: str) -> None:
    whole = rasters.pixels((3, 20, 30), "uint16")
    base = rasters.TRANSFORMS[name]
    scene = open_scene(cut(tmp_path, whole, base))
    assert isinstance(scene, MosaicScene) and scene.grid.shape == (20, 30)
    assert transform_of(scene.grid) == base
    array, valid = scene.read_valid()
    np.testing.assert_array_equal(array, whole)
    assert valid.all() and len(scene.files) == 4
    np.testing.assert_array_equal(copy.deepcopy(scene).read(), whole)


def test_a_pixel_has_one_value_whatever_the_window(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 4, (2, 12, 14)).astype(np.uint8) for _ in range(4)]  # a quarter of it is nodata
    places = [(0, 0), (5, 6), (9, -3), (8.4, 11.3)]  # overlaps, a negative start, and one off the grid
    scene = MosaicScene(
        [
            chip(tmp_path, f"{n}.tif", a, *place, nodata=0)
            for n, (a, place) in enumerate(zip(noise, places, strict=True))
        ]
    )
    whole, valid = scene.read_valid()
    height, width = scene.grid.shape
    assert (height, width) == (21, 29)

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, height - 1), st.integers(0, width - 1), st.data())
    def check(top: int, left: int, data: st.DataObject) -> None:
        bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
        part = (slice(top, bottom), slice(left, right))
        array, seen = scene.read_valid(part, [1])
        np.testing.assert_array_equal(seen, valid[part])
        np.testing.assert_array_equal(array[0], whole[1][part])

    check()


def test_first_file_with_data_wins_and_each_keeps_its_own_nodata(tmp_path: Path) -> None:
    one, two = np.full((1, 4, 6), 10, np.int16), np.full((1, 4, 6), 20, np.int16)
    one[0, 1, 4] = -9999
    two[0, 0, 0] = 7
    two[0, 2, 5] = -9999  # not missing in this file
    paths = [chip(tmp_path, "1.tif", one, 0, 0, nodata=-9999), chip(tmp_path, "2.tif", two, 0, 3, nodata=7)]
    array, valid = MosaicScene(paths).read_valid()
    assert array[0, 1].tolist() == [10, 10, 10, 10, 20, 10, 20, 20, 20]
    assert array[0, 0].tolist() == [10] * 6 + [20] * 3 and valid.all()
    assert array[0, 2, 8] == -9999 and MosaicScene(paths).grid.nodata is None
    array, valid = MosaicScene(paths[::-1]).read_valid()
    assert array[0, 0].tolist() == [10] * 4 + [20] * 5 and array[0, 2, 8] == -9999 and valid.all()


def test_masks_and_gaps_are_not_valid(tmp_path: Path) -> None:
    mask = np.full((4, 4), 255, np.uint8)
    mask[0] = 0
    paths = [
        chip(tmp_path, "1.tif", rasters.pixels((1, 4, 4)), 0, 0, mask=mask),
        chip(tmp_path, "2.tif", rasters.pixels((1, 4, 4)), 2, 6),
    ]
    scene = MosaicScene(paths)
    assert scene.grid.shape == (6, 10)
    expected = np.zeros((6, 10), dtype=bool)
    expected[1:4, :4] = expected[2:6, 6:] = True
    np.testing.assert_array_equal(scene.valid(), expected)
    assert not scene.read()[0][~expected].any()
    between = (slice(0, 6), slice(4, 6))  # no file is opened there
    assert scene.valid(between).sum() == 0 and not scene.touches(between)
    assert scene.touches((slice(0, 3), slice(5, 7)))
    finer = ResampledScene(scene, (18, 20))
    assert not finer.touches((slice(0, 18), slice(8, 12))) and finer.touches((slice(0, 18), slice(11, 13)))


def test_files_off_the_grid_are_interpolated_onto_it(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(0, 200, 10, dtype=np.float32), (1, 6, 20)).copy()
    paths = [chip(tmp_path, "1.tif", ramp, 0, 0), chip(tmp_path, "2.tif", ramp + 200, 0, 20.25)]
    scene = MosaicScene(paths)
    assert "1 files do not lie on the grid of the first: bilinear" in scene.notes
    assert scene.grid.shape == (6, 41)
    array, valid = scene.read_valid()
    # pixel 21 of the grid has its centre at 21.5, that is 1.25 of the second file, 0.75 right of its first centre
    np.testing.assert_allclose(array[0, :, 21:39], np.broadcast_to(200 + 7.5 + 10 * np.arange(18), (6, 18)), atol=1e-3)
    assert valid[:, 20:40].all()


def test_dtypes_and_channels_must_agree(tmp_path: Path) -> None:
    low = chip(tmp_path, "low.tif", rasters.pixels((1, 4, 4)), 0, 0)
    high = chip(tmp_path, "high.tif", rasters.pixels((1, 4, 4), "int16"), 0, 4)
    with pytest.raises(InputError, match=r"high.tif has int16 pixels, .*low.tif has uint8; .*dtypes='promote'"):
        open_scene([low, high])
    scene = open_scene([low, high], dtypes="promote")
    assert scene.dtype == np.int16
    np.testing.assert_array_equal(scene.read()[0, :, :4], rasters.pixels((1, 4, 4))[0])
    three = chip(tmp_path, "three.tif", rasters.pixels((3, 4, 4)), 0, 4)
    with pytest.raises(InputError, match="three.tif has 3 channels, .*low.tif has 1; choose bands"):
        open_scene([low, three])
    assert open_scene([low, three], bands=[1]).channels == 1
    with pytest.raises(ConfigError, match="dtypes is 'any'"):
        open_scene([low, high], dtypes="any")  # type: ignore[arg-type]


def test_colours_must_agree(tmp_path: Path) -> None:
    rgb = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
    one = chip(tmp_path, "1.tif", rasters.pixels((3, 4, 4)), 0, 0, colors=rgb)
    two = chip(tmp_path, "2.tif", rasters.pixels((3, 4, 4)), 0, 4, colors=rgb[::-1])
    with pytest.raises(InputError, match="2.tif has the channels blue, green, red, .*choose bands by name"):
        open_scene([one, two])
    scene = open_scene([one, two], bands=("red", "green", "blue"))
    np.testing.assert_array_equal(scene.read()[:, :, 4:], rasters.pixels((3, 4, 4))[::-1])


def test_other_crs_is_refused_or_reprojected(tmp_path: Path) -> None:
    ones = np.full((1, 40, 40), 100, np.uint8)
    here = chip(tmp_path, "here.tif", ones, 0, 0)
    degrees = Affine(6e-6, 0, -76.194, 0, -4.5e-6, 40.6445)
    there = rasters.write_raster(tmp_path / "there.tif", ones + 1, crs="EPSG:4326", transform=degrees)
    with pytest.raises(GeometryError, match=r"there.tif is in EPSG:4326, .*here.tif in EPSG:32618; .*crs='EPSG:32618'"):
        open_scene([here, there])
    scene = open_scene([here, there], crs="EPSG:32618")
    assert scene.grid.spacing == (0.5, 0.5) and scene.grid.world == RasterScene(here).grid.world
    array, valid = scene.read_valid()
    assert set(np.unique(array[0][valid]).tolist()) == {100, 101}
    assert (array[0][valid] == 100).sum() == 1600


def test_files_without_a_place_are_no_mosaic(tmp_path: Path) -> None:
    paths = [
        rasters.write_raster(tmp_path / f"{n}.tif", rasters.pixels(), crs=None, transform=Affine.identity())
        for n in (1, 2)
    ]
    with pytest.raises(GeometryError, match="1.tif has no place in the world"):
        open_scene(paths)
    with pytest.raises(InputError, match="no such file"):
        open_scene([tmp_path / "none.tif", paths[0]])
    with pytest.raises(InputError, match="no raster named"):
        open_scene([])


def test_files_on_both_sides_of_the_antimeridian_lie_together(tmp_path: Path) -> None:
    west = rasters.pixels((1, 10, 20))
    east = rasters.pixels((1, 10, 30))
    paths = [
        rasters.write_raster(tmp_path / "w.tif", west, crs="EPSG:4326", transform=Affine(0.01, 0, 179.8, 0, -0.01, 1)),
        rasters.write_raster(tmp_path / "e.tif", east, crs="EPSG:4326", transform=Affine(0.01, 0, -180, 0, -0.01, 1)),
    ]
    scene = open_scene(paths)
    assert scene.grid.shape == (10, 50) and "crosses the antimeridian" in scene.notes
    np.testing.assert_array_equal(scene.read(), np.concatenate([west, east], axis=2))
    backwards = open_scene(paths[::-1])
    assert backwards.grid.shape == (10, 50)
    assert transform_of(backwards.grid).c == pytest.approx(-180.2)


def test_off_the_grid_and_across_the_antimeridian(tmp_path: Path) -> None:
    west = np.zeros((1, 10, 20), np.float32)
    ramp = np.broadcast_to(np.arange(0, 300, 10, dtype=np.float32), (1, 10, 30)).copy()
    paths = [
        rasters.write_raster(tmp_path / "w.tif", west, crs="EPSG:4326", transform=Affine(0.01, 0, 179.8, 0, -0.01, 1)),
        rasters.write_raster(
            tmp_path / "e.tif", ramp, crs="EPSG:4326", transform=Affine(0.01, 0, -179.997, 0, -0.01, 1)
        ),
    ]
    array, valid = open_scene(paths).read_valid()
    assert array.shape == (1, 10, 51) and valid[:, 21:50].all()
    # the second file begins at 20.3 pixels
    expected = 10 * (np.arange(21, 49) - 20.3)
    np.testing.assert_allclose(array[0, :, 21:49], np.broadcast_to(expected, (10, 28)), atol=0.2)


def test_overview_and_sample_speak_for_all_files(tmp_path: Path) -> None:
    whole = rasters.pixels((2, 40, 60), "uint16")
    scene = MosaicScene(cut(tmp_path, whole))
    sample = scene.sample()
    assert sorted(sample.values[0].tolist()) == sorted(whole[0].ravel().tolist())
    assert sample.how == "4 of 4 files: every pixel"
    small, valid = scene.overview(100)
    assert small.shape[1] * small.shape[2] <= 100 and valid.all()
    assert np.isin(small[0], whole[0]).all()
    exact, _ = scene.overview(10_000)
    np.testing.assert_array_equal(exact, whole)
