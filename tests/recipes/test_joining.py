"""Pieces of objects in overlapping windows become whole objects."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from samgraft.recipes.data.fit import windows
from samgraft.recipes.engine.joining import Piece, agreement, intersection, join, paint_pieces, piece_of

Labels = NDArray[np.int64]


def _pieces(truth: Labels, places: list[tuple[slice, slice]]) -> list[Piece]:
    """What an oracle sees: in every window the true objects, cut by the window, touching or not."""
    found = []
    for number, place in enumerate(places):
        part = truth[place]
        for value in np.unique(part[part > 0]):
            piece = piece_of(part == value, place, window=number, score=0.5)
            found += [piece] if piece is not None else []
    return found


def _same_partition(a: NDArray[np.integer], b: NDArray[np.integer]) -> bool:
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    return len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


@pytest.mark.parametrize("seed", range(6))
def test_an_oracle_in_windows_gives_the_objects_of_the_whole_picture(seed: int) -> None:
    generator = np.random.default_rng(seed)
    shape = (int(generator.integers(40, 90)), int(generator.integers(40, 90)))
    blobs = ndimage.gaussian_filter(generator.normal(size=shape), 2.5) > 0.02
    truth, _ = ndimage.label(blobs)
    truth[shape[0] // 2] = truth.max() + 1  # a road through all windows of a row, touching what it cuts
    for index in range(1, int(truth.max())):  # what the road cut in two is two objects
        parts, count = ndimage.label(truth == index)
        truth = np.where(parts > 1, truth.max() + parts - 1, truth) if count > 1 else truth
    places = windows(shape, int(generator.integers(24, 36)), 0.3)
    whole = join(_pieces(truth, places), places)
    labels, records = paint_pieces(whole, shape)
    assert len(records) == len(np.unique(truth)) - 1
    assert _same_partition(labels, truth)


def test_pieces_of_one_window_stay_apart_though_another_window_glues_them() -> None:
    places = [(slice(0, 10), slice(0, 10)), (slice(0, 10), slice(4, 14))]
    left, right, blob = (np.zeros((10, 10), dtype=bool) for _ in range(3))
    left[2:4, 5:8], right[5:7, 5:9], blob[2:7, 1:5] = True, True, True
    pieces = [
        piece_of(left, places[0], window=0, score=0.9),
        piece_of(right, places[0], window=0, score=0.9),
        piece_of(blob, places[1], window=1, score=0.4),
    ]
    joined = join([piece for piece in pieces if piece is not None], places, threshold=0.2)
    assert sorted(piece.area for piece in joined) == [6, 22]


def test_agreement_looks_at_the_common_part_only() -> None:
    a = piece_of(np.ones((4, 6), dtype=bool), (slice(0, 4), slice(0, 6)), window=0, score=1.0)
    b = piece_of(np.ones((2, 6), dtype=bool), (slice(1, 3), slice(4, 10)), window=1, score=1.0)
    assert a is not None
    assert b is not None
    assert agreement(a, b, (slice(0, 4), slice(4, 6))) == pytest.approx(4 / 8)
    assert agreement(a, b, (slice(1, 3), slice(4, 6))) == 1.0
    assert intersection(a.place, (slice(0, 4), slice(6, 9))) is None


def test_classes_are_never_joined_and_scores_are_weighed_by_area() -> None:
    places = [(slice(0, 4), slice(0, 6)), (slice(0, 4), slice(4, 10))]
    first = np.zeros((4, 6), dtype=bool)
    first[:, 3:] = True
    second = np.zeros((4, 6), dtype=bool)
    second[:, :2] = True
    one = piece_of(first, places[0], window=0, score=0.9)
    two = piece_of(second, places[1], window=1, score=0.3)
    other = piece_of(second, places[1], window=1, score=0.3, class_id=2)
    assert one is not None
    assert two is not None
    assert other is not None
    (whole,) = join([one, two], places)
    assert whole.place == (slice(0, 4), slice(3, 6))
    assert whole.score == pytest.approx((12 * 0.9 + 8 * 0.3) / 20)
    assert len(join([one, other], places)) == 2


def test_a_second_answer_for_the_same_thing_leaves_no_crumbs() -> None:
    good, again = np.zeros((8, 8), dtype=bool), np.zeros((8, 8), dtype=bool)
    good[1:7, 1:6], again[1:7, 1:7] = True, True
    everywhere = (slice(0, 8), slice(0, 8))
    pieces = [piece_of(mask, everywhere, window=0, score=s) for mask, s in ((again, 0.2), (good, 0.8))]
    labels, records = paint_pieces([piece for piece in pieces if piece is not None], (8, 8))
    assert labels.sum() == 30
    assert [(r.id, r.score, r.box) for r in records] == [(1, 0.8, (1.0, 1.0, 5.0, 6.0))]
    assert piece_of(np.zeros((2, 2), dtype=bool), everywhere, window=0, score=1.0) is None
