"""Which objects of two tiles are one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from samgraft.recipes.mosaic.link import NOWHERE, ends, link, link_strips, parts_of
from samgraft.recipes.mosaic.plan import plan_tiles
from tests.recipes.mosaic._worlds import KINDS, boxes, canonical, components, oracle, world

ONE = np.ones(9, dtype=np.int32)


def _strip(text: str) -> NDArray[np.int32]:
    """Rows separated by blanks, one digit for each pixel."""
    return np.array([[int(c) for c in row] for row in text.replace(".", "0").split()], dtype=np.int32)


def _pairs(a: str, b: str) -> list[list[int]]:
    return link_strips(_strip(a), ONE, _strip(b), ONE).tolist()


@settings(deadline=None, max_examples=80)
@given(kind=st.sampled_from(KINDS), shape=st.tuples(st.integers(1, 20), st.integers(1, 20)), seed=st.integers(0, 999))
def test_parts_by_runs_are_those_found_pixel_by_pixel(kind: str, shape: tuple[int, int], seed: int) -> None:
    labels = world(kind, shape, seed)
    labels[0, 0] = 1
    parts = parts_of(labels)
    expected = components(labels)
    assert np.array_equal(np.where(labels > 0, parts.places + 1, 0), expected)
    assert parts.sizes.tolist() == np.bincount(expected.ravel())[1:].tolist()
    assert np.array_equal(parts.labels[parts.places][labels > 0], labels[labels > 0])


def test_equal_parts_are_linked_though_whole_objects_agree_in_little() -> None:
    # three legs; the left tile joins the first two somewhere else, the right tile the last two
    assert _pairs("1.1.2 1.1.2 1...2", "1.2.2 1.2.2 1...2") == [[1, 1], [1, 2], [2, 2]]


def test_more_than_half_of_the_smaller_one_must_agree() -> None:
    assert _pairs("11111...", "..111111") == [[1, 1]]  # 3 of 5
    assert _pairs("1111....", "..111111") == []  # 2 of 4
    assert _pairs("11111111", "...11...") == [[1, 1]]


def test_a_blob_does_not_glue_what_the_other_tile_keeps_apart() -> None:
    assert _pairs("11112222 11112222", "33333333 33333333") == [[1, 3]]
    assert _pairs("11222222", "33333333") == [[2, 3]]


def test_what_a_cut_edge_hides_is_told_by_the_tile_that_sees_beyond() -> None:
    # the second tile begins here: objects 2 and 3 meet left of its edge, where only the first one sees them
    whole, parts = "111111 111111 111111", "222222 222222 333333"
    assert _pairs(whole, parts) == [[1, 2]]
    begins = (False, False, True, False)
    assert _cut(whole, parts, begins) == [[1, 2], [1, 3]]
    assert _cut(whole, "222222 222222 .33333", begins) == [[1, 2]]  # 3 does not reach the edge: all of it is seen
    assert _cut("111111 111111 11111.", parts, begins) == [[1, 2]]  # the first tile shows 3 in part only
    assert _cut("111111 111111 111111", "222222 222222 333...", begins) == [[1, 2]]  # a sliver says nothing
    assert _cut("1111 1111 1111", "2233 2233 2233", (True, False, False, False)) == [[1, 2]]  # nothing but slivers
    ends_of_a = (False, False, False, True)
    thin = _strip("111111 111111 111111"), ONE, _strip("222233 222233 222233"), ONE
    below = (False, True, False, False)  # 3 goes on below, and beyond the edge of the first tile
    assert link_strips(*thin, (ends_of_a, below)).tolist() == [[1, 2]]


def _cut(a: str, b: str, ends_of_b: tuple[bool, bool, bool, bool]) -> list[list[int]]:
    return link_strips(_strip(a), ONE, _strip(b), ONE, (NOWHERE, ends_of_b)).tolist()


def test_where_a_window_ends_in_another() -> None:
    left, right = (slice(0, 9), slice(0, 20)), (slice(0, 9), slice(15, 40))
    assert ends(left, right) == ((False, False, False, True), (False, False, True, False))
    assert ends((slice(5, 9), slice(0, 20)), left) == ((True, False, False, False), NOWHERE)


def test_a_rim_of_one_pixel_on_the_neighbour_links_nothing() -> None:
    # the first tile draws object 1 a pixel too large, the second object 2
    assert _pairs("1111122", "1112222") == [[1, 1], [2, 2]]


def test_classes_must_agree() -> None:
    strip = _strip("1122")
    classes = np.array([1, 2], np.int32)
    assert link_strips(strip, classes, strip, classes[::-1].copy()).tolist() == []
    assert link_strips(strip, classes, strip, classes).tolist() == [[1, 1], [2, 2]]
    assert link_strips(strip, classes, strip * 0, classes).tolist() == []


def test_only_the_shared_strip_counts_and_order_does_not() -> None:
    plan = plan_tiles((8, 20), 12, 4)
    a_tile, b_tile = plan.tiles
    whole = (slice(2, 6), slice(6, 11))
    a = boxes(a_tile, (slice(0, 2), slice(0, 12)), whole)
    b = boxes(b_tile, whole, (slice(0, 2), slice(14, 20)))
    assert link(a_tile, a, b_tile, b).tolist() == [[2, 1]]
    assert link(b_tile, b, a_tile, a).tolist() == [[1, 2]]
    far = plan_tiles((8, 60), 12, 4).tiles
    assert link(far[0], boxes(far[0], whole), far[2], boxes(far[2], whole)).shape == (0, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_links_are_the_same_from_both_sides(kind: str) -> None:
    truth = canonical(components(world(kind, (16, 24), 3)))
    plan = plan_tiles((16, 24), 14, 4)
    a, b = plan.tiles[0], plan.tiles[1]
    see = oracle(truth)
    forth, back = link(a, see(a), b, see(b)), link(b, see(b), a, see(a))
    assert sorted(map(tuple, forth.tolist())) == sorted((i, j) for j, i in back.tolist())
    owners = set[tuple[int, int]]()
    cut = truth[a.window], truth[b.window]
    for i, j in forth.tolist():
        owners.add((int(cut[0][see(a).labels == i][0]), int(cut[1][see(b).labels == j][0])))
    assert all(one == other for one, other in owners)
    assert {one for one, _ in owners} == set(np.unique(truth[:14, 10:14])) - {0}
