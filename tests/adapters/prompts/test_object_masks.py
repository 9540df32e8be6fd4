"""Which of several masks stay, worked out by hand."""

import pytest
import torch

from samgraft.adapters.prompts.object_masks import best_of_each_image, mask_iou, mask_nms, suppress_masks
from samgraft.adapters.prompts.objects import FoundObjects


def test_iou_and_suppression_by_hand() -> None:
    masks = torch.zeros(4, 32, 48, dtype=torch.bool)
    masks[0, :10, :10] = masks[1, :10, 5:15] = masks[2, :9, :10] = masks[3, 20:, 40:] = True
    assert mask_iou(masks[:1], masks)[0].tolist() == pytest.approx([1, 50 / 150, 0.9, 0])
    assert suppress_masks(masks, torch.tensor([0.5, 0.6, 0.7, 0.1]), 0.4).tolist() == [2, 1, 3]
    assert suppress_masks(masks, torch.tensor([0.5, 0.6, 0.7, 0.1]), 0.3).tolist() == [2, 3]  # 45 / 145
    assert suppress_masks(masks[:0], torch.zeros(0), 0.3).tolist() == []


def test_masks_are_compared_by_their_overlap() -> None:
    masks = torch.zeros(4, 6, 8, dtype=torch.bool)
    masks[0, 0:4, 0:5] = True  # 20
    masks[1, 0:4, 0:4] = True  # 16 within it: IoU 0.8
    masks[2, 1:3, 1:3] = True  # 4 within both: concentric, IoU 0.2 and 0.25
    masks[3, 4:6, 6:8] = True
    scores = torch.tensor([0.5, 0.9, 0.7, 0.5])
    assert suppress_masks(masks, scores, 0.79).tolist() == [1, 2, 3]
    assert suppress_masks(masks, scores, 0.81).tolist() == [1, 2, 0, 3]
    assert suppress_masks(masks, scores, 0.24).tolist() == [1, 3]
    assert suppress_masks(masks[:0], scores[:0], 0.5).tolist() == []


def test_of_two_equal_masks_the_better_one_stays_and_other_images_do_not_matter() -> None:
    logits = torch.full((5, 4, 6), -1.0)
    logits[:, 1:3, 2:6] = 1.0  # eight cells
    logits[2, 2, 2:6] = -1.0  # four of them: IoU 0.5
    logits[4, 1:3, 2:4] = -1.0  # the right half: IoU 0.5 with the whole, 1 / 3 with the upper one
    found = FoundObjects(
        image_index=torch.tensor([0, 0, 0, 1, 0]),
        logits=logits,
        scores=torch.tensor([0.3, 0.9, 0.8, 0.1, 0.95]),
        classes=torch.zeros(5, dtype=torch.int64),
    )
    assert mask_nms(found, 0.5).tolist() == [4, 1, 2, 3]
    assert mask_nms(found, 0.4).tolist() == [4, 2, 3]
    assert mask_nms(found, 1.0).tolist() == [4, 1, 2, 0, 3]
    assert best_of_each_image(found, 0.4).tolist() == [4, 2, 3]
    found.image_index[:] = torch.tensor([1, 0, 1, 1, 0])
    assert best_of_each_image(found, 0.4).tolist() == [4, 2]  # the others of each image overlap its best by a half
