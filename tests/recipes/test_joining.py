"""Pieces of objects in overlapping windows become whole objects."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from samgraft.adapters.prompts.objects import FoundObjects
from samgraft.recipes.data.fit import windows
from samgraft.recipes.joining import Joining, Piece, agreement, intersection, join, paint_pieces, piece_of

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
    labels, scores = paint_pieces(whole, shape)
    assert len(scores) == len(np.unique(truth)) - 1
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
    assert sorted(piece.area for piece in joined) == [6, 8]


def test_agreement_looks_at_the_common_part_only() -> None:
    a = piece_of(np.ones((4, 6), dtype=bool), (slice(0, 4), slice(0, 6)), window=0, score=1.0)
    b = piece_of(np.ones((2, 6), dtype=bool), (slice(1, 3), slice(4, 10)), window=1, score=1.0)
    assert a is not None
    assert b is not None
    assert agreement(a, b, (slice(0, 4), slice(4, 6))) == pytest.approx(4 / 8)
    assert agreement(a, b, (slice(1, 3), slice(4, 6))) == 1.0
    assert intersection(a.place, (slice(0, 4), slice(6, 9))) is None


def test_classes_are_never_joined_and_scores_are_weighed_by_area() -> None:
    places = [(slice(0, 4), slice(0, 6)), (slice(0, 4), slice(4, 10)), (slice(0, 4), slice(8, 12))]
    first, second = np.zeros((4, 6), dtype=bool), np.zeros((4, 6), dtype=bool)
    first[:, 3:], second[:] = True, True  # both are cut
    one = piece_of(first, places[0], window=0, score=0.9)
    two = piece_of(second, places[1], window=1, score=0.3)
    other = piece_of(second, places[1], window=1, score=0.3, class_id=2)
    assert one is not None
    assert two is not None
    assert other is not None
    (whole,) = join([one, two], places)
    assert whole.place == (slice(0, 4), slice(3, 10))
    assert whole.score == pytest.approx((12 * 0.9 + 24 * 0.3) / 36)
    assert len(join([one, other], places)) == 2


def test_an_object_that_a_window_shows_whole_is_taken_from_there() -> None:
    places = [(slice(0, 8), slice(0, 8)), (slice(0, 8), slice(4, 12))]
    wide, narrow = np.zeros((8, 8), dtype=bool), np.zeros((8, 8), dtype=bool)
    wide[1:4, 4:8], narrow[1:4, 1:4] = True, True  # the left window ends where the object does
    pieces = [piece_of(m, places[i], window=i, score=s) for i, (m, s) in enumerate(((wide, 0.9), (narrow, 0.8)))]
    (whole,) = join([piece for piece in pieces if piece is not None], places)
    assert (whole.area, whole.score) == (9, 0.8)


def test_small_objects_and_unknown_pixels_vanish() -> None:
    window = (slice(0, 8), slice(0, 12))
    logits = torch.full((2, 8, 8), -3.0)  # rows of 12 x 12 around the picture of 8 x 12, at two thirds
    logits[0, 2:4, 0:4], logits[1, 4:5, 6:7] = 3.0, 3.0
    index = torch.zeros(2, dtype=torch.int64)
    found = FoundObjects(image_index=index, logits=logits, scores=torch.tensor([0.5, 0.9]), classes=index)
    joining = Joining((8, 12), 8)
    joining.add(window, found)
    labels, scores = joining.finish()
    assert scores.tolist() == pytest.approx([0.9, 0.5])
    assert np.argwhere(labels == 2).mean(axis=0) == pytest.approx([2.0, 2.5])
    valid = np.ones((8, 12), dtype=bool)
    valid[:, 6:] = False
    assert joining.finish(valid=valid)[1].tolist() == pytest.approx([0.5])
    assert joining.finish(min_area=6)[1].tolist() == pytest.approx([0.5])


def test_a_second_answer_for_the_same_thing_leaves_no_crumbs() -> None:
    good, again = np.zeros((8, 8), dtype=bool), np.zeros((8, 8), dtype=bool)
    good[1:7, 1:6], again[1:7, 1:7] = True, True
    everywhere = (slice(0, 8), slice(0, 8))
    pieces = [piece_of(mask, everywhere, window=0, score=s) for mask, s in ((again, 0.2), (good, 0.8))]
    labels, scores = paint_pieces([piece for piece in pieces if piece is not None], (8, 8))
    assert labels.sum() == 30
    assert scores.tolist() == pytest.approx([0.8])
    assert piece_of(np.zeros((2, 2), dtype=bool), everywhere, window=0, score=1.0) is None
