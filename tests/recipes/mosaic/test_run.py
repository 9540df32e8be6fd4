"""Whole runs: exact for an oracle, whoever computes; tiles that cannot be read; what the files say."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from samgraft.errors import ConfigError, InputError, OutputError
from samgraft.grid import Grid
from samgraft.recipes.mosaic.engines import LocalEngine
from samgraft.recipes.mosaic.found import TileClasses
from samgraft.recipes.mosaic.infer import OracleInfer
from samgraft.recipes.mosaic.journal import Journal
from samgraft.recipes.mosaic.plan import TilePlan, plan_tiles
from samgraft.recipes.mosaic.progress import clock, words
from samgraft.recipes.mosaic.run import MosaicSummary, Progress, patches, run_mosaic
from tests.recipes.mosaic._fakes import JsonSink
from tests.recipes.mosaic._scenes import oracle, things

SHAPE = (150, 170)


def whole(
    folder: Path, infer: OracleInfer, plan: TilePlan, *sinks: JsonSink, workers: int = 1, **options: Any
) -> MosaicSummary:
    """One run with a journal in ``folder``."""
    classes = {1: "thing"} if infer.kind == "instance" else {n: f"class {n}" for n in range(1, 1000)}
    grid: Grid = infer.scene.grid
    with Journal(folder / "w", infer.facts() | {"plan": plan.to_dict()}) as journal:
        journal.verify()
        engine = LocalEngine(workers, batch=1)
        return run_mosaic(
            grid, infer, plan, sinks, kind=infer.kind, classes=classes, engine=engine, journal=journal, **options
        )


@pytest.mark.parametrize(("side", "overlap", "origin"), [(48, 8, (0, 0)), (64, 1, (30, 11)), (31, 15, (5, 9))])
def test_objects_are_exact_and_numbered_by_their_first_pixel(
    tmp_path: Path, side: int, overlap: int, origin: tuple[int, int]
) -> None:
    truth = things(SHAPE)[0].astype(np.int64)  # numbered in raster scan order already
    objects, ids = JsonSink(tmp_path / "objects.json"), JsonSink(tmp_path / "ids.json", takes="rows")
    plan = plan_tiles(SHAPE, side, overlap, origin=origin)
    summary = whole(tmp_path, oracle(tmp_path, things(SHAPE)), plan, objects, ids)
    assert np.array_equal(objects.labels(), truth)
    assert np.array_equal(np.maximum(ids.labels(), 0), truth)
    assert summary.objects == truth.max() and summary.by_class == {"thing": truth.max()}
    assert summary.outputs == (objects.path, ids.path) and summary.computed == len(plan.tiles)
    written = json.loads(objects.path.read_text())
    assert written["count"] == truth.max() and all(entry[2] == 1.0 for entry in written["found"])


def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    plan = plan_tiles(SHAPE, 48, 8)
    (tmp_path / "a").mkdir()
    first = JsonSink(tmp_path / "a.json")
    whole(tmp_path / "a", oracle(tmp_path / "a", things(SHAPE)), plan, first)

    (tmp_path / "b").mkdir()
    infer, second = oracle(tmp_path / "b", things(SHAPE)), JsonSink(tmp_path / "b.json")
    seen: list[int] = []

    def stop(now: Progress) -> None:
        seen.append(now.done)
        if now.done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        whole(tmp_path / "b", infer, plan, second, tell=stop)
    assert seen == list(range(1, 8)) and not second.path.exists()
    summary = whole(tmp_path / "b", infer, plan, second, tell=lambda now: seen.append(now.done))
    assert summary.computed == len(plan.tiles) - 7
    assert second.path.read_bytes() == first.path.read_bytes()


def test_what_is_finished_needs_no_engine(tmp_path: Path) -> None:
    plan, infer = plan_tiles(SHAPE, 64, 8), oracle(tmp_path, things(SHAPE))
    whole(tmp_path, infer, plan, JsonSink(tmp_path / "a.json"))
    infer.stream = None  # type: ignore[method-assign, assignment]
    assert whole(tmp_path, infer, plan, JsonSink(tmp_path / "b.json")).computed == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.slow
def test_two_workers_write_the_same_bytes(tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(repo_root))
    plan, infer = plan_tiles(SHAPE, 48, 8), oracle(tmp_path, things(SHAPE))
    for workers in (1, 2):
        (tmp_path / str(workers)).mkdir()
        whole(tmp_path / str(workers), infer, plan, JsonSink(tmp_path / f"{workers}.json"), workers=workers)
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()


def broken(infer: OracleInfer, row: int, col: int) -> None:
    """Windows that hold this pixel cannot be read."""
    read = infer.scene.read_valid

    def reading(window: Any, channels: Any) -> Any:
        rows, cols = window
        if rows.start <= row < rows.stop and cols.start <= col < cols.stop:
            raise InputError("block (2, 1) is damaged")
        return read(window, channels)

    infer.scene.read_valid = reading  # type: ignore[method-assign]


def test_a_bad_tile_stops_the_run_and_the_rest_stays(tmp_path: Path) -> None:
    plan, infer = plan_tiles(SHAPE, 48, 8), oracle(tmp_path, things(SHAPE))
    sink = JsonSink(tmp_path / "out.json")
    broken(infer, 60, 60)
    with pytest.raises(
        InputError, match=r"tile 6 \(rows 40 to 88, columns 40 to 88\).*block \(2, 1\).*on-bad-tile skip"
    ):
        whole(tmp_path, infer, plan, sink)
    assert not sink.path.exists()
    repaired = OracleInfer(infer.source)
    assert whole(tmp_path, repaired, plan, sink).computed == len(plan.tiles) - 6
    assert np.array_equal(sink.labels(), things(SHAPE)[0])


def test_a_bad_tile_that_is_skipped_is_listed_and_empty(tmp_path: Path) -> None:
    plan, infer = plan_tiles(SHAPE, 48, 8), oracle(tmp_path, things(SHAPE), semantic=True)
    broken(infer, 60, 60)
    sink = JsonSink(tmp_path / "out.json", takes="rows")
    summary = whole(tmp_path, infer, plan, sink, on_bad_tile="skip")
    (one,) = summary.skipped
    assert (one.number, one.rows, one.cols) == (6, (44, 83), (44, 83)) and one.reason == "block (2, 1) is damaged"
    expected = things(SHAPE)[0].astype(np.int64)
    expected[44:84, 44:84] = -1
    assert np.array_equal(sink.labels(), expected)
    (noted,) = json.loads(sink.path.read_text())["provenance"]["failed_tiles"]
    assert noted["number"] == 6 and noted["rows"] == [44, 83]
    healed = whole(tmp_path, OracleInfer(infer.source, semantic=True), plan, sink)  # tried again
    assert healed.computed == 1 and not healed.skipped
    assert np.array_equal(sink.labels(), things(SHAPE)[0])


def test_classes_and_their_patches(tmp_path: Path) -> None:
    labels = np.zeros((1, 60, 90), dtype=np.uint16)
    labels[0, 10:50, 5:80], labels[0, 20:40, 30:60], labels[0, 25:30, 40:45] = 1, 2, 1
    infer = oracle(tmp_path, labels, semantic=True)
    raster, polygons = JsonSink(tmp_path / "r.json", takes="rows"), JsonSink(tmp_path / "p.json")
    summary = whole(tmp_path, infer, plan_tiles((60, 90), 32, 2), raster, polygons)
    assert np.array_equal(raster.labels(), labels[0])
    expected = np.where(labels[0] == 2, 2, np.where(labels[0] == 1, 1, 0))
    expected[25:30, 40:45] = 3  # the third patch; of class 1 again
    assert np.array_equal(polygons.labels(), expected)
    assert summary.by_class == {"class 1": 2, "class 2": 1}
    assert [entry[1] for entry in json.loads(polygons.path.read_text())["found"]] == [1, 2, 1]


def test_patches_of_a_tile() -> None:
    labels: NDArray[np.int16] = np.array([[2, 2, 0, -1], [1, 0, 2, 2], [1, 1, 0, 2]], dtype=np.int16)
    scores = np.array([[255, 51, 9, 9], [51, 9, 255, 255], [51, 51, 9, 255]], dtype=np.uint8)
    found = patches(TileClasses(labels=labels, scores=scores))
    assert found.labels.tolist() == [[1, 1, 0, 0], [2, 0, 3, 3], [2, 2, 0, 3]]
    assert found.classes.tolist() == [2, 1, 2]
    assert found.scores.tolist() == pytest.approx([0.6, 0.2, 1.0])
    assert len(patches(TileClasses(labels=np.zeros((2, 2), np.uint8)))) == 0
    assert TileClasses.load(io.BytesIO(TileClasses(labels=labels).to_bytes())).labels.dtype == np.int16


def test_a_sink_that_fails_takes_the_others_with_it(tmp_path: Path) -> None:
    class Full(JsonSink):
        def add(self, found: Any) -> None:
            raise OutputError("disk full")

    good, bad = JsonSink(tmp_path / "good.json"), Full(tmp_path / "bad.json")
    infer = oracle(tmp_path, things(SHAPE))
    with pytest.raises(OutputError, match="disk full"):
        whole(tmp_path, infer, plan_tiles(SHAPE, 64, 8), good, bad)
    assert not good.path.exists() and good.content == {} and not bad.path.exists()
    assert (tmp_path / "w" / "journal.sqlite").exists()


def test_a_plan_of_another_raster_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the plan is for a raster of \(10, 10\), this one is \(150, 170\)"):
        whole(tmp_path, oracle(tmp_path, things(SHAPE)), plan_tiles((10, 10), 8, 2), JsonSink(tmp_path / "a.json"))


def test_progress_in_words() -> None:
    now = Progress(what="tiles", done=30, total=130, new=20, seconds=10.0)
    assert now.rate == 2.0 and now.left == 50.0
    assert words(now) == "tiles 30 of 130, 2.00 tiles/s, 50 s left"
    assert words(Progress(what="tiles", done=10, total=130, new=0, seconds=3.0)) == "tiles 10 of 130"
    assert [clock(v) for v in (59.4, 303, 25_920)] == ["59 s", "5 min 03 s", "7 h 12 min"]
