"""Signals, uncertainty, and calibration on synthetic cases whose true probabilities are known."""

import json

import numpy as np
import pytest

from samgraft.errors import ConfigError, ShapeError
from samgraft.volumetric.trust import Calibration, Signals, agreement, calibrate, reliability, uncertainty


def test_agreement_is_the_mean_dice_of_pairs():
    a, b, c = (np.zeros((3, 4, 5), dtype=bool) for _ in range(3))
    a[0, 0, :4], b[0, 0, 2:5], c[2, 3, :1] = True, True, True
    assert agreement([a, b, c]) == pytest.approx((2 * 2 / 7 + 0 + 0) / 3)
    assert agreement([np.zeros_like(a), np.zeros_like(a)]) == 1.0
    with pytest.raises(ShapeError, match="needs at least two"):
        agreement([a])


def test_uncertainty_is_the_entropy_of_the_mean_in_bits():
    maps = [np.array([[1.0, 1.0, 0.0, 0.25]]), np.array([[1.0, 0.0, 0.0, 0.25]])]
    expected = [0.0, 1.0, 0.0, -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))]
    assert uncertainty(maps)[0].tolist() == pytest.approx(expected)


def cases(number, seed):
    """Signals and Dice: the chance of a good structure is sigmoid(12 (flips - 0.8) + 6 (iou - 0.7))."""
    random = np.random.default_rng(seed)
    flips, iou = random.uniform(0.5, 1, number), random.uniform(0.4, 1, number)
    chance = 1 / (1 + np.exp(-12 * (flips - 0.8) - 6 * (iou - 0.7)))
    good = random.uniform(size=number) < chance
    dice = np.where(good, random.uniform(0.8, 1, number), random.uniform(0, 0.7999, number))
    return [Signals(flips=f, predicted_iou=i) for f, i in zip(flips, iou, strict=True)], dice, chance


@pytest.mark.parametrize("form", ["logistic", "isotonic"])
def test_calibrated_probabilities_are_what_happens(form):
    signals, dice, _ = cases(600, 0)
    fitted = calibrate(signals, dice, form=form)
    fresh, outcome, chance = cases(2000, 1)
    stated = [fitted.probability(one) for one in fresh]
    after = reliability(stated, outcome >= 0.8)
    raw = reliability([np.mean(list(one.measured().values())) for one in fresh], outcome >= 0.8)
    assert after.error < 0.05 < raw.error, "the raw mean of the signals says 0.75 where half is good"
    assert after.brier < raw.brier
    assert sum(count for *_, count in after.bins) == 2000
    if form == "logistic":
        assert np.abs(np.array(stated) - chance).mean() < 0.04
    flagged = np.array([fitted.flag(one) for one in fresh])
    assert np.array_equal(flagged, np.array(stated) < 0.5)
    assert (outcome[flagged] < 0.8).mean() > 0.65 > 0.35 > (outcome[~flagged] < 0.8).mean()


def test_isotonic_never_falls():
    signals, dice, _ = cases(80, 3)
    fitted = calibrate(signals, dice, form="isotonic")
    heights = [y for _, y in fitted.knots]
    assert heights == sorted(heights) and 0 < heights[0] and heights[-1] < 1
    grid = [fitted.probability(Signals(flips=v, predicted_iou=v)) for v in np.linspace(0, 1, 50)]
    assert grid == sorted(grid)


@pytest.mark.parametrize("form", ["logistic", "isotonic"])
@pytest.mark.parametrize("dice", [[0.9, 0.95, 0.85], [0.1, 0.2, 0.3]])
def test_few_cases_of_one_kind_claim_no_certainty(form, dice):
    signals = [Signals(flips=v) for v in (0.7, 0.8, 0.9)]
    probability = calibrate(signals, dice, form=form).probability(Signals(flips=0.8))
    assert probability == pytest.approx(0.8 if dice[0] > 0.5 else 0.2, abs=1e-3), "(3 + 1) / (3 + 2), 1 / (3 + 2)"


def test_calibration_stands_in_a_header():
    signals, dice, _ = cases(40, 5)
    for form in ("logistic", "isotonic"):
        fitted = calibrate(signals, dice, form=form, flag_below=0.3, good_dice=0.7)
        again = Calibration.from_dict(json.loads(json.dumps(fitted.to_dict(), allow_nan=False)))
        assert again == fitted
    with pytest.raises(ConfigError, match="written by another version"):
        Calibration.from_dict({**fitted.to_dict(), "temperature": 2.0})


def test_signals_that_are_not_there_are_named():
    fitted = calibrate([Signals(flips=0.9, directions=0.8), Signals(flips=0.5, directions=0.2)], [0.9, 0.1])
    assert fitted.signals == ("flips", "directions")
    with pytest.raises(ConfigError, match=r"\['directions'\] were not measured"):
        fitted.probability(Signals(flips=0.7))
    assert calibrate([Signals(flips=0.9, directions=0.8), Signals(flips=0.5)], [0.9, 0.1]).signals == ("flips",)
    with pytest.raises(ConfigError, match="no signal was measured in all cases"):
        calibrate([Signals(flips=0.9), Signals(predicted_iou=0.5)], [0.9, 0.1])
    with pytest.raises(ConfigError, match="one Dice per case"):
        calibrate([Signals(flips=0.9)], [])


def test_reliability_by_hand():
    found = reliability([0.05, 0.15, 0.15, 1.0], [False, True, False, True], bins=10)
    assert found.bins == ((0.05, 0.0, 1), (0.15, 0.5, 2), (1.0, 1.0, 1))
    assert found.error == pytest.approx((0.05 + 2 * 0.35 + 0) / 4)
    assert found.brier == pytest.approx((0.05**2 + 0.85**2 + 0.15**2 + 0) / 4)
