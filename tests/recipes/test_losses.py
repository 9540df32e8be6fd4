"""Losses: values, the single-channel trap, ignored pixels."""

import pytest
import torch

from samgraft.errors import ShapeError
from samgraft.recipes.losses import IGNORE, SegmentationLoss, as_multiclass


def test_binary_logits_keep_their_probability() -> None:
    logits = torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(as_multiclass(logits).softmax(1)[:, 1], logits.sigmoid()[:, 0])


def test_single_channel_cross_entropy_is_not_zero() -> None:
    loss = SegmentationLoss(dice_weight=0.0)
    labels = torch.ones(1, 4, 4, dtype=torch.long)
    value = loss(torch.zeros(1, 1, 4, 4), labels)
    assert value.item() == pytest.approx(0.693147, abs=1e-5)


def test_perfect_and_opposite_answers() -> None:
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[:, :4] = 1
    logits = torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2).float() * 40
    labels_wrong = 1 - labels
    loss = SegmentationLoss(ce_weight=0.0)
    assert loss(logits, labels).item() < 0.51  # class 2 is absent everywhere: its Dice term is smooth_nr / smooth_dr
    assert loss(logits, labels_wrong).item() > loss(logits, labels).item()
    binary = SegmentationLoss(ce_weight=0.0)
    assert binary(logits[:, :2], labels).item() == pytest.approx(0.0, abs=1e-4)


def test_ignored_pixels_have_no_gradient() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    labels = torch.randint(0, 3, (1, 4, 4))
    labels[:, 0] = IGNORE
    SegmentationLoss(class_weights=[0.5, 1.0, 2.0])(logits, labels).backward()
    assert logits.grad is not None
    assert logits.grad[:, :, 0].abs().max() == 0
    assert logits.grad[:, :, 1:].abs().max() > 0


def test_bad_input_is_named() -> None:
    loss = SegmentationLoss()
    with pytest.raises(ShapeError, match="a label is 5; 3 classes allow 0 to 2"):
        loss(torch.zeros(1, 3, 2, 2), torch.full((1, 2, 2), 5))
    with pytest.raises(ShapeError, match="same size"):
        loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 4, dtype=torch.long))
    with pytest.raises(ShapeError, match="class_weights has 2 values"):
        SegmentationLoss(class_weights=[1, 2])(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long))
