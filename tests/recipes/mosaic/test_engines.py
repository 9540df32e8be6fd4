"""Engines: the same outcomes whoever computes, each tile once, and what becomes of workers that die."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest

from samgraft.errors import CheckpointError, ConfigError, SamgraftError
from samgraft.recipes.mosaic import engines
from samgraft.recipes.mosaic.engines import DaskEngine, Engine, LocalEngine
from samgraft.recipes.mosaic.journal import Outcome
from samgraft.recipes.mosaic.plan import Tile
from tests.recipes.mosaic._fakes import Names, small_plan

TILES = list(small_plan().tiles)


@pytest.fixture
def _importable(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes find this package."""
    monkeypatch.syspath_prepend(str(repo_root))
    monkeypatch.setenv("PYTHONPATH", f"{repo_root / '.src'}:{repo_root}")


def ordered(outcomes: Iterator[Outcome]) -> list[tuple[int, bytes]]:
    return sorted((one.number, one.content) for one in outcomes)


EXPECTED = [(tile.number, repr((tile.index, tile.window)).encode()) for tile in TILES]


def test_one_worker_stays_here_and_keeps_the_order(tmp_path: Path) -> None:
    infer = Names(tmp_path)
    found = list(LocalEngine().run(infer, TILES))
    assert [(one.number, one.content) for one in found] == EXPECTED
    assert infer.loads == 1 and len(EXPECTED) == 12


def test_a_plan_is_walked_not_held(tmp_path: Path) -> None:
    taken = 0

    def walk() -> Iterator[Tile]:
        nonlocal taken
        for tile in TILES:
            taken += 1
            yield tile

    outcomes = LocalEngine().run(Names(tmp_path), walk())
    next(outcomes)
    assert taken <= 5  # one given, two waiting, one under way
    outcomes.close()


def test_an_error_comes_after_what_was_found_before_it(tmp_path: Path) -> None:
    seen = []
    with pytest.raises(CheckpointError, match="adapter is damaged"):
        for outcome in LocalEngine().run(Names(tmp_path, fails_at=3), TILES):
            seen.append(outcome.number)
    assert seen == [0, 1, 2]


@pytest.mark.usefixtures("_importable")
def test_two_processes_give_the_same_with_one_model_each(tmp_path: Path) -> None:
    infer = Names(tmp_path)
    assert ordered(LocalEngine(2).run(infer, TILES)) == EXPECTED
    assert infer.loads == 0 and infer.times() == len(infer.processes()) <= 2


@pytest.mark.usefixtures("_importable")
def test_a_process_that_dies_loses_nothing(tmp_path: Path) -> None:
    infer = Names(tmp_path, dies_at=5)
    assert ordered(LocalEngine(2).run(infer, iter(TILES))) == EXPECTED
    assert (tmp_path / "died").exists()


@pytest.mark.usefixtures("_importable")
def test_a_tile_that_always_kills_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "RETRIES", 0)  # each new pool imports torch again
    with pytest.raises(SamgraftError, match=r"1 times a process was killed, last at tiles .*5.*smaller tiles"):
        list(LocalEngine(2, batch=1).run(Names(tmp_path, dies_at=5, always=True), TILES))


@pytest.mark.slow
@pytest.mark.usefixtures("_importable")
@pytest.mark.parametrize("dies_at", [-1, 5])
def test_dask_gives_the_same_also_when_a_worker_dies(tmp_path: Path, dies_at: int) -> None:
    pytest.importorskip("distributed")
    infer = Names(tmp_path, dies_at=dies_at)
    engine = DaskEngine(workers=2, batch=2)
    assert ordered(engine.run(infer, iter(TILES))) == EXPECTED
    assert (tmp_path / "died").exists() == (dies_at == 5)
    assert infer.times() == len(infer.processes())


@pytest.mark.slow
@pytest.mark.usefixtures("_importable")
def test_dask_hands_on_errors(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    with pytest.raises(CheckpointError, match="adapter is damaged"):
        list(DaskEngine(workers=1).run(Names(tmp_path, fails_at=3), TILES))


def test_a_scheduler_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    engine = DaskEngine("tcp://127.0.0.1:1")

    def nobody(*_: object, **__: object) -> None:
        raise OSError("Timed out trying to connect")

    monkeypatch.setattr(distributed, "Client", nobody)
    with pytest.raises(ConfigError, match="no Dask scheduler answers at 'tcp://127.0.0.1:1'.*dask scheduler"):
        list(engine.run(Names(tmp_path), TILES))


@pytest.mark.parametrize("make", [lambda: LocalEngine(0), lambda: LocalEngine(batch=0), lambda: DaskEngine(workers=0)])
def test_no_workers_are_refused(make: type[Engine]) -> None:
    with pytest.raises(ConfigError, match="expected at least 1"):
        make()


def test_what_cannot_travel_is_named(tmp_path: Path) -> None:
    infer = Names(tmp_path)
    infer.model = lambda: None  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="workers cannot be given Names.*by their paths"):
        next(LocalEngine(2).run(infer, TILES))
    assert copy.copy(Names(tmp_path)).folder == tmp_path
