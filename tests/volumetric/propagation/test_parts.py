"""Stop rule, prompts that are carried, clicks and memory, with values worked out by hand."""

import math

import numpy as np
import pytest
import torch

from samgraft.errors import PromptError, ShapeError
from samgraft.volumetric.propagation.carry import (
    carried_prompt,
    deep_points,
    grown_box,
    soft_prior,
    within_reach,
)
from samgraft.volumetric.propagation.clicked import lobe, obey, without_crumbs
from samgraft.volumetric.propagation.config import PropagationConfig
from samgraft.volumetric.propagation.memory import FeatureMemory, cell_shares, on_slice
from samgraft.volumetric.propagation.slices import RegionFeatures, SlicePrompt, from_probability
from samgraft.volumetric.propagation.stop import Ellipsoid, Intensities, limit
from samgraft.volumetric.propagation.walk import expected
from tests.volumetric._phantoms import OracleSlices, disc, pictured


@pytest.mark.parametrize(
    ("area", "reach", "least"),
    [(np.pi * 100, 1.0, 0.4), (np.pi * 100, 5.0, 0.25), (np.pi * 4, 5.0, 0.0)],
)
def test_less_overlap_is_asked_of_small_objects_in_thick_slices(area, reach, least):
    assert limit(0.4, area, reach) == pytest.approx(least)


def test_intensities_agree_by_where_they_lie_between_object_and_surroundings():
    truth = disc((20, 24), 9, 11, 4)
    picture = np.where(truth, 0.8, 0.3).astype(np.float32)
    known = Intensities.of(picture, truth)
    assert (known.inside, known.outside) == pytest.approx((0.8, 0.3))
    for value, agreement in ((0.8, 1.0), (0.55, 0.5), (0.3, 0.0), (0.1, 0.0), (0.9, 1.0)):
        assert known.agreement(np.full((20, 24), value, np.float32), truth) == pytest.approx(agreement)
    flat = Intensities.of(np.full((20, 24), 0.4, np.float32), truth)
    assert flat.agreement(np.zeros((20, 24), np.float32), truth) == 1.0, "without contrast intensities say nothing"


def test_prior_falls_from_one_to_zero_over_twice_the_reach_in_mm():
    previous = np.zeros((5, 30), dtype=bool)
    previous[:, 10:20] = True
    prior = soft_prior(previous, 4.0, (50.0, 1.0))  # rows so far apart that only columns count, edges at 9.5 and 19.5
    assert prior[2, 10:15].tolist() == pytest.approx([0.5625, 0.6875, 0.8125, 0.9375, 1.0])
    assert prior[2, 5:10].tolist() == pytest.approx([0.0, 0.0625, 0.1875, 0.3125, 0.4375])


def test_reach_is_measured_in_mm():
    previous = np.zeros((9, 9), dtype=bool)
    previous[4, 4] = True
    kept = within_reach(np.ones((9, 9), dtype=bool), previous, 2.0, (2.0, 1.0))
    assert np.argwhere(kept).tolist() == [[3, 4], [4, 2], [4, 3], [4, 4], [4, 5], [4, 6], [5, 4]]


def test_points_lie_deep_and_apart():
    mask = np.zeros((20, 30), dtype=bool)
    mask[2:11, 3:12] = True  # 9 x 9: middle (7, 6), depth 5
    mask[13:18, 20:25] = True  # 5 x 5: middle (22, 15), depth 3
    assert deep_points(mask, 2, (1.0, 1.0)) == [(7.0, 6.0, 1), (22.0, 15.0, 1)]
    assert deep_points(np.zeros((4, 4), dtype=bool), 3, (1.0, 1.0)) == []


def test_box_grows_in_mm_and_ends_at_the_slice():
    assert grown_box((3.0, 4.0, 9.0, 17.0), 2.0, (1.0, 0.5), (20, 30)) == (0.0, 2.0, 13.0, 19.0)


def test_carried_prompt_holds_what_was_chosen():
    prior = np.zeros((20, 30), dtype=bool)
    prior[5:8, 10:17] = True
    config = PropagationConfig(carry=("box", "points"), box_margin=0.5)
    prompt = carried_prompt(prior, config, 2.0, (1.0, 1.0), clicks=((1.0, 2.0, 0),))
    assert prompt.box == (9.0, 4.0, 17.0, 8.0)
    assert prompt.mask is None
    assert prompt.points == ((11.0, 6.0, 1), (1.0, 2.0, 0)), "the first of the five deepest pixels, then the click"
    assert not prompt.tight
    with pytest.raises(PromptError, match="neither a box, nor a mask with a pixel"):
        SlicePrompt(mask=np.zeros((4, 4), dtype=bool), points=((1.0, 1.0, 0),))


def test_mask_obeys_clicks():
    mask = np.zeros((8, 12), dtype=bool)
    mask[1:3, 1:4] = True
    mask[5:7, 8:11] = True
    off = obey(mask, [(9.2, 5.4, 0)])
    assert off[1:3, 1:4].all() and off.sum() == 6, "the piece under the click goes"
    one_pixel = obey(mask, [(9.0, 5.0, 0), (8.0, 6.0, 1)])
    assert one_pixel.sum() == 11 and not one_pixel[5, 9], "a piece that is wanted elsewhere loses one pixel"
    assert obey(mask, [(6.0, 4.0, 1)]).sum() == 13
    assert mask.sum() == 12, "the given mask stays as it is"
    bar = np.zeros((9, 30), dtype=bool)
    bar[2:7, 2:28] = True
    cut = obey(bar, [(24.0, 4.0, 0)])
    assert bar.sum() - cut.sum() == 27, "of a long piece a disc of radius 3 goes (29 pixels, two of them outside)"


def test_click_takes_its_side_of_a_neck():
    piece = np.zeros((20, 40), dtype=bool)
    piece[3:16, 2:15] = True  # 13 x 13, depth 7
    piece[8:11, 15:22] = True  # a neck of 3 rows
    piece[4:15, 22:33] = True  # 11 x 11, depth 6
    taken = lobe(piece, 9, 27)
    assert taken[4:15, 22:33].all() and not taken[3:16, 2:15].any()
    other = lobe(piece, 9, 8)
    assert other[3:16, 2:15].all() and not other[4:15, 22:33].any()
    assert (taken & other).sum() <= 3, "the middle of the neck"


def region(plane):
    return OracleSlices(plane[None]).features(0, (0, 0, 1, 1))


def test_memory_reads_out_what_looked_like_the_object():
    truth = disc((16, 24), 7, 8, 4)
    memory = FeatureMemory(2)
    memory.add(region(pictured(truth)), truth, annotated=True)
    moved = disc((16, 24), 7, 15, 4)
    seen = memory.read(region(pictured(moved)))
    cells = cell_shares(region(pictured(moved)), moved)
    assert seen.shape == (8, 12)
    assert float(seen[cells == 1].min()) > 0.6 and float(seen[cells == 0].max()) < 0.05


def test_memory_keeps_annotated_slices_and_the_last_few_sure_ones():
    plane, truth = pictured(disc((8, 8), 3, 3, 2)), disc((8, 8), 3, 3, 2)
    memory = FeatureMemory(2)
    memory.add(region(plane), truth, annotated=True)
    for iou in (0.9, 0.2, 0.8, 0.7):
        memory.add(region(plane), truth, iou=iou)
    assert (len(memory.annotated), len(memory.recent)) == (1, 2)
    other = memory.copy()
    other.add(region(plane), truth, iou=0.9)
    assert len(memory.recent) == 2 and memory.recent[-1] is not other.recent[-1]
    with pytest.raises(ShapeError, match="the memory is empty"):
        FeatureMemory(2).read(region(plane))


def test_region_that_leaves_the_slice_is_placed_by_its_corner():
    features = RegionFeatures(top=-2, left=4, height=8, width=8, neck=torch.zeros(1, 4, 4))
    mask = np.zeros((6, 10), dtype=bool)
    mask[0, 4] = True
    shares = cell_shares(features, mask)
    assert shares[1, 0] == 0.25 and shares.sum() == 0.25, "row 0 of the slice is row 2 of the region"
    full = on_slice(torch.ones(4, 4), features, (6, 10))
    assert full.sum() == 6 * 6 and full[:, :4].sum() == 0


def test_memory_moves_the_prior_towards_what_it_recognises():
    before, now = disc((32, 48), 15, 16, 6), disc((32, 48), 15, 20, 6)
    slices = OracleSlices(np.stack([pictured(before), pictured(now)]), (5.0, 1.0, 1.0))
    memory = FeatureMemory(2)
    memory.add(slices.features(0, (0, 0, 1, 1)), before, annotated=True)
    config = PropagationConfig(memory=2, memory_weight=0.7)

    def overlap(mask):
        return (mask & now).sum() / (mask | now).sum()

    moved = expected(slices, 1, before, config, memory)
    assert overlap(moved) > overlap(before) + 0.3
    still = expected(slices, 1, before, PropagationConfig(memory=2, memory_weight=0.0), memory)
    assert np.array_equal(still, before)


def test_probability_and_answer_are_the_same_mask():
    probability = np.zeros((6, 9), dtype=np.float32)
    probability[2:4, 3:8] = 0.8
    probability[3, 5] = 0.5
    answer = from_probability(probability, 0.7)
    assert answer.place == (slice(2, 4), slice(3, 8))
    assert answer.mask().sum() == 9, "exactly a half is not the object"
    assert np.allclose(answer.probability(), probability, atol=1e-6)


def test_ellipsoid_ends_after_its_share_of_the_diameter_and_goes_through_what_was_annotated():
    disc_area = 314  # radius 10 pixels of 1 mm
    alone = Ellipsoid.through({5: disc_area}, 5, 0.75, (2.0, 1.0, 1.0))
    assert alone.half == pytest.approx(15.0, abs=0.01), "0.75 of 20 mm"
    assert alone.area_on(5) == disc_area
    assert alone.area_on(8) == alone.area_on(2) == pytest.approx(disc_area * (1 - (6 / alone.half) ** 2))
    assert 0 < alone.area_on(12) < 0.2 * disc_area, "14 of 15 mm away"
    assert alone.area_on(13) == alone.area_on(100) == 0
    assert Ellipsoid.through({5: disc_area}, 5, 0.75, (2.0, 0.5, 0.5)).half == pytest.approx(7.5, abs=0.01), "in mm"

    two = {5: 400, 8: 100}
    through = Ellipsoid.through(two, 8, 1.0, (2.0, 1.0, 1.0))
    assert (through.centre, through.area) == (5, 400)
    assert through.area_on(8) == through.area_on(2) == pytest.approx(100), (
        "3 slices of 2 mm away: what was annotated there"
    )
    assert Ellipsoid.through(two, 5, 1.0, (2.0, 1.0, 1.0)) == Ellipsoid.through({5: 400}, 5, 1.0, (2.0, 1.0, 1.0))

    slow = Ellipsoid.through({5: 400, 6: 399}, 6, 1.0, (2.0, 1.0, 1.0))
    assert slow.half == pytest.approx(2 * (400 / math.pi) ** 0.5), "never later than the largest slice alone says"
    far = Ellipsoid.through({0: 100, 40: 100}, 40, 1.0, (1.0, 1.0, 1.0))
    assert far.half == pytest.approx(40 + 2 * (100 / math.pi) ** 0.5), "beyond that end: as long again as from there"


def test_crumbs_of_what_was_taken_go_and_other_pieces_stay():
    before = np.zeros((20, 30), dtype=bool)
    before[2:12, 2:22] = True
    before[15:17, 2:5] = True  # another piece, smaller than what is taken
    after = before.copy()
    after[2:12, 12:19] = False  # 70 pixels; 30 are left behind them
    kept = without_crumbs(before, after)
    expected = before.copy()
    expected[2:12, 12:22] = False
    assert np.array_equal(kept, expected)
    after[2:12, 12:18] = True  # 10 pixels taken: what is behind is larger
    assert np.array_equal(without_crumbs(before, after), after)
    assert np.array_equal(without_crumbs(before, before), before)
    bare = before & False
    assert np.array_equal(without_crumbs(before, bare), bare)
