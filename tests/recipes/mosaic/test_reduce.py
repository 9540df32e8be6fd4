"""Groups and numbers do not depend on the order of the work."""

from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samgraft.errors import ConfigError
from samgraft.recipes.mosaic.reduce import Forest, Register, key_of, sorted_places, split_key

PAIRS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=12)


def test_keys_order_fragments_by_tile_and_then_by_label() -> None:
    keys = [key_of(0, 1), key_of(0, 2**31 - 1), key_of(1, 0), key_of(10**8, 5)]
    assert keys == sorted(keys)
    assert [split_key(key) for key in keys] == [(0, 1), (0, 2**31 - 1), (1, 0), (10**8, 5)]


def test_the_root_is_the_least_key() -> None:
    forest = Forest([(5, 9), (9, 7), (3, 4)])
    assert [forest.root(k) for k in (3, 4, 5, 7, 9, 8)] == [3, 3, 5, 5, 5, 8]
    assert forest.join(4, 7) == (3, 5)
    assert forest.join(9, 3) == (3, 3)
    assert forest.pairs() == [(3, 3), (4, 3), (5, 3), (7, 3), (9, 3)]
    forest.forget([3, 4, 5, 7, 9])
    assert forest.pairs() == []


@given(pairs=PAIRS, data=st.data())
def test_the_order_of_pairs_does_not_matter(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations([p if data.draw(st.booleans()) else p[::-1] for p in pairs]))
    assert Forest(shuffled).pairs() == Forest(pairs).pairs()


@given(a=PAIRS, b=PAIRS, c=PAIRS)
def test_merging_is_associative_commutative_and_idempotent(
    a: list[tuple[int, int]], b: list[tuple[int, int]], c: list[tuple[int, int]]
) -> None:
    one, two, three = Forest(a), Forest(b), Forest(c)
    expected = Forest([*a, *b, *c]).pairs()
    assert one.merge(two).merge(three).pairs() == expected
    assert one.merge(two.merge(three)).pairs() == expected
    assert three.merge(one).merge(two).pairs() == expected
    assert one.merge(one).pairs() == one.pairs()


def test_ids_count_objects_by_their_first_pixels_whatever_closes_first() -> None:
    register = Register()
    register.tile(4, 3)
    register.tile(6, 2)
    register.tile(7, 0)
    register.alone(
        4, np.array([1, 3]), np.array([70, 12]), np.array([5, 6], np.int32), np.array([0.5, 0.25], np.float32)
    )
    register.joined([key_of(4, 2), key_of(6, 1)], 31, 7, 0.75)
    numbering = register.numbering()
    assert numbering.count == 3
    assert numbering.of_tile(4, 4).tolist() == [0, 3, 2, 1]
    assert numbering.of_tile(6, 3).tolist() == [0, 2, 0]  # the second has no pixel of its own
    assert numbering.of_tile(7, 1).tolist() == [0]
    assert (numbering.classes.tolist(), numbering.scores.tolist()) == ([6, 7, 5], [0.25, 0.75, 0.5])
    assert [numbering.id_of(key_of(*place)) for place in ((4, 3), (4, 2), (6, 1), (4, 1))] == [1, 2, 2, 3]
    with pytest.raises(ConfigError, match="tile 4 has 5 objects, but 3 when they were numbered"):
        numbering.of_tile(4, 6)
    assert Register().numbering().count == 0


@pytest.mark.parametrize("largest", [0, 5, 10**6, 2**40, 2**62])
def test_places_in_rising_order_are_those_of_a_stable_sort(largest: int) -> None:
    values = np.random.default_rng(0).integers(0, largest, 150_000, endpoint=True)
    expected = np.argsort(values, kind="stable")
    assert np.array_equal(sorted_places(array("q", values.tolist())), expected)
    assert sorted_places(array("q")).tolist() == []
