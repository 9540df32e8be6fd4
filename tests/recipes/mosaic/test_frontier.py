"""Objects over many tiles come out whole, whatever the tiling, and memory follows the row of tiles."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samgraft.errors import ConfigError, ShapeError
from samgraft.recipes.mosaic.found import TileObjects
from samgraft.recipes.mosaic.frontier import Frontier, MosaicObject, Step, number_objects, stream_objects, stream_steps
from samgraft.recipes.mosaic.link import link
from samgraft.recipes.mosaic.plan import Tile, TilePlan, plan_tiles, shape_of, shared
from tests.recipes.mosaic._worlds import KINDS, boxes, components, merged, oracle, painted, world

Box = tuple[slice, slice]


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 999),
    shape=st.tuples(st.integers(1, 26), st.integers(1, 26)),
    side=st.integers(4, 30),
    share=st.floats(0, 1),
    origin=st.tuples(st.integers(-40, 40), st.integers(-40, 40)),
    eight=st.booleans(),
)
def test_tiled_equals_whole_for_an_oracle(
    kind: str, seed: int, shape: tuple[int, int], side: int, share: float, origin: tuple[int, int], eight: bool
) -> None:
    plan = plan_tiles(shape, side, 1 + round(share * (side // 2 - 1)), origin=origin)
    _check(plan, world(kind, shape, seed), eight)


def _check(plan: TilePlan, labels: np.ndarray, eight: bool = False) -> list[MosaicObject]:
    truth = components(labels, eight=eight)
    see = oracle(truth, eight=eight)
    whole, objects = merged(plan, ((tile, see(tile)) for tile in plan.tiles))
    assert np.array_equal(whole, truth)
    assert [one.id for one in objects] == list(range(1, truth.max() + 1))
    assert np.array_equal(painted(plan.shape, objects), truth)
    for one in objects:
        y, x = np.nonzero(truth == one.id)
        assert one.box == (slice(y.min(), y.max() + 1), slice(x.min(), x.max() + 1))
        assert (one.first, one.area_px, one.class_id) == ((y[0], x[0]), len(y), one.id % 3)
        assert one.score == pytest.approx(one.id % 4 / 4)
        assert one.tiles == sum((truth[tile.window] == one.id).any() for tile in plan.tiles)
        assert np.array_equal(one.mask, truth[one.box] == one.id)
    return objects


@pytest.mark.parametrize(
    "shape, side, overlap",
    [((1, 1), 2, 1), ((1, 23), 4, 1), ((23, 1), 4, 2), ((5, 7), 64, 32), ((6, 7), 2, 1), ((9, 8), 3, 1)],
)
@pytest.mark.parametrize("kind", KINDS)
def test_rasters_of_one_pixel_one_line_or_less_than_a_tile(
    kind: str, shape: tuple[int, int], side: int, overlap: int
) -> None:
    _check(plan_tiles(shape, side, overlap, origin=(1, 3)), world(kind, shape, 5))


def test_a_ring_a_road_and_a_comb_over_many_tiles_are_three_objects() -> None:
    labels = np.zeros((60, 50), dtype=np.int32)
    y, x = np.indices(labels.shape)
    distance = np.hypot(y - 30, x - 25)
    labels[(distance > 14) & (distance < 20)] = 1
    labels[distance < 9] = 2
    labels[3:5], labels[5:9, ::7] = 3, 3
    found = _check(plan_tiles((60, 50), 8, 2), labels)
    assert [one.box for one in found] == [_box(3, 8, 0, 49), _box(11, 49, 6, 44), _box(22, 38, 17, 33)]
    assert min(one.tiles for one in found) > 9


def _two(a: list[Box], b: list[Box]) -> list[tuple[Box, int]]:
    """Box and area of the objects of two tiles that share columns 8 to 11; the core of the right one starts at 10."""
    plan = plan_tiles((8, 20), 12, 4)
    left, right = plan.tiles
    whole, objects = merged(plan, [(left, boxes(left, *a)), (right, boxes(right, *b))])
    assert np.array_equal(painted(plan.shape, objects), whole)
    return [(one.box, one.area_px) for one in objects]


def _box(top: int, bottom: int, left: int, right: int) -> Box:
    """First and last pixel."""
    return slice(top, bottom + 1), slice(left, right + 1)


def test_the_core_decides_where_tiles_disagree_and_both_are_used_where_one_sees_nothing() -> None:
    assert _two([_box(2, 5, 6, 11)], [_box(2, 5, 8, 15)]) == [(_box(2, 5, 6, 15), 40)]
    # the right tile draws it a pixel smaller: the left one's pixels stay, since nothing else is there
    assert _two([_box(2, 5, 6, 11)], [_box(3, 4, 8, 15)]) == [(_box(2, 5, 6, 15), 4 * 6 + 2 * 4)]


def test_an_object_that_one_tile_misses_keeps_what_the_other_saw() -> None:
    whole = _box(2, 5, 6, 13)
    assert _two([whole], []) == [(_box(2, 5, 6, 11), 24)]
    assert _two([], [whole]) == [(_box(2, 5, 8, 13), 24)]
    inside = _box(2, 5, 8, 9)  # in the core of the left tile, which misses it; the right one sees two columns
    assert _two([], [_box(2, 5, 8, 11)]) == [(_box(2, 5, 8, 11), 16)]
    assert _two([inside], []) == [(inside, 8)]


def test_a_sliver_at_the_edge_of_a_window_is_no_object_of_its_own() -> None:
    # the object ends at column 8: the left tile draws it to 7, the right one to 9 or, at the other end, from 10
    assert _two([_box(2, 5, 4, 7)], [_box(2, 5, 8, 9)]) == [(_box(2, 5, 4, 7), 16)]
    assert _two([_box(2, 5, 10, 11)], [_box(2, 5, 12, 15)]) == [(_box(2, 5, 12, 15), 16)]
    # at the edge of the raster nothing is cut off
    assert _two([_box(2, 5, 0, 1)], [_box(2, 5, 18, 19)]) == [(_box(2, 5, 0, 1), 8), (_box(2, 5, 18, 19), 8)]


def test_no_crumbs_where_tiles_draw_a_border_at_the_seam_differently() -> None:
    plan = plan_tiles((36, 10), 24, 12)  # rows 12 to 23 are shared, the cores meet before row 18
    above, below = plan.tiles
    upper, lower = _box(2, 16, 1, 8), _box(17, 30, 1, 8)  # the upper tile draws the lower object a pixel too large
    up, low = _box(2, 18, 1, 8), _box(19, 30, 1, 8)  # the lower tile draws the upper object a pixel too large
    whole, objects = merged(plan, [(above, boxes(above, upper, lower)), (below, boxes(below, up, low))])
    assert [(one.box, one.area_px) for one in objects] == [(_box(2, 17, 1, 8), 128), (_box(18, 30, 1, 8), 104)]


def test_what_one_tile_cuts_out_of_an_object_at_its_edge_is_filled_by_the_core() -> None:
    found = _two([_box(1, 6, 2, 11)], [_box(1, 6, 8, 15), _box(3, 4, 8, 9)])
    assert found == [(_box(1, 6, 2, 15), 6 * 14)]


@pytest.mark.parametrize("kept", [True, False])
def test_what_neighbours_see_of_a_tile_that_was_not_looked_at_stays(kept: bool) -> None:
    whole = _box(1, 4, 5, 25)
    keep = np.array([[True, kept, True]])
    plan = plan_tiles((6, 30), 14, 4, keep=keep)
    _, objects = merged(plan, [(tile, boxes(tile, whole)) for tile in plan.tiles])
    expected = [(_box(1, 4, 5, 25), 84, 3)] if kept else [(_box(1, 4, 5, 13), 36, 1), (_box(1, 4, 20, 25), 24, 1)]
    assert [(one.box, one.area_px, one.tiles) for one in objects] == expected


def test_scores_are_weighed_by_pixels_and_classes_stay_apart() -> None:
    plan = plan_tiles((8, 20), 12, 4)
    left, right = plan.tiles
    whole = _box(2, 5, 6, 13)  # 24 pixels in either tile: columns 6 to 11, and 8 to 13
    a, b = boxes(left, whole), boxes(right, whole)
    b.scores[:] = 0.9
    _, (one,) = merged(plan, [(left, a), (right, b)])
    assert (one.score, one.tiles) == (pytest.approx(0.7), 2)
    b.classes[:] = 2
    _, objects = merged(plan, [(left, a), (right, b)])
    assert [(one.class_id, one.box) for one in objects] == [(1, _box(2, 5, 6, 9)), (2, _box(2, 5, 10, 13))]


def _same(a: list[Step], b: list[Step]) -> bool:
    def told(steps: list[Step]) -> list[object]:
        return [
            (s.part, s.labels is not None and s.labels.tobytes(), o.id, o.score, o.tiles, o.box, o.mask.tobytes())
            for s in steps
            for o in s.objects
        ]

    return told(a) == told(b)


@pytest.mark.parametrize("kind", KINDS)
def test_links_made_elsewhere_and_in_any_order_change_no_bit(kind: str) -> None:
    truth = components(world(kind, (40, 33), 1))
    plan, see = plan_tiles((40, 33), 12, 3, origin=(5, 2)), oracle(truth)
    found = {tile.number: (tile, see(tile)) for tile in plan.tiles}
    edges = [(n.number, t.number) for t, _ in found.values() for n in plan.neighbours(t) if n.number < t.number]
    random.Random(3).shuffle(edges)
    made: dict[int, dict[int, np.ndarray]] = {number: {} for number in found}
    for a, b in edges:
        made[b][a] = link(*found[a], *found[b])
    here, there = (
        list(stream_steps(plan, found.values(), number_objects(plan, found.values(), links), links))
        for links in (None, lambda tile: made[tile.number])
    )
    assert _same(here, there)


def _bricks(tile: Tile) -> TileObjects:
    """A wall without end: bricks of 6 x 14 pixels that touch, each row shifted by half a brick, from a formula."""
    y, x = np.arange(tile.window[0].start, tile.window[0].stop), np.arange(tile.window[1].start, tile.window[1].stop)
    course = y // 6
    bricks = course[:, None] * 1000 + (x[None, :] + course[:, None] % 2 * 7) // 14 + 1
    values, labels = np.unique(bricks, return_inverse=True)
    count = len(values)
    return TileObjects(labels.reshape(bricks.shape) + 1, np.ones(count, np.int32), np.ones(count, np.float32))


@pytest.mark.parametrize("numbered", [False, True])
def test_what_is_open_depends_on_the_row_of_tiles_and_not_on_the_raster(numbered: bool) -> None:
    peaks = []
    for height in (240, 960):
        plan = plan_tiles((height, 56), 28, 4)
        numbering = number_objects(plan, ((t, _bricks(t)) for t in plan.tiles)) if numbered else None
        frontier, closed, most = Frontier(plan, numbering), 0, (0, 0, 0)
        for tile in plan.tiles:
            closed += sum(len(step.objects) for step in frontier.push(tile, _bricks(tile)))
            now = frontier.open_fragments, frontier.open_objects, frontier.held_bytes
            most = max(most[0], now[0]), max(most[1], now[1]), max(most[2], now[2])
        closed += sum(len(step.objects) for step in frontier.finish())
        assert closed == height // 6 * 4 + height // 12  # 4 bricks in even rows, 5 in odd ones
        assert (frontier.open_fragments, frontier.open_objects) == (0, 0)
        peaks.append(most)
    assert peaks[0] == peaks[1]
    # at most 4 tiles are held (3 in a row and one below), 2 courses of 3 or 4 bricks below, 6 of 1 or 2 at the right
    assert 0 < peaks[0][0] <= 4 * (2 * 4 + 6 * 2)
    assert peaks[0][2] <= 4 * 2 * (28 * 4 * 2)


def test_ids_without_a_numbering_follow_the_order_of_closing() -> None:
    plan = plan_tiles((40, 10), 12, 4)
    tall, early = _box(0, 39, 1, 2), _box(3, 5, 5, 8)
    objects = list(stream_objects(plan, ((t, boxes(t, tall, early)) for t in plan.tiles)))
    assert [(one.id, one.box) for one in objects] == [(1, early), (2, tall)]


def test_a_large_object_is_kept_in_packed_pieces() -> None:
    plan = plan_tiles((400, 300), 130, 10)
    y, x = np.indices(plan.shape)
    truth = (np.hypot(y - 200, x - 150) < 140).astype(np.int32)
    (one,) = _check(plan, truth)
    assert len(one.parts) == len([t for t in plan.tiles if truth[plan.block(t)].any()])
    assert sum(mask.sum() for _, mask in one.pieces) == one.area_px == truth.sum()
    assert all(shared(part, one.box) == part and mask.shape == shape_of(part) for part, mask in one.pieces)


def test_tiles_must_come_in_order_and_fit_their_window() -> None:
    plan = plan_tiles((40, 10), 12, 4)
    frontier = Frontier(plan)
    frontier.push(plan.tile(1), boxes(plan.tile(1)))
    with pytest.raises(ConfigError, match="tile 0 comes after tile 1"):
        frontier.push(plan.tile(0), boxes(plan.tile(0)))
    with pytest.raises(ShapeError, match=r"labels of tile 2 are \(3, 3\); expected its window, \(12, 10\)"):
        frontier.push(plan.tile(2), TileObjects.nothing((3, 3)))
