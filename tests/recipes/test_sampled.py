"""Inputs spread over a scene: where they lie, and that they are those of segmentation and of training."""

from pathlib import Path

import numpy as np
import pytest
import torch

from samgraft.domains.opening import open_scene
from samgraft.errors import InputError
from samgraft.recipes.config import DataConfig
from samgraft.recipes.data.fit import windows
from samgraft.recipes.data.layouts import index_data
from samgraft.recipes.engine.automatic import chunks
from samgraft.recipes.engine.planes import Plane, Rows
from samgraft.recipes.engine.recorded import Recorded
from samgraft.recipes.header import InputRecipe
from samgraft.recipes.sampled import case_inputs, scene_inputs, spread
from tests.data.rasters import write_raster
from tests.recipes._adapters import blobs
from tests.recipes._sets import write_pictures, write_volumes


def said(**recipe: object) -> Recorded:
    """A header of inputs of 32 pixels."""
    return Recorded(recipe=InputRecipe(**{"size": 32} | recipe), classes={1: "a"})  # type: ignore[arg-type]


@pytest.mark.parametrize("total", [1, 2, 7, 16, 100, 1000])
def test_every_index_comes_once_and_any_beginning_is_spread(total: int) -> None:
    order = spread(total)
    assert sorted(order) == list(range(total))
    for count in (4, 16):
        quarters = np.bincount(np.array(spread(total, count)) * 4 // total, minlength=4)
        assert total < 16 or quarters.min() >= count // 8


def test_a_lattice_is_not_sampled_along_one_column() -> None:
    """Equal steps of 16 over 16 columns would be one column."""
    columns = [index % 16 for index in spread(256, 16)]
    assert len(set(columns)) >= 8


def test_they_are_inputs_of_the_engine(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "r.tif", blobs((120, 150))[None])
    scene, recorded = open_scene(path), said(window=40)
    plane = Plane(scene, recorded.look(scene))
    places = windows(plane.shape, 40, 0.25)
    whole = torch.cat([chunk.content for chunk in chunks(Rows(plane).read, places, 32, 4)])
    assert len(whole) == len(places) == 20
    assert torch.equal(scene_inputs(open_scene(path), recorded, 100), whole)
    assert torch.equal(scene_inputs(open_scene(path), recorded, 5), whole[sorted(spread(20, 5))])


def test_windows_without_data_are_passed_over(tmp_path: Path) -> None:
    image = np.full((1, 100, 400), 255, np.uint8)
    image[0, :, :40] = blobs((100, 40))
    path = write_raster(tmp_path / "r.tif", image, nodata=255)
    found = scene_inputs(open_scene(path), said(window=40, overlap=0.0), 8)
    assert len(found) == 3 and found.flatten(1).std(dim=1).min() > 0.05  # the three windows of the left edge
    empty = write_raster(tmp_path / "e.tif", np.full((1, 50, 50), 255, np.uint8), nodata=255)
    with pytest.raises(InputError, match="no data in 64 places spread over it"):
        scene_inputs(open_scene(empty), said(window=40), 8)


def config(root: Path, layout: str, **options: object) -> DataConfig:
    return DataConfig(layout=layout, path=str(root), size=32, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"window": 30}, {"neighbours": True}, {"slab": 4}], ids=str)
def test_a_volume_looks_the_same_in_training(tmp_path: Path, options: dict[str, object]) -> None:
    root = write_volumes(tmp_path / "set")
    case = index_data(config(root, "nnunet", **options), "semantic").train[0]
    recorded = Recorded(recipe=InputRecipe(size=32, **options), classes={1: "a"}, modality="MR")  # type: ignore[arg-type]
    scene = open_scene(root / "imagesTr" / f"{case.id}_0000.nii.gz")
    for count in (3, 8, 50):
        found = scene_inputs(scene, recorded, count)
        assert torch.equal(found, case_inputs(case.read(), recorded.recipe, count))
    windows_of = 4 if "window" in options else 1
    assert found.shape == ((2, 3, 4, 32, 32) if "slab" in options else (6 * windows_of, 3, 32, 32))
    assert scene_inputs(scene, recorded, 50, slabs=False).shape == (6 * windows_of, 3, 32, 32)


def test_a_picture_looks_the_same_in_training(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "set")
    case = index_data(config(root, "image_mask"), "semantic").train[0]
    scene = open_scene(root / "images" / f"{case.id}.png")
    recorded = said(window=40)
    assert torch.equal(scene_inputs(scene, recorded, 4), case_inputs(case.read(), recorded.recipe, 4))
