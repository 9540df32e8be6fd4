"""Objects out of instance maps, and the default way from prompts to found objects."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.objects import ObjectPrompter, Objects, boxes_of, objects_from_labels
from samgraft.errors import ConfigError, ShapeError
from tests.adapters.toy import toy_backbone


def test_objects_from_labels_gives_boxes_masks_and_what_is_known() -> None:
    labels = torch.zeros(2, 6, 9, dtype=torch.int64)
    labels[0, 1:3, 4:8] = 7
    labels[1, 5, 0] = 3  # one pixel: below min_area
    labels[1, 2:5, 8] = 2
    labels[1, 0, :] = -1
    found = objects_from_labels(labels, min_area=2)
    assert found.image_index.tolist() == [0, 1]
    assert found.boxes.tolist() == [[4, 1, 7, 2], [8, 2, 8, 4]]
    assert found.masks.sum(dim=(1, 2)).tolist() == [8, 3]
    assert (~found.known).nonzero().tolist() == [*([1, 0, x] for x in range(9)), [1, 5, 0]]
    assert found.of(1).tolist() == [1]


def test_an_image_without_an_object_gives_none() -> None:
    found = objects_from_labels(torch.zeros(1, 4, 5, dtype=torch.int64))
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert found.masks.shape == (0, 4, 5)


def test_labels_of_another_rank_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"expected \(B, H, W\)"):
        objects_from_labels(torch.zeros(4, 5))


def test_the_box_of_an_empty_mask_is_zero() -> None:
    masks = torch.zeros(2, 3, 4, dtype=torch.bool)
    masks[1, 2, 3] = True
    assert boxes_of(masks).tolist() == [[0, 0, 0, 0], [3, 2, 3, 2]]


class _Told(ObjectPrompter):
    """Writes the prompts that it was given."""

    def __init__(self, prompts: Prompts) -> None:
        super().__init__()
        self.prompts, self.object_classes = prompts, 2

    def forward(self, features: Features, image: Tensor, context: Mapping[str, Any]) -> Prompts:
        return self.prompts

    def losses(self, backbone: Any, features: Features, image: Tensor, objects: Objects) -> dict[str, Tensor]:
        return {}


def test_a_prompter_finds_one_mask_per_prompt_in_the_order_of_its_prompts() -> None:
    backbone = toy_backbone()
    image = torch.rand(2, 3, 64, 64)
    boxes = torch.tensor([[8.0, 8, 40, 30], [1, 2, 20, 50], [30, 30, 60, 60]])
    prompts = Prompts(
        image_index=torch.tensor([1, 0, 1]),
        boxes=boxes,
        scores=torch.tensor([0.2, 0.9, 0.5]),
        class_logits=torch.tensor([[0.0, 1, 5], [2, 1, 5], [0, 3, 5]]),  # the last column is "no object"
    )
    features = backbone.encode(image)
    found = _Told(prompts).find(backbone, features, image, {})
    logits, _ = backbone.decode(features, prompts)
    assert torch.equal(found.logits, logits[:, 0])
    assert found.classes.tolist() == [1, 0, 1]
    assert torch.equal(found.scores, prompts.scores) if prompts.scores is not None else False
    assert found.select(torch.tensor([2])).image_index.tolist() == [1]


def test_prompts_without_scores_are_refused() -> None:
    backbone = toy_backbone()
    image = torch.rand(1, 3, 64, 64)
    prompts = Prompts(image_index=torch.tensor([0]), boxes=torch.tensor([[8.0, 8, 40, 30]]))
    with pytest.raises(ConfigError, match="without scores"):
        _Told(prompts).find(backbone, backbone.encode(image), image, {})
