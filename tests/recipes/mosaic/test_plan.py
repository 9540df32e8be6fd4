"""Where tiles lie, in numbers worked out by hand."""

import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samgraft.errors import ConfigError, ShapeError
from samgraft.recipes.mosaic.plan import TilePlan, plan_for_objects, plan_tiles, shared, within


def _rows(plan: TilePlan) -> list[tuple[int, int, int, int]]:
    """Start and stop of window and core of the first column's tiles."""
    tiles = [tile for tile in plan.tiles if tile.index[1] == 0]
    return [(t.window[0].start, t.window[0].stop, t.core[0].start, t.core[0].stop) for t in tiles]


def test_windows_overlap_and_cores_meet_in_the_middle() -> None:
    assert _rows(plan_tiles((10, 7), 4, 1)) == [(0, 4, 0, 3), (3, 7, 3, 6), (6, 10, 6, 10)]
    assert _rows(plan_tiles((10, 7), 4, 2)) == [(0, 4, 0, 3), (2, 6, 3, 5), (4, 8, 5, 7), (6, 10, 7, 10)]


def test_the_lattice_passes_through_the_origin_and_is_cut_at_the_edge() -> None:
    rows = [(0, 2, 0, 1), (1, 5, 1, 4), (4, 8, 4, 7), (7, 10, 7, 10)]
    assert _rows(plan_tiles((10, 7), 4, 1, origin=(1, 0))) == rows
    assert _rows(plan_tiles((10, 7), 4, 1, origin=(-8, 0))) == rows


def test_tiles_are_numbered_row_by_row_and_know_their_neighbours() -> None:
    plan = plan_tiles((10, 7), 4, 1)
    assert plan.grid == (3, 2)
    assert [(t.number, t.index) for t in plan.tiles[2:4]] == [(2, (1, 0)), (3, (1, 1))]
    assert plan.tiles[3].window == (slice(3, 7), slice(3, 7))
    assert [t.number for t in plan.neighbours(plan.tile(2))] == [0, 1, 3, 4, 5]
    assert [t.number for t in plan.neighbours(plan.tile(5))] == [2, 3, 4]
    assert plan.block(plan.tile(0)) == (slice(0, 3), slice(0, 3))
    assert plan.block(plan.tile(5)) == (slice(6, 10), slice(3, 7))
    with pytest.raises(ConfigError, match="tile 6 does not exist"):
        plan.tile(6)


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    side=st.integers(2, 20),
    share=st.floats(0, 1),
    origin=st.tuples(st.integers(-50, 50), st.integers(-50, 50)),
)
def test_cores_and_blocks_cover_every_pixel_once(
    shape: tuple[int, int], side: int, share: float, origin: tuple[int, int]
) -> None:
    overlap = 1 + round(share * (side // 2 - 1))
    plan = plan_tiles(shape, side, overlap, origin=origin)
    cores, blocks = np.zeros(shape, dtype=int), np.zeros(shape, dtype=int)
    for tile in plan.tiles:
        cores[tile.core] += 1
        blocks[plan.block(tile)] += 1
        assert shared(tile.core, tile.window) == tile.core
    for tile in plan.tiles[:: 1 + len(plan.tiles) // 3]:
        seen = {n.number for n in plan.tiles if n.number != tile.number and shared(n.window, tile.window)}
        assert seen == {n.number for n in plan.neighbours(tile)}
    assert (cores == 1).all()
    assert (blocks == 1).all()


def test_a_plan_of_a_hundred_million_tiles_is_made_at_once() -> None:
    plan = plan_tiles((10_000_000, 10_000_000), 1064, 64)
    assert len(plan.tiles) == 100_000_000
    assert plan.tiles[-1].core == (slice(9_999_032, 10_000_000), slice(9_999_032, 10_000_000))
    assert len(pickle.dumps(plan)) < 500


def test_tiles_can_be_left_out() -> None:
    keep = np.array([[True, False], [False, True], [True, True]])
    plan = plan_tiles((10, 7), 4, 1, keep=keep)
    assert [t.number for t in plan.tiles] == [0, 3, 4, 5]
    assert len(plan.tiles) == 4
    assert plan.tiles[1].number == 3
    assert [t.number for t in plan.neighbours(plan.tile(4))] == [3, 5]
    assert not plan.has(1)
    with pytest.raises(ShapeError, match=r"keep is \(2, 3\); expected one value for each tile, \(3, 2\)"):
        plan_tiles((10, 7), 4, 1, keep=keep.T)


def test_the_digest_tells_plans_apart() -> None:
    keep = np.array([[True, False], [False, True], [True, True]])
    plans = [plan_tiles((10, 7), 4, 1), plan_tiles((10, 7), 4, 2), plan_tiles((10, 7), 4, 1, origin=(1, 0))]
    plans += [plan_tiles((10, 7), 4, 1, keep=keep), plan_tiles((10, 7), 4, 1, keep=~keep)]
    assert len({plan.digest() for plan in plans}) == 5
    assert plan_tiles((10, 7), 4, 1).digest() == plans[0].digest()


@pytest.mark.parametrize("side, overlap", [(1, 1), (4, 0), (4, 3), (5, 3)])
def test_an_overlap_that_cannot_join_objects_is_refused(side: int, overlap: int) -> None:
    with pytest.raises(ConfigError, match=f"side {side} with overlap {overlap} cannot be used"):
        plan_tiles((10, 7), side, overlap)
    with pytest.raises(ShapeError, match=r"the raster is \(0, 7\)"):
        plan_tiles((0, 7), 4, 1)


def test_parts_are_counted_from_the_corner_of_another() -> None:
    a, b = (slice(2, 9), slice(5, 8)), (slice(4, 12), slice(0, 7))
    assert shared(a, b) == (slice(4, 9), slice(5, 7))
    assert within((slice(4, 9), slice(5, 7)), a) == (slice(2, 7), slice(0, 2))
    assert shared(a, (slice(9, 12), slice(0, 7))) is None


def test_the_planner_takes_the_object_into_the_overlap() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # 30 m at 0.25 m are 120 px; 122 round up to 128; four of them are less than a view
        assert plan_for_objects(0.25, 30) == (1024, 128)
        assert plan_for_objects(0.1, 30) == (1216, 304)
    with pytest.warns(
        UserWarning, match="objects up to 500 m are 5000 px at 0.1 m per pixel, more than the overlap of 2048"
    ):
        assert plan_for_objects(0.1, 500) == (4096, 2048)
    with pytest.raises(ConfigError, match="gsd 0 m"):
        plan_for_objects(0, 30)
    with pytest.raises(ConfigError, match="max_side is 512"):
        plan_for_objects(0.25, 30, max_side=512)
