"""SAM-cls: what the classifier reads by hand, which proposals are objects, and that it learns to tell them apart."""

import math

import pytest
import torch
from torch import Tensor

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.config import config_from_dict
from samgraft.adapters.graft import attach
from samgraft.adapters.prompts import PROMPTERS
from samgraft.adapters.prompts.objects import objects_from_labels
from samgraft.adapters.prompts.sam_cls import FORM, Proposals, SamClsConfig, SamClsHead
from samgraft.errors import ConfigError
from tests.adapters.toy import toy_backbone, toy_image

BACKBONE = toy_backbone()
LOOSE = SamClsConfig(points_per_side=4, min_iou=-100.0, min_stability=0.0, max_share=1.0)


def boxes(*places: tuple[int, int, int, int], size: tuple[int, int] = (32, 48)) -> Tensor:
    """(n, h, w) logits: 3 in rows y0..y1 and columns x0..x1, -3 elsewhere."""
    logits = torch.full((len(places), *size), -3.0)
    for number, (x0, y0, x1, y1) in enumerate(places):
        logits[number, y0 : y1 + 1, x0 : x1 + 1] = 3.0
    return logits


def proposals(logits: Tensor, index: list[int], features: Tensor | None = None) -> Proposals:
    count = len(logits)
    width = 2 * BACKBONE.spec.neck_channels + FORM
    given = torch.zeros(count, width) if features is None else features
    return Proposals(image_index=torch.tensor(index), logits=logits, iou=torch.full((count,), 0.8), features=given)


def test_features_are_pooled_inside_and_around() -> None:
    head = SamClsConfig(ring=4).build(BACKBONE)
    neck = torch.zeros(32, 8, 12)
    neck[0] = torch.arange(12.0)  # the column
    neck[1] = torch.arange(8.0)[:, None]
    described = head._describe(neck, boxes((8, 4, 15, 7)), torch.tensor([0.9]))[0]  # columns 2 and 3, row 1
    assert described[:2].tolist() == pytest.approx([2.5, 1.0])
    assert described[32:34].tolist() == pytest.approx([2.5, 1.0])  # columns 1 to 4, rows 0 to 2
    form = described[64:]
    long, short = math.sqrt(64 / 12), math.sqrt(16 / 12)
    expected = [math.log(32 / (32 * 48)) / 3, math.log(long / 48), short / long, 32 / (4 * math.pi * long * short)]
    assert form[:4].tolist() == pytest.approx(expected, rel=1e-4)
    assert form[4:].tolist() == pytest.approx([5.5 / 32, 3 / 5, 1.0, 0.9], rel=1e-4)


def test_the_form_does_not_turn_with_the_mask() -> None:
    head = SamClsConfig().build(BACKBONE)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(48.0), indexing="ij")
    y, x = y - 15, x - 24
    along, across = (x + y) / math.sqrt(2), (x - y) / math.sqrt(2)
    logits = torch.stack([1 - (x / 12) ** 2 - (y / 6) ** 2, 1 - (along / 12) ** 2 - (across / 6) ** 2])
    form = head._describe(torch.zeros(32, 8, 12), logits, torch.ones(2))[:, 64:]
    assert form[0, 1:4].tolist() == pytest.approx(form[1, 1:4].tolist(), abs=0.03)
    assert form[:, 2].tolist() == pytest.approx([0.5, 0.5], abs=0.02)


def test_targets_ask_for_half_an_overlap_in_the_same_image() -> None:
    labels = torch.zeros(2, 64, 96, dtype=torch.int64)  # twice the side of a mask
    labels[0, 0:20, 0:20] = 4  # 10 x 10 cells
    labels[1, 40:64, 80:96] = 9
    labels[1, :, :30] = -1
    objects = objects_from_labels(labels)
    logits = boxes((0, 0, 9, 9), (0, 0, 9, 19), (0, 0, 9, 20), (40, 20, 47, 31), (40, 20, 47, 31), (2, 2, 9, 9))
    head = SamClsConfig().build(BACKBONE)
    target, counts = head.targets(proposals(logits, [0, 0, 0, 0, 1, 1]), objects)
    assert target.tolist() == [1, 1, 0, 0, 1, 0]  # IoU 1, 100 / 200, 100 / 210, none, 1, none
    assert counts.tolist() == [True, True, True, True, True, False]


def test_it_learns_and_scores_by_probability_times_iou() -> None:
    torch.manual_seed(0)
    head = SamClsConfig(object_classes=2, nms=0.4).build(BACKBONE)
    logits = boxes((0, 0, 9, 9), (30, 3, 40, 12), (0, 0, 9, 8), (20, 20, 30, 30))
    features = torch.zeros(4, 72)
    features[0, 0], features[1, 1], features[2, 2], features[3, 3] = 5, 5, 5, 5
    given, target = proposals(logits, [0, 0, 0, 1], features), torch.tensor([1, 2, 0, 1])
    optimiser = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(60):
        optimiser.zero_grad()
        loss = head.loss_of(given.features, target)
        loss.backward()
        optimiser.step()
    assert float(loss) < 0.05
    found = head.find_in(given)
    assert found.image_index.tolist() == [0, 0, 1]
    assert sorted(found.classes[:2].tolist()) == [0, 1] and found.classes[2] == 0
    assert ((found.scores > 0.7) & (found.scores <= 0.8)).all()
    assert torch.equal(found.logits[2], logits[3])


@pytest.mark.parametrize("size", [(64, 64), (48, 72)])
def test_losses_and_find_on_two_images(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    image = toy_image(*size)
    labels = torch.zeros(2, *size, dtype=torch.int64)
    labels[1, 10:30, 20:50] = 3
    head = LOOSE.build(BACKBONE)
    features = BACKBONE.encode(image)
    before = {name: value.clone() for name, value in BACKBONE.state_dict().items()}
    for objects in (objects_from_labels(labels), objects_from_labels(labels * 0)):
        losses = head.losses(BACKBONE, features, image, objects)
        assert list(losses) == ["class"] and bool(losses["class"].isfinite())
        head.zero_grad()
        losses["class"].backward()
        assert all(p.grad is not None for p in head.parameters())
    found = head.find(BACKBONE, features, image, {})
    assert found.logits.shape[1:] == (size[0] // 2, size[1] // 2)
    assert len(found) and bool((found.scores >= 0).all() and (found.scores <= 1).all())
    assert found.image_index.tolist() == sorted(found.image_index.tolist())
    assert all(torch.equal(value, before[name]) for name, value in BACKBONE.state_dict().items())
    alone = head.find(BACKBONE, Features(neck=features.neck[1:]), image[1:], {})
    assert torch.allclose(alone.scores, found.scores[found.image_index == 1], atol=1e-4)


def test_nothing_proposed_gives_nothing_and_a_loss_with_a_graph() -> None:
    head = SamClsConfig(min_iou=1e6, points_per_side=3).build(BACKBONE)
    image = toy_image(48, 72)
    features = BACKBONE.encode(image)
    assert len(head.find(BACKBONE, features, image, {})) == 0
    loss = head.losses(BACKBONE, features, image, objects_from_labels(torch.zeros(2, 48, 72, dtype=torch.int64)))
    loss["class"].backward()
    assert float(loss["class"]) == 0


def test_it_is_attached_saved_and_built_by_name() -> None:
    config = SamClsConfig(points_per_side=5, object_classes=3)
    assert config_from_dict(PROMPTERS, config.to_dict()) == config
    backbone = toy_backbone()
    grafted = attach(backbone, prompter=config)
    width = 2 * 32 + FORM
    assert sum(p.numel() for p in grafted.trainable_parameters()) == 2 * width + (width + 1) * 128 + 129 * 4
    assert not any("backbone" in key for key in grafted.graft_state())
    assert (
        isinstance(grafted.prompter, SamClsHead)
        and len(grafted.prompter(Features(neck=torch.zeros(2, 32, 8, 8)), toy_image(), {})) == 50
    )


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="sam_cls: nms is 0"):
        SamClsConfig(nms=0.0)
    with pytest.raises(ConfigError, match="sam_cls: hidden is 0"):
        SamClsConfig(hidden=0)
