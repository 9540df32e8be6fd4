"""Rules of shape in mm3, on masks that can be counted."""

import json

import numpy as np
import pytest

from samgraft.errors import ConfigError, ShapeError
from samgraft.volumetric.shape_rules import ShapeRules, apply_to_labels, fill_holes

SPACING = (5.0, 1.0, 0.5)
"""2.5 mm3 per voxel."""


def blocks():
    """Components of 24 and 12 voxels, and one of a single voxel that touches the first by a corner."""
    mask = np.zeros((6, 9, 12), dtype=bool)
    mask[1:3, 1:4, 1:5] = True
    mask[4, 5:8, 6:10] = True
    mask[3, 4, 5] = True
    return mask


@pytest.mark.parametrize(
    ("rules", "voxels"),
    [
        (ShapeRules(), 37),
        (ShapeRules(largest=True), 37),  # corners join: the single voxel bridges both blocks
        (ShapeRules(largest=True, connectivity=6), 24),
        (ShapeRules(min_mm3=3.0, connectivity=6), 36),  # a voxel has 2.5 mm3
        (ShapeRules(min_mm3=30.0, connectivity=6), 36),  # 12 voxels have exactly 30 mm3
        (ShapeRules(min_mm3=30.1, connectivity=6), 24),
        (ShapeRules(min_mm3=1e6), 0),
    ],
)
def test_components_by_volume_and_size(rules, voxels):
    assert rules.apply(blocks(), SPACING).sum() == voxels
    assert blocks().sum() == 37


def test_cavities_are_filled_up_to_a_volume_and_not_where_they_are_open():
    mask = np.zeros((7, 8, 9), dtype=bool)
    mask[1:6, 1:7, 1:8] = True
    mask[3, 3, 3:5] = False  # closed: 2 voxels, 5 mm3
    mask[2:4, 5, 6] = False  # closed: 2 voxels
    mask[4, 4, 5:9] = False  # open to the outside
    full = mask.sum()
    assert ShapeRules(fill_holes_mm3=4.9).apply(mask, SPACING).sum() == full
    assert ShapeRules(fill_holes_mm3=5.0).apply(mask, SPACING).sum() == full + 4
    assert ShapeRules(fill_holes_mm3=float("inf")).apply(mask, SPACING).sum() == full + 4
    assert not fill_holes(mask)[4, 4, 5:9].any()


def test_a_cavity_that_only_touches_the_edge_of_the_volume_is_open():
    mask = np.ones((3, 4, 5), dtype=bool)
    mask[0, 1, 1] = False
    assert fill_holes(mask).sum() == mask.sum()


def test_labels_are_filled_only_where_they_were_background():
    labels = np.zeros((5, 5, 6), dtype=np.uint8)
    labels[1:4, 1:4, 1:5] = 1
    labels[2, 2, 2], labels[2, 2, 3] = 2, 0
    rules = {1: ShapeRules(fill_holes_mm3=float("inf"), largest=True), 2: ShapeRules()}
    found = apply_to_labels(labels, SPACING, rules)
    assert found[2, 2, 2] == 2 and found[2, 2, 3] == 1
    assert labels[2, 2, 3] == 0


def test_rules_stand_in_a_header_and_refuse_nonsense():
    rules = ShapeRules(fill_holes_mm3=float("inf"), min_mm3=12.5, largest=True, connectivity=18)
    assert ShapeRules.from_dict(json.loads(json.dumps(rules.to_dict(), allow_nan=False))) == rules
    assert not ShapeRules() and ShapeRules(largest=True)
    with pytest.raises(ConfigError, match="expected 6, 18 or 26"):
        ShapeRules(connectivity=8)
    with pytest.raises(ConfigError, match="min_mm3 -1"):
        ShapeRules(min_mm3=-1.0)
    with pytest.raises(ShapeError, match=r"expected \(D, H, W\) bool"):
        ShapeRules(largest=True).apply(np.zeros((3, 3), dtype=bool), SPACING)
