"""Refinement: hysteresis and refusals by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from samgraft.recipes.losses import IGNORE
from samgraft.recipes.prompting import MaskPrompt
from samgraft.recipes.weak.callback import Refinement, round_shares
from samgraft.recipes.weak.pseudo import Domain
from samgraft.recipes.weak.refine import Refined, Refiner, agreement_of, hysteresis
from samgraft.recipes.weak_config import WeakConfig
from samgraft.recipes.weak_labels.labels import WeakObject
from samgraft.recipes.weak_learning.tiles import TileObject
from tests.recipes.weak.test_tiles import case_of, tiles_of

CONFIG = WeakConfig(low=0.35, high=0.65, min_agreement=0.5)


def test_hysteresis_keeps_what_hangs_together_with_sure_pixels() -> None:
    line = np.array([[0.9, 0.6, 0.4, 0.2, 0.6, 0.1]])
    nothing = np.zeros((1, 6), bool)
    where = Domain(place=(slice(0, 1), slice(0, 6)), allowed=~nothing, core=nothing)
    claim = hysteresis(line, where, 0.35, 0.65)
    assert np.flatnonzero(claim.inside).tolist() == [0, 1] and np.flatnonzero(claim.unsure).tolist() == [1, 2]
    core = nothing.copy()
    core[0, 4] = True
    claim = hysteresis(line, replace(where, core=core), 0.35, 0.65)
    assert np.flatnonzero(claim.inside).tolist() == [4] and not claim.unsure.any()


def box(rows: tuple[int, int], cols: tuple[int, int], **more: object) -> TileObject:
    return TileObject(number=1, label=1, rows=rows, cols=cols, whole_rows=True, whole_cols=True, **more)  # type: ignore[arg-type]


def test_agreement_with_each_kind_of_label() -> None:
    inside = np.zeros((4, 6), bool)
    inside[1:3, 2:6] = True
    place = (slice(10, 14), slice(20, 26))  # the mask covers rows 11..12, columns 22..25
    assert agreement_of(box((11, 12), (22, 25)), inside, place) == pytest.approx(1.0)
    assert agreement_of(box((11, 14), (22, 25)), inside, place) == pytest.approx(8 / 16)
    assert agreement_of(box((12, 15), (24, 29)), inside, place) == pytest.approx(2 / (8 + 24 - 2))
    assert agreement_of(box((12, 15), (24, 29)), ~inside & inside, place) == 0.0
    points = box((0, 0), (0, 0), points=((11, 22, 1), (13, 22, 1), (10, 20, 0), (12, 25, 0)))
    assert agreement_of(points, inside, place) == 0.5
    region = np.ones((2, 3), bool)
    region[0, 0] = False
    coarse = box((12, 13), (24, 26), region=region)
    assert agreement_of(coarse, inside, place) == pytest.approx(1 / (8 + 3 - 1))  # one column lies beyond the mask


def outcome(found: Refined) -> tuple[np.ndarray, int, int]:
    """Labels with ``IGNORE`` where they are a guess, and the counts."""
    return np.where(found.unsure, IGNORE, found.labels), found.accepted, found.refused


def refined(probability: np.ndarray, *objects: WeakObject, current: np.ndarray, instance: bool = False):  # type: ignore[no-untyped-def]
    tiles = tiles_of(case_of(current, *objects), size=len(current), instance=instance)
    return outcome(Refiner(tiles, CONFIG).tile(0, probability))


def test_a_mask_that_leaves_its_box_is_refused_and_the_object_keeps_what_it_had() -> None:
    current = np.zeros((12, 12), np.int16)
    current[2:6, 2:6] = IGNORE
    current[8:11, 8:11] = 2
    objects = WeakObject(label=1, box=(2, 2, 5, 5)), WeakObject(label=2, box=(8, 8, 10, 10))
    probability = np.zeros((2, 12, 12))
    probability[0, 2:6, 2:6] = 0.9
    probability[0, 0] = 0.9  # outside of all boxes: 12 of 27 pixels
    probability[0, 2, 2] = 0.5
    probability[1, 9, 9] = 0.9  # a ninth of its box
    labels, accepted, refused = refined(probability, *objects, current=current)
    assert (accepted, refused) == (1, 1)
    assert (labels == 1).sum() == 15 and labels[2, 2] == IGNORE and (labels[:2] == 0).all()
    assert (labels[8:11, 8:11] == 2).all() and (labels > 0).sum() == 15 + 9


def test_separate_objects_keep_their_numbers() -> None:
    current = np.zeros((10, 10), np.int16)
    current[1:5, 1:5], current[4:9, 4:9] = 1, 2
    objects = WeakObject(label=1, box=(1, 1, 4, 4)), WeakObject(label=1, box=(4, 4, 8, 8))
    probability = np.where(current > 0, 0.9, 0.1)[None]
    labels, accepted, _ = refined(probability, *objects, current=current, instance=True)
    assert accepted == 2 and labels[1, 1] == 1 and labels[8, 8] == 2 and labels[4, 4] == IGNORE


def test_filled_boxes_do_not_pass_for_masks() -> None:
    current = np.zeros((12, 12), np.int16)
    current[4, 2:9], current[2:7, 5] = 1, 1  # a cross of 11 pixels in a box of 35
    one = WeakObject(label=1, box=(2, 2, 8, 6))
    everywhere = np.full((1, 12, 12), 0.9)
    labels, accepted, refused = refined(everywhere, one, current=0 * current)
    assert (accepted, refused) == (0, 1) and not labels.any()  # 35 of 144 pixels lie in a box
    filled = np.zeros((1, 12, 12))
    filled[0, 2:7, 2:9] = 0.9
    labels, accepted, refused = refined(filled, one, current=current)
    assert (accepted, refused) == (0, 1) and (labels == current).all()  # IoU with the mask before: 11 of 35
    assert refined(filled, one, current=0 * current)[1:] == (1, 0)


def test_points_split_a_blob_and_are_hit() -> None:
    current = np.zeros((6, 12), np.int16)
    objects = [WeakObject(label=1, points=((x, 3, 1),)) for x in (2, 9)]
    objects.append(WeakObject(label=1, points=((5, 0, 1),)))
    case = case_of(np.zeros((12, 12), np.int16), *objects, kind="points")
    tiles = tiles_of(case, size=12, instance=True)
    probability = np.zeros((1, 12, 12))
    probability[0, 2:5] = 0.9
    labels, accepted, refused = outcome(Refiner(tiles, CONFIG).tile(0, probability))
    assert (accepted, refused) == (2, 1) and current.shape == (6, 12)
    assert labels[3, 0] == 1 and labels[3, 11] == 2 and labels[0, 5] == 3 and labels[8, 5] == 0


def test_scribbles_refine_a_tile_that_agrees_with_them() -> None:
    drawn = np.full((8, 8), IGNORE, np.int32)
    drawn[1, 1:5], drawn[6, 1:5] = 1, 0
    tiles = tiles_of(case_of(np.full((8, 8), IGNORE, np.int16), kind="scribbles", drawn=drawn), size=8)
    assert len(tiles) == 0  # nothing is labelled: the pseudo-labels hold the scribbles
    tiles = tiles_of(case_of(drawn.astype(np.int16), kind="scribbles", drawn=drawn), size=8)
    probability = np.zeros((2, 8, 8))
    probability[0, :4], probability[0, 4] = 0.9, 0.5
    labels, accepted, refused = outcome(Refiner(tiles, CONFIG).tile(0, probability))
    assert (accepted, refused) == (1, 0)
    assert (labels[:4] == 1).all() and (labels[4] == IGNORE).all() and (labels[5:] == 0).all()
    wrong = 1 - probability - np.array([0.0, 1.0])[:, None, None]
    labels, accepted, refused = outcome(Refiner(tiles, CONFIG).tile(0, wrong))
    assert (accepted, refused) == (0, 1) and (labels == drawn).all()


def test_rounds_follow_the_share_of_the_steps_and_resume(tmp_path) -> None:  # type: ignore[no-untyped-def]
    assert round_shares(WeakConfig(rounds=3, first_round=0.4)) == pytest.approx((0.4, 0.6, 0.8))
    assert round_shares(WeakConfig(rounds=0)) == ()
    region = MaskPrompt(top=1, left=2, inside=np.ones((3, 4), bool))
    tiles = tiles_of(case_of(np.zeros((8, 8), np.int16), WeakObject(label=1, region=region)), size=8)
    first = Refinement(tiles, CONFIG, tmp_path)
    assert first.state_dict() == {"done": 0}
    first.done, tiles.labels[0] = 1, torch.full((8, 8), 5, dtype=torch.int32)
    state = first.state_dict()
    tiles.labels[0] = torch.zeros(8, 8, dtype=torch.int32)
    again = Refinement(tiles, CONFIG, tmp_path)
    again.load_state_dict(state)
    assert again.done == 1 and (tiles.labels[0] == 5).all()
