"""Recipes for mosaics from files to files: ``samgraft fit`` for a few steps, then ``samgraft segment`` by tiles."""

from collections.abc import Callable
from pathlib import Path

import pyogrio
import pytest
import rasterio

from samgraft.adapters.bundle import read_meta
from samgraft.recipes import cli
from samgraft.recipes.commands.parsing import CONFIGS, read_fit_config
from tests.recipes import _mosaics as mosaics

pytestmark = pytest.mark.remote_sensing
SMALL = ["--size", "64", "--data.window", "32", "--batch-size", "2", "--steps", "2", "--train.val_every", "2"]
SMALL += ["--train.progress", "false", "--train.accelerator", "cpu", "--train.val_cases", "1", "--train.cache", "false"]

RECIPES: dict[str, tuple[Callable[[Path], list[str]], tuple[int, ...], float]] = {
    "buildings_mosaic": (lambda root: mosaics.buildings(root, shape=(192, 192)), (0, 1, 2), 0.5),
    "tree_crowns": (mosaics.crowns, (0, 1, 2), 0.1),
    "fields": (mosaics.fields, (3, 2, 1), 10.0),
    "ships_vehicles": (mosaics.ships, (0, 1, 2), 3.0),
    "water_sar_optical": (mosaics.water, (0, 1, 3), 10.0),
}
"""Recipe -> maker of its data, bands that are shown, metres per pixel."""


def test_every_recipe_for_mosaics_is_here() -> None:
    found = {path.stem for path in CONFIGS.glob("*.yaml") if read_fit_config(path).data.layout == "mosaic"}
    assert found == set(RECIPES)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_from_files_to_files(name: str, tmp_path: Path) -> None:
    write, bands, gsd = RECIPES[name]
    words = write(tmp_path / "data")
    run = tmp_path / "run"
    assert cli.main(["fit", "--config", name, *words, *SMALL, "-o", str(run)]) == 0
    meta = read_meta(run / "adapter.graft")
    recipe = meta.extra["input"]
    assert tuple(recipe["bands"]) == bands and recipe["gsd"] == pytest.approx([gsd, gsd], rel=2e-3)
    assert meta.intensity == {"kind": "stretch", "percentiles": [2.0, 98.0]}
    assert (run / "report.html").is_file() and (run / "split.png").is_file()
    assert set(pyogrio.read_dataframe(run / "split.gpkg").side) >= {"train", "val"}

    semantic = meta.task == "semantic"
    target = tmp_path / ("classes.tif" if semantic else "objects.gpkg")
    tiles = ["--tile", "96"] + ([] if semantic else ["--overlap", "32"])
    adapter = ["--adapter", str(run / "adapter.graft")]
    assert cli.main(["segment", *mosaics.inputs(words), *adapter, *tiles, "-o", str(target)]) == 0
    if semantic:
        with rasterio.open(target) as made, rasterio.open(mosaics.inputs(words)[0]) as source:
            assert made.shape == source.shape and made.transform == source.transform and made.crs == source.crs
    else:
        info = pyogrio.read_info(target)
        assert info["crs"] == "EPSG:32645" and "score" in list(info["fields"])
