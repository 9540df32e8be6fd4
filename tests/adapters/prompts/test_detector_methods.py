"""SAM-det, RSPrompter-anchor and SAM-seg: parameters, what they train, what reaches the decoder, what they find."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.config import MethodConfig, config_from_dict
from samgraft.adapters.decoders import DECODERS, SamSegConfig
from samgraft.adapters.detection import Detections
from samgraft.adapters.prompts import PROMPTERS, Prompts, RSPrompterAnchorConfig, SamDetConfig
from samgraft.adapters.prompts.detector import Detector, DetectorOptions, prompts_of
from samgraft.adapters.prompts.objects import Objects, objects_from_labels
from samgraft.adapters.prompts.rsprompter_anchor import TokenHead
from samgraft.errors import ConfigError, NoMatchError
from tests.adapters.sam_shapes import meta_backbone
from tests.adapters.toy import toy_backbone, toy_image

CONFIGS: list[MethodConfig] = [
    SamDetConfig(),
    RSPrompterAnchorConfig(),
    RSPrompterAnchorConfig(with_boxes=False, with_extra_pe=False, tokens=4, full_resolution=True),
    SamSegConfig(),
    SamSegConfig(object_classes=2, stride=2),
]
each_method = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.method)


def scene(*, empty: bool = False) -> tuple[Tensor, Objects]:
    """Two images of 48 x 80 pixels with two objects and one (or none), and what is true of them."""
    labels = torch.zeros(2, 48, 80, dtype=torch.int64)
    if not empty:
        labels[0, 6:20, 50:74] = 1
        labels[0, 30:44, 4:18] = 2
        labels[1, 16:40, 20:30] = 5
    image = 0.1 * toy_image(48, 80) + 0.7 * (labels[:, None] > 0)
    labels[1, :, 72:] = -1
    return image, objects_from_labels(labels)


def built(config: Any, backbone: HFSamBackbone) -> Any:
    torch.manual_seed(0)
    return config.build(backbone).train()


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("tokens", "expected"), [(4, 4_394_240), (5, 4_525_824)])
def test_the_token_head_has_the_published_parameters(tokens: int, expected: int) -> None:
    with torch.device("meta"):
        assert parameters(TokenHead(256, 256, tokens, 256)) == expected


@pytest.mark.parametrize(("size", "aggregator"), [("b", 1_449_408), ("l", 1_807_488), ("h", 2_144_512)])
def test_the_detector_of_a_sam_has_the_published_widths(size: Any, aggregator: int) -> None:
    backbone = meta_backbone(size)
    with torch.device("meta"):
        detector = Detector(DetectorOptions(anchor_scales=(4.0, 8.0)), backbone)
        prompter = RSPrompterAnchorConfig().build(backbone)
    assert parameters(detector.aggregator) == aggregator
    assert parameters(detector.rpn) == 597_790
    assert parameters(detector.box_head) == 13_901_830
    assert parameters(prompter.head) == 4_525_824
    assert detector.strides == (4, 8, 16, 32, 64)


def test_a_small_backbone_gets_a_small_detector_for_small_objects() -> None:
    detector = Detector(DetectorOptions(), toy_backbone())
    assert detector.strides == (2, 4, 8, 16, 32) and detector.channels == 16 and detector.taps == (0, 1, 2)
    anchors = detector.rpn.anchors([(24, 40), (12, 20), (6, 10), (3, 5), (2, 3)], (48, 80), like=torch.zeros(1))
    sides = [(part[:, 2:] - part[:, :2]).prod(dim=1).sqrt() for part in anchors]
    assert sides[0].min().item() == pytest.approx(6)
    assert sides[4].max().item() == pytest.approx(136)


@each_method
def test_training_leaves_encoder_and_mask_decoder_as_they_are(config: MethodConfig) -> None:
    backbone = toy_backbone()
    frozen = {name: value.clone() for name, value in backbone.state_dict().items()}
    module, (image, objects) = built(config, backbone), scene()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    with torch.no_grad():
        features = backbone.encode(image, module.taps)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        sum(module.losses(backbone, features, image, objects).values()).backward()
        assert all(parameter.grad is not None for parameter in module.parameters())
        assert any(bool(parameter.grad.any()) for parameter in module.parameters() if parameter.grad is not None)
        optimizer.step()
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in backbone.parameters())
    after = backbone.state_dict()
    assert after.keys() == frozen.keys() and all(torch.equal(after[name], frozen[name]) for name in frozen)
    assert not any(name.startswith("backbone") or "sam." in name for name in module.state_dict())


@each_method
def test_images_without_an_object_reach_every_parameter(config: MethodConfig) -> None:
    backbone = toy_backbone()
    module, (image, objects) = built(config, backbone), scene(empty=True)
    losses = module.losses(backbone, backbone.encode(image, module.taps), image, objects)
    assert all(bool(torch.isfinite(value)) and value.ndim == 0 for value in losses.values())
    assert losses["rpn_class"].item() > 0.5 and losses["class"].item() > 0.5
    assert all(losses[name].item() == 0 for name in losses.keys() - {"rpn_class", "class"})
    sum(losses.values()).backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in module.parameters())


@each_method
def test_found_objects_of_two_images(config: MethodConfig) -> None:
    backbone = toy_backbone()
    module, (image, _) = built(config, backbone).eval(), scene()
    features = backbone.encode(image, module.taps)
    with torch.no_grad():
        found = module.find(backbone, features, image, {})
        levels = module.detector.levels(features)
        boxes = module.detector.detect(levels, (48, 80))
    assert len(found) > 2 and set(found.image_index.tolist()) == {0, 1}, "an untrained head is sure of nothing"
    assert torch.equal(found.scores, boxes.scores) and torch.equal(found.classes, boxes.classes)
    for image_number in (0, 1):
        scores = found.scores[found.image_index == image_number]
        assert torch.equal(scores, scores.sort(descending=True).values)
    side = {"sam_seg": (48 // getattr(config, "stride", 1), 80 // getattr(config, "stride", 1))}
    assert found.logits.shape[1:] == side.get(config.method, (24, 40))
    assert not found.from_ground_truth
    module.detector.box_head.options = type(module.detector.box_head.options)(score=1.0)
    with torch.no_grad():
        none = module.find(backbone, features, image, {})
    assert len(none) == 0 and none.logits.shape[1:] == found.logits.shape[1:]


@each_method
def test_half_precision_does_not_stop_it(config: MethodConfig) -> None:
    backbone = toy_backbone()
    module, (image, objects) = built(config, backbone), scene()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = backbone.encode(image, module.taps)
        losses = module.losses(backbone, features, image, objects)
        with torch.no_grad():
            module.eval().find(backbone, features, image, {})
    assert all(bool(torch.isfinite(value)) for value in losses.values())


@pytest.mark.parametrize("config", CONFIGS[:4:3], ids=lambda config: config.method)
def test_double_precision(config: MethodConfig) -> None:
    backbone = toy_backbone().double()
    module, (image, objects) = built(config, backbone).double(), scene()
    features = backbone.encode(image.double(), module.taps)
    losses = module.losses(backbone, features, image.double(), objects)
    assert all(value.dtype == torch.float64 for value in losses.values())


def test_a_few_steps_find_the_objects() -> None:
    backbone = toy_backbone()
    module, (image, objects) = built(SamSegConfig(), backbone), scene()
    features = backbone.encode(image, module.taps)
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
    for _ in range(200):
        optimizer.zero_grad(set_to_none=True)
        sum(module.losses(backbone, features, image, objects).values()).backward()
        optimizer.step()
    with torch.no_grad():
        found = module.eval().find(backbone, features, image, {})
    good = found.select(found.scores > 0.5)
    assert good.image_index.tolist() == [0, 0, 1]
    iou = [
        max((((m > 0) & t).sum() / ((m > 0) | t).sum()).item() for t in objects.masks[objects.image_index == i])
        for m, i in zip(good.logits, good.image_index, strict=True)
    ]
    assert min(iou) > 0.7


def test_the_loss_of_masks_follows_the_tokens_through_the_frozen_decoder() -> None:
    """Eight prompts on one image and one on another: both ways through the decoder (see shared_decoding)."""
    backbone = toy_backbone().double()
    prompter, (image, objects) = built(RSPrompterAnchorConfig(), backbone).double(), scene()
    features = backbone.encode(image.double())
    index = torch.tensor([0] * 8 + [1])
    tokens = torch.randn(9, 5, 32, dtype=torch.float64, requires_grad=True)

    def loss(sparse: Tensor) -> Tensor:
        logits, _ = backbone.decode(features, Prompts(image_index=index, sparse=sparse))
        return functional.softplus(logits).mean(dim=(1, 2, 3)).sum()

    (gradient,) = torch.autograd.grad(loss(tokens), tokens)
    direction = torch.randn(9, 5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for row in (3, 8):
        step = torch.zeros_like(direction)
        step[row] = 1e-5 * direction[row]
        with torch.no_grad():
            change = (loss(tokens + step) - loss(tokens - step)) / 2e-5
        assert change.item() == pytest.approx((gradient[row] * direction[row]).sum().item(), rel=1e-5)
        assert gradient[row].abs().max() > 1e-6
    del prompter, objects


def test_only_the_position_code_tells_two_places_apart() -> None:
    backbone = toy_backbone()
    levels = tuple(torch.ones(1, 16, n, m) for n, m in ((24, 40), (12, 20), (6, 10), (3, 5), (2, 3)))
    edges = torch.tensor([[8.0, 8, 24, 24], [48, 16, 64, 32]])
    for with_pe in (False, True):
        prompter = built(RSPrompterAnchorConfig(with_extra_pe=with_pe), backbone)
        with torch.no_grad():
            here, there = prompter.tokens(levels, edges, torch.tensor([0, 0]))
        assert torch.allclose(here, there, atol=1e-6) is not with_pe


def test_box_prompts_name_first_and_last_pixel() -> None:
    found = Detections(
        torch.tensor([[3.0, 4, 8, 5], [0, 0, 80, 48]]), torch.tensor([0, 1]), torch.tensor([0.6, 0.05]),
        torch.tensor([1, 0]),
    )  # fmt: skip
    prompts = prompts_of(found, 2)
    assert prompts.boxes is not None and prompts.class_logits is not None
    assert prompts.boxes.tolist() == [[3, 4, 7, 4], [0, 0, 79, 47]]
    chances = prompts.class_logits.exp()
    torch.testing.assert_close(chances, torch.tensor([[0.0, 0.6, 0.4], [0.05, 0.0, 0.95]]), atol=1e-6, rtol=0)
    assert prompts.class_logits[:, :2].argmax(dim=1).tolist() == [1, 0]


def test_scores_can_count_the_predicted_iou() -> None:
    backbone = toy_backbone()
    image, _ = scene()
    plain, counted = (built(SamDetConfig(score_by_iou=flag), backbone).eval() for flag in (False, True))
    features = backbone.encode(image, plain.taps)
    with torch.no_grad():
        prompts = plain(features, image, {})
        _, iou = backbone.decode(features, prompts)
        found, other = (module.find(backbone, features, image, {}) for module in (plain, counted))
    assert torch.equal(found.scores, prompts.scores)
    torch.testing.assert_close(other.scores, prompts.scores * iou[:, 0].clamp(0, 1))
    assert not torch.equal(other.scores, found.scores)


def test_class_maps_of_sam_seg_hold_the_highest_object() -> None:
    backbone = toy_backbone()
    image, _ = scene()
    module = built(SamSegConfig(object_classes=2), backbone).eval()
    features = backbone.encode(image, module.taps)
    with torch.no_grad():
        found, output = module.find(backbone, features, image, {}), module(backbone, features, image)
    rows = (found.image_index == 1) & (found.classes == 1)
    assert output.activation == "sigmoid" and output.num_classes == 2
    assert torch.equal(output.logits[1, 1], found.logits[rows].amax(dim=0))


@pytest.mark.parametrize("config", [SamDetConfig, RSPrompterAnchorConfig, SamSegConfig])
def test_configurations(config: Callable[..., Any]) -> None:
    registry: Any = DECODERS if config is SamSegConfig else PROMPTERS
    own = config(taps=(0, 2), channels=8, anchor_scales=(2.0,))
    assert config_from_dict(registry, own.to_dict()) == own
    for options, message in (
        ({"channels": 10}, "channels is 10; expected a multiple of 4"),
        ({"nms": 1.5}, r"nms is 1.5; expected a number in \[0, 1\]"),
        ({"max_objects": 0}, "max_objects is 0; expected 1 or more"),
        ({"anchor_scales": ()}, "anchor_scales is .*; expected one number"),
        ({"taps": "all"}, "taps is 'all'; expected 'auto'"),
        ({"mask_samples": 0}, "mask_samples is 0; expected 1 or more"),
        ({"fc": -1}, "fc is -1; expected 0 or more"),
    ):
        if "mask_samples" in options and config is SamDetConfig:
            continue
        with pytest.raises(ConfigError, match=message):
            config(**options)
    with pytest.raises(NoMatchError, match=r"taps \[0, 9\] name \[9\]"):
        config(taps=(0, 9)).build(toy_backbone())


def test_missing_taps_are_named() -> None:
    backbone = toy_backbone()
    image, _ = scene()
    with pytest.raises(ConfigError, match=r"reads blocks \[0, 1, 2\]; features lack \[0, 1, 2\]"):
        built(SamDetConfig(), backbone)(backbone.encode(image), image, {})
