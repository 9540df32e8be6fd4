"""Corrective clicks: where they fall, and what they do to a propagation."""

import numpy as np
import pytest

from samgraft.errors import ShapeError
from samgraft.volumetric.clicks import Session, error_click, pointed_at, simulated_rounds
from samgraft.volumetric.propagation import Propagated, PropagationConfig, SlicePrompt, StopRule
from samgraft.volumetric.propagation.slices import answer_of
from tests.volumetric._phantoms import OracleSlices, disc, pictured

WIDE = PropagationConfig(carry=("box", "mask"), box_margin=1.0, stop=StopRule(length=None))


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_click_lies_in_the_middle_of_the_largest_error_in_mm():
    truth, guess = np.zeros((9, 12, 15), dtype=bool), np.zeros((9, 12, 15), dtype=bool)
    truth[2:7, 3:8, 4:13] = True  # missed: 5 x 5 x 9 voxels
    guess[0, 9:12, 0:3] = True  # too much: 9 voxels
    assert error_click(guess, truth, (1.0, 1.0, 1.0)) == (8.0, 5.0, 4, 1), "depth 3 along a line; its middle"
    assert error_click(guess, truth, (5.0, 1.0, 1.0)) == (8.0, 5.0, 4, 1), "thick slices: every slice is as deep"
    assert error_click(guess, truth, (0.5, 1.0, 1.0))[2] == 4, "thin slices: the middle one is the deepest"
    guess |= truth
    assert error_click(guess, truth, (1.0, 1.0, 1.0)) == (1.0, 10.0, 0, 0), "only the surplus is left, off the object"
    assert error_click(truth, truth, (1.0, 1.0, 1.0)) is None
    with pytest.raises(ShapeError, match="one shape"):
        error_click(guess[0], truth, (1.0, 1.0, 1.0))


def bars(depth=15):
    """An object of two bars that meet on no slice, and a ghost that is as bright but does not belong to it."""
    shape = (depth, 30, 60)
    truth, ghost = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    truth[2:13] = disc(shape[1:], 14, 12, 5)
    truth[4:11] |= disc(shape[1:], 14, 30, 4)
    ghost[3:12] = disc(shape[1:], 14, 48, 3)
    return truth, ghost


def test_clicks_add_what_was_missed_slice_by_slice():
    truth, ghost = bars()
    session = Session(OracleSlices(pictured(truth | ghost)), WIDE)
    rounds = simulated_rounds(session, {7: SlicePrompt(box=(7.0, 9.0, 17.0, 19.0))}, truth, 5)
    figures = [dice(one.mask, truth) for one in rounds]
    assert [one.clicks for one in rounds] == [0, 1, 2, 3, 4, 5]
    first = np.zeros_like(truth)
    first[2:13] = disc(truth.shape[1:], 14, 12, 5)
    assert np.array_equal(rounds[0].mask, first)
    assert figures[1] > figures[0] + 0.1
    assert all(b >= a for a, b in zip(figures, figures[1:], strict=False))
    assert figures[-1] > 0.95
    assert all(one.from_ground_truth for one in rounds)


def test_click_off_the_object_takes_a_piece_away_there_and_halfway_to_the_annotated_slice():
    truth = np.zeros((12, 30, 60), dtype=bool)
    truth[1:6] = disc(truth.shape[1:], 14, 12, 5)
    tail = np.zeros_like(truth)
    tail[6:11] = disc(truth.shape[1:], 14, 12, 5)
    session = Session(OracleSlices(pictured(truth | tail)), WIDE)
    session.start({3: SlicePrompt(box=(7.0, 9.0, 17.0, 19.0))})
    after = session.click((12.0, 14.0, 8, 0))
    assert sorted(after.answers) == [1, 2, 3, 4, 5], "slices 6 and 7 are nearer to the click, 9 and 10 behind it"
    assert session.annotated[8].logits.size == 0 or not (session.annotated[8].logits > 0).any()


def test_click_changes_only_what_it_points_at():
    truth = np.zeros((5, 30, 60), dtype=bool)
    truth[:, 10:20, 5:25] = True
    shown = truth.copy()
    shown[:, 10:20, 40:50] = True  # as bright, and in the box of the next prompt; nobody clicked there
    session = Session(OracleSlices(pictured(shown)), WIDE)
    drawn = np.zeros((30, 60), dtype=bool)
    drawn[10:20, 5:15] = True
    drawn[2:4, 30:52] = True  # dark: the network would take it away
    session.start({2: SlicePrompt(mask=drawn)})
    after = session.click((20.0, 14.0, 2, 1)).mask(2)
    expected = drawn | truth[2]
    assert np.array_equal(after, expected)
    less = session.click((40.0, 2.0, 2, 0)).mask(2)
    assert np.array_equal(less, truth[2])


def propagated(mask):
    answers = {i: answer_of(piece) for i, piece in enumerate(mask) if piece.any()}
    return Propagated(shape=mask.shape, answers=answers, annotated=(), stopped=(), direction_agreement=None)


def test_change_spreads_from_the_clicked_slice_as_fast_as_an_edge_moves():
    before = np.zeros((7, 20, 40), dtype=bool)
    before[:, 5:15, 5:35] = True
    after = before.copy()
    after[3, 5:15, 25:35] = False  # what the click took away
    after[4:6] = False  # a walk from there ended at once
    after[2, 5:15, :] = True  # and the other one grew, which a click off the object cannot want
    after[0, 5:15, 5:10] = False
    merged = pointed_at(propagated(before), propagated(after), (30.0, 9.0, 3, 0), 2.0, (1.0, 1.0)).volume()
    expected = before.copy()
    expected[3, 5:15, 25:35] = False
    expected[4, 5:15, 23:35] = False  # 2 mm of an edge for each slice
    expected[5, 5:15, 21:35] = False
    assert np.array_equal(merged, expected)

    grown = before.copy()
    grown[2:5, 5:15, 35:38] = True
    grown[6] = False
    more = pointed_at(propagated(before), propagated(grown), (36.0, 9.0, 3, 1), 2.0, (1.0, 1.0)).volume()
    expected = before.copy()
    expected[2:5, 5:15, 35:38] = True
    assert np.array_equal(more, expected)


def test_without_any_error_rounds_repeat():
    truth, _ = bars()
    session = Session(OracleSlices(pictured(truth)), WIDE)
    key = SlicePrompt(points=((12.0, 14.0, 1), (30.0, 14.0, 1)))
    rounds = simulated_rounds(session, {7: key}, truth, 3)
    assert len(rounds) == 4
    assert np.array_equal(rounds[-1].mask, rounds[-2].mask)
    with pytest.raises(ShapeError, match=r"call start\(\) first"):
        Session(OracleSlices(pictured(truth))).click((1.0, 1.0, 1, 1))
