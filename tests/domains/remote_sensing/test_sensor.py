"""Bands by name and by sensor."""

from pathlib import Path

import numpy as np
import pytest
from rasterio.enums import ColorInterp

from samgraft.domains.remote_sensing.bands import rgb_channels
from samgraft.domains.remote_sensing.raster import RasterScene
from samgraft.domains.remote_sensing.sensor import SENSORS, band_names, common_name, normalise, sensor_named
from samgraft.errors import ConfigError, InputError
from tests.data import rasters

pytestmark = pytest.mark.remote_sensing


@pytest.mark.parametrize(
    ("text", "expected"),
    [("B04", "b4"), ("SR_B4", "b4"), ("band 4", "b4"), ("Band_12", "b12"), ("B8A", "b8a"), ("Red Edge", "rededge")],
)
def test_descriptions_are_brought_into_one_form(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "sensor", "expected"),
    [
        ("Near Infrared", None, "nir"),
        ("R", None, "red"),
        ("B5", None, None),
        ("B5", "landsat8", "nir"),
        ("SR_B5", "landsat9", "nir"),
        ("B5", "sentinel2", "rededge1"),
        ("B8A", "s2", "nir_narrow"),
        ("B4, central wavelength 665 nm", "sentinel2", "red"),
        ("Red Edge 740", None, None),
        ("VH", None, "vh"),
    ],
)
def test_a_description_has_one_meaning(text: str, sensor: str | None, expected: str | None) -> None:
    assert common_name(text, None if sensor is None else sensor_named(sensor)) == expected


@pytest.mark.parametrize(
    ("sensor", "count", "red", "nir"),
    [
        ("sentinel2", 13, 4, 8),
        ("sentinel2", 12, 4, 8),
        ("sentinel2", 10, 3, 7),
        ("sentinel2", 4, 3, 4),
        ("landsat8", 7, 4, 5),
        ("landsat8", 11, 4, 5),
        ("naip", 4, 1, 4),
        ("planetscope", 4, 3, 4),
        ("planetscope", 8, 6, 8),
        ("worldview", 8, 5, 7),
    ],
)
def test_order_of_a_sensors_files(sensor: str, count: int, red: int, nir: int) -> None:
    names = band_names((None,) * count, ("undefined",) * count, SENSORS[sensor])
    assert (names.index("red") + 1, names.index("nir") + 1) == (red, nir)
    assert len(names) == count


def test_numbered_descriptions_are_the_files_own() -> None:
    names = band_names(("Band 1", "Band 2", "Band 3", "Band 4"), ("undefined",) * 4, SENSORS["sentinel2"])
    assert names == ("blue", "green", "red", "nir")


def test_zero_padded_codes_are_sentinel2() -> None:
    assert band_names(("B02", "B03", "B04", "B08"), ("gray",) + ("undefined",) * 3) == ("blue", "green", "red", "nir")
    assert band_names(("B2", "B3", "B4", "B8"), ("undefined",) * 4) == (None,) * 4


def test_scene_chooses_bands_by_name_and_sensor(tmp_path: Path) -> None:
    array = rasters.pixels((8, 6, 7), "uint16")
    path = rasters.write_raster(tmp_path / "p.tif", array)
    scene = RasterScene(path, sensor="planetscope", bands=("red", "green", "blue"))
    assert scene.bands == (6, 4, 2) and scene.channel_names == ("red", "green", "blue")
    np.testing.assert_array_equal(scene.read(), array[[5, 3, 1]])
    assert RasterScene(path, sensor="planetscope", bands="cir").bands == (8, 6, 4)
    assert rgb_channels(RasterScene(path, sensor="planetscope")) == (5, 3, 1)
    named = rasters.write_raster(tmp_path / "n.tif", array[:3], names=["B08", "B04", "B03"])
    assert RasterScene(named, bands="B03,B08").bands == (3, 1)
    assert RasterScene(named, bands=("green", 1)).bands == (3, 1)


def test_a_sensor_says_that_a_band_marked_alpha_is_data(tmp_path: Path) -> None:
    array = rasters.pixels((4, 6, 7))
    array[3, 2:4] = 0
    colors = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    path = rasters.write_raster(tmp_path / "naip.tif", array, colors=colors)
    plain, naip = RasterScene(path), RasterScene(path, sensor="naip")
    assert (plain.channels, naip.channels) == (3, 4)
    assert not plain.valid()[2:4].any() and naip.valid().all()
    assert naip.channel_names == ("red", "green", "blue", "nir")
    np.testing.assert_array_equal(naip.read(), array)


def test_radar_shows_both_polarisations(tmp_path: Path) -> None:
    path = rasters.write_raster(tmp_path / "s1.tif", rasters.pixels((2, 5, 5), "float32"))
    assert rgb_channels(RasterScene(path, sensor="sar")) == (0, 1, 0)
    described = rasters.write_raster(tmp_path / "d.tif", rasters.pixels((2, 5, 5), "float32"), names=["VH", "VV"])
    assert rgb_channels(RasterScene(described)) == (1, 0, 1)


def test_unknown_names_are_listed(tmp_path: Path) -> None:
    path = rasters.write_raster(tmp_path / "a.tif", rasters.pixels((3, 5, 5)), names=["B02", "B03", "B04"])
    with pytest.raises(InputError, match=r"no band is called 'B12'; the file has 1 blue \(B02\), 2 green"):
        RasterScene(path, bands=("B12",))
    with pytest.raises(InputError, match="band 4 asked; the file has bands 1 to 3"):
        RasterScene(path, bands=(4,))
    with pytest.raises(ConfigError, match="sensor 'sentinel22' is unknown.*did you mean 'sentinel2'"):
        RasterScene(path, sensor="sentinel22")
    unnamed = rasters.write_raster(tmp_path / "b.tif", rasters.pixels((5, 5, 5)))
    with pytest.raises(InputError, match="5 bands without names; NAIP files have 4, 3"):
        RasterScene(unnamed, sensor="naip")
