"""An adapter sees a raster at the pixel size of its training, and labels come back to the raster's own pixels."""

from pathlib import Path

import numpy as np
import pytest
from affine import Affine

import samgraft
from samgraft.adapters.bundle import BundleMeta
from samgraft.recipes.engine.automatic import segment_automatic
from samgraft.recipes.engine.recorded import Recorded
from samgraft.recipes.ground import at_trained_gsd, common_gsd
from samgraft.recipes.header import InputRecipe
from tests.data import rasters
from tests.recipes._oracle import OracleGraft, squares

pytestmark = pytest.mark.remote_sensing


def raster(path: Path, image: np.ndarray, size: float) -> Path:
    return rasters.write_raster(path, image[None], transform=Affine(size, 0, 500_000, 0, -size, 5_000_000))


def test_common_size_of_training_rasters(tmp_path: Path) -> None:
    dark = squares((32, 32), [])
    half = [samgraft.open(raster(tmp_path / f"{n}.tif", dark, 0.5 + 0.01 * n)) for n in range(3)]
    rows, cols = common_gsd(half) or (0, 0)
    assert rows == pytest.approx(0.51 / 0.9996, rel=1e-3) and cols == pytest.approx(rows, rel=1e-3)
    assert common_gsd([*half, samgraft.open(raster(tmp_path / "far.tif", dark, 1.0))]) is None
    no_place = rasters.write_raster(tmp_path / "n.tif", dark[None], crs=None)
    assert common_gsd([*half, samgraft.open(no_place)]) is None and common_gsd([]) is None


@pytest.mark.parametrize("kind", ["semantic", "instance"])
def test_finer_raster_is_seen_at_the_trained_size(tmp_path: Path, kind: str) -> None:
    boxes = [(16, 16, 79, 79), (128, 64, 191, 127)]
    image = squares((192, 256), boxes)
    scene = samgraft.open(raster(tmp_path / "fine.tif", image, 0.25))
    recipe = InputRecipe(size=64, window=64, gsd=(0.5, 0.5))
    graft = OracleGraft(instance=kind == "instance")
    recorded = Recorded(recipe=recipe, classes={1: "roof"}, kind=kind)  # type: ignore[arg-type]
    result = segment_automatic(scene, graft, recorded)
    assert graft.calls == 6  # 96 x 128 pixels of half a metre; 192 x 256 of a quarter would take 20
    assert result.grid == scene.grid and result.meta["seen_at"] == "96 x 128 pixels of 0.5 x 0.5"
    assert ((result.labels > 0) ^ (image > 100)).mean() < 0.02
    if kind == "instance":
        assert np.abs(np.array([r.box for r in result.instances]) - boxes).max() <= 2


def test_same_size_and_unknown_size_are_left_alone(tmp_path: Path) -> None:
    image = squares((64, 64), [(10, 10, 40, 40)])
    scene = samgraft.open(raster(tmp_path / "a.tif", image, 0.53))
    assert at_trained_gsd(scene, (0.5, 0.5)) is scene and at_trained_gsd(scene, None) is scene
    no_crs = samgraft.open(rasters.write_raster(tmp_path / "n.tif", image[None], crs=None))
    assert at_trained_gsd(no_crs, (5.0, 5.0)) is no_crs


def test_header_keeps_the_size() -> None:
    recipe = InputRecipe(size=64, window=64, bands=(0, 1, 2), gsd=(0.5, 0.25))
    extra = {"input": {**recipe.__dict__, "bands": [0, 1, 2], "gsd": [0.5, 0.25]}}
    assert InputRecipe.from_meta(BundleMeta(extra=extra)) == recipe
