"""The class-token decoder and semantic outputs."""

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn import functional

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.decoders import DECODERS, ClassTokensConfig, ConvHeadConfig, MaskConfig, SemanticOutput
from samgraft.adapters.decoders.class_tokens import resolve_taps
from samgraft.adapters.decoders.sam_parts import image_positions
from samgraft.adapters.graft import attach
from samgraft.adapters.grafts import DecoderLoraConfig, LoraConfig
from samgraft.adapters.prompts import AutoSamConfig
from samgraft.errors import ConfigError, NoMatchError
from tests.adapters.sam_shapes import meta_backbone
from tests.adapters.toy import toy_backbone, toy_image

CONFIGS = [
    ClassTokensConfig(num_classes=1),
    ClassTokensConfig(num_classes=13, taps=(0, 2)),
    ClassTokensConfig(num_classes=2, activation="sigmoid", width=8, taps="none"),
    ClassTokensConfig(num_classes=2, full_resolution=True),
    ClassTokensConfig(num_classes=2, full_resolution=True, fused=24, train_transformer=True, dropout=0.5),
    ConvHeadConfig(num_classes=3),
    ConvHeadConfig(num_classes=2, activation="sigmoid"),
]


def test_names() -> None:
    heads = {"class_masks", "class_tokens", "cnn_head", "conv_head", "desam", "distances", "hq_token", "linear_head"}
    volumetric = {"detail_3d", "mla_3d", "progressive"}
    assert heads | volumetric | {"mask", "sam_seg"} == set(DECODERS.names())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "-".join(map(str, c.to_dict().values())))
@pytest.mark.parametrize("size", [(64, 64), (96, 64)], ids=["square", "tall"])
def test_shapes_gradients_and_frozen_rest(config: Any, size: tuple[int, int]) -> None:
    backbone, image = toy_backbone(), toy_image(*size)
    frozen = {name: value.clone() for name, value in backbone.state_dict().items()}
    grafted = attach(backbone, LoraConfig(rank=2), decoder=config).train()
    optimizer = torch.optim.AdamW(grafted.trainable_parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        output = grafted.predict(image)
        output.logits.square().mean().backward()
        optimizer.step()
    expected = size if getattr(config, "full_resolution", False) else (size[0] // 2, size[1] // 2)
    assert output.logits.shape == (2, config.num_classes + (config.activation == "softmax"), *expected)
    assert output.num_classes == config.num_classes
    assert {id(p) for p in grafted.parameters() if p.grad is not None} == {
        id(p) for p in grafted.trainable_parameters()
    }
    grafted.detach()
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, frozen[name]), name


@pytest.mark.parametrize("head", [ClassTokensConfig, ConvHeadConfig])
def test_starts_reasonably(head: Any) -> None:
    """At step 0 no class is decided: logits are moderate and differ between classes and places."""
    logits = attach(toy_backbone(), decoder=head(num_classes=3)).predict(toy_image()).logits
    assert logits.abs().max() < 20
    assert logits.std(dim=1).mean() > 1e-4
    assert logits.std(dim=(2, 3)).mean() > 1e-3


@pytest.mark.parametrize(
    ("head", "steps"),
    [(ClassTokensConfig(num_classes=2, full_resolution=True), 60), (ConvHeadConfig(num_classes=2), 150)],
    ids=["class_tokens", "conv_head"],
)
def test_overfits_two_images(head: Any, steps: int) -> None:
    backbone, image = toy_backbone(), toy_image()
    target = (image.mean(1) > 0.5).long()
    target[1] *= 2
    grafted = attach(backbone, decoder=head).train()
    optimizer = torch.optim.AdamW(grafted.trainable_parameters(), lr=3e-3)
    features = grafted.encode(image)
    for _ in range(steps):
        optimizer.zero_grad()
        logits = grafted.predict(image, features=features).resize((64, 64)).logits
        functional.cross_entropy(logits, target).backward()
        optimizer.step()
    labels = grafted.eval().predict(image).resize((64, 64)).labels()
    for number in (1, 2):
        mine, true = labels == number, target == number
        assert 2 * (mine & true).sum() / (mine.sum() + true.sum()) > 0.95


def test_tokens_pass_through_grafts_of_the_decoder() -> None:
    image, config = toy_image(), ClassTokensConfig(num_classes=1)
    backbone = toy_backbone()
    grafted = attach(backbone, DecoderLoraConfig(), decoder=config).train()
    grafted.predict(image).logits.square().mean().backward()
    gradients = [p.grad for n, p in grafted.grafts.named_parameters() if "lora_B" in n]
    assert gradients and all(g is not None and (g != 0).any() for g in gradients)


def test_parameters_stay_modest() -> None:
    """Width 192, neck 128, as graft-tiny: below 320,000 parameters with 3 classes."""
    from samgraft.adapters.backbones.hf import HFSamBackbone
    from samgraft.adapters.backbones.tiny import build_graft_tiny

    grafted = attach(HFSamBackbone(build_graft_tiny()), decoder=ClassTokensConfig(num_classes=3, full_resolution=True))
    assert sum(p.numel() for p in grafted.trainable_parameters()) < 320_000


def test_position_code_is_the_models_own() -> None:
    backbone = toy_backbone()
    expected = backbone.sam.get_image_wide_positional_embeddings()
    torch.testing.assert_close(image_positions(backbone, torch.zeros(1, 32, 8, 8)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("blocks", "taps"), [(12, (2, 5, 8)), (24, (5, 11, 17)), (6, (1, 2, 4)), (2, (0,))])
def test_auto_taps(blocks: int, taps: tuple[int, ...]) -> None:
    assert resolve_taps("auto", blocks) == taps


def test_conv_head_holds_what_its_page_says() -> None:
    """165,296 + 65 K with a neck of 256 channels, 0.166 million for the published 12 classes."""
    backbone = meta_backbone("b")
    for config, channels in [(ConvHeadConfig(num_classes=11), 12), (ConvHeadConfig(activation="sigmoid"), 1)]:
        with torch.device("meta"):
            grafted = attach(backbone, decoder=config)
        assert sum(p.numel() for p in grafted.trainable_parameters()) == 165_296 + 65 * channels


@pytest.mark.parametrize(("neck", "channels"), [(32, 8), (34, 12), (7, 4), (1, 4)])
def test_conv_head_fits_any_neck(neck: int, channels: int) -> None:
    backbone = toy_backbone().double()
    backbone.spec = dataclasses.replace(backbone.spec, neck_channels=neck)
    head = ConvHeadConfig(num_classes=4).build(backbone)
    assert head.classifier.in_channels == channels
    features = Features(neck=torch.randn(2, neck, 3, 5, dtype=torch.float64))
    assert head(backbone, features, toy_image()).logits.shape == (2, 5, 12, 20)


def test_conv_head_answers_each_image_for_itself_and_as_in_training() -> None:
    """What BatchNorm does not do."""
    grafted, image = attach(toy_backbone(), decoder=ConvHeadConfig()), toy_image()
    together = grafted.train().predict(image).logits
    alone = torch.cat([grafted.eval().predict(single).logits for single in image.split(1)])
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-4)


def test_conv_head_sees_with_dilations_1_2_3() -> None:
    """How far a change at one place reaches, by group of channels, before the norm joins places."""
    torch.manual_seed(0)
    head = ConvHeadConfig().build(toy_backbone())
    for index, reach in enumerate((0, 1, 2, 3)):
        x = torch.zeros(1, 2, 9, 9)
        x[..., 4, 4] = 1
        touched = (head.scales.convs[index](x) - head.scales.convs[index](0 * x)).abs().sum(dim=(0, 1)).nonzero()
        assert sorted(set(touched[:, 0].tolist())) == sorted({4 - reach, 4, 4 + reach})


def test_bad_options() -> None:
    for head in (ClassTokensConfig, ConvHeadConfig):
        with pytest.raises(ConfigError, match=f"{head.method}: num_classes is 0"):
            head(num_classes=0)
    with pytest.raises(ConfigError, match="activation is 'softmx'; did you mean 'softmax'"):
        ClassTokensConfig(activation="softmx")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="width is 6"):
        ClassTokensConfig(width=6)
    with pytest.raises(NoMatchError, match=r"name \[7\]; the backbone has blocks 0..2"):
        attach(toy_backbone(), decoder=ClassTokensConfig(taps=(1, 7)))


def test_mask_decoder_needs_a_semantic_prompter() -> None:
    grafted = attach(toy_backbone(), decoder=MaskConfig())
    with pytest.raises(ConfigError, match="the prompter is none"):
        grafted.predict(toy_image())
    output = attach(toy_backbone(), prompter=AutoSamConfig(channels=16), decoder=MaskConfig()).predict(toy_image())
    assert output.logits.shape == (2, 1, 32, 32)


def test_semantic_output_reads_background() -> None:
    logits = torch.tensor([[-1.0, 2.0, -3.0], [-2.0, 1.0, -1.0]]).reshape(1, 2, 1, 3)
    sigmoid = SemanticOutput(logits=logits, activation="sigmoid")
    assert sigmoid.labels().tolist() == [[[0, 1, 0]]]
    assert sigmoid.num_classes == 2
    softmax = SemanticOutput(logits=logits, activation="softmax")
    assert softmax.labels().tolist() == [[[0, 0, 1]]]
    torch.testing.assert_close(softmax.foreground()[0, 0, 0, 1], torch.tensor([2.0, 1.0]).softmax(0)[1])
    assert softmax.resize((2, 6)).logits.shape == (1, 2, 2, 6)
