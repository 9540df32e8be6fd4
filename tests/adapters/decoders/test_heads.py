"""Heads of AutoSAM (arXiv:2306.13731): class masks, linear and CNN."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.decoders import ClassMasksConfig, CnnHeadConfig, LinearHeadConfig
from samgraft.adapters.graft import attach
from samgraft.adapters.prompts import Prompts
from samgraft.errors import ConfigError
from tests.adapters.sam_shapes import meta_backbone
from tests.adapters.toy import toy_backbone, toy_image


def test_class_masks_with_sams_tokens_are_sams_answer_without_a_prompt() -> None:
    """Three tokens of SAM instead of five: so they are SAM's own logits if SAM has no more tokens than these."""
    backbone, image = toy_backbone(), toy_image(96, 64)
    decoder = backbone.sam.mask_decoder
    grafted = attach(backbone, decoder=ClassMasksConfig(num_classes=2))
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    with torch.no_grad():
        grafted.decoder.tokens.copy_(own[:3].expand(3, -1, -1))
        found = grafted.predict(image)
        decoder.mask_tokens.weight = torch.nn.Parameter(own[1:3], requires_grad=False)
        decoder.num_mask_tokens = 2
        expected, _ = backbone.decode(backbone.encode(image), Prompts(image_index=torch.arange(2)))
    assert found.activation == "softmax" and found.logits.shape == (2, 3, 48, 32)
    torch.testing.assert_close(found.logits, expected.expand(-1, 3, -1, -1), atol=1e-5, rtol=1e-4)


def test_class_masks_ask_for_each_class_apart() -> None:
    """Another token of class 2 changes channel 2 and no other."""
    grafted, image = attach(toy_backbone(), decoder=ClassMasksConfig(num_classes=2)), toy_image()
    with torch.no_grad():
        before = grafted.predict(image).logits
        grafted.decoder.tokens[2] += 1
        after = grafted.predict(image).logits
    torch.testing.assert_close(after[:, :2], before[:, :2], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(after[:, 2], before[:, 2], atol=1e-3)
    assert before.std(dim=1).mean() > 1e-4, "classes differ from the start"


def test_class_masks_parameters() -> None:
    """Tokens alone: 3 C per channel. With the decoder: the copies are all of SAM's but IoU head, tokens, three MLPs."""
    backbone = meta_backbone("b")
    decoder = backbone.sam.mask_decoder
    with torch.device("meta"):
        alone = attach(backbone, decoder=ClassMasksConfig(num_classes=3, train_decoder=False))
        whole = attach(backbone, decoder=ClassMasksConfig(num_classes=3, activation="sigmoid"))
    count = sum(p.numel() for p in alone.trainable_parameters())
    assert count == 4 * 3 * 256
    rest = 5 * 256 + sum(p.numel() for p in decoder.iou_prediction_head.parameters())
    mlp = sum(p.numel() for p in decoder.output_hypernetworks_mlps[0].parameters())
    expected = sum(p.numel() for p in decoder.parameters()) - rest - 3 * mlp + 3 * 3 * 256
    assert sum(p.numel() for p in whole.trainable_parameters()) == expected


def test_linear_head_parameters() -> None:
    """256 -> 64 -> 32 -> 32 -> K, transposed 2x2 and 1x1."""
    with torch.device("meta"):
        grafted = attach(meta_backbone("b"), decoder=LinearHeadConfig(num_classes=3))
    expected = 4 * 256 * 64 + 64 + 128 + 4 * 64 * 32 + 32 + 32 * 32 + 32 + 32 * 4 + 4
    assert sum(p.numel() for p in grafted.trainable_parameters()) == expected


def test_cnn_head_has_the_published_layers() -> None:
    """Depth 4, 64 channels at the end: 1024, 512 (no doubling), 256, 128 and 64 (doubled twice)."""
    with torch.device("meta"):
        head = CnnHeadConfig(num_classes=3, width=64).build(meta_backbone("b"))
    shapes = [tuple(p.shape) for n, p in head.named_parameters() if n.endswith("weight")]
    assert shapes == [
        (1024, 256, 1, 1), (1024, 1024, 1, 1),
        (1024, 1024, 3, 3), (512, 1024, 3, 3),
        (512, 512, 3, 3), (256, 512, 3, 3),
        (256, 256, 3, 3), (256, 256, 3, 3), (256, 128, 2, 2),
        (128, 128, 3, 3), (128, 128, 3, 3), (128, 64, 2, 2),
        (64, 64, 3, 3), (4, 64, 1, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("config", [LinearHeadConfig(), CnnHeadConfig(width=8, depth=2)], ids=lambda c: c.method)
def test_logits_may_be_negative_and_lie_where_the_neck_says(config: Any) -> None:
    """A cell of the neck that differs changes logits around it only; nothing keeps them above zero."""
    backbone, image = toy_backbone(), toy_image(96, 64)
    head = config.build(backbone)
    with torch.no_grad():
        head.layers[-1].bias -= 5
    neck = torch.randn(1, 32, 12, 8)
    other = neck.clone()
    other[..., 9, 2] += 1
    with torch.no_grad():
        before, after = (head(backbone, Features(neck=n), image).logits for n in (neck, other))
    assert before.shape == (1, 2, 48, 32) and before.max() < 0
    rows, columns = (after - before).abs().sum(dim=(0, 1)).nonzero().unbind(1)
    reach = 0 if config.method == "linear_head" else 16
    assert 36 - reach <= int(rows.min()) <= 36 and 39 <= int(rows.max()) <= 39 + reach
    assert max(0, 8 - reach) <= int(columns.min()) <= 8 and 11 <= int(columns.max()) <= 11 + reach


@pytest.mark.parametrize(
    ("head", "rate", "steps"),
    [
        (ClassMasksConfig(num_classes=2), 1e-2, 80),
        (LinearHeadConfig(num_classes=2), 1e-2, 150),
        (CnnHeadConfig(num_classes=2, width=8, depth=2), 5e-3, 150),
    ],
    ids=lambda value: getattr(value, "method", None),
)
def test_overfits_two_images_and_nothing_else_trains(head: Any, rate: float, steps: int) -> None:
    torch.manual_seed(0)
    backbone, image = toy_backbone(), toy_image()
    frozen = {name: value.clone() for name, value in backbone.state_dict().items()}
    target = (image.mean(1) > 0.5).long()
    target[1] *= 2
    grafted = attach(backbone, decoder=head).train()
    optimizer = torch.optim.AdamW(grafted.trainable_parameters(), lr=rate)
    features = grafted.encode(image)
    for _ in range(steps):
        optimizer.zero_grad()
        output, further = grafted.learn(image, target, features=features)
        functional.cross_entropy(output.resize((64, 64)).logits, target).backward()
        optimizer.step()
    assert further is None
    assert all(p.grad is not None for p in grafted.trainable_parameters())
    labels = grafted.eval().predict(image).resize((64, 64)).labels()
    for number in (1, 2):
        mine, true = labels == number, target == number
        assert 2 * (mine & true).sum() / (mine.sum() + true.sum()) > 0.9
    assert all(torch.equal(value, frozen[name]) for name, value in backbone.state_dict().items())


def test_bad_options() -> None:
    with pytest.raises(ConfigError, match="cnn_head: width 16, depth 1"):
        CnnHeadConfig(depth=1)
    with pytest.raises(ConfigError, match="class_masks: num_classes is 0"):
        ClassMasksConfig(num_classes=0)
    with pytest.raises(ConfigError, match="init is 'random'"):
        ClassMasksConfig(init="random")  # type: ignore[arg-type]
