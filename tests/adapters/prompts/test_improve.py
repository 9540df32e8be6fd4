"""The extra point and self-correction: places worked out by hand on images that are not square, off the diagonal."""

import math

import pytest
import torch

from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.improve import (
    KINDS,
    Answer,
    Improvement,
    augment,
    best_answer,
    entropy_map,
    extra_points,
    first_places,
    improve,
    mask_prompts,
    refine,
    saliency_map,
)
from samgraft.errors import ConfigError, ShapeError
from tests.adapters.prompts._scripted import Scripted, as_logits, rectangle
from tests.adapters.toy import toy_backbone, toy_image, toy_prompts

SHAPE = (24, 40)
INDEX = torch.tensor([0])


def point(image: torch.Tensor, mask: torch.Tensor, start: tuple[int, int], kind: str, seed: int = 0) -> list[float]:
    points, labels = extra_points(
        image[None],
        mask[None],
        torch.tensor([start], dtype=torch.float32),
        INDEX,
        kind=kind,  # type: ignore[arg-type]
        generator=torch.Generator().manual_seed(seed),
    )
    assert labels.tolist() == [[1]]
    found: list[float] = points[0, 0].tolist()
    return found


def test_the_farthest_point_is_measured_in_x_and_y() -> None:
    mask, gray = rectangle(SHAPE, (10, 4, 35, 7)), torch.full((3, *SHAPE), 0.5)
    # from (12, 5): (35, 7) is 23 and 2 away. Read as (row, col), (35, 4) would be: 8 and 30 from (12, 5)
    assert point(gray, mask, (12, 5), "distance") == [35, 7]
    assert point(gray, mask, (34, 5), "distance") == [10, 7]


def test_the_entropy_is_that_of_the_point_itself() -> None:
    image = torch.full((3, *SHAPE), 0.5)
    block = torch.arange(81.0).reshape(9, 9) * 3 / 255  # 81 different grey values
    image[:, 2:11, 26:35] = block  # around (30, 6)
    mask = rectangle(SHAPE, (5, 3, 36, 10))
    assert point(image, mask, (8, 5), "entropy") == [30, 6]
    # from inside the texture, flat ground differs most; the first flat pixel of the mask in reading order
    assert point(image, mask, (30, 6), "entropy") == [5, 3]


def test_entropy_of_known_surroundings() -> None:
    gray = torch.zeros(20, 30)
    gray[:, 15:] = 1.0
    found = entropy_map(gray)
    assert found[10, 5] == 0 and found[10, 25] == 0
    share = 4 / 9  # around column 14: columns 10 to 14 are dark, 15 to 18 bright
    assert found[10, 14] == pytest.approx(-share * math.log2(share) - (1 - share) * math.log2(1 - share), abs=1e-5)
    assert found[0, 14] == pytest.approx(float(found[10, 14]), abs=1e-5)  # cut at the edge: the shares stay
    gray[9:12, 4:7] = torch.arange(9.0).reshape(3, 3) / 10
    assert entropy_map(gray, 3)[10, 5] == pytest.approx(math.log2(9), abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_salient_points_lie_where_something_stands_out_also_at_the_edge(seed: int) -> None:
    image = torch.full((3, *SHAPE), 0.4) + 0.01 * torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    image[:, 3:6, 20:23] = 1.0
    mask = rectangle(SHAPE, (2, 1, 30, 8))  # its surroundings are cut at the top and on the left
    x, y = point(image, mask, (5, 4), "saliency", seed)
    assert 16 <= x <= 26 and 1 <= y <= 8
    assert saliency_map(image[0]).flatten().argmax() in [r * 40 + c for r in range(2, 7) for c in range(19, 24)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_stays_in_the_mask_and_follows_the_seed(kind: str) -> None:
    image = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(2))
    mask = rectangle(SHAPE, (30, 2, 38, 4), (33, 5, 34, 20))
    for seed in range(4):
        x, y = (int(v) for v in point(image, mask, (34, 3), kind, seed))
        assert mask[y, x]
        assert point(image, mask, (34, 3), kind, seed) == [x, y]
    points, labels = extra_points(image[None], mask[None] & False, torch.zeros(1, 2), INDEX, kind=kind)  # type: ignore[arg-type]
    assert points.tolist() == [[[0, 0]]] and labels.tolist() == [[-10]]


def test_the_first_place_is_a_click_a_box_or_the_mask() -> None:
    masks = torch.stack([rectangle(SHAPE, (30, 2, 38, 4))] * 2)
    two = torch.tensor([0, 0])
    points, labels = torch.tensor([[[3.0, 4], [7, 8]]] * 2), torch.tensor([[0, 1], [0, 0]])
    boxes = torch.tensor([[10.0, 2, 20, 4]] * 2)
    assert first_places(Prompts(image_index=two, points=points, labels=labels, boxes=boxes), masks).tolist() == [
        [7, 8],
        [15, 3],
    ]
    assert first_places(Prompts(image_index=two), masks).tolist() == [[34, 3]] * 2


@pytest.mark.parametrize(("keep", "second", "expected"), [(True, 0.4, 0.5), (True, 0.6, 0.6), (False, 0.4, 0.4)])
def test_the_second_answer_is_taken_always_or_where_it_is_not_worse(keep: bool, second: float, expected: float) -> None:
    first, other = rectangle((6, 10), (6, 1, 8, 2)), rectangle((6, 10), (5, 0, 9, 3))
    backbone = Scripted((as_logits(other)[None], torch.tensor([[second]])))
    prompts = Prompts(image_index=INDEX, points=torch.tensor([[[28.0, 6]]]), labels=torch.tensor([[1]]))
    answer = Answer(logits=as_logits(first), iou=torch.tensor([0.5]))
    image = torch.rand(1, 3, *SHAPE)
    more, best = augment(
        backbone,
        None,
        image,
        prompts,
        answer,
        kind="distance",
        generator=torch.Generator(),
        keep=keep,  # type: ignore[arg-type]
    )
    assert more.points is not None and more.points.shape == (1, 2, 2)
    assert backbone.asked[0][0] is more and backbone.asked[0][1] is keep  # three masks, where they are compared
    assert float(best.iou) == pytest.approx(expected)
    assert torch.equal(best.logits[0], as_logits(first if expected == 0.5 else other)[0])


def test_masks_become_boxes_by_their_outer_edges() -> None:
    logits = as_logits(rectangle((12, 16), (3, 2, 5, 6)))
    asked = mask_prompts(Prompts(image_index=INDEX), logits, (48, 96))  # a cell is 6 wide and 4 high
    assert asked.boxes is not None and asked.boxes.tolist() == [[18, 8, 35, 27]]
    assert asked.masks is not None and torch.equal(asked.masks, logits[:, None])
    own = torch.tensor([[1.0, 2, 3, 4]])
    assert mask_prompts(Prompts(image_index=INDEX, boxes=own), logits, (48, 96)).boxes is own


def test_self_correction_stops_where_nothing_changes_or_the_predicted_iou_falls() -> None:
    a, b, c = (rectangle((6, 10), (2, 1, 4 + k, 3)) for k in range(3))
    backbone = Scripted(
        (as_logits(b, a, b)[:, None], torch.tensor([[0.7], [0.9], [0.2]])),  # better; the same mask; worse
        (as_logits(c)[:, None], torch.tensor([[0.7]])),  # only the first goes on; equal is not worse
        (as_logits(a)[:, None], torch.tensor([[0.6]])),
    )
    start = Answer(logits=as_logits(a, a, a, a & False), iou=torch.tensor([0.5, 0.5, 0.5, 0.5]))
    prompts = Prompts(image_index=torch.zeros(4, dtype=torch.int64))
    found = refine(backbone, None, prompts, start, SHAPE, 9)  # type: ignore[arg-type]
    assert [len(asked) for asked, _ in backbone.asked] == [3, 1, 1]  # an empty mask asks for nothing
    assert all(multimask for _, multimask in backbone.asked)
    torch.testing.assert_close(found.iou, torch.tensor([0.7, 0.9, 0.5, 0.5]))
    assert torch.equal(found.logits > 0, torch.stack([c, a, a, a & False]))
    assert torch.equal(start.logits[0], as_logits(a)[0])  # what came in is not written to


def test_never_worse_by_its_own_predicted_iou_on_a_real_decoder() -> None:
    backbone, image = toy_backbone(), toy_image(64, 96)
    features, prompts = backbone.encode(image), toy_prompts()
    first = best_answer(*backbone.decode(features, prompts, multimask=True))
    for what in (Improvement(refine=3), *(Improvement(augment=kind, refine=2) for kind in KINDS)):
        found = improve(backbone, features, image, prompts, first, what)
        assert bool((found.iou >= first.iou).all()) and found.logits.shape == first.logits.shape


def test_refuses_unknown_kinds_and_other_sizes() -> None:
    with pytest.raises(ConfigError, match="did you mean 'saliency'"):
        Improvement(augment="salient")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="refine is -1"):
        Improvement(refine=-1)
    with pytest.raises(ShapeError, match=r"masks are \(1, 6, 10\); expected the size of the image, \(24, 40\)"):
        extra_points(
            torch.rand(1, 3, *SHAPE), rectangle((6, 10), (1, 1, 2, 2))[None], torch.zeros(1, 2), INDEX, kind="random"
        )
    assert not Improvement() and Improvement(refine=1) and Improvement(augment="random")
