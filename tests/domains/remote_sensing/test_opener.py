"""The one door: options together, tiny rasters, options that a file has no use for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine

from samgraft.domains.opening import open_scene
from samgraft.domains.remote_sensing.area import AreaScene
from samgraft.domains.remote_sensing.mosaic import MosaicScene
from samgraft.domains.remote_sensing.resample import ResampledScene
from samgraft.errors import ConfigError
from tests.data import rasters

pytestmark = pytest.mark.remote_sensing

VIEWS: dict[str, dict[str, Any]] = {
    "file": {},
    "larger": {"gsd": 3.0},
    "smaller": {"gsd": 0.2},
    "nearest": {"gsd": 0.2, "resampling": "nearest"},
    "crs": {"crs": "EPSG:4326"},
    "crs and gsd": {"crs": "EPSG:4326", "gsd": 0.4},
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 1), (2, 3)])
def test_tiny_rasters_keep_their_value(tmp_path: Path, shape: tuple[int, int], view: str) -> None:
    path = rasters.write_raster(tmp_path / "a.tif", np.full((2, *shape), 77, np.uint8))
    for paths in (path, [path, path]):
        scene = open_scene(paths, **VIEWS[view])
        array, valid = scene.read_valid()
        assert min(scene.grid.shape) >= 1 and valid.any()
        assert np.unique(array[:, valid]).tolist() == [77]


def test_everything_at_once(tmp_path: Path) -> None:
    whole = np.full((4, 40, 60), 900, np.uint16)
    whole[0], whole[2] = 300, 700
    paths = []
    for number, cols in enumerate((slice(0, 30), slice(30, 60))):
        transform = rasters.NORTH_UP @ Affine.translation(cols.start, 0)
        paths.append(rasters.write_raster(tmp_path / f"{number}.tif", whole[:, :, cols], transform=transform))
    ring = rasters.ring(rasters.NORTH_UP, [(10, 10), (50, 10), (50, 30), (10, 30)])
    aoi = rasters.write_geojson(tmp_path / "a.geojson", [{"type": "Polygon", "coordinates": [ring]}])
    scene = open_scene(paths, sensor="planetscope", bands="red,blue", gsd=1.0, crs=rasters.UTM, aoi=aoi)
    assert isinstance(scene, AreaScene) and isinstance(scene.source, ResampledScene)
    assert isinstance(scene.source.source, MosaicScene)
    array, valid = scene.read_valid()
    assert scene.channel_names == ("red", "blue") and array.shape == (2, 20, 30)
    expected = np.zeros((20, 30), dtype=bool)
    expected[5:15, 5:25] = True
    np.testing.assert_array_equal(valid, expected)
    assert np.unique(array[0]).tolist() == [700] and np.unique(array[1]).tolist() == [300]
    assert [file.name for file in scene.files] == ["0.tif", "1.tif", "a.geojson"]


def test_options_of_rasters_are_refused_elsewhere(tmp_path: Path) -> None:
    picture = rasters.write_raster(tmp_path / "p.tif", rasters.pixels((1, 9, 9)), crs=None, transform=Affine.identity())
    with pytest.raises(ConfigError, match="read as picture, which has no option sensor, gsd; leave it out"):
        open_scene(picture, sensor="rgb", gsd=1.0)
    with pytest.raises(ConfigError, match="several files: is read as raster, which has no option frame"):
        open_scene([picture, picture], frame=1)
