"""Views of windows: turned there and back, and averaged in pictures, in rasters by tiles, and from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from samgraft.adapters.backbones import load_backbone
from samgraft.adapters.bundle import BundleMeta, save_bundle
from samgraft.adapters.decoders import DistancesConfig
from samgraft.adapters.graft import attach
from samgraft.domains.opening import open_scene
from samgraft.errors import ConfigError
from samgraft.recipes import cli
from samgraft.recipes.api import MosaicOptions, UserPrompts, load_adapter, segment, segment_mosaic
from samgraft.recipes.commands.align_options import VIEWS as CHOICES
from samgraft.recipes.engine.turned import VIEWS, mean_of_views, turned
from samgraft.recipes.predicting import MARKER, predict
from tests.data.rasters import write_raster
from tests.data.volumes import nifti, ramp
from tests.recipes.mosaic._scenes import tiny_adapter
from tests.recipes.mosaic.test_segment import colours, labels_of


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for two classes that looks at whole pictures."""
    return tiny_adapter(tmp_path_factory.mktemp("a") / "whole.graft", window=None)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in windows."""
    return tiny_adapter(tmp_path_factory.mktemp("a") / "classes.graft", window=64)


def picture(path: Path, array: np.ndarray | None = None) -> Path:
    """128 x 128 pixels of soft colours."""
    shown = colours((128, 128)).transpose(1, 2, 0) if array is None else array
    Image.fromarray(np.ascontiguousarray(shown)).save(path)
    return path


@pytest.mark.parametrize("views", VIEWS)
def test_every_view_comes_back_and_no_two_are_alike(views: int) -> None:
    squares = torch.arange(2 * 3 * 16.0).reshape(2, 3, 4, 4)
    seen = turned(squares, views)
    assert seen.shape == (2 * views, 3, 4, 4) and torch.equal(seen[:2], squares)
    assert len({tuple(view.flatten().tolist()) for view in seen.chunk(views)}) == views
    assert torch.equal(mean_of_views(seen, views), squares)


def test_one_wrong_turn_would_be_seen() -> None:
    seen = turned(torch.rand(1, 1, 6, 6), 8)
    for number in range(1, 8):
        wrong = list(seen.chunk(8))
        wrong[number] = wrong[number].transpose(-2, -1)
        assert not torch.equal(mean_of_views(torch.cat(wrong), 8), seen[:1])


def test_choices_of_the_command_line_are_those_of_the_engine() -> None:
    assert CHOICES == VIEWS


@pytest.mark.parametrize("views", [4, 8])
def test_result_is_the_argmax_of_the_mean_over_mirrored_files(tmp_path: Path, whole: Path, views: int) -> None:
    grafted = load_adapter(whole)
    shown = colours((128, 128)).transpose(1, 2, 0)

    def logits(array: np.ndarray) -> Tensor:
        image = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            return grafted.predict(image).resize((128, 128)).logits[0]

    total = torch.zeros(3, 128, 128)
    for turns in (0, 1) if views == 8 else (0,):
        for axes in ((), (0,), (1,), (0, 1)):
            found = logits(np.rot90(np.flip(shown, axes), turns))
            total += found.rot90(-turns, (1, 2)).flip([axis + 1 for axis in axes])
    path = picture(tmp_path / "p.png", shown)
    result = segment(path, adapter=grafted, views=views, progress=False)
    margin = total.sort(dim=0).values.diff(dim=0)[-1].numpy() > 1e-3
    assert margin.mean() > 0.98
    assert np.array_equal(result.labels[margin], total.argmax(0).numpy()[margin])
    assert result.meta["views"] == str(views)
    alone = segment(path, adapter=grafted, progress=False)
    assert "views" not in alone.meta and not np.array_equal(alone.labels, result.labels)


def test_a_turned_picture_gives_the_turned_map(tmp_path: Path, whole: Path) -> None:
    shown = colours((128, 128)).transpose(1, 2, 0)
    upright, lying = picture(tmp_path / "a.png", shown), picture(tmp_path / "b.png", np.rot90(shown))
    found = [segment(path, adapter=whole, views=8, progress=False).labels for path in (upright, lying)]
    assert np.mean(np.rot90(found[0]) == found[1]) > 0.995


def test_a_raster_by_tiles_is_the_raster_at_once(tmp_path: Path, classes: Path) -> None:
    path = write_raster(tmp_path / "r.tif", colours((150, 230)))
    at_once = segment(path, adapter=classes, views=4, progress=False).labels
    by_tiles = []
    for tile in (100, 150):
        target = tmp_path / f"{tile}.tif"
        segment_mosaic(path, target, adapter=classes, options=MosaicOptions(tile=tile, views=4, overlap=20))
        by_tiles.append(labels_of(target))
    assert np.array_equal(by_tiles[0], at_once) and np.array_equal(by_tiles[1], at_once)
    assert not np.array_equal(at_once, segment(path, adapter=classes, progress=False).labels)


def test_other_processes_average_the_same_views(tmp_path: Path, classes: Path) -> None:
    path = write_raster(tmp_path / "r.tif", colours((150, 230)))
    found = []
    for workers in (1, 2):
        target = tmp_path / f"{workers}.tif"
        segment_mosaic(path, target, adapter=classes, options=MosaicOptions(tile=100, views=4, workers=workers))
        found.append(labels_of(target))
    assert np.array_equal(found[0], found[1])
    segment_mosaic(path, tmp_path / "one.tif", adapter=classes, options=MosaicOptions(tile=100, workers=2))
    assert not np.array_equal(found[0], labels_of(tmp_path / "one.tif"))


def test_work_of_other_views_is_not_taken_up(tmp_path: Path, classes: Path) -> None:
    path, target = write_raster(tmp_path / "r.tif", colours((150, 230))), tmp_path / "out.tif"
    segment_mosaic(path, target, adapter=classes, options=MosaicOptions(tile=100, overlap=20, keep_work=True))
    with pytest.raises(ConfigError, match="views"):
        segment_mosaic(path, target, adapter=classes, options=MosaicOptions(tile=100, overlap=20, views=8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": 2}, "views is 2; expected one of 1, 4, 8"),
        (
            {"views": 8, "prompts": UserPrompts(boxes=((1, 1, 9, 9),))},
            "views=8 says how an adapter that works by itself",
        ),
    ],
)
def test_wrong_calls_are_named(tmp_path: Path, whole: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        segment(picture(tmp_path / "p.png"), adapter=whole, progress=False, **options)


def test_views_without_an_adapter_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give adapter="):
        segment(picture(tmp_path / "p.png"), views=4, progress=False)
    raster = write_raster(tmp_path / "r.tif", colours((150, 230)))
    with pytest.raises(ConfigError, match="give adapter="):
        segment_mosaic(raster, tmp_path / "o.gpkg", options=MosaicOptions(views=4))
    assert not (tmp_path / "o.gpkg").exists()


def test_volumes_have_flips_instead(tmp_path: Path, whole: Path) -> None:
    path = nifti(tmp_path / "v.nii.gz", ramp((6, 40, 50)))
    with pytest.raises(ConfigError, match="flips"):
        segment(path, adapter=whole, views=4, progress=False)


def test_objects_of_windows_have_no_maps_to_average(tmp_path: Path) -> None:
    grafted = attach(load_backbone("graft-tiny"), decoder=DistancesConfig(from_points=True))
    extra = {"input": {"size": 128, "window": 128, "overlap": 0.25, "slice_axis": None, "neighbours": False}}
    meta = BundleMeta(task="instance", classes={1: "object"}, extra=extra)
    save_bundle(tmp_path / "points.graft", grafted, meta=meta)
    grafted.detach()
    with pytest.raises(ConfigError, match="objects window by window"):
        segment(picture(tmp_path / "p.png"), adapter=tmp_path / "points.graft", views=4, progress=False)


def test_command_line(tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, target = picture(tmp_path / "p.png"), tmp_path / "m.tif"
    cli.main(["segment", str(path), "--adapter", str(whole), "--views", "8", "-o", str(target)])
    wanted = segment(path, adapter=whole, views=8, progress=False).labels
    assert np.array_equal(labels_of(target), wanted)
    capsys.readouterr()


def test_a_folder_remembers_the_views(tmp_path: Path, whole: Path) -> None:
    path = picture(tmp_path / "p.png")
    predict([path], tmp_path / "out", adapter=whole, views=4)
    assert json.loads((tmp_path / "out" / MARKER).read_text())["views"] == 4
    with pytest.raises(ConfigError, match="views"):
        predict([path], tmp_path / "out", adapter=whole)
    assert open_scene(tmp_path / "out" / "p.png").kind == "picture"
