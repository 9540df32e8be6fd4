"""Pseudo-labels with a backbone whose answers are known: bright pixels are objects."""

from dataclasses import replace

import numpy as np
import pytest

from samgraft.recipes.losses import IGNORE
from samgraft.recipes.prompting import MaskPrompt
from samgraft.recipes.weak.pseudo import Claim, PseudoLabels, object_prompt, paint_claims, stroke_prompt
from samgraft.recipes.weak_config import WeakConfig
from samgraft.recipes.weak_labels.labels import WeakLabels, WeakObject
from tests.recipes._oracle import Oracle, squares
from tests.recipes.weak.test_tiles import case_of

FIRST, SECOND = (10, 8, 29, 23), (44, 40, 59, 51)
SURE = WeakConfig(min_iou=0.5, min_stability=0.5, certain=1.0, point_radius=0)


def labelled(config: WeakConfig, weak: WeakLabels, *, instance: bool = False) -> np.ndarray:
    """Pseudo-labels of a 64 x 64 picture with two bright squares."""
    image = squares((64, 64), [FIRST, SECOND])
    case = case_of(np.zeros((64, 64), np.int8))
    case = replace(case, image=np.repeat(image[None, None], 3, axis=1), weak=weak)
    made = PseudoLabels(Oracle(), config, instance=instance)(case)
    assert made.weak is not None and made.weak.unsure is not None and made.weak.asked == config.prompts
    return np.where(made.weak.unsure[0], IGNORE, made.labels[0])


def truth() -> np.ndarray:
    labels = np.zeros((64, 64), int)
    labels[8:24, 10:30], labels[40:52, 44:60] = 1, 2
    return labels


def agree(labels: np.ndarray) -> None:
    """Whatever is certain is right, and most is certain."""
    known = labels != IGNORE
    assert (labels[known] == truth()[known]).mean() > 0.995
    assert known.mean() > 0.9
    for value in (1, 2):
        assert (labels[truth() == value] == value).mean() > 0.7


@pytest.mark.parametrize("instance", [False, True])
def test_boxes(instance: bool) -> None:
    loose = (FIRST[0], FIRST[1], FIRST[2] + 3, FIRST[3] + 2)
    objects = (WeakObject(label=1, box=loose), WeakObject(label=2, box=SECOND))
    labels = labelled(SURE, WeakLabels(kind="boxes", objects=objects), instance=instance)
    agree(labels)
    assert (labels[30:38] == 0).all()  # outside all boxes


def test_points_have_the_points_of_others_off_the_object() -> None:
    objects = (WeakObject(label=1, points=((20, 15, 1),)), WeakObject(label=2, points=((50, 45, 1), (2, 60, 0))))
    labels = labelled(SURE, WeakLabels(kind="points", objects=objects))
    assert labels[15, 20] == 1 and labels[45, 50] == 2 and labels[60, 2] == 0
    known = labels != IGNORE
    assert (labels[known] == truth()[known]).mean() > 0.99
    assert object_prompt(objects[0], objects).points == ((20, 15, 1), (50, 45, 0))


def test_scribbles_say_nothing_of_what_is_not_near_a_mask() -> None:
    drawn = np.full((1, 64, 64), IGNORE, np.int32)
    drawn[0, 15, 14:26], drawn[0, 45, 47:55], drawn[0, 60, 4:60] = 1, 2, 0
    labels = labelled(SURE, WeakLabels(kind="scribbles", drawn=drawn))
    assert (labels[60, 4:60] == 0).all() and (labels[31:34] == IGNORE).all()
    assert (labels[10:22, 6:8] == 0).all() and (labels == 0).sum() < 900  # a ring around each mask
    for value in (1, 2):
        assert (labels[truth() == value] == value).mean() > 0.6
        assert (truth()[labels == value] == value).mean() > 0.95


def test_coarse_outlines_are_unsure_near_their_rim() -> None:
    region = MaskPrompt(top=6, left=8, inside=np.ones((20, 24), bool))  # 2 pixels too large all round
    objects = (WeakObject(label=1, region=region),)
    labels = labelled(replace(SURE, prompts=False), WeakLabels(kind="coarse", objects=objects))
    assert labels[16, 20] == 1 and (labels[30:] == 0).all()
    assert (labels[6:26, 8] == IGNORE).all() and (labels[4:28, 6:34] != 0).mean() > 0.9


def test_masks_that_cannot_be_trusted_are_unknown() -> None:
    objects = (WeakObject(label=1, box=FIRST), WeakObject(label=2, box=SECOND))
    weak = WeakLabels(kind="boxes", objects=objects)
    for config in (replace(SURE, min_iou=0.9), replace(SURE, prompts=False)):  # the oracle says 0.8
        labels = labelled(config, weak)
        assert (labels[truth() > 0] == IGNORE).all() and (labels[truth() == 0] == 0).all()
    point = WeakLabels(kind="points", objects=(WeakObject(label=1, points=((20, 15, 1),)),))
    labels = labelled(replace(SURE, prompts=False), point)
    assert labels[15, 20] == 1 and (labels == 1).sum() == 1
    assert (labels[7:24, 12:29] == IGNORE).sum() == 17 * 17 - 1 and (labels == 0).sum() == 64 * 64 - 17 * 17


def test_objects_that_quarrel_leave_pixels_unknown() -> None:
    def claim(inside: list[int], unsure: list[int], unknown: list[int]) -> Claim:
        masks = [np.array([mask], bool) for mask in (inside, unsure, unknown)]
        return Claim(place=(slice(0, 1), slice(1, 6)), inside=masks[0], unsure=masks[1], unknown=masks[2])

    claims = [claim([1, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]), claim([0, 1, 1, 0, 0], [0] * 5, [0] * 5)]
    labels, guess = paint_claims(claims, [3, 4], (1, 7))
    assert labels.tolist() == [[0, 3, IGNORE, 4, 0, IGNORE, 0]]
    assert guess.tolist() == [[False, False, False, False, True, False, False]]
    labels, _ = paint_claims(claims, [3, 3], (1, 7), base=IGNORE)
    assert labels.tolist() == [[IGNORE, 3, 3, 3, IGNORE, IGNORE, IGNORE]]


def test_a_stroke_is_asked_along_its_length() -> None:
    seeds = np.full((20, 30), IGNORE, np.int32)
    seeds[4, 2:12], seeds[10, 5:25] = 1, 0
    points = stroke_prompt(1, seeds == 1, seeds).points
    assert [p for p in points if p[2]] == [(2, 4, 1), (5, 4, 1), (8, 4, 1), (11, 4, 1)]
    away = [p for p in points if not p[2]]
    assert away[0] == (6, 10, 0) and len(away) == 4 and all(y == 10 for _, y, _ in away)
