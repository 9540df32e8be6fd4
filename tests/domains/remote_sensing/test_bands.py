"""The stretch is one per raster; RGB is in [0, 1]."""

from pathlib import Path

import numpy as np
import pytest
from rasterio.enums import ColorInterp

from samgraft.domains.remote_sensing.bands import Stretch, full_range, rgb_channels, stretch, to_rgb
from samgraft.domains.remote_sensing.raster import RasterScene
from samgraft.errors import ConfigError, ShapeError
from tests.data import rasters

pytestmark = pytest.mark.remote_sensing


def test_percentiles_ignore_missing_pixels(tmp_path: Path) -> None:
    array = np.zeros((2, 50, 60), dtype=np.uint16)
    array[0, 10:] = np.linspace(100, 1100, 40 * 60).reshape(40, 60).astype(np.uint16)
    array[1, 10:] = 7
    scene = RasterScene(rasters.write_raster(tmp_path / "a.tif", array, nodata=0))
    found = stretch(scene)
    expected = np.percentile(array[0, 10:], [2, 98])
    np.testing.assert_allclose([found.lower[0], found.upper[0]], expected)
    assert (found.lower[1], found.upper[1]) == (7.0, 8.0)
    assert found.samples == 2400


def test_a_pixel_has_one_value_in_every_tile(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 4000, (3, 90, 90)).astype(np.uint16)
    scene = RasterScene(rasters.write_raster(tmp_path / "a.tif", noise))
    fixed = stretch(scene, samples=500)
    whole = to_rgb(scene.read(), None, fixed)
    part = (slice(13, 77), slice(40, 90))
    np.testing.assert_array_equal(to_rgb(scene.read(part), None, fixed), whole[:, 13:77, 40:90])
    assert whole.dtype == np.float32 and whole.min() == 0.0 and whole.max() == 1.0


def test_raster_without_valid_pixels_has_a_neutral_stretch(tmp_path: Path) -> None:
    scene = RasterScene(rasters.write_raster(tmp_path / "a.tif", np.zeros((3, 8, 8), dtype=np.uint8), nodata=0))
    found = stretch(scene)
    assert found == Stretch(lower=(0.0,) * 3, upper=(1.0,) * 3, samples=0)
    assert not to_rgb(scene.read(), None, found).any()


def test_colours_decide_the_order(tmp_path: Path) -> None:
    colors = [ColorInterp.blue, ColorInterp.green, ColorInterp.red]
    scene = RasterScene(rasters.write_raster(tmp_path / "a.tif", rasters.pixels(), colors=colors))
    assert rgb_channels(scene) == (2, 1, 0)
    named = rasters.write_raster(tmp_path / "b.tif", rasters.pixels((4, 5, 5)), names=["Blue", "Green", "Red", "NIR"])
    assert rgb_channels(RasterScene(named)) == (2, 1, 0)
    first = RasterScene(rasters.write_raster(tmp_path / "f.tif", rasters.pixels((3, 5, 5), "uint16")))
    assert first.color[0] == "gray" and rgb_channels(first) == (0, 1, 2)
    gray = RasterScene(rasters.write_raster(tmp_path / "c.tif", rasters.pixels((1, 5, 5))))
    assert rgb_channels(gray) == (0, 0, 0)
    assert full_range(gray) == Stretch(lower=(0.0,), upper=(255.0,))


def test_one_band_repeats_and_nan_is_black() -> None:
    array = np.array([[[0.0, 5.0, np.nan, 20.0]]], dtype=np.float32)
    rgb = to_rgb(array, None, Stretch(lower=(0.0,), upper=(10.0,)), valid=np.array([[True, True, True, False]]))
    np.testing.assert_allclose(rgb[:, 0], [[0.0, 0.5, 0.0, 0.0]] * 3)


def test_wrong_use_is_named() -> None:
    two = Stretch(lower=(0.0, 0.0), upper=(1.0, 1.0))
    with pytest.raises(ShapeError, match=r"bands \[0, 1\]"):
        to_rgb(np.zeros((2, 4, 4)), (0, 1), two)
    with pytest.raises(ShapeError, match="stretch has 2 channels"):
        to_rgb(np.zeros((3, 4, 4)), None, two)
    with pytest.raises(ConfigError, match="the second one larger"):
        Stretch(lower=(1.0,), upper=(1.0,))
    assert Stretch.from_dict(two.to_dict()) == two
    with pytest.raises(ConfigError, match="expected lists"):
        Stretch.from_dict({"lower": 3})
