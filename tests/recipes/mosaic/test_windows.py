"""Adapters on tiles: one lattice of network windows whatever the tiles are, and what is left out."""

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from numpy.typing import NDArray
from torch import Tensor

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.decoders.base import SemanticOutput
from samgraft.domains.opening import open_scene
from samgraft.domains.remote_sensing.area import Area
from samgraft.errors import ConfigError, InputError
from samgraft.recipes.data.fit import windows as tiling
from samgraft.recipes.engine.automatic import segment_automatic
from samgraft.recipes.engine.everything import EverythingConfig
from samgraft.recipes.engine.recorded import Recorded
from samgraft.recipes.engine.steps import steps
from samgraft.recipes.instances import border_target
from samgraft.recipes.look import look_at
from samgraft.recipes.mosaic.engines import packed
from samgraft.recipes.mosaic.everything import EverythingInfer
from samgraft.recipes.mosaic.found import TileClasses, TileObjects
from samgraft.recipes.mosaic.frontier import number_objects, stream_steps
from samgraft.recipes.mosaic.infer import NothingInfer, Source, TileInfer
from samgraft.recipes.mosaic.plan import TilePlan, plan_tiles, within
from samgraft.recipes.mosaic.windows import AdapterInfer, Loaded, lattice
from tests.benchmarks import _endless
from tests.data.rasters import write_raster
from tests.recipes._oracle import Oracle, OracleGraft, squares
from tests.recipes.mosaic._scenes import bright, grainy, header, oracle, things


def classes(infer: TileInfer, plan: TilePlan) -> NDArray[np.int64]:
    """The class map of all cores; 7 where no tile says anything."""
    whole = np.full(plan.shape, 7, dtype=np.int64)
    for outcome in infer.stream(plan.tiles):
        tile = plan.tile(outcome.number)
        if outcome.state != "found":
            whole[tile.core] = 0
            continue
        labels = TileClasses.load(io.BytesIO(outcome.content)).labels
        whole[tile.core] = np.maximum(labels[within(tile.core, tile.window)], 0)
    return whole


@pytest.mark.parametrize(("window", "overlap"), [(64, 0.25), (48, 0.5)])
@pytest.mark.parametrize(
    ("side", "shared", "origin"), [(50, 2, (0, 0)), (97, 20, (13, 5)), (400, 2, (0, 0)), (33, 16, (7, 30))]
)
def test_classes_are_those_of_the_whole_raster(
    tmp_path: Path, window: int, overlap: float, side: int, shared: int, origin: tuple[int, int]
) -> None:
    path = write_raster(tmp_path / "r.tif", grainy((131, 178)))
    said = header(window=window, overlap=overlap)
    graft: Any = OracleGraft()
    whole = segment_automatic(open_scene(path), graft, said).labels
    assert 0.2 < whole.mean() < 0.8
    found = classes(bright(path, said), plan_tiles((131, 178), side, shared, origin=origin))
    assert np.array_equal(found, whole)


class Rims(OracleGraft):
    """Objects with rims: bright is the inside, gray the rim, dark the ground."""

    def predict(self, image: Tensor, *, features: Features) -> SemanticOutput:
        levels = torch.tensor([0.05, 0.95, 0.5])[:, None, None]
        return SemanticOutput(logits=-20 * (features.neck[:, :1] - levels).abs(), activation="softmax")


def rimmed(path: Path, said: Recorded, halo: int) -> AdapterInfer:
    infer, graft = bright(path, said), Rims(instance=True)
    infer._loaded = Loaded(graft, said, steps(graft, said.maps), 3)  # type: ignore[arg-type]
    infer.halo = halo
    return infer


def joined(infer: TileInfer, plan: TilePlan) -> NDArray[np.int32]:
    """The label map of the joined objects."""
    found = [
        (plan.tile(outcome.number), TileObjects.load(io.BytesIO(outcome.content)))
        for outcome in infer.stream(plan.tiles)
        if outcome.state == "found"
    ]
    whole = np.zeros(plan.shape, dtype=np.int32)
    for step in stream_steps(plan, found, number_objects(plan, found)):
        if step.labels is not None:
            whole[step.part] = step.labels
    return whole


def test_objects_with_wide_rims_do_not_depend_on_the_tiles(tmp_path: Path) -> None:
    """Rims of 8 pixels are shared out between touching objects, also by tiles that do not see the insides of both."""
    rows, cols = np.mgrid[:200, :260]
    truth = np.where((rows % 41 < 38) & (cols % 61 < 58), rows // 41 * 9 + (cols + 7 * (rows // 41)) // 31 + 1, 0)
    values = np.array([13, 242, 127], dtype=np.uint8)[border_target(truth, border=8)]
    path = write_raster(tmp_path / "r.tif", values[None])
    said = header(kind="instance", classes={1: "roof"})
    graft: Any = Rims(instance=True)
    whole = segment_automatic(open_scene(path), graft, said).labels
    wrong = {0: 0, 12: 0}
    for side, overlap in ((64, 4), (80, 6), (101, 2), (97, 8)):
        for halo in wrong:
            found = joined(rimmed(path, said, halo), plan_tiles((200, 260), side, overlap))
            assert np.array_equal(found > 0, whole > 0)
            pairs = np.unique(np.stack([found.ravel(), whole.ravel()]), axis=1)
            wrong[halo] += pairs.shape[1] - len(np.unique(whole))
    assert wrong[12] == 0 < wrong[0], wrong


@pytest.mark.parametrize("shape", [(1, 200), (200, 1), (40, 50), (1, 1), (64, 64)])
def test_small_and_thin_rasters(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = write_raster(tmp_path / "r.tif", grainy(shape))
    graft: Any = OracleGraft()
    whole = segment_automatic(open_scene(path), graft, header()).labels
    assert np.array_equal(classes(bright(path, header()), plan_tiles(shape, 96, 2)), whole)


def test_lattice_is_that_of_the_whole_raster() -> None:
    said = header(window=100, overlap=0.3)
    rows, cols = lattice(said, (1013, 250))
    places = tiling((1013, 250), 100, 0.3)
    assert rows.tolist() == sorted({place[0].start for place in places})
    assert cols.tolist() == sorted({place[1].start for place in places})


def test_whole_pictures_have_no_lattice() -> None:
    with pytest.raises(ConfigError, match="trained on whole pictures"):
        lattice(header(window=None), (100, 100))


def test_nodata_is_never_a_class_and_empty_tiles_are_not_computed(tmp_path: Path) -> None:
    image = np.full((1, 100, 300), 255, np.uint8)
    image[0, :, :90] = squares((100, 90), [(10, 10, 60, 60)])
    path = write_raster(tmp_path / "r.tif", image, nodata=255)
    infer = bright(path, header(overlap=0.0))
    plan = plan_tiles((100, 300), 60, 2)
    states = [outcome.state for outcome in infer.stream(plan.tiles)]
    assert states[:2] == ["found", "found"] and set(states[2:6]) == {"empty"}
    graft: Any = infer.loaded.grafted
    assert graft.calls <= 2 * 2 * 4  # two windows reach into the left tiles, none of the rest is looked at
    labels = classes(infer, plan)
    assert not labels[:, 90:].any() and (labels[12:59, 12:59] == 1).all()


def test_only_the_area_is_answered_and_the_answers_there_are_the_same(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "r.tif", grainy((120, 160)))
    area = boxes_area(tmp_path, (30, 20, 75.25, 64), (140, 100, 150, 110))
    plan = plan_tiles((120, 160), 50, 4)
    everywhere, inside = classes(bright(path, header()), plan), classes(bright(path, header(), area=area), plan)
    mask = np.zeros((120, 160), dtype=bool)
    mask[20:64, 30:75] = mask[100:110, 140:150] = True  # the centre of column 75 lies outside
    assert np.array_equal(inside, np.where(mask, everywhere, 0))
    assert area.touches((slice(0, 50), slice(0, 50))) and not area.touches((slice(70, 99), slice(0, 160)))


def test_scores_are_the_probability_of_the_class(tmp_path: Path) -> None:
    image = np.full((1, 64, 64), 20, np.uint8)
    image[:, :, :32] = 130  # logits of -0.196 and 0.196, so a probability of 0.597
    path = write_raster(tmp_path / "r.tif", image)
    (outcome,) = bright(path, header(), scores=True).stream(plan_tiles((64, 64), 64, 2).tiles)
    found = TileClasses.load(io.BytesIO(outcome.content))
    assert found.scores is not None and found.labels[5, 5] == 1 and found.labels[5, 60] == 0
    assert found.scores[5, 5] in (152, 153) and found.scores[5, 60] == 255


def objects(infer: TileInfer, plan: TilePlan) -> list[TileObjects | None]:
    return [
        TileObjects.load(io.BytesIO(one.content)) if one.state == "found" else None for one in infer.stream(plan.tiles)
    ]


def test_objects_of_maps_are_whole_in_the_overlap(tmp_path: Path) -> None:
    boxes = [(10, 10, 41, 41), (80, 20, 111, 51), (20, 100, 99, 131)]
    path = write_raster(tmp_path / "r.tif", squares((150, 160), boxes)[None])
    said = header(kind="instance", classes={1: "roof"})
    plan = plan_tiles((150, 160), 100, 44)
    truth = squares((150, 160), boxes) > 100
    for tile, found in zip(plan.tiles, objects(bright(path, said), plan), strict=True):
        if found is None:
            assert not truth[tile.window].any()
            continue
        assert ((found.labels > 0) ^ truth[tile.window]).mean() < 0.02
        assert found.classes.tolist() == [1] * len(found) and (found.scores > 0.9).all()
    (first, *_) = objects(bright(path, said), plan)
    assert first is not None and len(first) == 2  # the third begins below


def test_a_tile_that_cannot_be_read_is_an_outcome(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "r.tif", grainy((128, 128)), tiled=True, blockxsize=64, blockysize=64)
    infer = bright(path, header())
    plan = plan_tiles((128, 128), 64, 2)
    assert infer.loaded.batch == 3
    read = infer.scene.read_valid

    def broken(window: Any, channels: Any) -> Any:
        if window[0].stop > 100 and window[1].stop > 100:
            raise InputError("block 3 is damaged")
        return read(window, channels)

    infer.scene.read_valid = broken  # type: ignore[method-assign]
    outcomes = list(infer.stream(plan.tiles))
    assert [one.number for one in outcomes if one.state == "bad"] == [one.number for one in outcomes if one.note]
    bad = [one for one in outcomes if one.state == "bad"]
    assert bad and all(one.note == "block 3 is damaged" for one in bad)
    assert outcomes[0].state == "found" and len(outcomes) == len(plan.tiles)


def test_facts_name_what_decides(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "r.tif", grainy((80, 80)))
    area = boxes_area(tmp_path, (0, 0, 10, 10))
    infer = NothingInfer(Source.of(path, bands=[1]))
    facts = infer.facts()
    assert facts["input"]["r.tif"]["size"] == path.stat().st_size and facts["reading"] == {"bands": [1]}
    assert facts["area"] is None and facts["method"] == {"mode": "nothing", "kind": "semantic"}
    inside = NothingInfer(Source.of(path), area=area)
    before = inside.facts()["area"]
    area.path.write_text(area.path.read_text() + " ")
    assert before is not None and inside.facts()["area"] != before


def test_another_file_under_the_same_path_is_refused(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "r.tif", grainy((80, 80)))
    source = Source.of(path)
    write_raster(path, grainy((80, 80), seed=1))
    with pytest.raises(InputError, match="is not the file that this run began with"):
        source.open()


def test_oracle_cuts_an_object_that_leaves_the_window_in_two(tmp_path: Path) -> None:
    infer = oracle(tmp_path, things())
    plan = plan_tiles((150, 170), 80, 10, origin=(20, 0))
    truth = things()[0]
    for tile, found in zip(plan.tiles, objects(infer, plan), strict=True):
        assert found is not None
        assert np.array_equal(found.labels > 0, truth[tile.window] > 0)
        for label in range(1, len(found) + 1):
            assert len(np.unique(truth[tile.window][found.labels == label])) == 1
    whole = plan_tiles((150, 170), 170, 10)
    (everything,) = objects(infer, whole)
    assert everything is not None and np.array_equal(everything.labels, truth)  # numbered in raster scan order, too


def test_everything_finds_bright_things_of_a_tile(tmp_path: Path) -> None:
    boxes = [(10, 10, 40, 40), (60, 16, 90, 50)]
    path = write_raster(tmp_path / "r.tif", squares((64, 128), boxes)[None])
    scene = open_scene(path)
    config = EverythingConfig(points_per_side=8, pred_iou_thresh=0.5, stability_score_thresh=0.5)
    infer = EverythingInfer(Source.of(path), look_at(scene), backbone=Oracle(), config=config)
    plan = plan_tiles((64, 128), 128, 2)
    (found,) = objects(infer, plan)
    assert found is not None and len(found) == 2
    truth = squares((64, 128), boxes) > 100
    assert ((found.labels > 0) ^ truth).mean() < 0.04  # a cell of the mask is 4 pixels wide
    assert infer.facts()["method"]["backbone"] == "oracle"


def test_little_travels(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "r.tif", grainy((80, 80)))
    infer = AdapterInfer(Source.of(path), tmp_path / "a.graft", look_at(open_scene(path)))
    infer._loaded = bright(path, header()).loaded
    sent = packed(infer)  # to every batch of tiles
    assert len(sent) < 1500 and copy.copy(infer)._loaded is None  # copied by the state that is packed
    found = _endless.see(plan_tiles((1024, 1024), 1024, 64).tile(0), 1024)
    returned = len(found.to_bytes())  # of a tile of 1024 pixels with 800 objects
    assert len(found) == 25 * 32 and 20_000 < returned < 130_000


def boxes_area(folder: Path, *boxes: tuple[float, float, float, float]) -> Area:
    """Boxes (x0, y0, x1, y1) in pixels."""
    path = folder / "area.geojson"
    path.write_text(repr(boxes))
    return Area(np.array([shapely.box(*box) for box in boxes], dtype=object), (1000, 1000), path)
