"""Metrics: values, conventions for empty masks, instances."""

import math

import numpy as np
import pytest

from samgraft.errors import ShapeError
from samgraft.recipes.instances import (
    BORDER,
    INTERIOR,
    average_precision,
    border_target,
    instances_from_probabilities,
    match_instances,
    mean_matched_iou,
)
from samgraft.recipes.metrics import MetricTable, overlap, score_case, summarise


def test_overlap_values_and_empty_convention() -> None:
    a = np.array([1, 1, 0, 0], dtype=bool)
    b = np.array([0, 1, 1, 0], dtype=bool)
    empty = np.zeros(4, dtype=bool)
    assert overlap(a, b) == (0.5, 1 / 3)
    assert overlap(empty, empty) == (1.0, 1.0)
    assert overlap(a, empty) == (0.0, 0.0)
    assert overlap(empty, a) == (0.0, 0.0)
    with pytest.raises(ShapeError, match="compare masks on one grid"):
        overlap(a, a[:2])


def test_table_averages_over_cases_with_n() -> None:
    table = MetricTable()
    truth = np.array([[1, 1, 2, -1]])
    table.add(score_case("a", np.array([[1, 1, 2, 2]]), truth, {1: "x", 2: "y"}))
    table.add(score_case("b", np.array([[1, 0, 0, 0]]), truth, {1: "x", 2: "y"}))
    values = table.as_dict()
    assert values["dice/x"] == pytest.approx((1 + 2 / 3) / 2)
    assert values["dice/y"] == pytest.approx(0.5)
    assert values["dice/mean"] == pytest.approx((1 + 1 / 3) / 2)
    assert values["n"] == 2
    assert all(s.n == 2 for s in table.summaries())
    assert math.isnan(summarise("nothing", []).mean)


def _touching() -> np.ndarray:
    truth = np.zeros((24, 24), dtype=np.int32)
    truth[2:12, 2:12] = 1
    truth[12:22, 2:12] = 2
    truth[5:15, 15:22] = 3
    return truth


def test_border_target_keeps_every_object_and_parts_touching_ones() -> None:
    truth = _touching()
    truth[20, 20] = 9
    target = border_target(truth)
    assert target[20, 20] == INTERIOR
    assert target[11, 6] == BORDER and target[12, 6] == BORDER
    assert target[6, 6] == INTERIOR
    assert ((target > 0) == (truth > 0)).all()


def test_instances_from_perfect_probabilities_are_the_truth() -> None:
    truth = _touching()
    target = border_target(truth)
    probabilities = np.stack([target == k for k in range(3)]).astype(np.float32)
    labels, scores = instances_from_probabilities(probabilities, min_area=1)
    match = match_instances("a", labels, scores, truth)
    assert match.num_truth == 3
    np.testing.assert_allclose(np.sort(match.best_iou), [1, 1, 1])
    np.testing.assert_allclose(scores, 1.0)
    assert average_precision([match]) == 1.0
    assert mean_matched_iou([match]) == 1.0
    with pytest.raises(ShapeError, match=r"expected \(3, H, W\)"):
        instances_from_probabilities(probabilities[:2])


def test_average_precision_counts_false_and_missing() -> None:
    truth = _touching()
    predicted = np.zeros_like(truth)
    predicted[2:12, 2:12] = 1
    predicted[0, 0:24] = 2
    match = match_instances("a", predicted, np.array([0.5, 0.9]), truth)
    assert average_precision([match]) == pytest.approx(0.5 / 3)  # one hit of three, behind one false object
    assert mean_matched_iou([match]) == pytest.approx(1 / 3)
    nothing = match_instances("b", np.zeros_like(truth), np.zeros(0), truth)
    assert average_precision([nothing]) == 0.0
    assert math.isnan(average_precision([match_instances("c", predicted, np.array([0.5, 0.9]), np.zeros_like(truth))]))
