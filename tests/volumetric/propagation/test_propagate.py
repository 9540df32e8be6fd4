"""Propagation on phantoms whose every voxel is known, with slices that answer with bright pixels."""

from dataclasses import replace

import numpy as np
import pytest

from samgraft.errors import ConfigError, PromptError
from samgraft.volumetric.propagation import PropagationConfig, SlicePrompt, StopRule, propagate
from samgraft.volumetric.propagation.propagate import annotate, points_by_slice
from samgraft.volumetric.propagation.slices import Bounded, SliceAnswer
from samgraft.volumetric.propagation.walk import surest
from tests.volumetric._phantoms import BRIGHT, DARK, OracleSlices, disc, given, pictured, sphere, tilted_cylinder

ENDLESS = StopRule(length=None)
"""Phantoms here are longer than they are wide."""
WIDE = PropagationConfig(carry=("box", "mask"), box_margin=1.0, stop=ENDLESS)
"""The box of the next slice holds everything that an edge may reach; the oracle cuts at boxes."""


def run(truth, key, *, config=WIDE, stubborn=True, spacing=(1.0, 1.0, 1.0), pixels=None, **options):
    slices = OracleSlices(pictured(truth) if pixels is None else pixels, spacing, stubborn)
    keys = [key] if isinstance(key, int) else key
    return propagate(slices, {k: given(truth[k]) for k in keys}, config, **options)


@pytest.mark.parametrize("key", [3, 9, 16])
@pytest.mark.parametrize("carry", [("box",), ("mask",), ("points",), ("box", "mask", "points")])
def test_tilted_cylinder_is_followed_to_both_ends_and_no_further(key, carry):
    truth = tilted_cylinder()
    found = run(truth, key, config=replace(WIDE, carry=carry))
    assert np.array_equal(found.volume(), truth)
    ends = {(stop.start, stop.index) for stop in found.stopped}
    assert ends == {(key, 2), (key, 17)}


def test_mask_that_is_handed_on_without_end_stops_by_intensity_and_runs_on_without_that_rule():
    truth = tilted_cylinder(tilt=0)
    found = run(truth, 9)
    assert {stop.reason for stop in found.stopped} == {"intensity 0.00 < 0.2"}
    rule = replace(ENDLESS, min_agreement=None)
    grown = run(truth, 9, config=replace(WIDE, stop=rule)).volume()
    assert grown[:, 14, 12].all(), "the stubborn oracle repeats the mask for ever; only the rule ends it"


def test_cone_that_ends_keeps_its_tip_and_nothing_behind_it():
    truth = np.zeros((18, 32, 32), dtype=bool)
    for z in range(10):
        truth[z] = disc((32, 32), 15, 16, 11 - z)
    found = run(truth, 0)
    assert np.array_equal(found.volume(), truth), "radius 11 down to 2: 13 of 377 pixels are 0.034 of the key slice"
    assert found.answers.keys() == set(range(10))


def test_tip_below_the_least_share_is_left_out():
    truth = np.zeros((18, 32, 32), dtype=bool)
    for z in range(10):
        truth[z] = disc((32, 32), 15, 16, 11 - z)
    found = run(truth, 0, config=replace(WIDE, stop=replace(ENDLESS, min_share=0.05)))
    assert max(found.answers) == 8, "29 of 377 pixels (0.077) stay, 13 (0.034) go"
    assert found.stopped[0].reason == "area 0.034 < 0.05"


def test_leak_is_held_back_by_the_reach_and_ended_by_growth():
    pixels = pictured(tilted_cylinder(shape=(12, 40, 40), first=0, last=5, radius=6, tilt=0))
    pixels[6:] = BRIGHT  # behind slice 5 everything is as bright as the object
    truth = pixels > 0.5
    found = run(truth, 2, pixels=pixels)
    assert max(found.answers) == 6
    grown = found.mask(6).sum()
    assert 113 < grown <= 1.6 * 113, "one pixel further on all sides"
    assert found.stopped[0].index == 7 and found.stopped[0].reason.startswith("growth")


def test_two_spheres_that_touch_are_kept_apart():
    shape = (30, 24, 24)
    one, other = sphere(shape, (8, 11, 12), 6), sphere(shape, (20, 11, 12), 6)
    found = run(one | other, 8).volume()
    assert not found[14:].any(), "the spheres meet in one voxel of slice 14"
    assert np.array_equal(found[3:14], one[3:14])


def test_behind_a_neck_everything_is_taken_back():
    shape = (30, 24, 24)
    both = sphere(shape, (8, 11, 12), 6) | sphere(shape, (18, 11, 12), 6)
    found = run(both, 8)
    (up,) = [stop for stop in found.stopped if stop.index > 8]
    assert up.reason == "regrowth 3.05 > 3" and up.index == 14, "neck of 37 pixels at slice 13, 113 again at slice 18"
    assert max(found.answers) == 13
    loose = run(both, 8, config=replace(WIDE, stop=replace(ENDLESS, max_regrowth=None)))
    assert max(loose.answers) == 23, "without the rule both spheres are one object"


@pytest.mark.parametrize("growth", [None, 1.4])
def test_area_shrinks_with_the_distance_as_that_of_an_ellipsoid(growth):
    truth = np.ones((41, 60, 60), dtype=bool)  # everything is as bright as the object: nothing but length ends a walk
    mask = disc((60, 60), 30, 30, 10)
    area, spacing = int(mask.sum()), (2.0, 0.5, 0.5)
    half = 0.8 * 2 * np.sqrt(area * 0.25 / np.pi)  # 8.04 mm: 4 slices of 2 mm, with 3 pixels left on the last
    config = replace(WIDE, stop=StopRule(length=0.8, max_growth=growth, min_share=None, min_iou=None))
    found = propagate(OracleSlices(pictured(truth), spacing), {20: given(mask)}, config)
    for step in range(1, 5):
        for index in (20 - step, 20 + step):
            kept = found.mask(index)
            assert kept.sum() == int((growth or 1.0) * area * (1 - (2.0 * step / half) ** 2)) > 0
            assert kept[30, 30], "the rim goes first, the middle stays"
            assert not (kept & ~mask).any() or growth
    assert (min(found.answers), max(found.answers)) == (16, 24)
    assert {stop.reason for stop in found.stopped} == {"length: 10 mm, the end at length=0.8"}


def test_length_says_nothing_between_annotated_slices_and_can_be_switched_off():
    truth = tilted_cylinder(tilt=0)
    config = replace(WIDE, stop=StopRule(length=0.3))
    assert run(truth, 9, config=config).answers.keys() < set(range(3, 17))
    assert np.array_equal(run(truth, [3, 16], config=config).volume()[3:17], truth[3:17])
    assert np.array_equal(run(truth, 9, config=replace(WIDE, stop=ENDLESS)).volume(), truth)
    assert np.array_equal(run(truth, 9, config=config, within=(2, 17)).volume(), truth), "an extent was given"


def test_surest_pixels_stay():
    logits = np.array([[0.5, 3.0, 1.0], [2.0, 2.0, -1.0]], dtype=np.float32)
    answer = SliceAnswer(shape=(4, 5), top=1, left=2, logits=logits, iou=1.0)
    mask = answer.mask()
    assert mask.sum() == 5
    assert np.argwhere(surest(mask, answer, 1.9)).tolist() == [[1, 3]]
    assert np.argwhere(surest(mask, answer, 3)).tolist() == [[1, 3], [2, 2], [2, 3]]
    assert np.argwhere(surest(mask, answer, 2)).tolist() == [[1, 3], [2, 3]], "of equal ones the deeper"
    assert surest(mask, answer, 5) is mask and not surest(mask, answer, 0.5).any()


@pytest.mark.parametrize("gap", [(8, 11), (12, 13), (5, 6)])
def test_gap_between_two_annotated_slices_stays_empty(gap):
    truth = tilted_cylinder(tilt=0, first=2, last=17)
    truth[gap[0] : gap[1] + 1] = False
    found = run(truth, [3, 16])
    assert np.array_equal(found.volume(), truth)
    assert {(stop.start, stop.index) for stop in found.stopped if 3 < stop.index < 16} == {(3, gap[0]), (16, gap[1])}


def test_between_annotated_slices_both_walks_are_blended_by_distance():
    shape = (7, 24, 40)
    pixels = np.full(shape, DARK, dtype=np.float32)
    low, high = disc(shape[1:], 11, 12, 5), disc(shape[1:], 11, 17, 5)
    slices = OracleSlices(pixels, stubborn=True)
    rule = replace(ENDLESS, min_agreement=None)
    config = PropagationConfig(carry=("mask",), edge_slope=20.0, stop=rule)
    found = propagate(slices, {0: given(low), 6: given(high)}, config)
    for z in (1, 2):
        assert np.array_equal(found.mask(z), low), "nearer to slice 0"
    for z in (4, 5):
        assert np.array_equal(found.mask(z), high)
    middle = found.mask(3)  # each walk counts a half, so that pixels of only one of them are on the edge
    assert not ((low & high) & ~middle).any() and not (middle & ~(low | high)).any()
    overlap = (low & high).sum()
    assert found.direction_agreement == pytest.approx(2 * overlap / (low.sum() + high.sum()))


def test_empty_annotated_slice_ends_the_object_halfway():
    truth = tilted_cylinder(tilt=0, first=0, last=19)
    slices = OracleSlices(pictured(truth))
    nothing = np.zeros(truth.shape[1:], dtype=bool)
    found = propagate(slices, {2: given(truth[2]), 12: given(nothing)}, WIDE)
    assert sorted(found.answers) == [0, 1, 2, 3, 4, 5, 6], "slice 7 is as near to the one as to the other"


@pytest.mark.parametrize(("slope", "followed"), [(1.0, True), (0.4, False)])
def test_thick_slices_let_edges_move_by_mm_not_by_pixels(slope, followed):
    truth = tilted_cylinder(shape=(8, 32, 64), first=1, last=6, tilt=3)  # 3 mm per slice of 5 mm
    config = replace(WIDE, edge_slope=slope)
    found = run(truth, 3, spacing=(5.0, 1.0, 1.0), config=config).volume()
    assert np.array_equal(found, truth) is followed
    assert not (found & ~truth).any()


def test_spacing_within_the_plane_counts_too():
    truth = tilted_cylinder(shape=(6, 32, 64), first=1, last=4, tilt=2)
    wide = run(truth, 2, spacing=(1.0, 1.0, 0.5)).volume()  # 2 pixels are 1 mm
    assert np.array_equal(wide, truth)
    narrow = run(truth, 2, spacing=(1.0, 1.0, 1.0)).volume()  # 2 pixels are 2 mm, reach is 1 mm
    assert (narrow < truth).any()


@pytest.mark.parametrize("memory", [0, 3])
@pytest.mark.parametrize("keys", [[9], [5, 14]])
def test_up_then_down_is_down_then_up_bit_for_bit(memory, keys):
    truth = tilted_cylinder()
    noisy = pictured(truth) + np.random.default_rng(0).normal(0, 0.05, truth.shape).astype(np.float32)
    config = replace(WIDE, memory=memory)
    one, other = (run(truth, keys, pixels=noisy, config=config, upward_first=first) for first in (True, False))
    assert one.answers.keys() == other.answers.keys()
    for index, answer in one.answers.items():
        assert answer.logits.tobytes() == other.answers[index].logits.tobytes()
        assert (answer.top, answer.left, answer.iou) == (
            other.answers[index].top,
            other.answers[index].left,
            other.answers[index].iou,
        )
    assert one.stopped == other.stopped


def test_way_back_to_the_annotated_slice_says_how_well_directions_agree():
    truth = tilted_cylinder()
    assert run(truth, 9).direction_agreement is None
    assert run(truth, 9, return_walks=True).direction_agreement == 1.0


def test_extent_and_box_bound_the_object():
    truth = tilted_cylinder(tilt=0)
    slices = Bounded(inner=OracleSlices(pictured(truth)), box=(8.0, 0.0, 20.0, 13.0))
    found = propagate(slices, annotate(slices, {9: SlicePrompt(box=(8.0, 0.0, 20.0, 13.0))}), WIDE, within=(7, 11))
    expected = np.zeros_like(truth)
    expected[7:12, :14, 8:21] = truth[7:12, :14, 8:21]
    assert np.array_equal(found.volume(), expected)


def test_points_on_other_slices_are_asked_and_obeyed():
    truth = tilted_cylinder(tilt=0, first=0, last=19)
    truth[8, 14, 30:34] = True
    slices = OracleSlices(pictured(truth))
    clicks = points_by_slice([(31, 14, 8, 1), (12, 14, 11, 0)])
    found = propagate(slices, {5: given(truth[5])}, WIDE, clicks=clicks)
    assert found.mask(8)[14, 31]
    assert {prompt.points for index, prompt in slices.asked if index == 8} == {((31.0, 14.0, 1),)}
    assert max(found.answers) == 10, "a click off the object on slice 11 takes the whole piece away"


def test_annotated_slice_is_given_or_asked():
    truth = tilted_cylinder()
    slices = OracleSlices(pictured(truth))
    drawn = np.zeros(truth.shape[1:], dtype=bool)
    drawn[10:13, 10:13] = True
    answers = annotate(slices, {4: SlicePrompt(mask=drawn), 9: SlicePrompt(points=((18.0, 14.0, 1),))})
    assert np.array_equal(answers[4].mask(), drawn), "a mask is taken as it is"
    assert np.array_equal(answers[9].mask(), truth[9])
    with pytest.raises(PromptError, match=r"slice 20 lies outside the volume: there are slices 0..19"):
        annotate(slices, {20: SlicePrompt(mask=drawn)})
    with pytest.raises(PromptError, match="nothing was found on the annotated slices"):
        propagate(slices, {4: given(np.zeros_like(drawn))})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"carry": ("boxes",)}, "expected one or more of box, mask, points"),
        ({"carry": ()}, "expected one or more of box, mask, points"),
        ({"memory": -1}, "memory -1"),
        ({"edge_slope": 0.0}, "edge_slope is 0.0"),
        ({"memory_weight": 1.5}, "memory_weight is 1.5"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        PropagationConfig(**options)
    with pytest.raises(ConfigError, match="max_growth is 0.5"):
        StopRule(max_growth=0.5)
    with pytest.raises(ConfigError, match="length is 0; expected diameters above 0"):
        StopRule(length=0)
