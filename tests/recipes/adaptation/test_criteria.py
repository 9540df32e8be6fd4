"""Criteria without labels and the guard, by hand and against an oracle whose answer is known."""

import pytest
import torch

from samgraft.errors import ConfigError
from samgraft.recipes.adaptation.config import AdaptConfig, GuardConfig, TermWeights
from samgraft.recipes.adaptation.criteria import (
    dice,
    from_scaled,
    object_agreement,
    refusal,
    scaled,
    score,
    share_of_classes,
    worst_ratio,
)


def test_dice_is_a_mean_over_the_classes_that_are_there():
    first = torch.tensor([[1, 1, 0, 2], [0, 0, 0, 3]])
    second = torch.tensor([[1, 0, 0, 2], [0, 0, 0, 0]])
    where = torch.ones(2, 4, dtype=torch.bool)
    assert dice(first, second, where) == pytest.approx((2 / 3 + 1 + 0) / 3)
    where[1, 3] = False
    assert dice(first, second, where) == pytest.approx((2 / 3 + 1) / 2)
    assert dice(first * 0, second * 0, where) == 1.0


def test_a_smaller_copy_comes_back_to_its_own_pixels():
    labels = torch.zeros(1, 40, 40, dtype=torch.int64)
    labels[0, 5:15, 22:32] = 2  # off the middle and off the diagonal
    copy = scaled(labels.float()[:, None], 0.5)[0, 0]
    inside = (copy[10:30, 10:30] > 1.5).nonzero()  # beyond that the tile is mirrored
    assert inside.min(dim=0).values.tolist() == [3, 11] and inside.max(dim=0).values.tolist() == [6, 15]
    small = torch.zeros(1, 40, 40, dtype=torch.int64)
    small[0, 13:17, 21:26] = 2  # what the copy shows of it
    back = from_scaled(small, 0.5)[0]
    found = (back == 2).nonzero()
    assert found.min(dim=0).values.tolist() == [6, 22] and found.max(dim=0).values.tolist() == [13, 31]
    assert int((back < 0).sum()) == 0  # everything was in the small copy


def test_what_left_a_larger_copy_does_not_count():
    back = from_scaled(torch.ones(1, 40, 40, dtype=torch.int64), 1.25)[0]
    assert int((back == 1).sum()) == 32 * 32 and bool((back[:4] == -1).all()) and bool((back[4:36, 4:36] == 1).all())


def test_shares_and_their_worst_ratio():
    classes = torch.tensor([[0, 0, 0, 0], [1, 1, 2, 2]])
    known = torch.ones(2, 4, dtype=torch.bool)
    known[0, 0] = False
    assert share_of_classes(classes, known, 4) == pytest.approx([3 / 7, 2 / 7, 2 / 7, 0.0])
    assert worst_ratio([0.7, 0.2, 0.1], [0.5, 0.1, 0.4]) == pytest.approx(4.0)
    assert worst_ratio([1.0, 0.0], [0.9, 0.1]) == 1000.0  # nothing is left of the foreground
    assert worst_ratio([0.9, 0.1], [1.0, 0.00001]) == 1.0  # too rare to tell


def test_objects_agree_by_the_one_that_overlaps_them_most_both_ways():
    first = torch.zeros(1, 8, 12, dtype=torch.int64)
    first[0, 0:4, 0:4], first[0, 0:4, 4:8] = 1, 2  # 16 pixels each
    second = torch.zeros_like(first)
    second[0, 0:4, 0:8] = 5  # both in one
    second[0, 6:8, 10:12] = 9  # 4 pixels of nothing
    known = torch.ones_like(first, dtype=torch.bool)
    assert object_agreement(first, first * 3, known) == 1.0
    root = 32**0.5
    wanted = (0.5 + (0.5 * root + 0.0 * 2) / (root + 2)) / 2
    assert object_agreement(first, second, known) == pytest.approx(wanted)
    assert dice((first > 0).long(), (second > 0).long(), known) > 0.9  # pixels do not mind
    known[0, 5:] = False
    assert object_agreement(first, second, known) == pytest.approx(0.5)
    assert object_agreement(first * 0, first * 0, known) == 1.0 and object_agreement(first, first * 0, known) == 0.0


SOURCE = {"agreement": 0.8, "anchor": 1.0, "box_iou": 0.6, "share_factor": 1.5, "score": 0.8}


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"score": 0.81}, ""),
        ({"score": 0.8}, "not above the source"),
        ({"score": 0.9, "anchor": 0.4}, "Dice 0.400 with the source"),
        ({"score": 0.9, "share_factor": 3.1}, "3.1 times"),
        ({"score": float("nan")}, "not finite"),
    ],
)
def test_the_guard_says_why(changed, match):
    said = refusal(SOURCE | changed, SOURCE, GuardConfig())
    assert (match in said) if match else said == ""


def test_a_source_that_is_far_off_itself_may_be_improved():
    far = SOURCE | {"share_factor": 50.0}
    assert refusal(far | {"score": 0.9, "share_factor": 20.0}, far, GuardConfig()) == ""
    assert "60.0 times" in refusal(far | {"score": 0.9, "share_factor": 60.0}, far, GuardConfig())
    even = SOURCE | {"share_factor": 1.0}
    assert score(even) == pytest.approx(0.6 * 0.8 + 0.3 + 0.1 * 0.6)
    assert score(even | {"share_factor": 2.0}) == score(even)
    assert score(even | {"share_factor": 8.0}) == pytest.approx(score(even) - 0.1)
    assert score(even | {"box_off": 0.2}) == pytest.approx(0.6 * 0.8 + 0.3 - 0.1)  # nothing for boxes, but for theirs


def test_settings_go_through_yaml_and_back():
    config = AdaptConfig(steps=7, weights=TermWeights(anchor=0.2), moving="new", new={"ssf": {}}, portion=(0.3, 0.9))
    assert AdaptConfig.from_dict(config.to_dict()) == config
    assert AdaptConfig.from_dict({"weak": {"flip_y": True}}).weak.gamma == 0.0  # the rest stays weak


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"portion": [0.0, 0.5]}, "portion is"),
        ({"moving": "new"}, "moving: new needs a graft"),
        ({"weights": {"pseudo": 0, "anchor": 0, "contrast": 0, "entropy": 0, "prior": 0}}, "all weights are 0"),
        ({"weights": {"pseudos": 1}}, "unknown setting weights.pseudos"),
        ({"momentum": 1.5}, "momentum is 1.5"),
        ({"guard": {"share_factor": 1.0}}, "more than 1"),
    ],
)
def test_bad_settings_are_named(values, match):
    with pytest.raises(ConfigError, match=match):
        AdaptConfig.from_dict(values)
