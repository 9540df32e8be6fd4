"""Objects of overlapping windows become objects of the plane."""

import numpy as np
import pytest
import torch

from samgraft.recipes.joining import Joining

SHAPE = (8, 12)
LEFT, RIGHT = (slice(0, 8), slice(0, 8)), (slice(0, 8), slice(4, 12))


def logits(window: tuple[slice, slice], *objects: tuple[slice, slice]) -> torch.Tensor:
    """(n, 8, 8) logits of what a window sees of objects on the plane."""
    found = []
    for place in objects:
        whole = torch.full(SHAPE, -3.0)
        whole[place] = 3.0
        found.append(whole[window])
    return torch.stack(found)


def joined(
    seen: dict[str, list[tuple[tuple[slice, slice], float]]], **options: object
) -> tuple[np.ndarray, list[float]]:
    joining = Joining(SHAPE, 8)
    for name, window in (("left", LEFT), ("right", RIGHT)):
        if seen.get(name):
            places, scores = zip(*seen[name], strict=True)
            joining.add(window, logits(window, *places), torch.tensor(scores))
    labels, scores = joining.finish(**options)  # type: ignore[arg-type]
    return labels, scores.tolist()


def test_a_cut_object_is_united_across_windows() -> None:
    place = (slice(2, 5), slice(2, 11))  # cut by both windows
    labels, scores = joined({"left": [(place, 0.4)], "right": [(place, 0.7)]})
    expected = np.zeros(SHAPE)
    expected[place] = 1
    assert np.array_equal(labels, expected) and scores == pytest.approx([0.7])


def test_an_object_that_both_see_whole_is_one_and_the_better_answer_stays() -> None:
    wide, narrow = (slice(1, 4), slice(4, 8)), (slice(1, 4), slice(5, 8))
    # the left window ends at column 8, so both masks are cut there, but not in the right one
    labels, scores = joined({"left": [(wide, 0.9)], "right": [(narrow, 0.8)]})
    assert (labels > 0).sum() == 9 and scores == pytest.approx([0.8])  # a whole one beats a cut one


def test_neighbours_stay_apart() -> None:
    """Two objects side by side, each cut by one window: they share no pixel."""
    upper, lower = (slice(0, 3), slice(1, 8)), (slice(3, 6), slice(4, 11))
    labels, scores = joined({"left": [(upper, 0.5)], "right": [(lower, 0.6)]})
    assert len(scores) == 2 and sorted(np.bincount(labels.ravel())[1:].tolist()) == [21, 21]


def test_the_better_object_keeps_a_shared_pixel() -> None:
    one, two = (slice(0, 4), slice(0, 4)), (slice(0, 4), slice(3, 6))
    labels, scores = joined({"left": [(one, 0.5), (two, 0.9)]})
    assert scores == pytest.approx([0.9, 0.5])
    assert (labels == 1).sum() == 12 and (labels == 2).sum() == 12


def test_small_objects_and_unknown_pixels_vanish() -> None:
    one, two = (slice(0, 4), slice(0, 4)), (slice(6, 7), slice(0, 2))
    labels, scores = joined({"left": [(one, 0.5), (two, 0.9)]}, min_area=3)
    assert scores == [0.5] and (labels == 1).sum() == 16
    valid = np.ones(SHAPE, dtype=bool)
    valid[:, :2] = False
    labels, scores = joined({"left": [(one, 0.5), (two, 0.9)]}, min_area=1, valid=valid)
    assert scores == [0.5] and (labels == 1).sum() == 8
    assert joined({})[0].shape == SHAPE and joined({})[1] == []
