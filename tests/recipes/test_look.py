"""Channels and scale of a raster: measured once, recorded, and the same whatever the window."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import samgraft
from samgraft.domains.remote_sensing import geo_scene, raster
from samgraft.errors import CheckpointError
from samgraft.recipes.engine.planes import Plane, Rows
from samgraft.recipes.engine.recorded import Recorded
from samgraft.recipes.header import InputRecipe
from samgraft.recipes.look import look_as_recorded, look_at, stretch_recipe
from tests.data import rasters

pytestmark = pytest.mark.remote_sensing


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    rng = np.random.default_rng(7)
    array = (rng.gamma(2.0, 500.0, (4, 130, 170)) + np.arange(170) * 20).astype(np.uint16)
    array[:, 30:50, 40:90] = 0
    return rasters.write_raster(
        tmp_path / "a.tif", array, nodata=0, tiled=True, blockxsize=16, blockysize=16,
        names=["blue", "green", "red", "nir"],
    )  # fmt: skip


@pytest.mark.parametrize("view", ["file", "gsd", "crs", "mosaic"])
def test_a_pixel_has_one_value_whatever_the_window(noise: Path, view: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster, "WHOLE_PIXELS", 0)  # as for a raster of any size: from blocks
    options = {"gsd": {"gsd": 0.9}, "crs": {"crs": "EPSG:3857"}}.get(view, {})
    paths = [noise, noise] if view == "mosaic" else noise
    scene = samgraft.open(paths, **options)  # type: ignore[arg-type]
    look = look_at(scene)
    assert look_at(samgraft.open(paths, **options)) == look  # type: ignore[arg-type]
    plane = Plane(scene, look)
    plane.lazy = True
    height, width = plane.shape
    whole = plane.read(slice(0, height), slice(0, width))

    @settings(max_examples=25, deadline=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        rows = slice(top, data.draw(st.integers(top + 1, height)))
        cols = slice(left, data.draw(st.integers(left + 1, width)))
        np.testing.assert_array_equal(plane.read(rows, cols), whole[:, rows, cols])
        seen, _ = Rows(plane).read(rows, cols)
        np.testing.assert_array_equal(seen, whole[:, rows, cols])

    check()


def test_stretch_is_of_the_valid_pixels_and_says_so(noise: Path) -> None:
    scene = samgraft.open(noise)
    look = look_at(scene)
    array, valid = scene.read_valid()
    assert look.channels == (2, 1, 0)
    np.testing.assert_allclose(look.lower, np.percentile(array[[2, 1, 0]][:, valid], 2, axis=1))
    np.testing.assert_allclose(look.upper, np.percentile(array[[2, 1, 0]][:, valid], 98, axis=1))
    about = look.describe(scene)
    assert about["channels"] == "red, green, blue"
    assert about["stretch_from"] == f"percentiles 2 and 98 of {int(valid.sum()):,} pixels (every pixel)"
    assert about["stretch"].startswith(f"red {look.lower[0]:.6g} to {look.upper[0]:.6g}, green")


def test_recipe_of_the_header_is_followed(noise: Path) -> None:
    scene = samgraft.open(noise)
    recorded = Recorded(recipe=InputRecipe(size=64), classes={1: "a"}, intensity=stretch_recipe())
    assert recorded.look(scene) == look_at(scene)
    fixed = stretch_recipe(look_at(scene))
    other = look_as_recorded(scene, (0, 1, 2), fixed)
    assert other.lower == look_at(scene).lower and other.channels == (0, 1, 2)
    wide = look_as_recorded(scene, None, {"kind": "stretch", "percentiles": [0, 100]})
    assert wide.upper[0] == scene.read()[2].max()
    with pytest.raises(CheckpointError, match="expected two percentiles, or lower and upper values of 3 channels"):
        look_as_recorded(scene, None, {"kind": "stretch", "lower": [1.0], "upper": [2.0]})


def test_blocks_are_spread_evenly() -> None:
    windows, every = geo_scene.spread((1000, 600), (100, 100), 6)
    assert every == 60
    assert [(r.start, c.start) for r, c in windows] == [
        (100, 100),
        (100, 400),
        (500, 100),
        (500, 400),
        (800, 100),
        (800, 400),
    ]
    strips, every = geo_scene.spread((1000, 50_000), (1, 50_000), 4)
    assert (every, [r.start for r, _ in strips]) == (1000, [125, 375, 625, 875])
    (big,), _ = geo_scene.spread((40_000, 40_000), (40_000, 40_000), 256)
    assert big[1] == slice(0, 40_000) and big[0].stop - big[0].start == 2**22 // 40_000


def test_a_large_sparse_raster_is_sampled_until_something_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raster, "WHOLE_PIXELS", 0)
    array = np.zeros((1, 1024, 1024), dtype=np.uint16)
    array[0, 3:9, 1000:1010] = 500
    path = rasters.write_raster(
        tmp_path / "a.tif", array, nodata=0, tiled=True, blockxsize=16, blockysize=16, sparse_ok=True
    )
    sample = samgraft.open(path).sample(2_000_000)  # type: ignore[attr-defined]
    assert sample.values.tolist() == [[500] * 60] and sample.how == "every pixel"


def test_overviews_are_used_where_they_are_small_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rasterio

    path = rasters.write_raster(
        tmp_path / "a.tif", rasters.pixels((1, 512, 512), "uint16"), tiled=True, blockxsize=64, blockysize=64
    )
    with rasterio.open(path, "r+") as target:
        target.build_overviews([2, 4, 8])
    monkeypatch.setattr(raster, "WHOLE_PIXELS", 64 * 64)
    sample = samgraft.open(path).sample(4096)  # type: ignore[attr-defined]
    assert sample.how == "the whole raster at 1/8" and sample.values.shape == (1, 4096)
