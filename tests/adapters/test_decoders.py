"""The class-token decoder and semantic outputs."""

import pytest
import torch

from samgraft.adapters.decoders import DECODERS, ClassTokensConfig, MaskConfig, SemanticOutput
from samgraft.adapters.decoders.class_tokens import resolve_taps
from samgraft.adapters.decoders.sam_parts import image_positions
from samgraft.adapters.graft import attach
from samgraft.adapters.grafts import DecoderLoraConfig, LoraConfig
from samgraft.adapters.prompts import AutoSamConfig
from samgraft.errors import ConfigError, NoMatchError
from tests.adapters.toy import toy_backbone, toy_image

CONFIGS = [
    ClassTokensConfig(num_classes=1),
    ClassTokensConfig(num_classes=13, taps=(0, 2)),
    ClassTokensConfig(num_classes=2, activation="sigmoid", width=8, taps="none"),
    ClassTokensConfig(num_classes=2, full_resolution=True),
    ClassTokensConfig(num_classes=2, full_resolution=True, fused=24, train_transformer=True, dropout=0.5),
]


def test_names() -> None:
    assert DECODERS.names() == ("class_tokens", "mask")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.num_classes}-{c.activation}-{c.fused}")
@pytest.mark.parametrize("size", [(64, 64), (96, 64)], ids=["square", "tall"])
def test_shapes_gradients_and_frozen_rest(config: ClassTokensConfig, size: tuple[int, int]) -> None:
    backbone, image = toy_backbone(), toy_image(*size)
    frozen = {name: value.clone() for name, value in backbone.state_dict().items()}
    grafted = attach(backbone, LoraConfig(rank=2), decoder=config).train()
    optimizer = torch.optim.AdamW(grafted.trainable_parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        output = grafted.predict(image)
        output.logits.square().mean().backward()
        optimizer.step()
    expected = size if config.full_resolution else (size[0] // 2, size[1] // 2)
    assert output.logits.shape == (2, config.num_tokens, *expected)
    assert output.num_classes == config.num_classes
    assert {id(p) for p in grafted.parameters() if p.grad is not None} == {
        id(p) for p in grafted.trainable_parameters()
    }
    grafted.detach()
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, frozen[name]), name


def test_starts_reasonably() -> None:
    """At step 0 no class is decided: logits are moderate and differ between classes and places."""
    logits = attach(toy_backbone(), decoder=ClassTokensConfig(num_classes=3)).predict(toy_image()).logits
    assert logits.abs().max() < 20
    assert logits.std(dim=1).mean() > 1e-4
    assert logits.std(dim=(2, 3)).mean() > 1e-3


def test_overfits_two_images() -> None:
    backbone, image = toy_backbone(), toy_image()
    target = (image.mean(1) > 0.5).long()
    target[1] *= 2
    grafted = attach(backbone, decoder=ClassTokensConfig(num_classes=2, full_resolution=True)).train()
    optimizer = torch.optim.AdamW(grafted.trainable_parameters(), lr=3e-3)
    features = grafted.encode(image)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(grafted.predict(image, features=features).logits, target).backward()
        optimizer.step()
    labels = grafted.eval().predict(image).labels()
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


def test_bad_options() -> None:
    with pytest.raises(ConfigError, match="num_classes is 0"):
        ClassTokensConfig(num_classes=0)
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
