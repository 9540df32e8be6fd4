"""Suppression by boxes and by masks, and cleaning."""

import numpy as np
import pytest

from samgraft.recipes.engine.runs import RunMask, runs_of
from samgraft.recipes.engine.suppress import clean, keep_best

SHAPE = (40, 60)


def block(top: int, left: int, height: int, width: int) -> RunMask:
    return runs_of(np.ones((height, width), dtype=bool), top=top, left=left, shape=SHAPE)


def disc(radius: float, hole: float = -1.0, *, row: float = 20, col: float = 35) -> RunMask:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    distance = np.hypot(y - row, x - col)
    return runs_of((distance <= radius) & (distance > hole))


@pytest.mark.parametrize("by", ["box", "mask"])
@pytest.mark.parametrize(("threshold", "kept"), [(0.599, [0]), (0.601, [0, 1])])
def test_iou_above_the_threshold_goes(by: str, threshold: float, kept: list[int]) -> None:
    # 10 x 8 and 10 x 8, shifted by 2 columns: 60 of 100 pixels
    masks = [block(3, 30, 10, 8), block(3, 32, 10, 8)]
    assert keep_best(masks, [0, 1], threshold, by=by) == kept


def test_masks_keep_a_ring_and_the_disc_inside_it_and_boxes_do_not() -> None:
    inner, ring = disc(13), disc(15, 13)
    assert keep_best([inner, ring], [0, 1], 0.5, by="mask") == [0, 1]
    assert keep_best([inner, ring], [0, 1], 0.5, by="box") == [0]


def test_what_was_suppressed_does_not_suppress() -> None:
    chain = [block(3, 10, 10, 10), block(3, 13, 10, 10), block(3, 16, 10, 10)]  # IoU of neighbours 70 / 130
    assert keep_best(chain, [0, 1, 2], 0.5) == [0, 2]
    assert keep_best(chain, [1, 0, 2], 0.5) == [1]


def test_empty_masks_vanish_and_nothing_gives_nothing() -> None:
    empty = runs_of(np.zeros(SHAPE, dtype=bool))
    assert keep_best([empty, block(0, 0, 1, 1)], [0, 1], 0.5) == [1]
    assert keep_best([], [], 0.5) == keep_best([], [], 0.5, by="box") == []


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_by_boxes_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = [disc(rng.uniform(2, 9), row=rng.uniform(5, 35), col=rng.uniform(5, 55)) for _ in range(60)]
    expected: list[int] = []
    for i in range(60):
        if all(masks[i].iou(masks[k]) <= 0.4 for k in expected):
            expected.append(i)
    assert keep_best(masks, range(60), 0.4) == expected


def test_holes_are_filled_and_islands_removed() -> None:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[5:25, 20:50] = True
    mask[10:12, 30:33] = False  # hole of 6
    mask[15:19, 40:45] = False  # hole of 20
    mask[30, 2:7] = True  # island of 5
    mask[31, 7] = True  # touches it at a corner: 6
    mask[35:38, 50:59] = True  # island of 27
    found, changed = clean(runs_of(mask), 7)
    expected = mask.copy()
    expected[10:12, 30:33] = True
    expected[30:32, 2:8] = False
    assert changed
    assert np.array_equal(found.full(), expected)
    assert clean(found, 7) == (found, False)
    again, _ = clean(runs_of(mask), 6)  # of 6 pixels: not fewer than 6
    assert np.array_equal(again.full(), mask)


def test_the_largest_island_stays_if_all_are_small() -> None:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[3, 50:53] = mask[9, 50:55] = True
    found, changed = clean(runs_of(mask), 100)
    assert changed
    assert found.box == (50, 9, 54, 9)


def test_background_beside_the_mask_counts_with_all_its_pixels() -> None:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[:, 3:] = True  # left of it 40 x 3 = 120
    for least, filled in ((120, False), (121, True)):
        found, changed = clean(runs_of(mask), least)
        assert (changed, found.area) == (filled, 2400 if filled else 2280)
