"""Objects of several scales: hand-made cases of which candidate stays."""

import numpy as np
import pytest
from numpy.typing import NDArray

from samgraft.recipes.choosing import OTHERS, WHOLE, choose_objects

SHAPE = (20, 30)


def boxes(*places: tuple[int, int, int, int]) -> NDArray[np.int32]:
    """Labels with objects 1..n: rows and columns from and to."""
    labels = np.zeros(SHAPE, dtype=np.int32)
    for number, (top, bottom, left, right) in enumerate(places, start=1):
        labels[top:bottom, left:right] = number
    return labels


def scores(*values: float) -> NDArray[np.float32]:
    return np.asarray(values, dtype=np.float32)


def test_a_whole_stands_above_its_pieces_where_its_scale_is_sure() -> None:
    pieces = boxes((0, 10, 0, 5), (0, 10, 5, 10), (12, 15, 20, 28))
    whole = boxes((0, 10, 0, 10))
    labels, worths = choose_objects([(pieces, scores(0.4, 0.4, 0.9)), (whole, scores(0.9))])
    assert np.array_equal(labels > 0, pieces > 0) and labels.max() == 2
    assert len(np.unique(labels[0:10, 0:10])) == 1
    # pieces: IoU 0.5 with the whole; the whole: IoU 0.5 with its best piece; the third: nobody else sees it
    wanted = [0.9 * (1 - OTHERS) + 0.5 * OTHERS, 0.9 * (1 - OTHERS)]
    assert worths == pytest.approx(wanted)


def test_pieces_stand_where_they_are_surer() -> None:
    pieces = boxes((0, 10, 0, 5), (0, 10, 5, 10))
    labels, _ = choose_objects([(pieces, scores(0.9, 0.8)), (boxes((0, 10, 0, 10)), scores(0.4))])
    assert labels.max() == 2 and labels[5, 2] == 1 and labels[5, 7] == 2


def test_objects_that_other_scales_find_too_come_first() -> None:
    alone, seen = (0, 6, 0, 6), (10, 16, 10, 16)
    labels, worths = choose_objects(
        [(boxes(alone, seen), scores(0.6, 0.6)), (boxes(seen), scores(0.5)), (boxes(seen), scores(0.5))]
    )
    assert labels[12, 12] == 1 and labels[2, 2] == 2
    assert worths == pytest.approx([0.6 * (1 - OTHERS) + OTHERS, 0.6 * (1 - OTHERS)])


@pytest.mark.parametrize(("covered", "stays"), [(1, True), (3, False)])
def test_a_candidate_keeps_what_is_free_or_goes(covered: int, stays: bool) -> None:
    first, second = boxes((0, 10, 0, 10)), boxes((0, 10, 10 - covered, 20 - covered))
    labels, worths = choose_objects([(first, scores(0.9)), (second, scores(0.5))])
    assert (1 - covered / 10 >= WHOLE) == stays and len(worths) == 1 + stays
    assert (labels == 1).sum() == 100 and (labels == 2).sum() == (100 - 10 * covered) * stays


def test_what_is_left_of_an_object_has_at_least_the_area_that_counts() -> None:
    found = [(boxes((0, 10, 0, 10)), scores(0.9)), (boxes((0, 2, 9, 15)), scores(0.5))]
    assert choose_objects(found, min_area=10)[0].max() == 2  # 10 of its 12 pixels are free
    assert choose_objects(found, min_area=11)[0].max() == 1


def test_one_scale_keeps_its_objects_and_scores() -> None:
    labels, worths = choose_objects([(boxes((0, 4, 0, 4), (6, 9, 6, 9)), scores(0.3, 0.7))])
    assert worths == pytest.approx([0.7, 0.3]) and labels[7, 7] == 1 and labels[1, 1] == 2


def test_nothing_is_nothing() -> None:
    labels, worths = choose_objects([(boxes(), scores()), (boxes(), scores())])
    assert not labels.any() and worths.shape == (0,)
