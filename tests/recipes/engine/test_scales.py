"""Several scales: headers for each, one large cell among small ones, command line, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from samgraft.adapters.decoders import ClassTokensConfig, DistancesConfig
from samgraft.domains.opening import open_scene
from samgraft.errors import ConfigError
from samgraft.recipes import cli
from samgraft.recipes.api import UserPrompts, segment
from samgraft.recipes.choosing import choose_objects
from samgraft.recipes.engine.recorded import Recorded
from samgraft.recipes.engine.scales import at_every_scale, with_scales
from samgraft.recipes.header import InputRecipe
from samgraft.recipes.instances import iou_matrix
from samgraft.recipes.predicting import MARKER, predict
from tests.data.rasters import write_raster
from tests.data.volumes import nifti, ramp
from tests.recipes.mosaic.test_segment import labels_of

ADAPTER = "graft-tiny-objects"
SCALES = (1.0, 0.5, 0.35)


def cells() -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """(256, 320, 3) grey cells on a pale ground, and their labels: one of 90 pixels across, mottled, and small ones."""
    rng, labels = np.random.default_rng(3), np.zeros((256, 320), dtype=np.int32)
    rows, cols = np.ogrid[:256, :320]
    labels[((rows - 130) / 45) ** 2 + ((cols - 110) / 40.5) ** 2 <= 1] = 1
    for number, (y, x) in enumerate(((40, 220), (60, 280), (110, 250), (150, 290), (190, 230), (220, 280)), start=2):
        labels[(rows - y) ** 2 + (cols - x) ** 2 <= 11**2] = number
    mottles = np.kron(rng.normal(0, 25, (54, 54)), np.ones((6, 6)))[:256, :320] * (labels == 1)
    grey = np.where(labels > 0, 105, 215) + mottles + rng.normal(0, 4, labels.shape)
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2), labels


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scales") / "cells.png"
    Image.fromarray(cells()[0]).save(path)
    return path


def header(**recipe: int | None) -> Recorded:
    found = InputRecipe(**{"size": 128, "window": 128, **recipe})
    return Recorded(recipe=found, classes={1: "cell"}, kind="instance", head=DistancesConfig())


def test_a_scale_changes_the_side_of_the_window_and_nothing_else(picture: Path) -> None:
    said = with_scales(header(), open_scene(picture), (2, 1, 0.5))
    found = at_every_scale(said, (1000, 900))
    assert [one.window for one in found] == [64, 128, 256]
    assert {(one.size, one.overlap, one.scales) for one in found} == {(128, 0.25, (1.0,))}
    assert said.window == 128 and said.about["scales"] == "2 1 0.5"


def test_scales_that_show_the_whole_picture_are_one() -> None:
    said = header()
    said = with_scales(said, open_scene_like(), (1, 0.4, 0.2, 0.1))
    assert [one.window for one in at_every_scale(said, (200, 300))] == [128, 300]


def open_scene_like() -> object:
    """Only its kind is looked at."""

    class Scene:
        kind = "picture"

    return Scene()


def test_one_scale_is_the_header_itself(picture: Path) -> None:
    said = header(window=None)
    assert with_scales(said, open_scene(picture), (1,)) is said and at_every_scale(said, (9, 9)) == [said]


def test_a_large_cell_among_small_ones_is_whole(picture: Path) -> None:
    truth = cells()[1]
    alone = segment(picture, adapter=ADAPTER, progress=False)
    found = segment(picture, adapter=ADAPTER, scales=SCALES, progress=False)
    before, after = (iou_matrix(one.labels, truth).max(axis=0) for one in (alone, found))
    assert before[0] < 0.5 < 0.8 < after[0], (before, after)
    assert (before[1:] > 0.7).all() and (after[1:] > 0.7).all(), (before, after)
    assert found.meta["scales"] == "1 0.5 0.35" and "scales" not in alone.meta
    assert len(found.instances) == found.labels.max() and found.grid == alone.grid


def test_the_result_is_the_choice_among_those_of_each_scale(picture: Path) -> None:
    each = [segment(picture, adapter=ADAPTER, scales=(scale,), progress=False) for scale in SCALES]
    scores = [np.asarray([record.score for record in one.instances], dtype=np.float32) for one in each]
    labels, worths = choose_objects([(one.labels, score) for one, score in zip(each, scores, strict=True)], min_area=10)
    found = segment(picture, adapter=ADAPTER, scales=SCALES, progress=False)
    assert np.array_equal(found.labels, labels)
    assert [record.score for record in found.instances] == pytest.approx(worths.tolist())


@pytest.mark.parametrize("scales", [(), (0.0, 1.0), (1.0, 1.0), (11.0,), (float("nan"),)])
def test_scales_that_are_none_are_named(picture: Path, scales: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="scales are .*; expected different numbers from 0.1 to 10"):
        segment(picture, adapter=ADAPTER, scales=scales, progress=False)


def test_what_has_no_scales_is_refused(tmp_path: Path, picture: Path) -> None:
    scene = open_scene(picture)
    with pytest.raises(ConfigError, match="scales=.* give adapter="):
        segment(picture, scales=SCALES, progress=False)
    with pytest.raises(ConfigError, match="scales=.* give adapter="):
        segment(picture, adapter=ADAPTER, scales=SCALES, prompts=UserPrompts(boxes=((1, 1, 9, 9),)), progress=False)
    with pytest.raises(ConfigError, match="whole pictures"):
        with_scales(header(window=None), scene, SCALES)
    with pytest.raises(ConfigError, match="is a volume"):
        with_scales(header(), open_scene(nifti(tmp_path / "v.nii.gz", ramp((6, 40, 50)))), SCALES)
    classes = Recorded(
        recipe=InputRecipe(size=128, window=128), classes={1: "a"}, head=ClassTokensConfig(num_classes=2)
    )
    by_window = Recorded(
        recipe=InputRecipe(size=128, window=128),
        classes={1: "a"},
        kind="instance",
        head=DistancesConfig(from_points=True),
    )
    for said in (classes, by_window):
        with pytest.raises(ConfigError, match="made of maps"):
            with_scales(said, scene, SCALES)


def test_command_line(tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "m.tif"
    cli.main(["segment", str(picture), "--adapter", ADAPTER, "--scales", "1", "0.5", "0.35", "-o", str(target)])
    assert np.array_equal(labels_of(target), segment(picture, adapter=ADAPTER, scales=SCALES, progress=False).labels)
    capsys.readouterr()


def test_tiles_have_one_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raster, target = write_raster(tmp_path / "r.tif", cells()[0].transpose(2, 0, 1)), tmp_path / "o.gpkg"
    call = ["segment", str(raster), "--adapter", ADAPTER, "--scales", "1", "0.5", "--tile", "128", "-o", str(target)]
    assert cli.main(call) == 2
    assert "--scales needs the whole raster" in capsys.readouterr().err and not target.exists()


def test_a_folder_remembers_the_scales(tmp_path: Path, picture: Path) -> None:
    output = tmp_path / "out"
    predict([picture], output, adapter=ADAPTER, scales=(1, 0.5))
    assert json.loads((output / MARKER).read_text())["scales"] == [1, 0.5]
    assert predict([picture], output, adapter=ADAPTER, scales=(1, 0.5))[0].state == "skipped"
    with pytest.raises(ConfigError, match="scales"):
        predict([picture], output, adapter=ADAPTER)
