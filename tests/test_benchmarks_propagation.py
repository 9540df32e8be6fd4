"""What the benchmarks of propagation and localisation compute, by hand."""

import numpy as np
import pytest
import torch

from samgraft.volumetric.localisation import Located, Support
from samgraft.volumetric.localisation.landmarks import landmarks_of
from samgraft.volumetric.propagation import Propagated, answer_of
from tests.benchmarks.localisation import baselines, box_iou, by_content
from tests.benchmarks.propagation import WAYS, same


def walls(low, high):
    mask = np.zeros((20, 20, 20), dtype=bool)
    mask[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = True
    return landmarks_of(mask, (1.0, 1.0, 1.0))


def located(low, high):
    return Located(low=np.array(low, float), high=np.array(high, float), landmarks=np.zeros((6, 3)), spread=0.0)


def test_boxes_of_whole_voxels_overlap_as_counted():
    assert box_iou(located((2, 3, 4), (5, 6, 7)), walls((2, 3, 4), (5, 6, 7))) == 1.0
    assert box_iou(located((4, 3, 4), (7, 6, 7)), walls((2, 3, 4), (5, 6, 7))) == pytest.approx(32 / 96)
    assert box_iou(located((9, 9, 9), (12, 12, 12)), walls((2, 3, 4), (5, 6, 7))) == 0.0


def test_baselines_carry_the_mean_box_to_a_middle():
    image = torch.zeros(20, 20, 20)
    image[4:13, 2:9, 6:15] = 0.5  # middle (8, 5, 10)
    support = Support(image=image, walls={1: walls((6, 4, 9), (10, 6, 11))})
    moved = torch.zeros(24, 20, 20)
    moved[7:16, 5:12, 4:13] = 0.5  # three further, three further, two back
    found = baselines([support, support], moved, 1)
    assert by_content(moved).tolist() == [11.0, 8.0, 8.0]
    assert found["middle of the content"].low.tolist() == [9.0, 7.0, 7.0]
    assert found["middle of the content"].high.tolist() == [13.0, 9.0, 9.0]
    assert found["middle of the array"].low.tolist() == [8.0, 4.0, 9.0], "the array is four slices longer"


def test_equal_results_are_equal_bit_by_bit():
    mask = np.eye(5, 6, dtype=bool)
    one, other = (
        Propagated(shape=(3, 5, 6), answers={1: answer_of(m)}, annotated=(1,), stopped=()) for m in (mask, mask.copy())
    )
    assert same(one, other)
    mask[0, 0] = False
    assert not same(one, Propagated(shape=(3, 5, 6), answers={1: answer_of(mask)}, annotated=(1,), stopped=()))
    assert not same(one, Propagated(shape=(3, 5, 6), answers={}, annotated=(1,), stopped=()))
    assert all(way.stop == WAYS["box"].stop for way in WAYS.values()), "ways differ in what is carried only"
