"""Agreement with weak labels by hand."""

from dataclasses import replace

import numpy as np
import pytest

from samgraft.recipes.losses import IGNORE
from samgraft.recipes.prompting import MaskPrompt
from samgraft.recipes.weak_labels.labels import WeakObject, box_ious, box_of
from samgraft.recipes.weak_learning.judge import agreement_summaries, judge
from tests.recipes.weak.test_tiles import case_of

EMPTY = np.zeros((20, 30), np.int16)


def test_box_iou_counts_pixels() -> None:
    found = box_ious([(2, 1, 5, 4), None], [(2, 1, 5, 4), (2, 3, 5, 6), (6, 1, 9, 4)])
    assert found == pytest.approx(np.array([[1.0, 8 / 24, 0.0], [0.0, 0.0, 0.0]]))
    mask = np.zeros((3, 4), bool)
    mask[1, 1:3] = True
    assert (
        box_of(mask, (slice(10, 13), slice(20, 24))) == (21, 11, 22, 11)
        and box_of(~mask & mask, (slice(0), slice(0))) is None
    )


def test_boxes_of_classes() -> None:
    case = case_of(EMPTY, WeakObject(label=1, box=(4, 5, 9, 8)), WeakObject(label=2, box=(20, 5, 23, 12)))
    predicted = np.zeros((1, 20, 30), int)
    predicted[0, 5:9, 4:10], predicted[0, 5:9, 20:24] = 1, 2
    assert judge(case, predicted, instance=False, classes=2)["box_iou"] == pytest.approx((1.0 + 0.5) / 2)
    predicted[0, 15:19, 4:10] = 1  # as many pixels far from any box
    assert judge(case, predicted, instance=False, classes=2)["agreement"] == pytest.approx((0.5 + 0.5) / 2)
    alone = replace(case, annotated=frozenset({2}))
    assert judge(alone, predicted, instance=False, classes=2)["agreement"] == pytest.approx(0.5)
    none = case_of(EMPTY)
    assert judge(none, predicted, instance=False, classes=1)["agreement"] == 0.0
    assert judge(none, 0 * predicted, instance=False, classes=1)["agreement"] == pytest.approx(1.0)


def test_neighbours_of_one_class_do_not_count_for_each_other() -> None:
    case = case_of(EMPTY, WeakObject(label=1, box=(4, 5, 9, 8)), WeakObject(label=1, box=(10, 5, 14, 8)))
    predicted = np.zeros((1, 20, 30), int)
    predicted[0, 5:9, 4:15] = 1
    assert judge(case, predicted, instance=False, classes=1)["box_iou"] == pytest.approx(1.0)


def test_separate_objects() -> None:
    boxes = case_of(EMPTY, WeakObject(label=1, box=(4, 5, 9, 8)), WeakObject(label=1, box=(20, 5, 23, 12)))
    points = case_of(
        EMPTY, WeakObject(label=1, points=((5, 6, 1),)), WeakObject(label=1, points=((8, 8, 1),)), kind="points"
    )
    predicted = np.zeros((1, 20, 30), int)
    predicted[0, 5:9, 4:10], predicted[0, 16:18, 1:3] = 1, 2
    assert judge(boxes, predicted, instance=True, classes=1)["agreement"] == pytest.approx(1 / 3)
    assert judge(points, predicted, instance=True, classes=1)["agreement"] == pytest.approx(2 * 1 / (2 + 2))


def test_points_of_classes() -> None:
    points = (WeakObject(label=1, points=((5, 6, 1), (0, 0, 0))), WeakObject(label=2, points=((8, 8, 1),)))
    case = case_of(EMPTY, *points, kind="points")
    predicted = np.ones((1, 20, 30), int)  # all of class 1: hit, and wrong at both other points
    assert judge(case, predicted, instance=False, classes=2)["point_hits"] == 0.0
    predicted[0, 8, 8], predicted[0, 0, 0] = 2, 0
    assert judge(case, predicted, instance=False, classes=2)["point_hits"] == 1.0
    predicted[0, 0, 0] = 1
    assert judge(case, predicted, instance=False, classes=2)["point_hits"] == pytest.approx((0.5 + 1.0) / 2)


def test_scribbles_and_coarse_areas() -> None:
    drawn = np.full((20, 30), IGNORE, np.int32)
    drawn[3, :10], drawn[6, :4] = 0, 2
    predicted = np.zeros((1, 20, 30), int)
    predicted[0, 6, :3] = 2
    case = case_of(EMPTY, kind="scribbles", drawn=drawn)
    assert judge(case, predicted, instance=False, classes=2)["scribble_accuracy"] == pytest.approx((1.0 + 0.75) / 2)
    region = MaskPrompt(top=6, left=0, inside=np.ones((1, 5), bool))
    coarse = case_of(EMPTY, WeakObject(label=2, region=region), kind="coarse")
    figures = judge(coarse, predicted, instance=False, classes=2)
    assert figures["coarse_dice"] == pytest.approx((1.0 + 2 * 3 / 8) / 2)


def test_certain_pseudo_labels_join_the_figure() -> None:
    labels = EMPTY.copy()
    labels[5:9, 4:10] = 1
    labels[8] = IGNORE
    case = case_of(labels, WeakObject(label=1, box=(4, 5, 9, 8)))
    assert case.weak is not None
    case = replace(case, weak=replace(case.weak, asked=True))
    predicted = np.zeros((1, 20, 30), int)
    predicted[0, 5:9, 4:7] = 1
    figures = judge(case, predicted, instance=False, classes=1)
    assert figures["box_iou"] == pytest.approx(0.5) and figures["pseudo_dice"] == pytest.approx(2 * 9 / (9 + 18))
    assert figures["agreement"] == pytest.approx((0.5 + 2 / 3) / 2)


def test_patients_count_alike() -> None:
    found = agreement_summaries([{"agreement": 0.2}, {"agreement": 0.4}, {"agreement": 0.9}], ["a", "a", "b"])
    assert [(s.name, s.n) for s in found] == [("agreement", 2)]
    assert found[0].mean == pytest.approx((0.3 + 0.9) / 2)
