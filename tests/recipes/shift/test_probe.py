"""The linear probe: areas by hand, one half without a shift, one with it, and patients that are never split."""

import numpy as np
import pytest

from samgraft.recipes.shift.distances import Labelled
from samgraft.recipes.shift.probe import area_under_curve, deal_folds, linear_probe


def data(source: np.ndarray, target: np.ndarray, groups: list[int] | None = None) -> Labelled:
    """Both sets; every row its own group."""
    label = np.repeat([False, True], [len(source), len(target)])
    named = np.arange(len(label)) if groups is None else np.array(groups)
    return Labelled(features=np.concatenate([source, target]), target=label, groups=named)


def rows(count: int, seed: int, width: int = 20) -> np.ndarray:
    """(n, d) standard normal."""
    return np.random.default_rng(seed).standard_normal((count, width))


def test_area_by_hand_with_ties() -> None:
    positive = np.array([False, False, True, True])
    assert area_under_curve(np.array([1.0, 2, 2, 3]), positive) == pytest.approx(3.5 / 4)
    assert area_under_curve(np.zeros(4), positive) == 0.5
    assert area_under_curve(np.array([3.0, 2, 1, 0]), positive) == 0


def test_sets_without_a_shift_are_not_told_apart() -> None:
    found = linear_probe(data(rows(100, 0), rows(100, 1)))
    assert 0.4 < found.auc < 0.6 and found.folds == 5 and found.unit == "groups"


def test_the_same_images_on_both_sides_give_exactly_one_half() -> None:
    same = rows(30, 0)
    found = linear_probe(data(same, same, [*range(30)] * 2))
    assert found.auc == 0.5 and found.deviation == 0


def test_separated_sets_are_told_apart() -> None:
    found = linear_probe(data(rows(30, 0), rows(30, 1) + [8.0] + [0.0] * 19))
    assert found.auc == 1.0


def test_one_direction_is_found_among_many_with_few_images() -> None:
    offset = np.zeros(100)
    offset[[3, 70]] = 3.0
    assert linear_probe(data(rows(25, 0, 100), rows(25, 1, 100) + offset)).auc > 0.85


def test_patients_that_merely_differ_are_no_shift() -> None:
    centres = 5 * rows(20, 3, 8)
    groups = np.repeat(np.arange(20), 10)
    features = centres[groups] + 0.1 * rows(200, 4, 8)
    split = data(features[:100], features[100:], groups.tolist())
    by_view = data(features[:100], features[100:])
    assert linear_probe(by_view).auc > 0.95 > 0.8 > linear_probe(split).auc


def test_one_scene_per_side_is_split_by_views_and_says_so() -> None:
    found = linear_probe(data(rows(12, 0), rows(12, 1) + 4.0, [0] * 12 + [1] * 12))
    assert found.unit == "views" and found.auc > 0.95


@pytest.mark.parametrize(
    ("source", "target"),
    [([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]), ([0, 1, 2], [2, 3, 4, 5]), ([0, 1], [2, 3, 4, 5, 6, 7, 8])],
)
def test_folds_never_split_a_patient_and_always_hold_both_sets(source: list[int], target: list[int]) -> None:
    groups = np.repeat(np.array([*source, *target]), 3)
    label = np.repeat([False, True], [3 * len(source), 3 * len(target)])
    folds = min(5, len(source), len(target))
    for seed in range(10):
        fold = deal_folds(groups, label, folds, np.random.default_rng(seed))
        assert all(len(set(fold[groups == g].tolist())) == 1 for g in groups)
        assert all(len(set(label[fold == f].tolist())) == 2 for f in range(folds))
