"""Clicks and boxes of a simulated person: their places worked out by hand, on images that are not square."""

import numpy as np
import pytest
import torch

from samgraft.adapters.prompts.clicks import deepest_point, error_click, error_clicks, random_points
from samgraft.adapters.prompts.simulated import SimulatedPrompts, jittered
from samgraft.errors import ConfigError, PromptError, ShapeError
from tests.adapters.prompts._scripted import Scripted, as_logits, rectangle
from tests.adapters.toy import toy_backbone, toy_image

SHAPE = (20, 30)
TRUTH = rectangle(SHAPE, (20, 2, 24, 6))


def test_deepest_point_is_far_from_the_border_of_mask_and_image() -> None:
    assert deepest_point(rectangle(SHAPE, (10, 4, 14, 8), (0, 0, 29, 0)).numpy()) == (12, 6)
    assert deepest_point(rectangle(SHAPE, (0, 0, 4, 19)).numpy()) == (2, 2)  # the image's edge counts: not at x = 0
    with pytest.raises(PromptError, match="empty mask"):
        deepest_point(np.zeros((3, 4), bool))


@pytest.mark.parametrize(
    ("guess", "expected"),
    [
        (rectangle(SHAPE, (20, 2, 21, 6), (3, 10, 5, 12)), (23, 3, 1)),  # 15 pixels missed, 9 too many
        (rectangle(SHAPE, (20, 2, 21, 6), (3, 10, 7, 14)), (5, 12, 0)),  # 15 missed, 25 too many
        (rectangle(SHAPE, (20, 2, 21, 6), (1, 10, 3, 12), (4, 13, 6, 15)), (23, 3, 1)),  # corners do not join 9 and 9
        (TRUTH, (22, 4, 1)),  # nothing is wrong
    ],
)
def test_click_lies_in_the_middle_of_the_largest_error(guess: torch.Tensor, expected: tuple[int, int, int]) -> None:
    assert error_click(guess.numpy(), TRUTH.numpy()) == expected


def test_unknown_pixels_are_no_error_and_nothing_to_say_is_padding() -> None:
    guess, known = rectangle(SHAPE, (20, 2, 21, 6), (3, 10, 5, 12)), ~rectangle(SHAPE, (20, 0, 29, 9))
    points, labels = error_clicks(torch.stack([guess, ~TRUTH & False]), torch.stack([TRUTH, ~TRUTH & False]))
    assert points.tolist() == [[[23, 3]], [[0, 0]]] and labels.tolist() == [[1], [-10]]
    points, labels = error_clicks(guess[None], TRUTH[None], known[None])
    assert points.tolist() == [[[4, 11]]] and labels.tolist() == [[0]]
    with pytest.raises(ShapeError, match=r"guess is \(1, 20, 30\), truth \(1, 20, 31\)"):
        error_clicks(guess[None], torch.zeros(1, 20, 31, dtype=torch.bool))


def test_starts_with_a_click_or_a_box_from_the_ground_truth() -> None:
    masks, index = torch.stack([TRUTH, rectangle(SHAPE, (1, 9, 2, 18))]), torch.tensor([0, 1])
    click = SimulatedPrompts().start(masks, index)
    assert click.points is not None and click.points.tolist() == [[[22, 4]], [[1, 9]]] and click.boxes is None
    box = SimulatedPrompts(box=True, clicks=0).start(masks, index)
    assert box.boxes is not None and box.boxes.tolist() == [[20, 2, 24, 6], [1, 9, 2, 18]] and box.points is None
    assert click.from_ground_truth and box.from_ground_truth


def test_random_starts_lie_inside_and_follow_the_seed() -> None:
    person, masks = SimulatedPrompts(first="inside", seed=3), TRUTH.expand(200, -1, -1)
    index = torch.zeros(200, dtype=torch.int64)
    points = [person.start(masks, index, person.draw(step)).points for step in (0, 0, 1)]
    assert points[0] is not None and points[1] is not None and points[2] is not None
    assert torch.equal(points[0], points[1]) and not torch.equal(points[0], points[2])
    x, y = points[0][:, 0].unbind(dim=1)
    assert (x.min(), x.max(), y.min(), y.max()) == (20, 24, 2, 6)  # 25 pixels in 200 draws: all columns and rows occur
    with pytest.raises(PromptError, match="mask 1 is empty"):
        random_points(torch.stack([TRUTH, TRUTH & False]), person.draw())


def test_jitter_is_relative_to_each_side_and_stays_in_the_image() -> None:
    boxes = torch.tensor([[4.0, 2, 23, 11]]).expand(500, -1)  # 20 wide, 10 high
    moved = jittered(boxes, 0.1, SHAPE, torch.Generator().manual_seed(0)) - boxes
    assert moved[:, [0, 2]].abs().max() <= 2 and moved[:, [1, 3]].abs().max() <= 1
    assert moved[:, [0, 2]].abs().max() > 1.9 and moved[:, [1, 3]].abs().max() > 0.95
    whole = jittered(torch.tensor([[0.0, 0, 29, 19]]).expand(50, -1), 0.4, SHAPE, torch.Generator().manual_seed(0))
    assert whole.min() >= 0 and whole[:, [0, 2]].max() <= 29 and whole[:, [1, 3]].max() <= 19
    assert jittered(boxes, 0.0, SHAPE, torch.Generator()) is boxes


def test_rounds_add_corrections_and_hand_the_mask_back() -> None:
    half, much = rectangle((10, 15), (10, 1, 10, 2)), rectangle((10, 15), (10, 1, 12, 3), (1, 5, 4, 8))
    empty = half & False
    backbone = Scripted(
        (as_logits(empty, half, much)[None], torch.tensor([[0.1, 0.9, 0.3]])),  # the second of three is taken
        (as_logits(much)[None], torch.tensor([[0.6]])),
        (as_logits(much)[None], torch.tensor([[0.7]])),
    )
    person = SimulatedPrompts(clicks=3)
    rounds = list(person.rounds(backbone, None, TRUTH[None], torch.tensor([0])))  # type: ignore[arg-type]
    assert [multimask for _, multimask in backbone.asked] == [True, False, False]
    assert [round(float(one.iou), 3) for one in rounds] == [0.9, 0.6, 0.7]
    assert torch.equal(rounds[0].logits[0], as_logits(half)[0])
    asked = [prompts for prompts, _ in backbone.asked]
    assert asked[0].masks is None and asked[1].masks is not None and asked[2].masks is not None
    assert torch.equal(asked[1].masks[0, 0], as_logits(half)[0])
    assert torch.equal(asked[2].masks[0, 0], as_logits(much)[0])
    assert asked[2].labels is not None and asked[2].labels.tolist() == [[1, 1, 0]]
    assert asked[2].points is not None and asked[2].points[0, 0].tolist() == [22, 4]
    x, y = asked[2].points[0, 2].tolist()
    assert 2 <= x <= 9 and 10 <= y <= 17  # in what is too much, not in (row, col)
    assert all(prompts.from_ground_truth for prompts in asked)


def test_works_on_two_images_of_any_shape_in_double_precision() -> None:
    backbone = toy_backbone().double()
    image = toy_image(64, 96).double()
    masks = torch.stack([rectangle((64, 96), b) for b in ((70, 3, 90, 20), (5, 30, 30, 60), (40, 10, 60, 50))])
    person = SimulatedPrompts(box=True, clicks=2, jitter=0.1)
    rounds = list(person.rounds(backbone, backbone.encode(image), masks, torch.tensor([0, 1, 1])))
    assert [one.logits.shape for one in rounds] == [(3, 32, 48)] * 3
    assert rounds[2].prompts.points is not None and rounds[2].prompts.points.shape == (3, 2, 2)
    assert all(one.logits.dtype == torch.float64 and bool(one.logits.isfinite().all()) for one in rounds)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clicks": 0}, "clicks is 0; expected at least 1"),
        ({"box": True, "clicks": -1}, "clicks is -1; expected at least 0"),
        ({"jitter": 0.5}, r"jitter is 0.5; expected a share of the side in \[0, 0.5\)"),
        ({"first": "center"}, "did you mean 'centre'"),
    ],
)
def test_refuses_impossible_persons(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SimulatedPrompts(**options)  # type: ignore[arg-type]


def test_refuses_empty_and_misshapen_masks() -> None:
    with pytest.raises(PromptError, match=r"masks \[1\] are empty"):
        SimulatedPrompts().start(torch.stack([TRUTH, TRUTH & False]), torch.tensor([0, 0]))
    with pytest.raises(ShapeError, match=r"\(20, 30\) torch.bool; expected \(N, H, W\) bool"):
        SimulatedPrompts().start(TRUTH, torch.tensor([0]))
