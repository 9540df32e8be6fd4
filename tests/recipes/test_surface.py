"""NSD, HD95 and volume error: values worked out by hand on anisotropic grids, and the empty cases."""

import math

import numpy as np
import pytest

from samgraft.errors import ShapeError
from samgraft.recipes.metrics import MetricTable, score_case
from samgraft.recipes.surface import surface_score

SPACING = (3.0, 2.0, 0.5)
SHAPE = (6, 8, 12)


def _voxels(*places: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    for place in places:
        mask[place] = True
    return mask


def test_two_voxels_and_the_distance_between_them() -> None:
    one, other = _voxels((1, 2, 3)), _voxels((2, 4, 3))  # 3 mm and 4 mm: 5 mm apart
    for tolerance, nsd in ((4.9, 0.0), (5.1, 1.0)):
        score = surface_score(one, other, SPACING, tolerance=tolerance)
        assert score.hd95 == pytest.approx(5.0) and score.nsd == nsd


def test_a_shifted_plate_along_each_axis() -> None:
    truth = np.zeros(SHAPE, bool)
    truth[2:4, 2:5, 3:9] = True
    for axis, distance in ((0, 3.0), (1, 2.0), (2, 0.5)):
        score = surface_score(np.roll(truth, 1, axis=axis), truth, SPACING, tolerance=distance - 0.01)
        assert score.hd95 == pytest.approx(distance)
        assert surface_score(np.roll(truth, 1, axis=axis), truth, SPACING, tolerance=distance + 0.01).nsd == 1.0
        assert 0 < score.nsd < 1


def test_the_share_of_border_within_the_tolerance() -> None:
    truth, predicted = np.zeros((1, 9, 9), bool), np.zeros((1, 9, 9), bool)
    truth[0, 4, 2:6] = True  # a line of four voxels, all border
    predicted[0, 4, 2:7] = True  # one more, 1 mm beyond its end
    score = surface_score(predicted, truth, (5.0, 1.0, 1.0), tolerance=0.5)
    assert score.nsd == pytest.approx(8 / 9)
    assert score.hd95 == pytest.approx(np.percentile([0, 0, 0, 0, 1], 95))
    flat = surface_score(predicted[0], truth[0], (1.0, 1.0), tolerance=0.5)
    assert (flat.nsd, flat.hd95) == (score.nsd, score.hd95)


def test_hd95_is_the_larger_of_both_directions() -> None:
    truth, predicted = _voxels((1, 1, 1)), _voxels((1, 1, 1), (1, 1, 11))
    assert surface_score(predicted, truth, SPACING).hd95 == pytest.approx(np.percentile([0, 5.0], 95))
    assert surface_score(truth, predicted, SPACING).hd95 == pytest.approx(np.percentile([0, 5.0], 95))


def test_empty_masks_are_defined() -> None:
    empty, one = np.zeros(SHAPE, bool), _voxels((1, 2, 3))
    both = surface_score(empty, empty, SPACING)
    assert (both.nsd, both.hd95) == (1.0, 0.0)
    diagonal = math.sqrt((6 * 3.0) ** 2 + (8 * 2.0) ** 2 + (12 * 0.5) ** 2)
    for pair in ((empty, one), (one, empty)):
        score = surface_score(*pair, SPACING)
        assert score.nsd == 0.0 and score.hd95 == pytest.approx(diagonal)


def test_spacing_must_fit() -> None:
    with pytest.raises(ShapeError, match="one spacing per axis"):
        surface_score(np.zeros(SHAPE, bool), np.zeros(SHAPE, bool), (1.0, 1.0))


def test_case_and_table_in_mm_and_ml() -> None:
    truth = np.zeros(SHAPE, np.int16)
    truth[2:4, 2:5, 3:9] = 1  # 36 voxels of 3 mm3
    bigger = truth.copy()
    bigger[1, 2:5, 3:9] = 1  # 18 more
    classes = {1: "tumour", 2: "node"}
    table = MetricTable()
    table.add(score_case("a", bigger, truth, classes, spacing=SPACING))
    table.add(score_case("b", np.zeros_like(truth), truth, classes, spacing=SPACING))
    first, absent, missed, _ = table.scores
    assert first.volume_error == pytest.approx(18 * 3.0 / 1000) and first.hd95 == pytest.approx(3.0)
    assert (absent.dice, absent.nsd, absent.hd95, absent.volume_error) == (1.0, 1.0, 0.0, 0.0)
    assert missed.volume_error == pytest.approx(-36 * 3.0 / 1000) and missed.dice == 0.0
    values = table.as_dict()
    assert values["volume_error_ml/tumour"] == pytest.approx((0.054 + 0.108) / 2)
    assert values["nsd/node"] == 1.0 and values["hd95_mm/node"] == 0.0
    assert values["hd95_mm/tumour"] == pytest.approx((3.0 + missed.hd95) / 2)  # type: ignore[operator]
    assert values["n"] == 2 and {s.n for s in table.summaries()} == {2}


def test_unknown_voxels_count_for_no_border() -> None:
    truth = np.zeros(SHAPE, np.int16)
    truth[2, 2, 3], truth[2, 2, 11] = 1, -1
    predicted = np.zeros_like(truth)
    predicted[2, 2, 3], predicted[2, 2, 11] = 1, 1
    (score,) = score_case("a", predicted, truth, {1: "x"}, spacing=SPACING)
    assert (score.dice, score.nsd, score.hd95, score.volume_error) == (1.0, 1.0, 0.0, 0.0)


def test_without_spacing_there_are_no_figures_in_mm() -> None:
    table = MetricTable()
    table.add(score_case("a", np.ones((2, 2), int), np.ones((2, 2), int), {1: "x"}))
    assert {s.name for s in table.summaries()} == {"dice/x", "dice/mean", "iou/x", "iou/mean"}
