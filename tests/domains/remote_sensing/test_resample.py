"""Rasters at another ground sampling distance, and labels back on the source."""

from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from samgraft.domains.opening import open_scene
from samgraft.domains.remote_sensing.georeference import ground_step, transform_of
from samgraft.domains.remote_sensing.raster import RasterScene
from samgraft.domains.remote_sensing.resample import ResampledScene, at_gsd
from samgraft.errors import ConfigError, GeometryError, ShapeError
from tests.data import rasters

pytestmark = pytest.mark.remote_sensing


def scene_of(path: Path, array: np.ndarray, **options: object) -> RasterScene:
    return RasterScene(rasters.write_raster(path / "a.tif", array, **options))  # type: ignore[arg-type]


def test_larger_pixels_are_means_of_what_they_cover(tmp_path: Path) -> None:
    array = np.array([[[0, 2, 4], [6, 8, 10], [12, 14, 16]]], dtype=np.float32)
    scene = ResampledScene(scene_of(tmp_path, array), (2, 2))
    # each new pixel covers 1.5 x 1.5 old ones: weights 1 and a half along each axis, over 2.25
    top_left = (0 + 0.5 * 2 + 0.5 * 6 + 0.25 * 8) / 2.25
    np.testing.assert_allclose(scene.read()[0], [[top_left, top_left + 4 * 2 / 3], [top_left + 8, top_left + 32 / 3]])


def test_smaller_pixels_are_interpolated(tmp_path: Path) -> None:
    array = np.array([[[10, 20], [30, 40]]], dtype=np.uint8)
    scene = ResampledScene(scene_of(tmp_path, array), (2, 4))
    assert scene.read()[0].tolist() == [[10, 12, 18, 20], [30, 32, 38, 40]]  # 12.5 and 17.5 round to even
    nearest = ResampledScene(scene_of(tmp_path, array), (2, 4), kernel="nearest")
    assert nearest.read()[0].tolist() == [[10, 10, 20, 20], [30, 30, 40, 40]]


def test_missing_pixels_have_no_weight(tmp_path: Path) -> None:
    array = np.full((1, 4, 4), 100, dtype=np.uint16)
    array[0, :2, :2] = 0
    array[0, 2, 0] = 0
    array[0, 2:, 2:] = [[7, 9], [0, 0]]
    scene = ResampledScene(scene_of(tmp_path, array, nodata=0), (2, 2))
    pixels, valid = scene.read_valid()
    assert valid.tolist() == [[False, True], [True, True]]
    assert pixels[0, 0, 1] == 100 and pixels[0, 1, 0] == 100 and pixels[0, 1, 1] == 8
    floats = scene_of(tmp_path, np.array([[[np.nan, 5.0], [3.0, 4.0]]], dtype=np.float32))
    assert ResampledScene(floats, (1, 1)).read()[0, 0, 0] == 4.0


@pytest.mark.parametrize("kernel", ["nearest", "linear"])
@pytest.mark.parametrize("shape", [(7, 11), (20, 30), (33, 64)])
def test_a_pixel_has_one_value_whatever_the_window(tmp_path: Path, shape: tuple[int, int], kernel: str) -> None:
    noise = np.random.default_rng(3).normal(size=(2, 20, 30)).astype(np.float32)
    noise[:, 4:6, 7:12] = np.nan
    scene = ResampledScene(scene_of(tmp_path, noise), shape, kernel=kernel)  # type: ignore[arg-type]
    whole, valid = scene.read_valid()

    @settings(max_examples=40, deadline=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        part = []
        for side in shape:
            start = data.draw(st.integers(0, side - 1))
            part.append(slice(start, data.draw(st.integers(start + 1, side))))
        pixels, seen = scene.read_valid(tuple(part))
        np.testing.assert_array_equal(seen, valid[tuple(part)])
        np.testing.assert_array_equal(pixels, whole[(slice(None), *part)])

    check()


@pytest.mark.parametrize("name", rasters.TRANSFORMS)
def test_corners_stay_where_they_are(tmp_path: Path, name: str) -> None:
    source = scene_of(tmp_path, rasters.pixels(), transform=rasters.TRANSFORMS[name])
    scene = ResampledScene(source, (7, 45))
    assert scene.grid.shape == (7, 45) and scene.grid.world == source.grid.world
    np.testing.assert_allclose(scene.grid.corners(), source.grid.corners(), rtol=0, atol=2e-9)


def test_labels_go_back_to_the_pixels_of_the_source(tmp_path: Path) -> None:
    source = scene_of(tmp_path, rasters.pixels((1, 5, 6)))
    coarse = ResampledScene(source, (2, 3))
    labels = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint16)
    # row centres 0.5 to 4.5 of 5 lie in coarse rows of 2.5 each; the middle one belongs to the second
    assert coarse.to_source(labels).tolist() == [[1, 1, 2, 2, 3, 3]] * 2 + [[4, 4, 5, 5, 6, 6]] * 3
    window = (slice(1, 4), slice(3, 5))
    part = coarse.covering(window)
    assert part == (slice(0, 2), slice(1, 3))
    np.testing.assert_array_equal(coarse.to_source(labels[part], window), coarse.to_source(labels)[window])
    with pytest.raises(ShapeError, match=r"labels are \(2, 3\); this window is covered by \(2, 2\)"):
        coarse.to_source(labels, window)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3))
def test_whole_multiples_go_there_and_back(height: int, width: int, factor: int) -> None:
    source = ResampledScene.__new__(ResampledScene)
    shape = (height * factor, width * factor)
    labels = np.arange(height * width).reshape(height, width)
    from samgraft.grid import Grid

    class Source:
        grid = Grid(shape=shape, affine=np.eye(3), anchor="corner")

    source.source, source.grid = Source(), Grid(shape=(height, width), affine=np.eye(3))  # type: ignore[assignment]
    expected = np.repeat(np.repeat(labels, factor, axis=0), factor, axis=1)
    np.testing.assert_array_equal(source.to_source(labels), expected)


def test_labels_of_the_whole_grid_go_back_where_pixels_became_much_smaller(tmp_path: Path) -> None:
    fine = ResampledScene(scene_of(tmp_path, np.ones((1, 3, 2), np.uint8)), (12, 8))
    labels = np.arange(12 * 8).reshape(12, 8)
    found = fine.to_source(labels)  # centres of the source lie in rows 2, 6, 10 and columns 2, 6
    assert found.tolist() == [[18, 22], [50, 54], [82, 86]]
    inner = fine.covering((slice(0, 3), slice(0, 2)))
    assert labels[inner].shape == (9, 5)
    np.testing.assert_array_equal(fine.to_source(labels[inner]), found)


def test_gsd_is_metres_on_the_ground(tmp_path: Path) -> None:
    source = scene_of(tmp_path, rasters.pixels((1, 40, 60)), transform=Affine(0.5, 0, 500_000, 0, -0.25, 5_000_000))
    scene = at_gsd(source, 1.0)
    assert isinstance(scene, ResampledScene) and scene.grid.shape == (10, 30)
    assert ground_step(scene.grid) == pytest.approx((1.0, 1.0), rel=2e-3)
    # two rows and columns make one, although the map's metres are 0.04 % longer than those of the ground
    even = scene_of(tmp_path, rasters.pixels((1, 4096, 8)), transform=Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000))
    assert at_gsd(even, 1.0).grid.shape == (2048, 4) and at_gsd(even, 0.25).grid.shape == (8192, 16)
    square = scene_of(tmp_path, rasters.pixels())
    assert at_gsd(square, 0.5) is square and at_gsd(square, 0.504) is square
    degrees = scene_of(
        tmp_path, rasters.pixels((3, 30, 20)), crs="EPSG:4326", transform=Affine(1e-5, 0, 11, 0, -1e-5, 60)
    )
    # at 60 degrees a degree of longitude is 55.8 km, one of latitude 111.4 km
    assert at_gsd(degrees, 0.5579).grid.shape == (60, 20)


def test_one_door(tmp_path: Path) -> None:
    path = rasters.write_raster(tmp_path / "a.tif", rasters.pixels((1, 20, 30)))
    scene = open_scene(path, gsd=1.0, resampling="nearest")
    assert isinstance(scene, ResampledScene) and (scene.kernel, scene.grid.shape) == ("nearest", (10, 15))
    assert "resampled from 20 x 30" in repr(scene)
    assert transform_of(scene.grid)[:6] == (1.0, 0.0, 399000.25, 0.0, -1.0, 4500000.75)
    no_crs = rasters.write_raster(tmp_path / "b.tif", rasters.pixels(), crs=None)
    with pytest.raises(GeometryError, match="no CRS with a known unit.*gdal_edit"):
        open_scene(no_crs, gsd=1.0)
    with pytest.raises(ConfigError, match="gsd is -1; expected metres per pixel"):
        open_scene(path, gsd=-1)


def test_stretch_and_overview_do_not_depend_on_the_pixel_size(tmp_path: Path) -> None:
    source = scene_of(tmp_path, rasters.pixels((2, 40, 60), "uint16"))
    scene = ResampledScene(source, (10, 10))
    np.testing.assert_array_equal(scene.sample().values, source.sample().values)
    np.testing.assert_array_equal(scene.overview(100)[0], source.overview(100)[0])


@pytest.mark.parametrize("shape", [(3, 4), (5, 6), (7, 13), (1, 1)])
def test_windows_of_parts_cover_the_source_once(tmp_path: Path, shape: tuple[int, int]) -> None:
    """Pixel (row, col) of the source lies in that part that holds the pixel with its centre, by ``to_source``."""
    source = scene_of(tmp_path, rasters.pixels((1, 5, 6)))
    view = ResampledScene(source, shape)
    numbers = view.to_source(np.arange(shape[0] * shape[1]).reshape(shape))
    seen = np.zeros((5, 6), dtype=int)
    for top, bottom in ((0, shape[0] // 2), (shape[0] // 2, shape[0])):
        for left, right in ((0, shape[1] // 3), (shape[1] // 3, shape[1])):
            if bottom > top and right > left:
                part = (slice(top, bottom), slice(left, right))
                window = view.source_window(part)
                seen[window] += 1
                rows, cols = np.divmod(numbers[window], shape[1])
                assert ((rows >= top) & (rows < bottom) & (cols >= left) & (cols < right)).all()
    assert (seen == 1).all()
